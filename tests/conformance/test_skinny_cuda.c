/* Products of few rows on Hopper, for devices that share them out differently. */
#include "kernels/cuda/gemm_skinny.h"
#include "tests/conformance/device.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* AT_ONCE: launches that don't wait for each other. */
enum { CHECKED = 2000, AT_ONCE = 8 };

struct shape {
    int64_t n, k, batch;
    bool turned, bias; /* turned: B [k, n] */
};

struct product {
    struct shape shape;
    int64_t m_max, ldc;
    struct mla_tensor a, b, c, bias;
};

static struct product *make(struct mla_device *device, const struct shape *shape, int64_t m_max)
{
    struct product *p = calloc(1, sizeof *p);
    cr_assert_not_null(p);
    p->shape = *shape;
    p->m_max = m_max;
    p->ldc = shape->n + 8;
    p->a = mla_tensor_make(device, MLA_BF16, m_max * shape->batch * shape->k);
    p->b = mla_tensor_make(device, MLA_BF16, shape->batch * shape->n * shape->k);
    p->c = mla_tensor_make(device, MLA_BF16, m_max * shape->batch * p->ldc);
    p->bias = mla_tensor_make(device, MLA_BF16, shape->n);
    mla_tensor_fill(&p->a, 0, 1, p->a.count, p->a.count);
    mla_tensor_fill(&p->b, 0, 1, p->b.count, p->b.count);
    mla_tensor_fill(&p->bias, 0, 1, shape->n, shape->n);
    mla_tensor_upload(device, &p->a);
    mla_tensor_upload(device, &p->b);
    mla_tensor_upload(device, &p->bias);
    return p;
}

static void fini(struct product *p)
{
    mla_tensor_free(&p->a);
    mla_tensor_free(&p->b);
    mla_tensor_free(&p->c);
    mla_tensor_free(&p->bias);
    free(p);
}

/* The layer's strides: of a row all batches, one after another. */
static struct mla_gemm gemm_of(const struct product *p, int64_t m)
{
    const struct shape *s = &p->shape;
    return (struct mla_gemm){.m = m,
                             .n = s->n,
                             .k = s->k,
                             .batch = s->batch,
                             .a = p->a.memory,
                             .lda = s->batch * s->k,
                             .a_stride = s->k,
                             .b = p->b.memory,
                             .ldb = s->turned ? s->n : s->k,
                             .b_stride = s->n * s->k,
                             .b_transposed = !s->turned,
                             .c = p->c.memory,
                             .ldc = s->batch * p->ldc,
                             .c_stride = p->ldc,
                             .bias = s->bias ? p->bias.memory : NULL};
}

static double wanted(const struct product *p, const struct mla_gemm *g, int64_t batch, int64_t i,
                     int64_t j)
{
    const float *row = p->a.host + batch * g->a_stride + i * g->lda;
    const float *weights = p->b.host + batch * g->b_stride;
    double sum = g->bias ? (double)p->bias.host[j] : 0;
    for (int64_t l = 0; l < g->k; l++)
        sum += (double)row[l] * (double)weights[g->b_transposed ? j * g->ldb + l : l * g->ldb + j];
    return sum;
}

/* All elements are numbers or were left alone; some of them, wherever they are, the right ones. */
static void check(const struct product *p, const struct mla_gemm *g, const char *what)
{
    for (int64_t at = 0; at < p->c.count; at++) {
        bool inside = at / g->ldc < g->m && at % p->ldc < g->n;
        cr_assert_eq(isfinite(p->c.host[at]) != 0, inside, "%s[%ld] is %g", what, (long)at,
                     (double)p->c.host[at]);
    }
    /* The deviation of sums of products of what is in [-1, 1), or less. */
    const double scale = sqrt((double)g->k) / 3;
    for (int at = 0; at < CHECKED; at++) {
        const int64_t batch = mla_random_int(0, g->batch - 1);
        const int64_t i = mla_random_int(0, g->m - 1), j = mla_random_int(0, g->n - 1);
        const double want = wanted(p, g, batch, i, j);
        const double got = (double)p->c.host[i * g->ldc + batch * g->c_stride + j];
        const double sums = 1e-6 * sqrt((double)g->k);
        cr_assert_leq(fabs(got - want), (0x1p-8 + sums) * (fabs(want) + scale),
                      "%s[%ld, %ld] of batch %ld: %g for %g", what, (long)i, (long)j, (long)batch,
                      got, want);
    }
}

static void poison(struct product *p, struct mla_device *device)
{
    for (int64_t i = 0; i < p->c.count; i++)
        p->c.host[i] = NAN;
    mla_tensor_upload(device, &p->c);
}

static void run(struct product *p, struct mla_device *device, const struct mla_gemm *gemm,
                int multiprocessors)
{
    poison(p, device);
    for (int i = 0; i < AT_ONCE; i++)
        cr_assert_eq(
            mla_cuda_skinny_launch(gemm, multiprocessors, mla_backend_cuda_stream(device->backend)),
            cudaSuccess);
    mla_tensor_download(device, &p->c);
}

/* With k unsplit, as on an H100, and split as much as it can be; twice with the same bits. */
static void check_rows(struct product *p, struct mla_device *device, int64_t m)
{
    static const int multiprocessors[] = {1, 132, 1 << 20};
    const struct mla_gemm gemm = gemm_of(p, m);
    const size_t bytes = (size_t)p->c.count * sizeof(float);
    float *first = malloc(bytes);
    cr_assert_not_null(first);
    cr_assert(mla_cuda_skinny_fits(&gemm));
    for (size_t i = 0; i < sizeof multiprocessors / sizeof *multiprocessors; i++) {
        char what[128];
        snprintf(what, sizeof what, "[%ld, %ld] x %ld for %d multiprocessors", (long)m,
                 (long)gemm.n, (long)gemm.k, multiprocessors[i]);
        run(p, device, &gemm, multiprocessors[i]);
        check(p, &gemm, what);
        memcpy(first, p->c.host, bytes);
        run(p, device, &gemm, multiprocessors[i]);
        cr_assert_eq(memcmp(first, p->c.host, bytes), 0, "%s: other bits", what);
    }
    free(first);
}

/* Hopper's only. */
static bool has_kernels(const struct mla_device *device)
{
    int device_id, major = 0, minor = 0;
    return strcmp(device->backend->ops->name, "cuda") == 0 &&
           cudaGetDevice(&device_id) == cudaSuccess &&
           cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device_id) ==
               cudaSuccess &&
           cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device_id) ==
               cudaSuccess &&
           major == 9 && minor == 0;
}

static void check_shapes(struct mla_device *device, const struct shape *shapes, size_t count,
                         const int64_t *rows, size_t row_counts)
{
    if (!has_kernels(device))
        return;
    for (size_t i = 0; i < count; i++) {
        struct product *p = make(device, &shapes[i], rows[row_counts - 1]);
        for (size_t r = 0; r < row_counts; r++)
            check_rows(p, device, rows[r]);
        fini(p);
    }
}

/* Short sums, ends of tiles that aren't there, steps that are short. */
static void small_shapes(struct mla_device *device)
{
    static const struct shape shapes[] = {
        {8, 8, 1, false, true},    {72, 200, 3, false, false},  {200, 72, 3, true, false},
        {320, 128, 2, true, true}, {136, 1000, 1, false, true},
    };
    static const int64_t rows[] = {1, 2, 7, 8, 15, 16, 17, 24, 31, 32};
    check_shapes(device, shapes, sizeof shapes / sizeof *shapes, rows, sizeof rows / sizeof *rows);
}

/* A layer's products: V2-Lite's and V3's with 16 heads. */
static void layer_shapes(struct mla_device *device)
{
    static const struct shape shapes[] = {
        {2112, 7168, 1, false, false}, {3072, 1536, 1, false, false}, {512, 128, 16, true, false},
        {128, 512, 16, false, false},  {7168, 2048, 1, false, true},  {576, 2048, 1, false, true},
        {3648, 2048, 1, false, false}, {2048, 2048, 1, false, false},
    };
    static const int64_t rows[] = {1, 16, 19, 32};
    check_shapes(device, shapes, sizeof shapes / sizeof *shapes, rows, sizeof rows / sizeof *rows);
}

/* V3's with 128 heads. */
static void large_shapes(struct mla_device *device)
{
    static const struct shape shapes[] = {
        {24576, 1536, 1, false, false},
        {512, 128, 128, true, false},
        {128, 512, 128, false, false},
        {7168, 16384, 1, false, false},
    };
    static const int64_t rows[] = {1, 7, 32};
    check_shapes(device, shapes, sizeof shapes / sizeof *shapes, rows, sizeof rows / sizeof *rows);
}

Test(skinny, small)
{
    mla_each_device(small_shapes);
}

Test(skinny, layer)
{
    mla_each_device(layer_shapes);
}

Test(skinny, large)
{
    mla_each_device(large_shapes);
}
