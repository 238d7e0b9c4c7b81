#include "worker/checkpoint.h"

#include "worker/input.h"

#include <assert.h>
#include <inttypes.h>
#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FILES_MAX 4096u /* shards of one checkpoint */
#define LAYERS    "model.layers."
#define ATTENTION ".self_attn."

void mla_weight_describe(const struct mla_config *config, uint32_t layer, enum mla_weight weight,
                         struct mla_weight_spec *out)
{
    const struct mla_config *c = config;
    bool lora = c->q_lora > 0;
    uint64_t heads = c->heads;
    uint64_t q = heads * (c->nope + c->rope), kv_a = (uint64_t)c->latent + c->rope;
    const struct {
        const char *name;
        bool present;
        uint32_t dims;
        uint64_t shape[2];
    } weights[MLA_WEIGHT_COUNT] = {
        [MLA_WEIGHT_Q_A] = {"q_a_proj.weight", lora, 2, {c->q_lora, c->hidden}},
        [MLA_WEIGHT_Q_A_NORM] = {"q_a_layernorm.weight", lora, 1, {c->q_lora}},
        [MLA_WEIGHT_Q_B] = {lora ? "q_b_proj.weight" : "q_proj.weight",
                            true,
                            2,
                            {q, lora ? c->q_lora : c->hidden}},
        [MLA_WEIGHT_KV_A] = {"kv_a_proj_with_mqa.weight", true, 2, {kv_a, c->hidden}},
        [MLA_WEIGHT_KV_A_NORM] = {"kv_a_layernorm.weight", true, 1, {c->latent}},
        [MLA_WEIGHT_KV_B] = {"kv_b_proj.weight", true, 2, {heads * (c->nope + c->v), c->latent}},
        [MLA_WEIGHT_O] = {"o_proj.weight", true, 2, {c->hidden, heads * c->v}},
        [MLA_WEIGHT_Q_A_BIAS] = {"q_a_proj.bias", lora && c->attention_bias, 1, {c->q_lora}},
        [MLA_WEIGHT_KV_A_BIAS] = {"kv_a_proj_with_mqa.bias", c->attention_bias, 1, {kv_a}},
        [MLA_WEIGHT_O_BIAS] = {"o_proj.bias", c->attention_bias, 1, {c->hidden}},
    };
    assert(weight < MLA_WEIGHT_COUNT);
    *out = (struct mla_weight_spec){
        .present = weights[weight].present,
        .dims = weights[weight].dims,
        .shape = {weights[weight].shape[0], weights[weight].shape[1]},
    };
    snprintf(out->name, sizeof out->name, LAYERS "%" PRIu32 ATTENTION "%s", layer,
             weights[weight].name);
}

static const struct mla_tensor *find(const struct mla_checkpoint *checkpoint, const char *name)
{
    const struct mla_tensor *tensor = NULL;
    for (size_t i = 0; i < checkpoint->file_count && !tensor; i++)
        tensor = mla_safetensors_find(&checkpoint->files[i], name);
    return tensor;
}

/* Opens DIR/name as the next of checkpoint->files, which has room for it. */
static enum mla_status open_file(const char *dir, const char *name,
                                 struct mla_checkpoint *checkpoint, char *why)
{
    char path[PATH_MAX];
    int length = snprintf(path, sizeof path, "%s/%s", dir, name);
    if (length < 0 || (size_t)length >= sizeof path)
        return mla_refuse(MLA_CHECKPOINT, why, "the path of %.80s is too long", name);
    enum mla_status status =
        mla_safetensors_open(path, &checkpoint->files[checkpoint->file_count], why);
    if (status)
        return status == MLA_MEMORY ? status : MLA_CHECKPOINT;
    checkpoint->file_count++;
    return MLA_OK;
}

/* A file of this folder: nothing that leads elsewhere. */
static bool is_plain_name(const char *name)
{
    return name && *name && !strchr(name, '/') && !strstr(name, "..");
}

/* Opens every shard that the map names, once, and checks that it has the tensors it should.
 * `shards` are the names of checkpoint->files, all NULL at first, with room for FILES_MAX + 1. */
static enum mla_status open_mapped(const char *dir, json_t *map, struct mla_checkpoint *checkpoint,
                                   const char **shards, char *why)
{
    for (void *i = json_object_iter(map); i; i = json_object_iter_next(map, i)) {
        const char *tensor = json_object_iter_key(i);
        const char *shard = json_string_value(json_object_iter_value(i));
        enum mla_status status;
        size_t k = 0;
        if (!is_plain_name(shard))
            return mla_refuse(MLA_CHECKPOINT, why,
                              "the index has %.80s in %.80s, which is not a plain file name",
                              tensor, shard ? shard : "something");
        while (shards[k] && strcmp(shards[k], shard) != 0)
            k++;
        if (k == FILES_MAX)
            return mla_refuse(MLA_CHECKPOINT, why, "the index names more than %u files", FILES_MAX);
        if (!shards[k]) {
            shards[k] = shard;
            if ((status = open_file(dir, shard, checkpoint, why)))
                return status;
        }
        if (!mla_safetensors_find(&checkpoint->files[k], tensor))
            return mla_refuse(MLA_CHECKPOINT, why, "the index has %.80s in %.80s, which lacks it",
                              tensor, shard);
    }
    return MLA_OK;
}

static enum mla_status open_shards(const char *dir, struct mla_checkpoint *checkpoint, char *why)
{
    static const char name[] = "model.safetensors.index.json";
    const char **shards = NULL;
    json_t *index = NULL;
    char *text;
    size_t bytes;
    enum mla_status status =
        mla_file_read(dir, name, MLA_SAFETENSORS_HEADER_MAX, &text, &bytes, why);
    if (status)
        return status == MLA_MEMORY ? status : MLA_CHECKPOINT;
    status = mla_json_parse(text, bytes, name, MLA_CHECKPOINT, &index, why);
    free(text);
    if (status)
        return status;
    json_t *map = json_object_get(index, "weight_map");
    if (!json_is_object(map)) {
        status = mla_refuse(MLA_CHECKPOINT, why, "%s has no weight_map", name);
        goto fail;
    }
    checkpoint->files = calloc(FILES_MAX, sizeof *checkpoint->files);
    shards = calloc(FILES_MAX + 1, sizeof *shards);
    if (!checkpoint->files || !shards) {
        status = mla_refuse(MLA_MEMORY, why, "no memory for the list of files");
        goto fail;
    }
    status = open_mapped(dir, map, checkpoint, shards, why);
fail:
    free(shards);
    json_decref(index);
    return status;
}

/* The one file where there is one; the index otherwise. */
static enum mla_status open_files(const char *dir, struct mla_checkpoint *checkpoint, char *why)
{
    static const char name[] = "model.safetensors";
    char path[PATH_MAX];
    int length = snprintf(path, sizeof path, "%s/%s", dir, name);
    if (length < 0 || (size_t)length >= sizeof path)
        return mla_refuse(MLA_CHECKPOINT, why, "the path of %s is too long", name);
    if (access(path, F_OK) != 0)
        return open_shards(dir, checkpoint, why);
    checkpoint->files = calloc(1, sizeof *checkpoint->files);
    if (!checkpoint->files)
        return mla_refuse(MLA_MEMORY, why, "no memory for the list of files");
    return open_file(dir, name, checkpoint, why);
}

/* The layer whose attention `name` belongs to, MLA_LAYERS_MAX for none. */
static uint32_t layer_of(const char *name)
{
    uint32_t layer = 0;
    if (strncmp(name, LAYERS, strlen(LAYERS)) != 0)
        return MLA_LAYERS_MAX;
    name += strlen(LAYERS);
    if (*name < '0' || *name > '9')
        return MLA_LAYERS_MAX;
    for (; *name >= '0' && *name <= '9'; name++) {
        layer = layer * 10 + (uint32_t)(*name - '0');
        if (layer >= MLA_LAYERS_MAX)
            return MLA_LAYERS_MAX;
    }
    return strncmp(name, ATTENTION, strlen(ATTENTION)) == 0 ? layer : MLA_LAYERS_MAX;
}

static enum mla_status check_weight(const struct mla_checkpoint *checkpoint, uint32_t layer,
                                    enum mla_weight weight, char *why)
{
    struct mla_weight_spec spec;
    mla_weight_describe(&checkpoint->config, layer, weight, &spec);
    const struct mla_tensor *tensor = find(checkpoint, spec.name);
    if (!tensor && !spec.present)
        return MLA_OK;
    if (!tensor)
        return mla_refuse(MLA_CHECKPOINT, why, "tensor %s is missing", spec.name);
    if (!spec.present)
        return mla_refuse(MLA_CHECKPOINT, why,
                          "tensor %s is there, but config.json's q_lora_rank or attention_bias "
                          "says it is not",
                          spec.name);
    for (size_t i = 0; i < checkpoint->file_count; i++) {
        const struct mla_tensor *other = mla_safetensors_find(&checkpoint->files[i], spec.name);
        if (other && other != tensor)
            return mla_refuse(MLA_CHECKPOINT, why, "tensor %s is in two files", spec.name);
    }
    if (mla_dtype_bytes(tensor->dtype) == 0)
        return mla_refuse(MLA_CHECKPOINT, why,
                          "tensor %s is not BF16, F16 or F32: convert a quantised checkpoint first",
                          spec.name);
    if (tensor->dims != spec.dims || tensor->shape[0] != spec.shape[0] ||
        (spec.dims == 2 && tensor->shape[1] != spec.shape[1]))
        return mla_refuse(MLA_CHECKPOINT, why,
                          "tensor %s has %" PRIu32 " dimensions [%" PRIu64 ", %" PRIu64
                          "], config.json asks for %" PRIu32 " [%" PRIu64 ", %" PRIu64 "]",
                          spec.name, tensor->dims, tensor->shape[0], tensor->shape[1], spec.dims,
                          spec.shape[0], spec.shape[1]);
    return MLA_OK;
}

/* Lists and checks the asked layers, or all of which any tensor is there. A layer past
 * num_hidden_layers is one for multi-token prediction, with an attention like the others. */
static enum mla_status find_layers(struct mla_checkpoint *checkpoint, uint32_t first, uint32_t last,
                                   char *why)
{
    bool wanted[MLA_LAYERS_MAX + 1] = {false}; /* the last is for tensors of no layer */
    for (uint32_t layer = first; layer <= last; layer++)
        wanted[layer] = true;
    for (size_t i = 0; i < checkpoint->file_count && first > last; i++) {
        for (size_t k = 0; k < checkpoint->files[i].count; k++)
            wanted[layer_of(checkpoint->files[i].tensors[k].name)] = true;
    }
    for (uint32_t layer = 0; layer < MLA_LAYERS_MAX; layer++) {
        if (!wanted[layer])
            continue;
        for (int weight = 0; weight < MLA_WEIGHT_COUNT; weight++) {
            enum mla_status status = check_weight(checkpoint, layer, weight, why);
            if (status)
                return status;
        }
        checkpoint->layers[checkpoint->layer_count++] = layer;
    }
    if (checkpoint->layer_count == 0)
        return mla_refuse(MLA_CHECKPOINT, why, "no tensor is named " LAYERS "N" ATTENTION "...");
    return MLA_OK;
}

enum mla_status mla_checkpoint_open(const char *dir, uint32_t layer_first, uint32_t layer_last,
                                    struct mla_checkpoint *out, char *why)
{
    struct mla_checkpoint checkpoint = {0};
    enum mla_status status;
    if (layer_first <= layer_last && layer_last >= MLA_LAYERS_MAX)
        return mla_refuse(MLA_CHECKPOINT, why,
                          "layer %" PRIu32 " is asked for, at most %u are served", layer_last,
                          MLA_LAYERS_MAX);
    if ((status = mla_config_read(dir, &checkpoint.config, why)) ||
        (status = open_files(dir, &checkpoint, why)) ||
        (status = find_layers(&checkpoint, layer_first, layer_last, why))) {
        mla_checkpoint_close(&checkpoint);
        return status;
    }
    *out = checkpoint;
    return MLA_OK;
}

void mla_checkpoint_close(struct mla_checkpoint *checkpoint)
{
    for (size_t i = 0; i < checkpoint->file_count; i++)
        mla_safetensors_close(&checkpoint->files[i]);
    free(checkpoint->files);
    *checkpoint = (struct mla_checkpoint){0};
}

const struct mla_tensor *mla_checkpoint_weight(const struct mla_checkpoint *checkpoint,
                                               uint32_t layer, enum mla_weight weight)
{
    struct mla_weight_spec spec;
    mla_weight_describe(&checkpoint->config, layer, weight, &spec);
    return spec.present ? find(checkpoint, spec.name) : NULL;
}

/* Exact. The bits of a half, moved into place, are the float times 2^-112, subnormals included;
 * infinities and NaN then still lack the upper bits of their exponent. */
static float f16_to_f32(uint16_t bits)
{
    uint32_t wide = (uint32_t)(bits & 0x7fffu) << 13;
    float value;
    memcpy(&value, &wide, sizeof value);
    value *= 0x1p112f;
    memcpy(&wide, &value, sizeof wide);
    if ((bits & 0x7c00u) == 0x7c00u)
        wide |= 0x7f800000u;
    wide |= (uint32_t)(bits & 0x8000u) << 16;
    memcpy(&value, &wide, sizeof value);
    return value;
}

void mla_tensor_to_f32(const struct mla_tensor *tensor, uint64_t first, uint64_t count, float *dst)
{
    size_t size = mla_dtype_bytes(tensor->dtype);
    assert(size > 0 && first <= tensor->bytes / size && count <= tensor->bytes / size - first);
    const uint8_t *src = tensor->data + first * size; /* of any alignment */
    uint16_t bits;
    switch (tensor->dtype) {
    case MLA_F32:
        memcpy(dst, src, count * size);
        break;
    case MLA_BF16:
        for (uint64_t i = 0; i < count; i++) {
            memcpy(&bits, src + i * sizeof bits, sizeof bits);
            dst[i] = mla_bf16_to_f32(bits);
        }
        break;
    case MLA_F16:
        for (uint64_t i = 0; i < count; i++) {
            memcpy(&bits, src + i * sizeof bits, sizeof bits);
            dst[i] = f16_to_f32(bits);
        }
        break;
    }
}
