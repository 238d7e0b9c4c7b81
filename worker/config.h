/* The attention part of a model's config.json, in both of its spellings: rope_scaling +
 * rope_theta (published checkpoints) and rope_parameters (transformers 5). */
#ifndef MLA_WORKER_CONFIG_H
#define MLA_WORKER_CONFIG_H

#include "proto/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum mla_rope_type { MLA_ROPE_PLAIN = 0, MLA_ROPE_YARN = 1 };

struct mla_rope_config {
    enum mla_rope_type type;
    double theta;
    bool interleaved;
    /* YaRN only (Peng et al. 2023) */
    double factor, beta_fast, beta_slow, mscale, mscale_all_dim, attention_factor;
    uint32_t original_context;
};

struct mla_config {
    char model_type[32];
    uint32_t hidden;      /* hidden_size */
    uint32_t heads;       /* num_attention_heads */
    uint32_t q_lora;      /* q_lora_rank, 0 where the model has none */
    uint32_t latent;      /* kv_lora_rank */
    uint32_t nope;        /* qk_nope_head_dim */
    uint32_t rope;        /* qk_rope_head_dim */
    uint32_t v;           /* v_head_dim */
    uint32_t layers;      /* num_hidden_layers */
    uint32_t context_max; /* max_position_embeddings */
    bool attention_bias;
    struct mla_rope_config rope_config;
};

/* Parses `bytes` of JSON (no terminator needed). Every field is checked against proto/limits.h
 * and for consistency. MLA_CONFIG with a sentence in `why` (MLA_SENTENCE_BYTES_MAX bytes). */
enum mla_status mla_config_parse(const char *json, size_t bytes, struct mla_config *out, char *why);

/* Reads DIR/config.json or, where `path` is a file, that file. MLA_CONFIG as above. */
enum mla_status mla_config_read(const char *path, struct mla_config *out, char *why);

/* Softmax scale: (nope + rope)^-0.5, times m^2 where YaRN gives mscale_all_dim,
 * m = 0.1 mscale_all_dim ln(factor) + 1 (DeepSeek-V2, B; reference implementation). */
float mla_config_softmax_scale(const struct mla_config *config);

/* cos and sin of every position: table f32 [positions, rope/2, 2], caller's memory. Angles are
 * computed in f64. With YaRN the frequencies are blended and both values are scaled by
 * mscale(factor, mscale) / mscale(factor, mscale_all_dim), or attention_factor where given. */
void mla_config_rope_table(const struct mla_config *config, uint32_t positions, float *table);

#endif
