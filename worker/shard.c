#include "worker/shard.h"

#include "worker/progress.h"

#include <stdio.h>
#include <stdlib.h>

enum { STAGE_ELEMENTS = 1 << 20 };

/* Rows [row, row + rows) and columns [column, column + columns) of a matrix. */
struct part {
    uint64_t row, rows, column, columns;
};

struct loader {
    const struct mla_checkpoint *checkpoint;
    struct mla_backend *backend;
    float *stage;
    uint16_t *narrow; /* for a bf16 backend */
};

enum mla_status mla_shard_check(const struct mla_config *config, uint32_t ranks, char *why)
{
    if (ranks >= 1 && ranks <= MLA_RANKS_MAX && config->heads % ranks == 0)
        return MLA_OK;
    snprintf(why, MLA_SENTENCE_BYTES_MAX, "%u heads can't be shared out to %u ranks", config->heads,
             ranks);
    return MLA_OPTION;
}

static enum mla_status upload(struct loader *loader, uint8_t *dst, uint64_t first, uint64_t count)
{
    struct mla_backend *backend = loader->backend;
    const void *src = loader->stage;
    size_t element = mla_dtype_bytes(backend->activation);
    if (backend->activation == MLA_BF16) {
        for (uint64_t i = 0; i < count; i++)
            loader->narrow[i] = mla_f32_to_bf16(loader->stage[i]);
        src = loader->narrow;
    }
    enum mla_status status =
        backend->ops->upload(backend, dst + first * element, src, count * element);
    return status == MLA_OK ? backend->ops->synchronize(backend) : status;
}

/* Copies a part of a tensor to dst (elements from `at` on), through the stage. */
static enum mla_status load_part(struct loader *loader, const struct mla_tensor *tensor,
                                 struct part part, void *dst, uint64_t at)
{
    uint64_t width = tensor->dims == 2 ? tensor->shape[1] : 1; /* a vector is a column or a row */
    uint64_t rows_a_turn = STAGE_ELEMENTS / part.columns;
    for (uint64_t done = 0; done < part.rows;) {
        uint64_t rows = part.rows - done < rows_a_turn ? part.rows - done : rows_a_turn;
        for (uint64_t i = 0; i < rows; i++)
            mla_tensor_to_f32(tensor, (part.row + done + i) * width + part.column, part.columns,
                              loader->stage + i * part.columns);
        enum mla_status status = upload(loader, dst, at + done * part.columns, rows * part.columns);
        if (status != MLA_OK)
            return status;
        done += rows;
    }
    return MLA_OK;
}

static enum mla_status alloc_elements(struct mla_backend *backend, uint64_t elements, void **out)
{
    return backend->ops->alloc(backend, elements * mla_dtype_bytes(backend->activation), out);
}

/* Allocates and loads one part of one tensor. */
static enum mla_status load(struct loader *loader, uint32_t layer, enum mla_weight weight,
                            struct part part, void **out)
{
    const struct mla_tensor *tensor = mla_checkpoint_weight(loader->checkpoint, layer, weight);
    if (!tensor)
        return MLA_OK;
    enum mla_status status = alloc_elements(loader->backend, part.rows * part.columns, out);
    return status == MLA_OK ? load_part(loader, tensor, part, *out, 0) : status;
}

/* Two tensors, one over the other; the first may be missing. */
static enum mla_status load_stacked(struct loader *loader, uint32_t layer, enum mla_weight upper,
                                    enum mla_weight lower, uint64_t upper_rows, uint64_t lower_rows,
                                    uint64_t columns, void **out)
{
    const struct mla_tensor *top = mla_checkpoint_weight(loader->checkpoint, layer, upper);
    const struct mla_tensor *bottom = mla_checkpoint_weight(loader->checkpoint, layer, lower);
    if (!bottom)
        return MLA_OK;
    if (!top)
        upper_rows = 0;
    enum mla_status status =
        alloc_elements(loader->backend, (upper_rows + lower_rows) * columns, out);
    if (status == MLA_OK && top)
        status = load_part(loader, top, (struct part){0, upper_rows, 0, columns}, *out, 0);
    if (status == MLA_OK)
        status = load_part(loader, bottom, (struct part){0, lower_rows, 0, columns}, *out,
                           upper_rows * columns);
    return status;
}

static enum mla_status load_layer(struct loader *loader, const struct mla_shard *shard,
                                  uint32_t layer, struct mla_layer_weights *out)
{
    const struct mla_config *c = &shard->config;
    uint64_t heads = shard->heads;
    uint64_t first = shard->rank * heads;
    uint64_t q_rows = heads * (c->nope + c->rope);
    uint64_t kv_rows = heads * (c->nope + c->v);
    enum mla_status status = load_stacked(loader, layer, MLA_WEIGHT_Q_A, MLA_WEIGHT_KV_A, c->q_lora,
                                          c->latent + c->rope, c->hidden, &out->a);
    if (status == MLA_OK)
        status = load_stacked(loader, layer, MLA_WEIGHT_Q_A_BIAS, MLA_WEIGHT_KV_A_BIAS, c->q_lora,
                              c->latent + c->rope, 1, &out->a_bias);
    if (status == MLA_OK)
        status = load(loader, layer, MLA_WEIGHT_Q_A_NORM, (struct part){0, 1, 0, c->q_lora},
                      &out->q_norm);
    if (status == MLA_OK)
        status = load(loader, layer, MLA_WEIGHT_KV_A_NORM, (struct part){0, 1, 0, c->latent},
                      &out->kv_norm);
    if (status == MLA_OK)
        status =
            load(loader, layer, MLA_WEIGHT_Q_B,
                 (struct part){first * (c->nope + c->rope), q_rows, 0, mla_q_input(c)}, &out->q_b);
    if (status == MLA_OK)
        status = load(loader, layer, MLA_WEIGHT_KV_B,
                      (struct part){first * (c->nope + c->v), kv_rows, 0, c->latent}, &out->kv_b);
    if (status == MLA_OK)
        status = load(loader, layer, MLA_WEIGHT_O,
                      (struct part){0, c->hidden, first * c->v, heads * c->v}, &out->o);
    if (status == MLA_OK && shard->rank == 0)
        status =
            load(loader, layer, MLA_WEIGHT_O_BIAS, (struct part){0, 1, 0, c->hidden}, &out->o_bias);
    return status;
}

enum mla_status mla_shard_load(const struct mla_checkpoint *checkpoint, uint32_t rank,
                               uint32_t ranks, struct mla_backend *backend, struct mla_shard *out)
{
    char why[MLA_SENTENCE_BYTES_MAX];
    enum mla_status status = mla_shard_check(&checkpoint->config, ranks, why);
    if (status != MLA_OK) {
        fprintf(stderr, "%s\n", why);
        return status;
    }
    *out = (struct mla_shard){.config = checkpoint->config,
                              .rank = rank,
                              .ranks = ranks,
                              .heads = checkpoint->config.heads / ranks,
                              .layer_count = checkpoint->layer_count,
                              .softmax_scale = mla_config_softmax_scale(&checkpoint->config)};
    memcpy(out->layers, checkpoint->layers, sizeof out->layers);
    /* One row of the widest matrix must fit: hidden, or heads * v, within limits.h. */
    size_t stage = STAGE_ELEMENTS;
    struct loader loader = {.checkpoint = checkpoint,
                            .backend = backend,
                            .stage = malloc(stage * sizeof(float)),
                            .narrow = malloc(stage * sizeof(uint16_t))};
    status = loader.stage && loader.narrow ? MLA_OK : MLA_MEMORY;
    for (uint32_t i = 0; status == MLA_OK && i < out->layer_count; i++) {
        status = load_layer(&loader, out, out->layers[i], &out->weights[i]);
        if (status == MLA_OK && rank == 0)
            mla_progress_show("loaded", "layer", i + 1, out->layer_count, 1);
    }
    free(loader.stage);
    free(loader.narrow);
    if (status != MLA_OK)
        mla_shard_free(out, backend);
    return status;
}

enum mla_status mla_shard_make_rope_table(struct mla_shard *shard, struct mla_backend *backend,
                                          uint32_t positions)
{
    if (positions <= shard->rope_positions)
        return MLA_OK;
    size_t bytes = (size_t)positions * shard->config.rope * sizeof(float);
    float *host = malloc(bytes);
    void *table = NULL;
    enum mla_status status = host ? backend->ops->alloc(backend, bytes, &table) : MLA_MEMORY;
    if (status == MLA_OK) {
        mla_config_rope_table(&shard->config, positions, host);
        status = backend->ops->upload(backend, table, host, bytes);
    }
    if (status == MLA_OK)
        status = backend->ops->synchronize(backend);
    free(host);
    if (status != MLA_OK) {
        backend->ops->free(backend, table);
        return status;
    }
    backend->ops->free(backend, shard->rope_table);
    shard->rope_table = table;
    shard->rope_positions = positions;
    return MLA_OK;
}

void mla_shard_free(struct mla_shard *shard, struct mla_backend *backend)
{
    for (uint32_t i = 0; i < shard->layer_count; i++) {
        struct mla_layer_weights *w = &shard->weights[i];
        void *const all[] = {w->a,   w->a_bias, w->q_norm, w->kv_norm,
                             w->q_b, w->kv_b,   w->o,      w->o_bias};
        for (size_t k = 0; k < sizeof all / sizeof *all; k++)
            backend->ops->free(backend, all[k]);
    }
    if (shard->rope_table)
        backend->ops->free(backend, shard->rope_table);
    *shard = (struct mla_shard){0};
}
