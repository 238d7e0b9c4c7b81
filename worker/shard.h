/* The weights one rank holds: all of the down-projections and norms, and its heads' rows of the
 * up-projections and columns of o_proj. */
#ifndef MLA_WORKER_SHARD_H
#define MLA_WORKER_SHARD_H

#include "kernels/backend.h"
#include "worker/checkpoint.h"

/* In the backend's memory, activation dtype, row-major. N = heads of this rank. */
struct mla_layer_weights {
    void *a;       /* [q_lora + latent + rope, hidden]: W_qa over W_kva; where q is joined, all of
                      [N * (nope + rope) + latent + rope, hidden]: W_q over W_kva */
    void *a_bias;  /* [the same rows], or NULL */
    void *q_norm;  /* [q_lora], or NULL without q_lora */
    void *kv_norm; /* [latent] */
    void *q_b;     /* [N * (nope + rope), q_lora or hidden], or NULL where q is joined */
    void *kv_b;    /* [N, nope + v, latent]: W_UK over W_UV of each head */
    void *o;       /* [hidden, N * v] */
    void *o_bias;  /* [hidden] on rank 0 where the model has one: the sum must contain it once */
};

struct mla_shard {
    struct mla_config config;
    uint32_t rank, ranks, heads; /* heads of this rank */
    uint32_t layer_count;
    uint32_t layers[MLA_LAYERS_MAX]; /* the model's numbers, ascending */
    struct mla_layer_weights weights[MLA_LAYERS_MAX];
    float softmax_scale;
    float *rope_table; /* [rope_positions, rope/2, 2] in the backend's memory */
    uint32_t rope_positions;
};

/* Values of one q input row: cq where the model has a q_lora_rank, x itself elsewhere. */
static inline uint32_t mla_q_input(const struct mla_config *config)
{
    return config->q_lora ? config->q_lora : config->hidden;
}

/* Whether q is joined to the key-value latent, in one product of x: a model without a q_lora_rank,
 * where one rank has all heads and so the same rows of both. (The reference has no bias for q.) */
static inline bool mla_q_joined(const struct mla_config *config, uint32_t ranks)
{
    return config->q_lora == 0 && ranks == 1 && !config->attention_bias;
}

/* Values of a row of the product of W_a, or of what stands in for it: q's input or, where it is
 * joined, q, then ckv and kpe. */
static inline uint32_t mla_latent_row(const struct mla_config *config, uint32_t ranks)
{
    uint32_t q = mla_q_joined(config, ranks) ? config->heads * (config->nope + config->rope)
                                             : mla_q_input(config);
    return q + config->latent + config->rope;
}

/* Whether the heads can be shared out so; MLA_OPTION with a sentence in `why`. */
enum mla_status mla_shard_check(const struct mla_config *config, uint32_t ranks, char *why);

/* Bytes of a layer's weights on this rank; `alike`: those that every rank has (where ranks share
 * nothing out, all). */
void mla_shard_layer_bytes(const struct mla_config *config, uint32_t rank, uint32_t ranks,
                           enum mla_dtype activation, uint64_t *bytes, uint64_t *alike);

/* Loads this rank's part of every layer that the checkpoint offers. Tells its progress on
 * stderr (rank 0): a bar on a terminal, a line a layer elsewhere. MLA_OPTION, MLA_MEMORY. */
enum mla_status mla_shard_load(const struct mla_checkpoint *checkpoint, uint32_t rank,
                               uint32_t ranks, struct mla_backend *backend, struct mla_shard *out);
/* The table for positions below `positions`; replaces an earlier one. MLA_MEMORY. */
enum mla_status mla_shard_make_rope_table(struct mla_shard *shard, struct mla_backend *backend,
                                          uint32_t positions);
void mla_shard_free(struct mla_shard *shard, struct mla_backend *backend);

#endif
