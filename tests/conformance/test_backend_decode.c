/* Absorbed attention over pages. */
#include "proto/limits.h"
#include "tests/conformance/device.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>

enum { BLOCK = MLA_BLOCK_TOKENS, SEQUENCES_MAX = 8, PAGES_MAX = 32 };

struct decode_case {
    int64_t heads, latent, rope;
    enum mla_dtype dtype;
    int sequences;
    int32_t rows[SEQUENCES_MAX], kv_length[SEQUENCES_MAX];
    bool share;  /* the first whole page of sequence 0 is also that of the others */
    bool poison; /* the newest cached row of sequence 0 is NaN */
};

/* A case on a device: its tensors, and the lists in host memory. */
struct setup {
    const struct decode_case *c;
    struct mla_tensor pool, q, out;
    int32_t tables[SEQUENCES_MAX * PAGES_MAX];
    int32_t table[SEQUENCES_MAX], row_first[SEQUENCES_MAX + 1];
    struct mla_attend_decode attend;
};

/* Pages are given out in a random order; what is beyond a length is NaN, what is beyond a table
 * is no block. */
static void make_pages(struct setup *setup, struct mla_device *device)
{
    const struct decode_case *c = setup->c;
    const int64_t dim = c->latent + c->rope, blocks = (int64_t)c->sequences * PAGES_MAX;
    int32_t order[SEQUENCES_MAX * PAGES_MAX], next = 0;
    for (int32_t i = 0; i < blocks; i++) {
        int64_t j = mla_random_int(0, i);
        order[i] = order[j];
        order[j] = i;
    }
    setup->pool = mla_tensor_make(device, c->dtype, blocks * BLOCK * dim);
    for (int s = 0; s < c->sequences; s++) {
        /* Tables needn't be in the order of the sequences. */
        setup->table[s] = c->sequences - 1 - s;
        int32_t *table = setup->tables + (ptrdiff_t)setup->table[s] * PAGES_MAX;
        for (int page = 0; page < PAGES_MAX; page++) {
            int32_t left = c->kv_length[s] - page * BLOCK;
            table[page] = left <= 0 ? INT32_MAX : order[next++];
            if (c->share && s > 0 && page == 0)
                table[page] = setup->tables[(ptrdiff_t)setup->table[0] * PAGES_MAX];
            else if (left > 0)
                mla_tensor_fill(&setup->pool, (int64_t)table[page] * BLOCK * dim, 1, dim,
                                (left < BLOCK ? left : BLOCK) * dim);
        }
    }
    if (c->poison) {
        const int32_t last = c->kv_length[0] - 1;
        int64_t block = setup->tables[(ptrdiff_t)setup->table[0] * PAGES_MAX + last / BLOCK];
        for (int64_t i = 0; i < dim; i++)
            setup->pool.host[(block * BLOCK + last % BLOCK) * dim + i] = NAN;
    }
    mla_tensor_upload(device, &setup->pool);
}

static void make(struct setup *setup, struct mla_device *device, const struct decode_case *c)
{
    const int64_t dim = c->latent + c->rope;
    const enum mla_dtype dtype = device->backend->activation;
    *setup = (struct setup){.c = c};
    for (int s = 0; s < c->sequences; s++)
        setup->row_first[s + 1] = setup->row_first[s] + c->rows[s];
    const int64_t rows = setup->row_first[c->sequences], rows_max = rows + 2;
    const int64_t q_head = dim + 3, q_row = c->heads * q_head + 1;
    const int64_t out_head = c->latent + 2, out_row = c->heads * out_head + 5;
    make_pages(setup, device);
    setup->q = mla_tensor_make(device, dtype, rows_max * q_row);
    setup->out = mla_tensor_make(device, dtype, rows_max * out_row);
    for (int64_t row = 0; row < rows; row++)
        mla_tensor_fill(&setup->q, row * q_row, c->heads, q_head, dim);
    mla_tensor_upload(device, &setup->q);
    setup->attend = (struct mla_attend_decode){
        .kv = {.pool = {setup->pool.memory, c->dtype, c->latent, c->rope},
               .tables = mla_device_put(device, setup->tables, sizeof setup->tables),
               .table_stride = PAGES_MAX,
               .sequences = c->sequences,
               .table = mla_device_put(device, setup->table, sizeof setup->table),
               .row_first = mla_device_put(device, setup->row_first, sizeof setup->row_first),
               .kv_length = mla_device_put(device, c->kv_length, sizeof c->kv_length)},
        .rows_max = rows_max,
        .heads = c->heads,
        .q = setup->q.memory,
        .q_row_stride = q_row,
        .q_head_stride = q_head,
        .out = setup->out.memory,
        .out_row_stride = out_row,
        .out_head_stride = out_head,
        .scale = 4.0f / sqrtf((float)dim), /* scores of different sizes */
    };
}

static void fini(struct setup *setup)
{
    mla_tensor_free(&setup->pool);
    mla_tensor_free(&setup->q);
    mla_tensor_free(&setup->out);
}

static const float *cached(const struct setup *setup, int64_t s, int64_t token)
{
    int64_t at = (int64_t)setup->table[s] * PAGES_MAX + token / BLOCK;
    int64_t block = setup->tables[at];
    return setup->pool.host + (block * BLOCK + token % BLOCK) * (setup->c->latent + setup->c->rope);
}

/* One head of one row of sequence s that sees `keys` tokens. */
static void reference(const struct setup *setup, int64_t s, const float *q, int64_t keys,
                      double *out)
{
    const int64_t latent = setup->c->latent, dim = latent + setup->c->rope;
    double *scores = malloc((size_t)keys * sizeof *scores), max = -(double)INFINITY, sum = 0;
    cr_assert_not_null(scores);
    for (int64_t key = 0; key < keys; key++) {
        scores[key] = 0;
        for (int64_t i = 0; i < dim; i++)
            scores[key] += (double)q[i] * (double)cached(setup, s, key)[i];
        scores[key] *= (double)setup->attend.scale;
        max = fmax(max, scores[key]);
    }
    for (int64_t i = 0; i < latent; i++)
        out[i] = 0;
    for (int64_t key = 0; key < keys; key++) {
        double weight = exp(scores[key] - max);
        sum += weight;
        for (int64_t i = 0; i < latent; i++)
            out[i] += weight * (double)cached(setup, s, key)[i];
    }
    for (int64_t i = 0; i < latent; i++)
        out[i] /= sum;
    free(scores);
}

static double *wanted(const struct setup *setup)
{
    const struct decode_case *c = setup->c;
    const struct mla_attend_decode *attend = &setup->attend;
    double *want = mla_wanted(&setup->out);
    for (int s = 0; s < c->sequences; s++)
        for (int32_t j = 0; j < c->rows[s]; j++)
            for (int64_t head = 0; head < c->heads; head++) {
                int64_t row = setup->row_first[s] + j;
                reference(setup, s,
                          setup->q.host + row * attend->q_row_stride + head * attend->q_head_stride,
                          c->kv_length[s] - (c->rows[s] - 1 - j),
                          want + row * attend->out_row_stride + head * attend->out_head_stride);
            }
    return want;
}

static void check(struct mla_device *device, const struct decode_case *c)
{
    struct setup setup;
    make(&setup, device, c);
    double *want = wanted(&setup);
    MLA_RUN(device, attend_decode, &setup.attend);
    mla_expect(device, &setup.out, want, c->latent + c->rope, "attend_decode");
    free(want);
    fini(&setup);
}

static void lengths(struct mla_device *device)
{
    static const struct decode_case cases[] = {
        {1, 64, 16, MLA_F32, 1, {1}, {1}, false, false},
        {16,
         64,
         16,
         MLA_F32,
         7,
         {1, 1, 1, 1, 1, 1, 1},
         {1, 63, 64, 65, 127, 129, 500},
         false,
         false},
        {3, 40, 10, MLA_BF16, 4, {1, 1, 1, 1}, {64, 1, 190, 128}, false, false},
        {20, 512, 64, MLA_F32, 2, {1, 1}, {300, 77}, false, false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        check(device, &cases[i]);
}

Test(decode, lengths)
{
    mla_each_device(lengths);
}

/* A sequence without rows among others, and with several, more heads and rows than one tile. */
static void several_rows(struct mla_device *device)
{
    static const struct decode_case cases[] = {
        {1, 64, 16, MLA_F32, 3, {3, 0, 2}, {3, 70, 66}, false, false},
        {5, 32, 8, MLA_F32, 4, {4, 1, 5, 17}, {130, 64, 64, 257}, false, false},
        {18, 64, 16, MLA_BF16, 2, {2, 3}, {129, 66}, false, false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        check(device, &cases[i]);
}

Test(decode, several_rows)
{
    mla_each_device(several_rows);
}

/* A row that comes later, NaN as it may be, is nothing to those before it. */
static void poisoned_tail(struct mla_device *device)
{
    static const struct decode_case cases[] = {
        {4, 64, 16, MLA_F32, 2, {3, 1}, {129, 64}, false, true},
        {16, 64, 16, MLA_F32, 1, {2}, {1100}, false, true},
        {1, 32, 8, MLA_BF16, 1, {16}, {70}, false, true},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        check(device, &cases[i]);
}

Test(decode, poisoned_tail)
{
    mla_each_device(poisoned_tail);
}

static void shared_blocks(struct mla_device *device)
{
    static const struct decode_case c = {2,    64,   16, MLA_F32, 3, {1, 2, 1}, {64, 100, 190},
                                         true, false};
    check(device, &c);
}

Test(decode, shared_blocks)
{
    mla_each_device(shared_blocks);
}

/* One long sequence is shared by the threads, and still comes out the same every time. */
static void split_keys(struct mla_device *device)
{
    static const struct decode_case c = {6,     64,   16, MLA_F32, 3, {1, 3, 1}, {2000, 1030, 5},
                                         false, false};
    struct setup setup;
    make(&setup, device, &c);
    double *want = wanted(&setup);
    MLA_RUN(device, attend_decode, &setup.attend);
    mla_expect(device, &setup.out, want, c.latent + c.rope, "attend_decode, split");
    size_t bytes = (size_t)setup.out.count * sizeof(float);
    float *first = malloc(bytes);
    cr_assert_not_null(first);
    memcpy(first, setup.out.host, bytes);
    for (int i = 0; i < 5; i++) {
        MLA_RUN(device, attend_decode, &setup.attend);
        mla_tensor_download(device, &setup.out);
        cr_assert(memcmp((char *)first, (char *)setup.out.host, bytes) == 0);
    }
    free(first);
    free(want);
    fini(&setup);
}

Test(decode, split_keys)
{
    mla_each_device(split_keys);
}

/* No sequences at all: nothing is written. */
static void empty(struct mla_device *device)
{
    static const struct decode_case c = {2, 64, 16, MLA_F32, 2, {0, 0}, {64, 3}, false, false};
    check(device, &c);
    struct setup setup;
    make(&setup, device, &c);
    setup.attend.kv.sequences = 0;
    MLA_RUN(device, attend_decode, &setup.attend);
    double *want = mla_wanted(&setup.out);
    mla_expect(device, &setup.out, want, 1, "attend_decode of nothing");
    free(want);
    fini(&setup);
}

Test(decode, empty)
{
    mla_each_device(empty);
}
