/* A Hugging Face checkpoint folder: config.json, and model.safetensors or the shards that
 * model.safetensors.index.json names. */
#ifndef MLA_WORKER_CHECKPOINT_H
#define MLA_WORKER_CHECKPOINT_H

#include "worker/config.h"
#include "worker/safetensors.h"

#include "proto/limits.h"

/* The tensors of one attention layer, by role. */
enum mla_weight {
    MLA_WEIGHT_Q_A,       /* q_a_proj.weight [q_lora, hidden]; with q_lora only */
    MLA_WEIGHT_Q_A_NORM,  /* q_a_layernorm.weight [q_lora]; with q_lora only */
    MLA_WEIGHT_Q_B,       /* q_b_proj.weight [heads * (nope + rope), q_lora], or q_proj.weight
                             [.., hidden] without q_lora */
    MLA_WEIGHT_KV_A,      /* kv_a_proj_with_mqa.weight [latent + rope, hidden] */
    MLA_WEIGHT_KV_A_NORM, /* kv_a_layernorm.weight [latent] */
    MLA_WEIGHT_KV_B,      /* kv_b_proj.weight [heads * (nope + v), latent] */
    MLA_WEIGHT_O,         /* o_proj.weight [hidden, heads * v] */
    MLA_WEIGHT_Q_A_BIAS,  /* with attention_bias only, where the model has one: q_a_proj.bias */
    MLA_WEIGHT_KV_A_BIAS, /* kv_a_proj_with_mqa.bias */
    MLA_WEIGHT_O_BIAS,    /* o_proj.bias */
    MLA_WEIGHT_COUNT,
};

struct mla_weight_spec {
    bool present;  /* this config has such a tensor */
    char name[96]; /* "model.layers.3.self_attn.o_proj.weight" */
    uint32_t dims;
    uint64_t shape[2];
};

/* What the tensor of this role must be called and look like in this model. */
void mla_weight_describe(const struct mla_config *config, uint32_t layer, enum mla_weight weight,
                         struct mla_weight_spec *out);

struct mla_checkpoint {
    struct mla_config config;
    struct mla_safetensors *files;
    size_t file_count;
    uint32_t layer_count;            /* layers whose attention tensors are all there */
    uint32_t layers[MLA_LAYERS_MAX]; /* ascending */
};

/* Opens DIR, reads the config and maps every file, finds the layers that are there.
 * `layer_first`..`layer_last` asks for exactly those; first > last asks for all that are found.
 * MLA_CONFIG; MLA_CHECKPOINT for damaged files, a layer of which only some tensors are there,
 * wrong shapes or dtypes, an asked layer that is missing, no layer at all. A sentence in `why`. */
enum mla_status mla_checkpoint_open(const char *dir, uint32_t layer_first, uint32_t layer_last,
                                    struct mla_checkpoint *out, char *why);
void mla_checkpoint_close(struct mla_checkpoint *checkpoint);

/* The tensor of this role, NULL where the model has none. Its shape was checked by open. */
const struct mla_tensor *mla_checkpoint_weight(const struct mla_checkpoint *checkpoint,
                                               uint32_t layer, enum mla_weight weight);

/* dst[i] = element (first + i) of the tensor, converted to f32. */
void mla_tensor_to_f32(const struct mla_tensor *tensor, uint64_t first, uint64_t count, float *dst);

#endif
