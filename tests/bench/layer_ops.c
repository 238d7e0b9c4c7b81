#include "tests/bench/layer_ops.h"

#include <assert.h>
#include <string.h>

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

void mla_timed_fini(struct mla_timed *timed)
{
    for (uint32_t i = 0; i < timed->fence_count; i++)
        timed->clock->ops->fence_destroy(timed->clock, timed->fences[i]);
    *timed = (struct mla_timed){0};
}

/* Records the fence behind the last call, made when it is needed first. */
static enum mla_status record(struct mla_timed *timed)
{
    struct mla_backend *clock = timed->clock;
    if (timed->calls == timed->fence_count) {
        enum mla_status status = clock->ops->fence_create(clock, &timed->fences[timed->calls]);
        if (status != MLA_OK)
            return status;
        timed->fence_count++;
    }
    return clock->ops->fence_record(clock, MLA_QUEUE_COMPUTE, timed->fences[timed->calls]);
}

enum mla_status mla_timed_begin(struct mla_timed *timed)
{
    timed->calls = 0;
    memset(timed->times, 0, sizeof timed->times);
    return record(timed);
}

enum mla_status mla_timed_end(struct mla_timed *timed)
{
    struct mla_backend *clock = timed->clock;
    enum mla_status status = clock->ops->synchronize(clock);
    for (uint32_t i = 0; status == MLA_OK && i < timed->calls; i++) {
        uint64_t ns = 0;
        status = clock->ops->fence_span(clock, timed->fences[i], timed->fences[i + 1], &ns);
        timed->times[timed->roles[i]].ns += ns;
    }
    return status;
}

static enum mla_status add(struct mla_timed *timed, enum mla_role role, struct mla_cost cost,
                           enum mla_status status)
{
    if (status != MLA_OK)
        return status;
    struct mla_role_time *time = &timed->times[role];
    assert(timed->calls < MLA_TIMED_CALLS_MAX);
    timed->roles[timed->calls++] = role;
    time->calls++;
    time->cost = mla_cost_sum(time->cost, cost);
    return record(timed);
}

static struct mla_cost cost_of_decode(const struct mla_timed *timed,
                                      const struct mla_attend_decode *attend, size_t element)
{
    double keys = (double)timed->decode.rows * (double)timed->decode.context;
    return mla_cost_attend_decode(attend, timed->decode.rows, keys, keys, element);
}

static struct mla_cost cost_of_prefill(const struct mla_attend_prefill *attend, size_t element)
{
    assert(attend->sequences == 1);
    return mla_cost_attend_prefill(
        attend, mla_cost_pairs(attend->rows, attend->keys, attend->causal), element);
}

/* Every operation has its own type, and nothing else differs. */
#define TIMED(operation, role, cost)                                                               \
    static enum mla_status timed_##operation(struct mla_backend *backend,                          \
                                             const struct mla_##operation *arguments)              \
    {                                                                                              \
        struct mla_timed *timed = (struct mla_timed *)(void *)backend;                             \
        struct mla_backend *inner = timed->inner;                                                  \
        size_t element = mla_dtype_bytes(inner->activation);                                       \
        enum mla_status status = inner->ops->operation(inner, arguments);                          \
        (void)element;                                                                             \
        return add(timed, (role), (cost), status);                                                 \
    }

TIMED(gemm, role_of_gemm(timed, arguments), mla_cost_gemm(arguments, element))
TIMED(attend_decode, MLA_ROLE_ATTEND, cost_of_decode(timed, arguments, element))
TIMED(attend_prefill, MLA_ROLE_ATTEND, cost_of_prefill(arguments, element))
TIMED(latents, MLA_ROLE_LATENTS, mla_cost_latents(arguments, element))
TIMED(rope, MLA_ROLE_ROPE, mla_cost_rope(arguments, element))
TIMED(copy, MLA_ROLE_COPY, mla_cost_copy(arguments))
TIMED(kv_write, MLA_ROLE_KV_WRITE, mla_cost_kv_write(arguments, element))
TIMED(kv_gather, MLA_ROLE_KV_GATHER, mla_cost_kv_gather(arguments, element))
TIMED(merge, MLA_ROLE_MERGE, mla_cost_merge(arguments, element))

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

void mla_timed_init(struct mla_timed *timed, struct mla_backend *inner, struct mla_backend *clock,
                    const struct mla_layer_weights *weights, struct mla_timed_decode decode)
{
    *timed = (struct mla_timed){
        .base = *inner, .inner = inner, .clock = clock, .weights = weights, .decode = decode};
    timed->base.ops = &timed_ops;
}
