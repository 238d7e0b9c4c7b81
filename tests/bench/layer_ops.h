/* Backends for measuring worker/layer.c without touching it: one that times another's operations
 * by what they do in the layer, and one that does nothing but the bare products. */
#ifndef MLA_TESTS_BENCH_LAYER_OPS_H
#define MLA_TESTS_BENCH_LAYER_OPS_H

#include "tests/bench/cost.h"
#include "worker/shard.h"

enum mla_role {
    MLA_ROLE_DOWN, /* W_a: x to the latents */
    MLA_ROLE_Q,    /* W_q_b, or W_q without a q_lora_rank */
    MLA_ROLE_EXPAND,
    MLA_ROLE_ABSORB,
    MLA_ROLE_UV,
    MLA_ROLE_O,
    MLA_ROLE_ATTEND,
    MLA_ROLE_LATENTS,
    MLA_ROLE_ROPE,
    MLA_ROLE_COPY,
    MLA_ROLE_KV_WRITE,
    MLA_ROLE_KV_GATHER,
    MLA_ROLE_MERGE,
    MLA_ROLE_COUNT,
};

const char *mla_role_name(enum mla_role role);

/* The roles that the bare backend does as well. */
static inline bool mla_role_is_gemm(enum mla_role role)
{
    return role <= MLA_ROLE_O;
}

struct mla_role_time {
    uint64_t ns;
    uint32_t calls;
    struct mla_cost cost;
};

/* Lengths, which operations find in the device's memory: of decode's sequences, which are equally
 * long. Prefill has one sequence. */
struct mla_timed_decode {
    int64_t rows, context;
};

enum { MLA_TIMED_CALLS_MAX = 8192 }; /* of one run: four a chunk of context */

/* Forwards the operations that mla_layer_run calls, and no others, to `inner`, with a fence behind
 * each. */
struct mla_timed {
    struct mla_backend base;
    struct mla_backend *inner;
    struct mla_backend *clock;               /* whose fences are used */
    const struct mla_layer_weights *weights; /* by which the gemms are told apart */
    struct mla_timed_decode decode;
    uint32_t calls, fence_count;
    enum mla_role roles[MLA_TIMED_CALLS_MAX];
    struct mla_fence *fences[MLA_TIMED_CALLS_MAX + 1]; /* before the first call, behind each */
    struct mla_role_time times[MLA_ROLE_COUNT];        /* of the last run */
};

/* clock: `inner`, or another where that has no fences and all has finished on return. */
void mla_timed_init(struct mla_timed *timed, struct mla_backend *inner, struct mla_backend *clock,
                    const struct mla_layer_weights *weights, struct mla_timed_decode decode);
void mla_timed_fini(struct mla_timed *timed);
/* Around a run: begin forgets the one before, end waits and fills `times`. */
enum mla_status mla_timed_begin(struct mla_timed *timed);
enum mla_status mla_timed_end(struct mla_timed *timed);

/* Plain sgemms through OpenBLAS, f32 in host memory. An ordinary gemm is one sgemm that OpenBLAS
 * shares out to the threads; those of a batch, the sequences of decode, and the heads and tiles of
 * prefill are shared out here, each an sgemm on one thread. Attention is scores = q k^T and
 * out = scores v, without softmax; causal prefill leaves out the tiles above the diagonal.
 * Everything else does nothing. */
struct mla_bare {
    struct mla_backend base;
    int threads;
    const float *keys; /* decode: all cached rows of its sequences, one after the other */
    float *scores;     /* [threads, scores_max] */
    size_t scores_max;
};

enum { MLA_BARE_TILE_ROWS = 128 }; /* prefill queries of a tile: the fastest size measured */

/* scores_max: of one decode sequence, or of MLA_BARE_TILE_ROWS prefill queries. MLA_MEMORY. */
enum mla_status mla_bare_init(struct mla_bare *bare, int threads, const float *keys,
                              size_t scores_max);
void mla_bare_fini(struct mla_bare *bare);

#endif
