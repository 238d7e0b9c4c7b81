#include "tests/bench/layer_ops.h"

#include "proto/clock.h"

static const char *const names[MLA_ROLE_COUNT] = {
    [MLA_ROLE_DOWN] = "gemm W_a",      [MLA_ROLE_Q] = "gemm W_q_b",
    [MLA_ROLE_EXPAND] = "gemm expand", [MLA_ROLE_ABSORB] = "gemm absorb",
    [MLA_ROLE_UV] = "gemm W_UV",       [MLA_ROLE_O] = "gemm W_o",
    [MLA_ROLE_ATTEND] = "attend",      [MLA_ROLE_LATENTS] = "latents",
    [MLA_ROLE_ROPE] = "rope",          [MLA_ROLE_COPY] = "copy",
    [MLA_ROLE_KV_WRITE] = "kv_write",  [MLA_ROLE_KV_GATHER] = "kv_gather",
    [MLA_ROLE_MERGE] = "merge",
};

const char *mla_role_name(enum mla_role role)
{
    return names[role];
}

static enum mla_role role_of_gemm(const struct mla_timed *timed, const struct mla_gemm *gemm)
{
    const struct mla_layer_weights *w = timed->weights;
    if (gemm->b == w->a)
        return MLA_ROLE_DOWN;
    if (gemm->b == w->q_b)
        return MLA_ROLE_Q;
    if (gemm->b == w->o)
        return MLA_ROLE_O;
    if (!gemm->b_transposed)
        return MLA_ROLE_ABSORB;
    return gemm->b == w->kv_b ? MLA_ROLE_EXPAND : MLA_ROLE_UV;
}

static double flops_of_gemm(const struct mla_gemm *gemm)
{
    return 2.0 * (double)gemm->m * (double)gemm->n * (double)gemm->k * (double)gemm->batch;
}

/* Keys seen, summed over the queries of one sequence and head: the last sees all of them, and
 * with a causal mask each one before it one less. */
static double pairs(int64_t rows, int64_t keys, bool causal)
{
    return (double)rows * (double)keys - (causal ? (double)rows * (double)(rows - 1) / 2 : 0);
}

static double flops_of_decode(const struct mla_attend_decode *attend)
{
    const struct mla_kv_view *kv = &attend->kv;
    double sum = 0;
    for (int64_t s = 0; s < kv->sequences; s++)
        sum += pairs(kv->row_first[s + 1] - kv->row_first[s], kv->kv_length[s], true);
    return 2 * sum * (double)attend->heads * (double)(2 * kv->pool.latent + kv->pool.rope);
}

static double flops_of_prefill(const struct mla_attend_prefill *attend)
{
    double sum = 0;
    for (int64_t s = 0; s < attend->sequences; s++)
        sum += pairs(attend->row_first[s + 1] - attend->row_first[s],
                     attend->key_first[s + 1] - attend->key_first[s], attend->causal);
    return 2 * sum * (double)attend->heads * (double)(attend->nope + attend->rope + attend->v_dim);
}

static enum mla_status add(struct mla_timed *timed, enum mla_role role, double flops,
                           uint64_t begin_ns, enum mla_status status)
{
    if (status == MLA_OK)
        status = timed->inner->ops->synchronize(timed->inner);
    struct mla_role_time *time = &timed->times[role];
    time->ns += mla_now_ns() - begin_ns;
    time->calls++;
    time->flops += flops;
    return status;
}

/* Every operation has its own type, and nothing else differs. */
#define TIMED(operation, role, flops)                                                              \
    static enum mla_status timed_##operation(struct mla_backend *backend,                          \
                                             const struct mla_##operation *arguments)              \
    {                                                                                              \
        struct mla_timed *timed = (struct mla_timed *)(void *)backend;                             \
        struct mla_backend *inner = timed->inner;                                                  \
        uint64_t begin_ns = mla_now_ns();                                                          \
        enum mla_status status = inner->ops->operation(inner, arguments);                          \
        return add(timed, (role), (flops), begin_ns, status);                                      \
    }

TIMED(gemm, role_of_gemm(timed, arguments), flops_of_gemm(arguments))
TIMED(attend_decode, MLA_ROLE_ATTEND, flops_of_decode(arguments))
TIMED(attend_prefill, MLA_ROLE_ATTEND, flops_of_prefill(arguments))
TIMED(latents, MLA_ROLE_LATENTS, 0)
TIMED(rope, MLA_ROLE_ROPE, 0)
TIMED(copy, MLA_ROLE_COPY, 0)
TIMED(kv_write, MLA_ROLE_KV_WRITE, 0)
TIMED(kv_gather, MLA_ROLE_KV_GATHER, 0)
TIMED(merge, MLA_ROLE_MERGE, 0)

static const struct mla_backend_ops timed_ops = {
    .name = "timed",
    .gemm = timed_gemm,
    .latents = timed_latents,
    .rope = timed_rope,
    .copy = timed_copy,
    .kv_write = timed_kv_write,
    .kv_gather = timed_kv_gather,
    .attend_decode = timed_attend_decode,
    .attend_prefill = timed_attend_prefill,
    .merge = timed_merge,
};

void mla_timed_init(struct mla_timed *timed, struct mla_backend *inner,
                    const struct mla_layer_weights *weights)
{
    *timed = (struct mla_timed){.base = *inner, .inner = inner, .weights = weights};
    timed->base.ops = &timed_ops;
}
