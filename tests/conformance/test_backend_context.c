/* The two forms of the same attention: prefill, with its context gathered in unequal chunks,
 * expanded, and merged by log-sum-exp, equals absorbed decode over the same cached rows. */
#include "proto/limits.h"
#include "tests/conformance/device.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>

enum { BLOCK = MLA_BLOCK_TOKENS, SEQUENCES = 4, PAGES = 5 };

static const int64_t HEADS = 3, LATENT = 64, ROPE = 16, NOPE = 32, V_DIM = 24;
static const int64_t DIM = 64 + 16, Q_DIM = 32 + 16;
static const int64_t ROWS = 5 + 1 + 20 + 17;
static const int64_t KEYS_MAX = 400; /* of one chunk */

/* The first has no context, and every chunk of it is empty. */
static const int32_t context[SEQUENCES] = {0, 150, 201, 64};
static const int32_t chunk[SEQUENCES] = {10, 47, 100, 64};
static const int32_t row_first[SEQUENCES + 1] = {0, 5, 6, 26, 43};

struct setup {
    struct mla_device *device;
    struct mla_tensor pool, q, w_uk, w_uv, keys, k_nope, v;
    struct mla_kv_view kv;
    float scale;
};

static struct mla_tensor filled(struct mla_device *device, enum mla_dtype dtype, int64_t count)
{
    struct mla_tensor tensor = mla_tensor_make(device, dtype, count);
    mla_tensor_fill(&tensor, 0, 1, count, count);
    mla_tensor_upload(device, &tensor);
    return tensor;
}

static void make(struct setup *setup, struct mla_device *device)
{
    const enum mla_dtype dtype = device->backend->activation;
    int32_t tables[SEQUENCES * PAGES], table[SEQUENCES], kv_length[SEQUENCES];
    for (int i = 0; i < SEQUENCES * PAGES; i++)
        tables[i] = (i * 7 + 3) % (SEQUENCES * PAGES);
    for (int s = 0; s < SEQUENCES; s++) {
        table[s] = s;
        kv_length[s] = context[s] + row_first[s + 1] - row_first[s];
        cr_assert(kv_length[s] <= PAGES * BLOCK);
    }
    setup->device = device;
    setup->pool = mla_tensor_make_pool(device, dtype, (int64_t)SEQUENCES * PAGES, LATENT, ROPE);
    mla_tensor_fill(&setup->pool, 0, 1, setup->pool.count, setup->pool.count);
    mla_tensor_upload(device, &setup->pool);
    setup->q = filled(device, dtype, ROWS * HEADS * Q_DIM);
    setup->w_uk = filled(device, dtype, HEADS * NOPE * LATENT);
    setup->w_uv = filled(device, dtype, HEADS * V_DIM * LATENT);
    setup->keys = mla_tensor_make(device, dtype, KEYS_MAX * DIM);
    setup->k_nope = mla_tensor_make(device, dtype, KEYS_MAX * HEADS * NOPE);
    setup->v = mla_tensor_make(device, dtype, KEYS_MAX * HEADS * V_DIM);
    setup->scale = 1.0f / sqrtf((float)Q_DIM);
    setup->kv = (struct mla_kv_view){
        .pool = setup->pool.pool,
        .tables = mla_device_put(device, tables, sizeof tables),
        .table_stride = PAGES,
        .sequences = SEQUENCES,
        .table = mla_device_put(device, table, sizeof table),
        .row_first = mla_device_put(device, row_first, sizeof row_first),
        .kv_length = mla_device_put(device, kv_length, sizeof kv_length),
    };
}

static void fini(struct setup *setup)
{
    struct mla_tensor *all[] = {&setup->pool, &setup->q,      &setup->w_uk, &setup->w_uv,
                                &setup->keys, &setup->k_nope, &setup->v};
    for (int i = 0; i < 7; i++)
        mla_tensor_free(all[i]);
}

/* Attends to count[s] cached tokens of each sequence from begin[s] on. */
static void attend_part(struct setup *setup, const int32_t *begin, const int32_t *count,
                        bool causal, struct mla_tensor *out, struct mla_tensor *lse)
{
    struct mla_device *device = setup->device;
    int32_t first[SEQUENCES + 1] = {0}, keys_max = 0;
    for (int s = 0; s < SEQUENCES; s++) {
        first[s + 1] = first[s] + count[s];
        keys_max = count[s] > keys_max ? count[s] : keys_max;
    }
    const int32_t keys = first[SEQUENCES];
    cr_assert_leq(keys, KEYS_MAX);
    const int32_t *key_first = mla_device_put(device, first, sizeof first);
    MLA_RUN(device, kv_gather,
            &(struct mla_kv_gather){
                .kv = setup->kv,
                .rows = keys,
                .begin = mla_device_put(device, begin, SEQUENCES * sizeof *begin),
                .context_first = key_first,
                .dst = setup->keys.memory,
                .dst_stride = DIM,
            });
    struct mla_gemm expand = {
        .m = keys,
        .n = HEADS * NOPE,
        .k = LATENT,
        .batch = 1,
        .a = setup->keys.memory,
        .lda = DIM,
        .b = setup->w_uk.memory,
        .ldb = LATENT,
        .b_transposed = true,
        .c = setup->k_nope.memory,
        .ldc = HEADS * NOPE,
    };
    MLA_RUN(device, gemm, &expand);
    expand.n = expand.ldc = HEADS * V_DIM;
    expand.b = setup->w_uv.memory;
    expand.c = setup->v.memory;
    MLA_RUN(device, gemm, &expand);
    MLA_RUN(device, attend_prefill,
            &(struct mla_attend_prefill){
                .sequences = SEQUENCES,
                .heads = HEADS,
                .nope = NOPE,
                .rope = ROPE,
                .v_dim = V_DIM,
                .rows = ROWS,
                .keys = keys,
                .rows_max = 20,
                .keys_max = keys_max,
                .row_first = setup->kv.row_first,
                .key_first = key_first,
                .q = setup->q.memory,
                .q_row_stride = HEADS * Q_DIM,
                .q_head_stride = Q_DIM,
                .k_nope = setup->k_nope.memory,
                .k_row_stride = HEADS * NOPE,
                .k_head_stride = NOPE,
                .k_rope = (char *)setup->keys.memory +
                          (size_t)LATENT * mla_dtype_bytes(setup->keys.dtype),
                .k_rope_stride = DIM,
                .v = setup->v.memory,
                .v_row_stride = HEADS * V_DIM,
                .v_head_stride = V_DIM,
                .out = out->memory,
                .out_row_stride = HEADS * V_DIM,
                .out_head_stride = V_DIM,
                .lse = lse->memory,
                .scale = setup->scale,
                .causal = causal,
            });
}

static struct mla_tensor expanded(struct setup *setup)
{
    struct mla_device *device = setup->device;
    const enum mla_dtype dtype = device->backend->activation;
    struct mla_tensor out = mla_tensor_make(device, dtype, ROWS * HEADS * V_DIM);
    struct mla_tensor part = mla_tensor_make(device, dtype, ROWS * HEADS * V_DIM);
    struct mla_tensor lse = mla_tensor_make(device, MLA_F32, ROWS * HEADS);
    struct mla_tensor lse_part = mla_tensor_make(device, MLA_F32, ROWS * HEADS);
    int32_t begin[SEQUENCES], count[SEQUENCES];
    for (int s = 0; s < SEQUENCES; s++)
        count[s] = row_first[s + 1] - row_first[s];
    attend_part(setup, context, count, true, &out, &lse);
    for (int done = 0; done < 4; done++) {
        for (int s = 0; s < SEQUENCES; s++) {
            int32_t at = done * chunk[s] < context[s] ? done * chunk[s] : context[s];
            begin[s] = at;
            count[s] = context[s] - at < chunk[s] ? context[s] - at : chunk[s];
        }
        attend_part(setup, begin, count, false, &part, &lse_part);
        MLA_RUN(device, merge,
                &(struct mla_merge){
                    .rows = ROWS,
                    .heads = HEADS,
                    .v_dim = V_DIM,
                    .out = out.memory,
                    .lse = lse.memory,
                    .out_b = part.memory,
                    .lse_b = lse_part.memory,
                    .out_row_stride = HEADS * V_DIM,
                    .out_head_stride = V_DIM,
                });
    }
    mla_tensor_free(&part);
    mla_tensor_free(&lse);
    mla_tensor_free(&lse_part);
    return out;
}

static struct mla_tensor absorbed(struct setup *setup)
{
    struct mla_device *device = setup->device;
    const enum mla_dtype dtype = device->backend->activation;
    const size_t bytes = mla_dtype_bytes(dtype);
    struct mla_tensor q = mla_tensor_make(device, dtype, ROWS * HEADS * DIM);
    struct mla_tensor latent = mla_tensor_make(device, dtype, ROWS * HEADS * LATENT);
    struct mla_tensor out = mla_tensor_make(device, dtype, ROWS * HEADS * V_DIM);
    MLA_RUN(device, gemm,
            &(struct mla_gemm){
                .m = ROWS,
                .n = LATENT,
                .k = NOPE,
                .batch = HEADS,
                .a = setup->q.memory,
                .lda = HEADS * Q_DIM,
                .a_stride = Q_DIM,
                .b = setup->w_uk.memory,
                .ldb = LATENT,
                .b_stride = NOPE * LATENT,
                .c = q.memory,
                .ldc = HEADS * DIM,
                .c_stride = DIM,
            });
    MLA_RUN(device, copy,
            &(struct mla_copy){
                .rows = ROWS * HEADS,
                .n = ROPE,
                .src = (char *)setup->q.memory + (size_t)NOPE * bytes,
                .src_stride = Q_DIM,
                .src_dtype = dtype,
                .dst = (char *)q.memory + (size_t)LATENT * bytes,
                .dst_stride = DIM,
                .dst_dtype = dtype,
            });
    const size_t schedule_bytes =
        device->backend->ops->decode_schedule_bytes(device->backend, ROWS, HEADS);
    void *schedule = mla_device_make(device, schedule_bytes);
    const struct mla_attend_decode attend = {
        .kv = setup->kv,
        .rows_max = ROWS,
        .heads = HEADS,
        .q = q.memory,
        .q_row_stride = HEADS * DIM,
        .q_head_stride = DIM,
        .out = latent.memory,
        .out_row_stride = HEADS * LATENT,
        .out_head_stride = LATENT,
        .scale = setup->scale,
        .schedule = schedule,
    };
    MLA_RUN(device, schedule_decode, &attend, schedule);
    MLA_RUN(device, attend_decode, &attend);
    MLA_RUN(device, gemm,
            &(struct mla_gemm){
                .m = ROWS,
                .n = V_DIM,
                .k = LATENT,
                .batch = HEADS,
                .a = latent.memory,
                .lda = HEADS * LATENT,
                .a_stride = LATENT,
                .b = setup->w_uv.memory,
                .ldb = LATENT,
                .b_stride = V_DIM * LATENT,
                .b_transposed = true,
                .c = out.memory,
                .ldc = HEADS * V_DIM,
                .c_stride = V_DIM,
            });
    mla_tensor_free(&q);
    mla_tensor_free(&latent);
    return out;
}

static void both_forms(struct mla_device *device)
{
    struct setup setup;
    make(&setup, device);
    struct mla_tensor a = absorbed(&setup), b = expanded(&setup);
    double *want = mla_wanted(&a);
    mla_tensor_download(device, &a);
    for (int64_t i = 0; i < a.count; i++) {
        cr_assert(isfinite(a.host[i]));
        want[i] = (double)a.host[i];
    }
    /* Absorbed: the query's latent, weights, the output's latent, the output. Expanded: keys,
     * values, weights, the output, and again after each of four merges. */
    mla_expect_rounded(device, &b, want, DIM, HEADS * V_DIM, 4 + 8, "prefill against decode");
    free(want);
    mla_tensor_free(&a);
    mla_tensor_free(&b);
    fini(&setup);
}

Test(context, both_forms)
{
    mla_each_device(both_forms);
}
