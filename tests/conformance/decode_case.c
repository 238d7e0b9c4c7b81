#include "tests/conformance/decode_case.h"

#include "proto/limits.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>

enum { BLOCK = MLA_BLOCK_TOKENS, PAGES_MAX = MLA_DECODE_PAGES_MAX };

static int32_t pages_of(int32_t tokens)
{
    return (tokens + BLOCK - 1) / BLOCK;
}

int64_t mla_decode_slot(const struct mla_decode_setup *setup, int64_t s, int64_t token)
{
    int64_t block = setup->tables[(int64_t)setup->table[s] * PAGES_MAX + token / BLOCK];
    return block * BLOCK + token % BLOCK;
}

static float *cached(const struct mla_decode_setup *setup, int64_t s, int64_t token)
{
    return setup->pool.host +
           mla_decode_slot(setup, s, token) * (setup->c->latent + setup->c->rope);
}

static void make_pages(struct mla_decode_setup *setup, struct mla_device *device)
{
    const struct mla_decode_case *c = setup->c;
    const int64_t dim = c->latent + c->rope;
    int32_t blocks = 3, next = 0; /* some are nobody's */
    for (int s = 0; s < c->sequences; s++) {
        cr_assert(pages_of(c->kv_length[s]) <= PAGES_MAX);
        blocks += pages_of(c->kv_length[s]);
    }
    int32_t *order = calloc((size_t)blocks, sizeof *order);
    cr_assert_not_null(order);
    for (int32_t i = 0; i < blocks; i++) {
        int64_t j = mla_random_int(0, i);
        order[i] = order[j];
        order[j] = i;
    }
    setup->pool = mla_tensor_make_pool(device, c->dtype, blocks, c->latent, c->rope);
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
    free(order);
    for (int64_t i = 0; c->poison && i < dim; i++)
        cached(setup, 0, c->kv_length[0] - 1)[i] = NAN;
    mla_tensor_upload(device, &setup->pool);
}

void mla_decode_make(struct mla_decode_setup *setup, struct mla_device *device,
                     const struct mla_decode_case *c)
{
    const int64_t dim = c->latent + c->rope;
    const enum mla_dtype dtype = device->backend->activation;
    *setup = (struct mla_decode_setup){.c = c};
    for (int s = 0; s < c->sequences; s++)
        setup->row_first[s + 1] = setup->row_first[s] + c->rows[s];
    const int64_t rows = setup->row_first[c->sequences], rows_max = rows + 2;
    const int64_t q_head = dim + (c->packed ? 0 : 3), q_row = c->heads * q_head + !c->packed;
    const int64_t out_head = c->latent + (c->packed ? 0 : 2);
    const int64_t out_row = c->heads * out_head + (c->packed ? 0 : 5);
    make_pages(setup, device);
    setup->q = mla_tensor_make(device, dtype, rows_max * q_row);
    setup->out = mla_tensor_make(device, dtype, rows_max * out_row);
    for (int64_t row = 0; row < rows; row++)
        mla_tensor_fill(&setup->q, row * q_row, c->heads, q_head, dim);
    mla_tensor_upload(device, &setup->q);
    setup->attend = (struct mla_attend_decode){
        .kv = {.pool = setup->pool.pool,
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
    setup->schedule = mla_device_make(
        device, device->backend->ops->decode_schedule_bytes(device->backend, rows_max, c->heads));
    setup->attend.schedule = setup->schedule;
}

void mla_decode_fini(struct mla_decode_setup *setup)
{
    mla_tensor_free(&setup->pool);
    mla_tensor_free(&setup->q);
    mla_tensor_free(&setup->out);
    free(setup->slack);
}

void mla_decode_run(struct mla_decode_setup *setup, struct mla_device *device)
{
    MLA_RUN(device, schedule_decode, &setup->attend, setup->schedule);
    MLA_RUN(device, attend_decode, &setup->attend);
}

/* One head of one row of sequence s that sees `keys` tokens. Weights may be rounded before they are
 * multiplied with values: slack is five standard deviations of what that does to a value's
 * numerator and denominator. A rounding's own is 0.42 of the largest. */
static void reference(const struct mla_decode_setup *setup, int64_t s, const float *q, int64_t keys,
                      double *out, double *slack)
{
    const double deviations = 5 * 0.42 * sqrt(2);
    const int64_t latent = setup->c->latent, dim = latent + setup->c->rope;
    double *scores = malloc((size_t)keys * sizeof *scores), max = -(double)INFINITY, sum = 0;
    cr_assert_not_null(scores);
    for (int64_t key = 0; key < keys; key++) {
        const float *row = cached(setup, s, key);
        double score = 0;
        for (int64_t i = 0; i < dim; i++)
            score += (double)q[i] * (double)row[i];
        scores[key] = score * (double)setup->attend.scale;
        max = fmax(max, scores[key]);
    }
    for (int64_t i = 0; i < latent; i++)
        out[i] = slack[i] = 0;
    for (int64_t key = 0; key < keys; key++) {
        const float *row = cached(setup, s, key);
        double weight = exp(scores[key] - max);
        sum += weight;
        for (int64_t i = 0; i < latent; i++)
            out[i] += weight * (double)row[i];
        for (int64_t i = 0; i < latent; i++)
            slack[i] += weight * weight * (double)row[i] * (double)row[i];
    }
    for (int64_t i = 0; i < latent; i++) {
        out[i] /= sum;
        slack[i] = deviations * sqrt(slack[i]) / sum;
    }
    free(scores);
}

double *mla_decode_wanted(struct mla_decode_setup *setup)
{
    const struct mla_decode_case *c = setup->c;
    const struct mla_attend_decode *attend = &setup->attend;
    double *want = mla_wanted(&setup->out);
    free(setup->slack);
    setup->slack = mla_wanted(&setup->out);
    for (int s = 0; s < c->sequences; s++)
        for (int32_t j = 0; j < c->rows[s]; j++)
            for (int64_t head = 0; head < c->heads; head++) {
                int64_t row = setup->row_first[s] + j;
                int64_t at = row * attend->out_row_stride + head * attend->out_head_stride;
                reference(setup, s,
                          setup->q.host + row * attend->q_row_stride + head * attend->q_head_stride,
                          c->kv_length[s] - (c->rows[s] - 1 - j), want + at, setup->slack + at);
            }
    return want;
}

void mla_decode_expect(struct mla_decode_setup *setup, struct mla_device *device,
                       const double *want, const char *what)
{
    mla_expect_near(device, &setup->out, want, setup->slack, setup->c->latent + setup->c->rope,
                    what);
}

void mla_decode_check(struct mla_device *device, const struct mla_decode_case *c)
{
    struct mla_decode_setup *setup = malloc(sizeof *setup);
    cr_assert_not_null(setup);
    mla_decode_make(setup, device, c);
    double *want = mla_decode_wanted(setup);
    mla_decode_run(setup, device);
    mla_decode_expect(setup, device, want, "attend_decode");
    for (int s = 0; s < c->sequences; s++)
        if (c->rows[s] > setup->attend.kv.tokens_max)
            setup->attend.kv.tokens_max = c->rows[s];
    if (setup->attend.kv.tokens_max > 1) {
        mla_decode_run(setup, device);
        mla_decode_expect(setup, device, want, "attend_decode, rows of a sequence at a time");
    }
    free(want);
    mla_decode_fini(setup);
    free(setup);
}
