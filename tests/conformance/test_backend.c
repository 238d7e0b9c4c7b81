/* The dense operations and conversions. */
#include "tests/conformance/device.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

struct shape {
    int64_t m, n, k, batch;
    bool transposed, bias, same_a, same_b;
    bool packed; /* no gaps; else nothing is aligned */
};

static void check_gemm(struct mla_device *device, const struct shape *shape)
{
    const enum mla_dtype dtype = device->backend->activation;
    const int64_t m = shape->m, n = shape->n, k = shape->k, batch = shape->batch;
    const int64_t b_rows = shape->transposed ? n : k, b_columns = shape->transposed ? k : n;
    const int64_t gap = shape->packed ? 0 : 1;
    const int64_t lda = k + 3 * gap, ldb = b_columns + 5 * gap, ldc = n + 2 * gap;
    struct mla_tensor a = mla_tensor_make(device, dtype, batch * m * lda);
    struct mla_tensor b = mla_tensor_make(device, dtype, batch * b_rows * ldb);
    struct mla_tensor c = mla_tensor_make(device, dtype, batch * m * ldc);
    struct mla_tensor bias = mla_tensor_make(device, dtype, n);
    mla_tensor_fill(&a, 0, shape->same_a ? m : batch * m, lda, k);
    mla_tensor_fill(&b, 0, shape->same_b ? b_rows : batch * b_rows, ldb, b_columns);
    mla_tensor_fill(&bias, 0, 1, n, n);
    mla_tensor_upload(device, &a);
    mla_tensor_upload(device, &b);
    mla_tensor_upload(device, &bias);
    struct mla_gemm gemm = {
        .m = m,
        .n = n,
        .k = k,
        .batch = batch,
        .a = a.memory,
        .lda = lda,
        .a_stride = shape->same_a ? 0 : m * lda,
        .b = b.memory,
        .ldb = ldb,
        .b_stride = shape->same_b ? 0 : b_rows * ldb,
        .b_transposed = shape->transposed,
        .c = c.memory,
        .ldc = ldc,
        .c_stride = m * ldc,
        .bias = shape->bias ? bias.memory : NULL,
    };
    MLA_RUN(device, gemm, &gemm);

    double *want = mla_wanted(&c);
    for (int64_t i = 0; i < batch * m; i++) {
        const float *row = a.host + i / m * gemm.a_stride + i % m * lda;
        const float *weights = b.host + i / m * gemm.b_stride;
        for (int64_t j = 0; j < n; j++) {
            double sum = shape->bias ? (double)bias.host[j] : 0;
            for (int64_t l = 0; l < k; l++)
                sum += (double)row[l] *
                       (double)(shape->transposed ? weights[j * ldb + l] : weights[l * ldb + j]);
            want[i * ldc + j] = sum;
        }
    }
    mla_expect(device, &c, want, k, "gemm");
    free(want);
    mla_tensor_free(&a);
    mla_tensor_free(&b);
    mla_tensor_free(&c);
    mla_tensor_free(&bias);
}

static void gemm_shapes(struct mla_device *device)
{
    static const struct shape shapes[] = {
        {1, 1, 1, 1, true, false, false, false, false},
        {1, 100, 1070, 1, true, true, false, false, false},
        {7, 33, 65, 1, true, false, false, false, false},
        {16, 576, 700, 1, true, false, false, false, false},
        {130, 49, 515, 1, true, true, false, false, false},
        {5, 40, 30, 3, true, false, true, false, false},
        {1, 300, 260, 1, false, false, false, false, false},
        {70, 70, 140, 1, false, true, false, false, false},
        {16, 64, 32, 4, false, false, false, false, false},
        {600, 20, 17, 1, false, false, false, false, false},
        {3, 17, 129, 2, false, false, false, true, false},
    };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        check_gemm(device, &shapes[i]);
}

/* The products of a layer: V3 and V2-Lite, and those of V3 on one rank of eight. The batched ones
 * are W_UK and W_UV of each head. */
static void gemm_model_shapes(struct mla_device *device)
{
    static const struct shape shapes[] = {
        {3, 2112, 7168, 1, true, false, false, false, true},
        {1, 576, 2048, 1, true, true, false, false, true},
        {16, 3072, 1536, 1, true, false, false, false, true},
        {130, 4096, 512, 1, true, false, false, false, true},
        {2, 7168, 2048, 1, true, false, false, false, true},
        {5, 512, 128, 128, false, false, false, false, true},
        {5, 128, 512, 16, true, false, false, false, true},
        {64, 112, 256, 1, true, false, false, false, true},
    };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        check_gemm(device, &shapes[i]);
}

static void gemm_random(struct mla_device *device)
{
    for (int i = 0; i < 12; i++) {
        struct shape shape = {
            mla_random_int(1, 90),
            mla_random_int(1, 150),
            mla_random_int(1, 300),
            mla_random_int(1, 4),
            mla_random_int(0, 1) == 1,
            mla_random_int(0, 1) == 1,
            false,
            false,
            mla_random_int(0, 1) == 1,
        };
        check_gemm(device, &shape);
    }
}

/* C is not there for a reason: nothing of it may be touched. */
static void gemm_of_no_rows(struct mla_device *device)
{
    struct mla_gemm gemm = {.m = 0, .n = 8, .k = 8, .batch = 1, .lda = 8, .ldb = 8, .ldc = 8};
    MLA_RUN(device, gemm, &gemm);
    mla_device_synchronize(device);
}

Test(backend, gemm)
{
    mla_each_device(gemm_shapes);
    mla_each_device(gemm_model_shapes);
    mla_each_device(gemm_random);
    mla_each_device(gemm_of_no_rows);
}

struct latents_case {
    int64_t rows, q_lora, latent, rope; /* q_lora 0: without */
    bool interleaved, kept;
    enum mla_dtype cache;
};

/* x / sqrt(mean(x^2) + eps) * weight */
static void want_norm(const float *x, const float *weight, int64_t n, float eps, double *want)
{
    double squares = 0;
    for (int64_t i = 0; i < n; i++)
        squares += (double)x[i] * (double)x[i];
    for (int64_t i = 0; i < n; i++)
        want[i] = (double)x[i] / sqrt(squares / (double)n + (double)eps) * (double)weight[i];
}

static void want_rotation(const float *x, const float *table, int64_t dim, bool interleaved,
                          double *want)
{
    const int64_t step = interleaved ? 2 : 1, distance = interleaved ? 1 : dim / 2;
    for (int64_t pair = 0; pair < dim / 2; pair++) {
        double cosine = (double)table[2 * pair], sine = (double)table[2 * pair + 1];
        double first = (double)x[pair * step], second = (double)x[pair * step + distance];
        want[pair * step] = first * cosine - second * sine;
        want[pair * step + distance] = first * sine + second * cosine;
    }
}

/* Slots of a cache for the rows, from the last one backwards; every third row has none. */
static void slots_of(int64_t rows, int64_t *slots)
{
    for (int64_t row = 0; row < rows; row++)
        slots[row] = row % 3 == 1 ? MLA_SLOT_NONE : rows - 1 - row;
}

static uint32_t bits_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* Of the same dtype and shape. */
static void expect_same_bits(struct mla_device *device, struct mla_tensor *got,
                             struct mla_tensor *want, const char *what)
{
    mla_tensor_download(device, got);
    mla_tensor_download(device, want);
    for (int64_t i = 0; i < got->count; i++)
        cr_assert_eq(bits_of(got->host[i]), bits_of(want->host[i]), "%s[%ld]: %.9g for %.9g", what,
                     (long)i, (double)got->host[i], (double)want->host[i]);
}

static void check_latents(struct mla_device *device, const struct latents_case *c)
{
    enum { POSITIONS = 50 };
    const enum mla_dtype dtype = device->backend->activation;
    const int64_t n = c->q_lora + c->latent + c->rope, stride = n + 8;
    const float eps = 1e-2f;
    struct mla_tensor x = mla_tensor_make(device, dtype, c->rows * stride);
    struct mla_tensor q_norm = mla_tensor_make(device, dtype, c->q_lora + 1);
    struct mla_tensor kv_norm = mla_tensor_make(device, dtype, c->latent);
    struct mla_tensor table = mla_tensor_make(device, MLA_F32, POSITIONS * c->rope);
    int32_t positions[64];
    cr_assert(c->rows <= 64);
    for (int64_t row = 0; row < c->rows; row++)
        positions[row] = (int32_t)mla_random_int(0, POSITIONS - 1);
    mla_tensor_fill(&x, 0, c->rows, stride, n);
    for (int64_t i = 0; i < n; i++)
        x.host[i] = 0; /* a row of zeros stays one */
    mla_tensor_fill(&q_norm, 0, 1, c->q_lora, c->q_lora);
    mla_tensor_fill(&kv_norm, 0, 1, c->latent, c->latent);
    mla_tensor_fill(&table, 0, 1, table.count, table.count);
    mla_tensor_upload(device, &x);
    mla_tensor_upload(device, &q_norm);
    mla_tensor_upload(device, &kv_norm);
    mla_tensor_upload(device, &table);
    double *want = mla_wanted(&x);
    for (int64_t row = 0; row < c->rows; row++) {
        const float *in = x.host + row * stride;
        double *out = want + row * stride;
        want_norm(in, q_norm.host, c->q_lora, eps, out);
        want_norm(in + c->q_lora, kv_norm.host, c->latent, eps, out + c->q_lora);
        want_rotation(in + c->q_lora + c->latent, table.host + positions[row] * c->rope, c->rope,
                      c->interleaved, out + c->q_lora + c->latent);
    }
    char *memory = x.memory;
    struct mla_tensor kept = mla_tensor_make_pool(device, c->cache, 1, c->latent, c->rope);
    struct mla_tensor written = mla_tensor_make_pool(device, c->cache, 1, c->latent, c->rope);
    mla_tensor_upload(device, &kept);
    mla_tensor_upload(device, &written);
    int64_t slots[64];
    slots_of(c->rows, slots);
    struct mla_kv_write write = {
        .pool = written.pool,
        .rows = c->kept ? c->rows : 0,
        .src = memory + (size_t)c->q_lora * mla_dtype_bytes(dtype),
        .src_stride = stride,
        .slots = mla_device_put(device, slots, sizeof slots),
    };
    MLA_RUN(device, latents,
            &(struct mla_latents){
                .rows = c->rows,
                .stride = stride,
                .cq = c->q_lora ? memory : NULL,
                .q_lora = c->q_lora,
                .q_norm = q_norm.memory,
                .ckv = memory + (size_t)c->q_lora * mla_dtype_bytes(dtype),
                .latent = c->latent,
                .rope = c->rope,
                .kv_norm = kv_norm.memory,
                .eps = eps,
                .positions = mla_device_put(device, positions, sizeof positions),
                .table = table.memory,
                .interleaved = c->interleaved,
                .slots = c->kept ? write.slots : NULL,
                .pool = kept.pool,
            });
    mla_expect(device, &x, want, n, "latents");
    MLA_RUN(device, kv_write, &write);
    expect_same_bits(device, &kept, &written, "rows kept");
    free(want);
    mla_tensor_free(&kept);
    mla_tensor_free(&written);
    mla_tensor_free(&x);
    mla_tensor_free(&q_norm);
    mla_tensor_free(&kv_norm);
    mla_tensor_free(&table);
}

static void latents_shapes(struct mla_device *device)
{
    static const struct latents_case cases[] = {
        {2, 0, 1, 2, true, false, MLA_BF16},       {3, 5, 63, 4, false, true, MLA_F32},
        {40, 24, 64, 16, true, true, MLA_F32},     {40, 24, 64, 16, false, true, MLA_BF16},
        {5, 1536, 512, 64, true, false, MLA_BF16}, {33, 0, 512, 64, true, true, MLA_BF16},
        {5, 1536, 512, 64, true, true, MLA_F32},   {6, 2056, 24, 8, true, true, MLA_BF16},
        {4, 20, 17, 6, true, true, MLA_BF16},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        check_latents(device, &cases[i]);
}

Test(backend, latents)
{
    mla_each_device(latents_shapes);
}

struct rope_case {
    int64_t rows, heads, dim, gap;
    bool interleaved, in_place;
};

static void check_rope(struct mla_device *device, const struct rope_case *c)
{
    enum { POSITIONS = 50 };
    const enum mla_dtype dtype = device->backend->activation;
    const int64_t heads = c->heads, dim = c->dim;
    /* In a query the rope part follows the nope part of each head. */
    const int64_t src_head = dim + 7 * c->gap, src_row = heads * src_head + c->gap;
    const int64_t dst_head = c->in_place ? src_head : dim + 2 * c->gap;
    const int64_t dst_row = c->in_place ? src_row : heads * dst_head + 3 * c->gap;
    struct mla_tensor src = mla_tensor_make(device, dtype, c->rows * src_row);
    struct mla_tensor dst = mla_tensor_make(device, dtype, c->rows * dst_row);
    struct mla_tensor table = mla_tensor_make(device, MLA_F32, POSITIONS * dim);
    int32_t positions[64];
    cr_assert(c->rows <= 64);
    for (int64_t row = 0; row < c->rows; row++) {
        positions[row] = (int32_t)mla_random_int(0, POSITIONS - 1);
        mla_tensor_fill(&src, row * src_row, heads, src_head, dim);
    }
    mla_tensor_fill(&table, 0, 1, table.count, table.count);
    mla_tensor_upload(device, &src);
    mla_tensor_upload(device, &table);
    double *want = mla_wanted(&dst);
    for (int64_t i = 0; i < c->rows * heads; i++)
        want_rotation(src.host + i / heads * src_row + i % heads * src_head,
                      table.host + positions[i / heads] * dim, dim, c->interleaved,
                      want + i / heads * dst_row + i % heads * dst_head);
    struct mla_rope rope = {
        .rows = c->rows,
        .heads = heads,
        .dim = dim,
        .src = src.memory,
        .src_row_stride = src_row,
        .src_head_stride = src_head,
        .dst = c->in_place ? src.memory : dst.memory,
        .dst_row_stride = dst_row,
        .dst_head_stride = dst_head,
        .positions = mla_device_put(device, positions, sizeof positions),
        .table = table.memory,
        .interleaved = c->interleaved,
    };
    MLA_RUN(device, rope, &rope);
    mla_expect(device, c->in_place ? &src : &dst, want, 1, "rope");
    free(want);
    mla_tensor_free(&src);
    mla_tensor_free(&dst);
    mla_tensor_free(&table);
}

static void rope_cases(struct mla_device *device)
{
    static const struct rope_case cases[] = {
        {5, 3, 16, 1, true, false},  {5, 3, 16, 1, false, false}, {5, 1, 64, 1, true, true},
        {5, 2, 64, 1, false, true},  {64, 8, 64, 1, true, false}, {1, 1, 2, 1, true, false},
        {7, 128, 64, 1, true, true}, {9, 128, 64, 8, true, true}, {64, 16, 64, 0, true, false},
        {3, 2, 8, 8, true, false},   {3, 2, 12, 8, true, false},  {4, 16, 64, 8, false, false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        check_rope(device, &cases[i]);
}

Test(backend, rope)
{
    mla_each_device(rope_cases);
}

static void check_copy(struct mla_device *device, enum mla_dtype from, enum mla_dtype to,
                       int64_t rows, int64_t n, int64_t gap)
{
    const int64_t src_stride = n + 3 * gap, dst_stride = n + gap;
    struct mla_tensor src = mla_tensor_make(device, from, rows * src_stride);
    struct mla_tensor dst = mla_tensor_make(device, to, rows * dst_stride);
    double *want = mla_wanted(&dst);
    mla_tensor_fill(&src, 0, rows, src_stride, n);
    src.host[0] = INFINITY;
    src.host[n - 1] = NAN;
    src.host[src_stride] = 1.00390625f; /* between two bf16 numbers, rounded to the even one */
    mla_tensor_upload(device, &src);
    MLA_RUN(device, copy,
            &(struct mla_copy){
                .rows = rows,
                .n = n,
                .src = src.memory,
                .src_stride = src_stride,
                .src_dtype = from,
                .dst = dst.memory,
                .dst_stride = dst_stride,
                .dst_dtype = to,
            });
    mla_tensor_download(device, &src);
    for (int64_t i = 0; i < rows * n; i++) {
        float value = src.host[i / n * src_stride + i % n];
        if (to == MLA_BF16)
            value = mla_bf16_to_f32(mla_f32_to_bf16(value));
        want[i / n * dst_stride + i % n] = (double)value;
    }
    mla_expect(device, &dst, want, 0, "copy");
    /* Conversion is exact: no tolerance is left over from dtype either. */
    for (int64_t i = 0; i < dst.count; i++)
        cr_assert(isnan(want[i]) || (double)dst.host[i] == want[i]);
    free(want);
    mla_tensor_free(&src);
    mla_tensor_free(&dst);
}

static void copy_dtypes(struct mla_device *device)
{
    static const enum mla_dtype dtypes[] = {MLA_F32, MLA_BF16};
    for (int i = 0; i < 4; i++) {
        check_copy(device, dtypes[i / 2], dtypes[i % 2], 2, 2, 1);
        check_copy(device, dtypes[i / 2], dtypes[i % 2], 33, 577, 1);
        check_copy(device, dtypes[i / 2], dtypes[i % 2], 33, 2048, 8);
        check_copy(device, dtypes[i / 2], dtypes[i % 2], 70, 64, 0);
    }
}

Test(backend, copy)
{
    mla_each_device(copy_dtypes);
}
