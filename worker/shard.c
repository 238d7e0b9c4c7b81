#include "worker/shard.h"

#include "worker/progress.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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

/* What a rank has of a layer, buffer by buffer: a part of one tensor, or of two, one over the
 * other, of which a model may lack the first. */
struct piece {
    void **at;
    uint32_t count;
    struct source {
        enum mla_weight weight;
        struct part part;
    } sources[2];
};

enum { PIECES = 8 };

static void list_pieces(const struct mla_config *c, uint32_t rank, uint32_t ranks,
                        struct mla_layer_weights *to, struct piece out[PIECES])
{
    uint64_t heads = c->heads / ranks;
    uint64_t first = rank * heads;
    uint64_t q = c->nope + c->rope;
    uint64_t kv = c->nope + c->v;
    uint64_t kv_a = (uint64_t)c->latent + c->rope;
    bool joined = mla_q_joined(c, ranks);
    struct source q_a = {MLA_WEIGHT_Q_A, {0, c->q_lora, 0, c->hidden}};
    struct source q_b = {MLA_WEIGHT_Q_B, {first * q, heads * q, 0, mla_q_input(c)}};
    const struct piece pieces[PIECES] = {
        {&to->a, 2, {joined ? q_b : q_a, {MLA_WEIGHT_KV_A, {0, kv_a, 0, c->hidden}}}},
        {&to->a_bias,
         2,
         {{MLA_WEIGHT_Q_A_BIAS, {0, c->q_lora, 0, 1}}, {MLA_WEIGHT_KV_A_BIAS, {0, kv_a, 0, 1}}}},
        {&to->q_norm, 1, {{MLA_WEIGHT_Q_A_NORM, {0, 1, 0, c->q_lora}}}},
        {&to->kv_norm, 1, {{MLA_WEIGHT_KV_A_NORM, {0, 1, 0, c->latent}}}},
        {&to->q_b, !joined, {q_b}},
        {&to->kv_b, 1, {{MLA_WEIGHT_KV_B, {first * kv, heads * kv, 0, c->latent}}}},
        {&to->o, 1, {{MLA_WEIGHT_O, {0, c->hidden, first * c->v, heads * c->v}}}},
        {&to->o_bias, rank == 0, {{MLA_WEIGHT_O_BIAS, {0, 1, 0, c->hidden}}}},
    };
    memcpy(out, pieces, sizeof pieces);
}

static uint64_t part_elements(const struct part *part)
{
    return part->rows * part->columns;
}

/* Allocates and loads one buffer; NULL where the model has nothing of it. */
static enum mla_status load_piece(struct loader *loader, uint32_t layer, const struct piece *piece)
{
    const struct mla_tensor *tensors[2] = {0};
    uint64_t elements = 0;
    for (uint32_t i = 0; i < piece->count; i++) {
        tensors[i] = mla_checkpoint_weight(loader->checkpoint, layer, piece->sources[i].weight);
        if (tensors[i])
            elements += part_elements(&piece->sources[i].part);
    }
    if (elements == 0)
        return MLA_OK;
    enum mla_status status = loader->backend->ops->alloc(
        loader->backend, elements * mla_dtype_bytes(loader->backend->activation), piece->at);
    uint64_t at = 0;
    for (uint32_t i = 0; status == MLA_OK && i < piece->count; i++) {
        if (!tensors[i])
            continue;
        status = load_part(loader, tensors[i], piece->sources[i].part, *piece->at, at);
        at += part_elements(&piece->sources[i].part);
    }
    return status;
}

static enum mla_status load_layer(struct loader *loader, const struct mla_shard *shard,
                                  uint32_t layer, struct mla_layer_weights *out)
{
    struct piece pieces[PIECES];
    list_pieces(&shard->config, shard->rank, shard->ranks, out, pieces);
    enum mla_status status = MLA_OK;
    for (int i = 0; status == MLA_OK && i < PIECES; i++)
        status = load_piece(loader, layer, &pieces[i]);
    return status;
}

void mla_shard_layer_bytes(const struct mla_config *config, uint32_t rank, uint32_t ranks,
                           enum mla_dtype activation, uint64_t *bytes, uint64_t *alike)
{
    struct piece pieces[PIECES];
    struct mla_layer_weights nowhere;
    list_pieces(config, rank, ranks, &nowhere, pieces);
    *bytes = 0;
    *alike = 0;
    for (int i = 0; i < PIECES; i++)
        for (uint32_t k = 0; k < pieces[i].count; k++) {
            const struct source *source = &pieces[i].sources[k];
            struct mla_weight_spec spec;
            mla_weight_describe(config, 0, source->weight, &spec);
            if (!spec.present)
                continue;
            uint64_t whole = spec.shape[0] * (spec.dims == 2 ? spec.shape[1] : 1);
            uint64_t part = part_elements(&source->part);
            *bytes += part * mla_dtype_bytes(activation);
            *alike += part == whole ? part * mla_dtype_bytes(activation) : 0;
        }
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
