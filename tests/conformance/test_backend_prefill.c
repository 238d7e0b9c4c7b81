/* Attention over expanded keys, and the join of its parts. */
#include "proto/limits.h"
#include "tests/conformance/device.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>

enum { SEQUENCES_MAX = 6 };

struct prefill_case {
    int64_t heads, nope, rope, v_dim;
    bool packed; /* laid out as the layer has it; else nothing is aligned */
    bool causal;
    int sequences;
    int32_t rows[SEQUENCES_MAX], keys[SEQUENCES_MAX];
    int64_t poison; /* this key's k and v are NaN; -1: none */
};

/* One head of one query over `keys` keys. */
static void reference(const struct mla_attend_prefill *attend, const float *q, const float *k_nope,
                      const float *k_rope, const float *v, int64_t keys, double *out, double *lse)
{
    double *scores = malloc((size_t)keys * sizeof *scores + 1), max = -(double)INFINITY, sum = 0;
    cr_assert_not_null(scores);
    for (int64_t key = 0; key < keys; key++) {
        scores[key] = 0;
        for (int64_t i = 0; i < attend->nope; i++)
            scores[key] += (double)q[i] * (double)k_nope[key * attend->k_row_stride + i];
        for (int64_t i = 0; i < attend->rope; i++)
            scores[key] +=
                (double)q[attend->nope + i] * (double)k_rope[key * attend->k_rope_stride + i];
        scores[key] *= (double)attend->scale;
        max = fmax(max, scores[key]);
    }
    for (int64_t i = 0; i < attend->v_dim; i++)
        out[i] = 0;
    for (int64_t key = 0; key < keys; key++) {
        double weight = exp(scores[key] - max);
        sum += weight;
        for (int64_t i = 0; i < attend->v_dim; i++)
            out[i] += weight * (double)v[key * attend->v_row_stride + i];
    }
    for (int64_t i = 0; keys > 0 && i < attend->v_dim; i++)
        out[i] /= sum;
    *lse = keys > 0 ? max + log(sum) : -(double)INFINITY;
    free(scores);
}

static void check(struct mla_device *device, const struct prefill_case *c)
{
    const enum mla_dtype dtype = device->backend->activation;
    int32_t row_first[SEQUENCES_MAX + 1] = {0}, key_first[SEQUENCES_MAX + 1] = {0};
    int32_t rows_max = 0, keys_max = 0;
    for (int s = 0; s < c->sequences; s++) {
        row_first[s + 1] = row_first[s] + c->rows[s];
        key_first[s + 1] = key_first[s] + c->keys[s];
        rows_max = c->rows[s] > rows_max ? c->rows[s] : rows_max;
        keys_max = c->keys[s] > keys_max ? c->keys[s] : keys_max;
    }
    const int64_t rows = row_first[c->sequences], keys = key_first[c->sequences];
    const int64_t gap = c->packed ? 0 : 1, q_head = c->nope + c->rope + gap;
    /* In the layer values follow the keys of their head, and the rope part a latent of 512. */
    const int64_t kv_head = c->packed ? c->nope + c->v_dim : c->nope + 3;
    const int64_t v_head = c->packed ? kv_head : c->v_dim;
    struct mla_attend_prefill attend = {
        .sequences = c->sequences,
        .heads = c->heads,
        .nope = c->nope,
        .rope = c->rope,
        .v_dim = c->v_dim,
        .rows = rows,
        .keys = keys,
        .rows_max = rows_max,
        .keys_max = keys_max,
        .row_first = mla_device_put(device, row_first, sizeof row_first),
        .key_first = mla_device_put(device, key_first, sizeof key_first),
        .q_head_stride = q_head,
        .q_row_stride = c->heads * q_head + 2 * gap,
        .k_head_stride = kv_head,
        .k_row_stride = c->heads * kv_head,
        .k_rope_stride = c->packed ? c->rope + 512 : c->rope + 4,
        .v_head_stride = v_head,
        .v_row_stride = c->heads * v_head + 5 * gap,
        .out_head_stride = c->v_dim + gap,
        .out_row_stride = c->heads * (c->v_dim + gap) + gap,
        .scale = 4.0f / sqrtf((float)(c->nope + c->rope)),
        .causal = c->causal,
    };
    struct mla_tensor q = mla_tensor_make(device, dtype, rows * attend.q_row_stride);
    struct mla_tensor k_nope = mla_tensor_make(device, dtype, keys * attend.k_row_stride);
    struct mla_tensor k_rope = mla_tensor_make(device, dtype, keys * attend.k_rope_stride);
    struct mla_tensor v = mla_tensor_make(device, dtype, keys * attend.v_row_stride);
    struct mla_tensor out = mla_tensor_make(device, dtype, rows * attend.out_row_stride);
    struct mla_tensor lse = mla_tensor_make(device, MLA_F32, rows * c->heads);
    for (int64_t row = 0; row < rows; row++)
        mla_tensor_fill(&q, row * attend.q_row_stride, c->heads, attend.q_head_stride,
                        c->nope + c->rope);
    for (int64_t key = 0; key < keys; key++) {
        if (key == c->poison)
            continue;
        mla_tensor_fill(&k_nope, key * attend.k_row_stride, c->heads, attend.k_head_stride,
                        c->nope);
        mla_tensor_fill(&k_rope, key * attend.k_rope_stride, 1, c->rope, c->rope);
        mla_tensor_fill(&v, key * attend.v_row_stride, c->heads, attend.v_head_stride, c->v_dim);
    }
    struct mla_tensor *inputs[] = {&q, &k_nope, &k_rope, &v};
    for (int i = 0; i < 4; i++)
        mla_tensor_upload(device, inputs[i]);
    attend.q = q.memory;
    attend.k_nope = k_nope.memory;
    attend.k_rope = k_rope.memory;
    attend.v = v.memory;
    attend.out = out.memory;
    attend.lse = lse.memory;
    MLA_RUN(device, attend_prefill, &attend);

    double *want = mla_wanted(&out), *want_lse = mla_wanted(&lse);
    for (int s = 0; s < c->sequences; s++)
        for (int32_t i = 0; i < c->rows[s]; i++)
            for (int64_t head = 0; head < c->heads; head++) {
                int64_t row = row_first[s] + i, key = key_first[s];
                int64_t seen = c->causal ? c->keys[s] - (c->rows[s] - 1 - i) : c->keys[s];
                reference(&attend, q.host + row * attend.q_row_stride + head * attend.q_head_stride,
                          k_nope.host + key * attend.k_row_stride + head * attend.k_head_stride,
                          k_rope.host + key * attend.k_rope_stride,
                          v.host + key * attend.v_row_stride + head * attend.v_head_stride,
                          seen > 0 ? seen : 0,
                          want + row * attend.out_row_stride + head * attend.out_head_stride,
                          want_lse + row * c->heads + head);
            }
    /* Weights may be rounded to the activations' dtype before they are multiplied with values. */
    mla_expect_rounded(device, &out, want, c->nope + c->rope, attend.out_row_stride, 2,
                       "attend_prefill: out");
    mla_expect(device, &lse, want_lse, c->nope + c->rope, "attend_prefill: lse");
    free(want);
    free(want_lse);
    for (int i = 0; i < 4; i++)
        mla_tensor_free(inputs[i]);
    mla_tensor_free(&out);
    mla_tensor_free(&lse);
}

static void causal(struct mla_device *device)
{
    static const struct prefill_case cases[] = {
        {1, 32, 16, 32, false, true, 1, {1}, {1}, -1},
        {2, 32, 16, 24, false, true, 5, {1, 63, 64, 65, 17}, {1, 63, 64, 65, 17}, -1},
        {16, 128, 64, 128, false, true, 1, {70}, {70}, -1},
        /* the new rows stand behind others; more rows than keys */
        {3, 33, 7, 19, false, true, 4, {5, 20, 40, 3}, {300, 290, 21, 0}, -1},
        {2, 32, 16, 32, false, true, 1, {330}, {330}, -1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        check(device, &cases[i]);
}

Test(prefill, causal)
{
    mla_each_device(causal);
}

static void context(struct mla_device *device)
{
    static const struct prefill_case cases[] = {
        {2, 32, 16, 32, false, false, 5, {1, 20, 16, 3, 0}, {100, 0, 257, 64, 10}, -1},
        {1, 64, 16, 64, false, false, 3, {2, 33, 1}, {0, 0, 0}, -1}, /* all masked */
        {5, 16, 8, 48, false, false, 2, {70, 9}, {31, 600}, -1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        check(device, &cases[i]);
}

Test(prefill, context)
{
    mla_each_device(context);
}

/* A key that is NaN reaches the queries that see it, and no others. */
static void poisoned_key(struct mla_device *device)
{
    static const struct prefill_case cases[] = {
        {2, 32, 16, 32, false, true, 2, {40, 20}, {40, 20}, 21},
        {1, 16, 8, 16, false, true, 3, {9, 70, 1}, {70, 70, 5}, 139},
        {2, 16, 8, 16, false, false, 2, {5, 5}, {6, 4}, 7},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        check(device, &cases[i]);
}

Test(prefill, poisoned_key)
{
    mla_each_device(poisoned_key);
}

/* DeepSeek-V2-Lite's and V3's heads, and those of one rank of eight; V3's layout in small. */
static void model_shapes(struct mla_device *device)
{
    static const struct prefill_case cases[] = {
        {16, 128, 64, 128, true, true, 5, {1, 63, 64, 65, 130}, {1, 63, 64, 65, 130}, -1},
        {16, 128, 64, 128, true, true, 3, {2, 128, 33}, {300, 129, 290}, -1},
        {16, 128, 64, 128, true, false, 4, {65, 1, 3, 0}, {190, 0, 257, 10}, -1},
        {128, 128, 64, 128, true, true, 2, {1, 20}, {1, 20}, -1},
        {128, 128, 64, 128, true, false, 2, {9, 2}, {64, 65}, -1},
        {8, 32, 16, 32, true, true, 2, {70, 9}, {70, 9}, -1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        check(device, &cases[i]);
}

Test(prefill, model_shapes)
{
    mla_each_device(model_shapes);
}

/* Rows: random, one part empty, the other, both, and a part that is far smaller. Empty parts
 * hold NaN, which must have no weight. */
static void check_merge(struct mla_device *device, int64_t v_dim, int64_t gap)
{
    enum { ROWS = 40, HEADS = 3 };
    const int64_t head = v_dim + gap, row = HEADS * head + 2 * gap;
    const enum mla_dtype dtype = device->backend->activation;
    struct mla_tensor out = mla_tensor_make(device, dtype, ROWS * row);
    struct mla_tensor out_b = mla_tensor_make(device, dtype, ROWS * row);
    struct mla_tensor lse = mla_tensor_make(device, MLA_F32, (int64_t)ROWS * HEADS);
    struct mla_tensor lse_b = mla_tensor_make(device, MLA_F32, (int64_t)ROWS * HEADS);
    mla_tensor_fill(&lse, 0, 1, lse.count, lse.count);
    mla_tensor_fill(&lse_b, 0, 1, lse.count, lse.count);
    for (int64_t i = 0; i < (int64_t)ROWS * HEADS; i++) {
        int64_t at = i / HEADS * row + i % HEADS * head;
        if (i % 5 == 1 || i % 5 == 3)
            lse.host[i] = -INFINITY;
        else
            mla_tensor_fill(&out, at, 1, v_dim, v_dim);
        if (i % 5 == 2 || i % 5 == 3)
            lse_b.host[i] = -INFINITY;
        else
            mla_tensor_fill(&out_b, at, 1, v_dim, v_dim);
        if (i % 5 == 4)
            lse.host[i] = -500;
    }
    struct mla_tensor *all[] = {&out, &out_b, &lse, &lse_b};
    for (int i = 0; i < 4; i++)
        mla_tensor_upload(device, all[i]);
    double *want = mla_wanted(&out), *want_lse = mla_wanted(&lse);
    for (int64_t i = 0; i < (int64_t)ROWS * HEADS; i++) {
        double a = exp((double)lse.host[i]), b = exp((double)lse_b.host[i]);
        for (int64_t j = 0; j < v_dim; j++) {
            int64_t at = i / HEADS * row + i % HEADS * head + j;
            double sum =
                (a > 0 ? a * (double)out.host[at] : 0) + (b > 0 ? b * (double)out_b.host[at] : 0);
            want[at] = a + b > 0 ? sum / (a + b) : 0;
        }
        want_lse[i] = log(a + b);
    }
    MLA_RUN(device, merge,
            &(struct mla_merge){
                .rows = ROWS,
                .heads = HEADS,
                .v_dim = v_dim,
                .out = out.memory,
                .lse = lse.memory,
                .out_b = out_b.memory,
                .lse_b = lse_b.memory,
                .out_row_stride = row,
                .out_head_stride = head,
            });
    mla_expect(device, &out, want, 1, "merge: out");
    mla_expect(device, &lse, want_lse, 1, "merge: lse");
    free(want);
    free(want_lse);
    for (int i = 0; i < 4; i++)
        mla_tensor_free(all[i]);
}

static void merge(struct mla_device *device)
{
    check_merge(device, 33, 1);
    check_merge(device, 128, 0);
}

Test(prefill, merge)
{
    mla_each_device(merge);
}
