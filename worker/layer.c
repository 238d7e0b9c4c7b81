#include "worker/layer.h"

#include <assert.h>

/* The reference implementation's latent norms don't follow rms_norm_eps. */
static const float NORM_EPS = 1e-6f;

#define TRY(call)                                                                                  \
    do {                                                                                           \
        enum mla_status try_status = (call);                                                       \
        if (try_status != MLA_OK)                                                                  \
            return try_status;                                                                     \
    } while (0)

enum mla_status mla_layer_init(struct mla_layer *layer, struct mla_backend *backend,
                               struct mla_collective *collective, const struct mla_shard *shard,
                               const struct mla_kvcache *cache, int64_t rows_max,
                               int64_t decode_rows_max, int64_t chunk_rows)
{
    const struct mla_config *c = &shard->config;
    assert(rows_max % shard->ranks == 0 && decode_rows_max <= rows_max);
    *layer = (struct mla_layer){.backend = backend,
                                .collective = collective,
                                .shard = shard,
                                .cache = cache,
                                .rows_max = rows_max,
                                .decode_rows_max = decode_rows_max,
                                .chunk_rows = chunk_rows};
    size_t rows = (size_t)rows_max;
    size_t decode_rows = (size_t)decode_rows_max;
    size_t expanded_rows = rows_max > chunk_rows ? rows : (size_t)chunk_rows;
    size_t heads = shard->heads;
    size_t element = mla_dtype_bytes(backend->activation);
    bool joined = mla_q_joined(c, shard->ranks);
    size_t q_values = joined ? 0 : heads * (c->nope + c->rope);
    void *lse = NULL;
    void *chunk_lse = NULL;
    const struct {
        void **at;
        size_t bytes;
    } buffers[] = {
        {&layer->q, rows * q_values * element},
        {&layer->absorbed, decode_rows * heads * (c->latent + c->rope) * element},
        {&layer->o_latent, decode_rows * heads * c->latent * element},
        {&layer->expanded, expanded_rows * heads * (c->nope + c->v) * element},
        {&layer->context, (size_t)chunk_rows * (c->latent + c->rope) * element},
        {&layer->heads_out, rows * heads * c->v * element},
        {&layer->chunk_out, rows * heads * c->v * element},
        {&lse, rows * heads * sizeof(float)},
        {&chunk_lse, rows * heads * sizeof(float)},
    };
    enum mla_status status = MLA_OK;
    for (size_t i = 0; status == MLA_OK && i < sizeof buffers / sizeof *buffers; i++)
        if (buffers[i].bytes > 0)
            status = backend->ops->alloc(backend, buffers[i].bytes, buffers[i].at);
    layer->lse = lse;
    layer->chunk_lse = chunk_lse;
    if (status == MLA_OK)
        status = collective->ops->alloc(
            collective, rows * mla_latent_row(c, shard->ranks) * element, &layer->latents);
    for (uint32_t i = 0; status == MLA_OK && i < mla_turns(backend); i++)
        status = collective->ops->alloc(collective, rows * c->hidden * element, &layer->partial[i]);
    if (status != MLA_OK)
        mla_layer_fini(layer);
    return status;
}

void mla_layer_fini(struct mla_layer *layer)
{
    void *const buffers[] = {layer->q,         layer->absorbed, layer->o_latent,
                             layer->expanded,  layer->context,  layer->heads_out,
                             layer->chunk_out, layer->lse,      layer->chunk_lse};
    layer->collective->ops->free(layer->collective, layer->latents);
    for (uint32_t i = 0; i < MLA_TURNS; i++)
        layer->collective->ops->free(layer->collective, layer->partial[i]);
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++)
        if (buffers[i])
            layer->backend->ops->free(layer->backend, buffers[i]);
    *layer = (struct mla_layer){0};
}

static void *element(const struct mla_layer *layer, void *base, int64_t at)
{
    return (char *)base + at * (int64_t)mla_dtype_bytes(layer->backend->activation);
}

/* A row of `latents`, and where in it ckv begins. */
static int64_t latent_row(const struct mla_layer *layer)
{
    return mla_latent_row(&layer->shard->config, layer->shard->ranks);
}

static int64_t ckv_at(const struct mla_layer *layer)
{
    const struct mla_config *c = &layer->shard->config;
    return latent_row(layer) - c->latent - c->rope;
}

static bool q_joined(const struct mla_layer *layer)
{
    return mla_q_joined(&layer->shard->config, layer->shard->ranks);
}

/* q, and the distance of its rows. */
static void *q_of(const struct mla_layer *layer)
{
    return q_joined(layer) ? layer->latents : layer->q;
}

static int64_t q_row(const struct mla_layer *layer)
{
    const struct mla_config *c = &layer->shard->config;
    return q_joined(layer) ? latent_row(layer) : (int64_t)layer->shard->heads * (c->nope + c->rope);
}

/* Whether the rows are all this rank's own, so that nothing is gathered before they are kept. */
static bool alone(const struct mla_layer *layer)
{
    return layer->shard->ranks == 1;
}

/* y = x W^T (+ bias): the products of the checkpoint's matrices. */
static struct mla_gemm linear(int64_t m, int64_t n, int64_t k, const void *x, int64_t ldx,
                              const void *w, const void *bias, void *y, int64_t ldy)
{
    return (struct mla_gemm){.m = m,
                             .n = n,
                             .k = k,
                             .batch = 1,
                             .a = x,
                             .lda = ldx,
                             .b = w,
                             .ldb = k,
                             .b_transposed = true,
                             .c = y,
                             .ldc = ldy,
                             .bias = bias};
}

/* Own rows: [cq | ckv | kpe] = x [W_qa | W_kva]^T, norms, RoPE. Without a q_lora_rank q itself is
 * there in place of cq, or else x, to be gathered along. Rows that are all own are kept at once. */
static enum mla_status project_down(struct mla_layer *layer, uint32_t index,
                                    const struct mla_layer_weights *w,
                                    const struct mla_microbatch *mb, const void *x)
{
    const struct mla_config *c = &layer->shard->config;
    struct mla_backend *backend = layer->backend;
    int64_t width = latent_row(layer);
    int64_t rows = mb->padded / layer->shard->ranks;
    int64_t first = rows * layer->shard->rank;
    void *own = element(layer, layer->latents, first * width);
    void *ckv = element(layer, own, ckv_at(layer));
    struct mla_latents latents = {.rows = rows,
                                  .stride = width,
                                  .ckv = ckv,
                                  .latent = c->latent,
                                  .rope = c->rope,
                                  .kv_norm = w->kv_norm,
                                  .eps = NORM_EPS,
                                  .positions = mb->positions + first,
                                  .table = layer->shard->rope_table,
                                  .interleaved = c->rope_config.interleaved};
    if (alone(layer)) {
        latents.slots = mb->slots;
        latents.pool = mla_kvcache_pool(layer->cache, index);
    }
    if (c->q_lora) {
        latents.cq = own;
        latents.q_lora = c->q_lora;
        latents.q_norm = w->q_norm;
    }
    if (c->q_lora || q_joined(layer)) {
        struct mla_gemm down =
            linear(rows, width, c->hidden, x, c->hidden, w->a, w->a_bias, own, width);
        TRY(backend->ops->gemm(backend, &down));
    } else {
        struct mla_gemm down =
            linear(rows, c->latent + c->rope, c->hidden, x, c->hidden, w->a, w->a_bias, ckv, width);
        struct mla_copy copy = {.rows = rows,
                                .n = c->hidden,
                                .src = x,
                                .src_stride = c->hidden,
                                .src_dtype = backend->activation,
                                .dst = own,
                                .dst_stride = width,
                                .dst_dtype = backend->activation};
        TRY(backend->ops->gemm(backend, &down));
        TRY(backend->ops->copy(backend, &copy));
    }
    return backend->ops->latents(backend, &latents);
}

/* RoPE of q_pe, from q to where attention reads it. */
static enum mla_status rotate_q(struct mla_layer *layer, const struct mla_microbatch *mb, void *dst,
                                int64_t dst_row_stride, int64_t dst_head_stride)
{
    const struct mla_config *c = &layer->shard->config;
    int64_t heads = layer->shard->heads;
    int64_t q_head = c->nope + c->rope;
    struct mla_rope rope = {.rows = mb->padded,
                            .heads = heads,
                            .dim = c->rope,
                            .src = element(layer, q_of(layer), c->nope),
                            .src_row_stride = q_row(layer),
                            .src_head_stride = q_head,
                            .dst = dst,
                            .dst_row_stride = dst_row_stride,
                            .dst_head_stride = dst_head_stride,
                            .positions = mb->positions,
                            .table = layer->shard->rope_table,
                            .interleaved = c->rope_config.interleaved};
    return layer->backend->ops->rope(layer->backend, &rope);
}

/* Absorbed form: q_lat = q_nope W_UK, attention over the latent cache, o = o_lat W_UV. RoPE comes
 * first: W_UK can be on its way while it runs. */
static enum mla_status attend_decode(struct mla_layer *layer, uint32_t index,
                                     const struct mla_layer_weights *w,
                                     const struct mla_microbatch *mb)
{
    const struct mla_config *c = &layer->shard->config;
    struct mla_backend *backend = layer->backend;
    int64_t heads = layer->shard->heads;
    int64_t q_head = c->nope + c->rope;
    int64_t kv_head = c->nope + c->v;
    int64_t width = c->latent + c->rope;
    struct mla_gemm absorb = {.m = mb->padded,
                              .n = c->latent,
                              .k = c->nope,
                              .batch = heads,
                              .a = q_of(layer),
                              .lda = q_row(layer),
                              .a_stride = q_head,
                              .b = w->kv_b,
                              .ldb = c->latent,
                              .b_stride = kv_head * c->latent,
                              .c = layer->absorbed,
                              .ldc = heads * width,
                              .c_stride = width};
    struct mla_attend_decode attend = {.kv = mla_step_view(layer->cache, index, mb),
                                       .rows_max = mb->padded,
                                       .heads = heads,
                                       .q = layer->absorbed,
                                       .q_row_stride = heads * width,
                                       .q_head_stride = width,
                                       .out = layer->o_latent,
                                       .out_row_stride = heads * c->latent,
                                       .out_head_stride = c->latent,
                                       .scale = layer->shard->softmax_scale,
                                       .schedule = mb->schedule};
    struct mla_gemm up = {.m = mb->padded,
                          .n = c->v,
                          .k = c->latent,
                          .batch = heads,
                          .a = layer->o_latent,
                          .lda = heads * c->latent,
                          .a_stride = c->latent,
                          .b = element(layer, w->kv_b, (int64_t)c->nope * c->latent),
                          .ldb = c->latent,
                          .b_stride = kv_head * c->latent,
                          .b_transposed = true,
                          .c = layer->heads_out,
                          .ldc = heads * c->v,
                          .c_stride = c->v};
    TRY(rotate_q(layer, mb, element(layer, layer->absorbed, c->latent), heads * width, width));
    TRY(backend->ops->gemm(backend, &absorb));
    TRY(backend->ops->attend_decode(backend, &attend));
    return backend->ops->gemm(backend, &up);
}

/* k_nope and v of `rows` latent rows: [k_nope | v] = ckv [W_UK | W_UV]^T for every head. */
static enum mla_status expand(struct mla_layer *layer, const struct mla_layer_weights *w,
                              int64_t rows, const void *ckv, int64_t stride)
{
    const struct mla_config *c = &layer->shard->config;
    int64_t n = (int64_t)layer->shard->heads * (c->nope + c->v);
    struct mla_gemm up = linear(rows, n, c->latent, ckv, stride, w->kv_b, NULL, layer->expanded, n);
    return layer->backend->ops->gemm(layer->backend, &up);
}

/* Attention of the microbatch's rows over the keys that `expand` made. */
static struct mla_attend_prefill over_expanded(const struct mla_layer *layer,
                                               const struct mla_microbatch *mb)
{
    const struct mla_config *c = &layer->shard->config;
    int64_t heads = layer->shard->heads;
    int64_t q_head = c->nope + c->rope;
    int64_t kv_head = c->nope + c->v;
    return (struct mla_attend_prefill){.sequences = mb->sequences,
                                       .heads = heads,
                                       .nope = c->nope,
                                       .rope = c->rope,
                                       .v_dim = c->v,
                                       .rows = mb->rows,
                                       .rows_max = mb->rows_max,
                                       .row_first = mb->row_first,
                                       .q = q_of(layer),
                                       .q_row_stride = q_row(layer),
                                       .q_head_stride = q_head,
                                       .k_nope = layer->expanded,
                                       .k_row_stride = heads * kv_head,
                                       .k_head_stride = kv_head,
                                       .v = element(layer, layer->expanded, c->nope),
                                       .v_row_stride = heads * kv_head,
                                       .v_head_stride = kv_head,
                                       .out_row_stride = heads * c->v,
                                       .out_head_stride = c->v,
                                       .scale = layer->shard->softmax_scale};
}

/* One chunk of cached context, joined to what there is by log-sum-exp. */
static enum mla_status attend_context(struct mla_layer *layer, uint32_t index,
                                      const struct mla_layer_weights *w,
                                      const struct mla_microbatch *mb,
                                      const struct mla_context_chunk *chunk)
{
    const struct mla_config *c = &layer->shard->config;
    struct mla_backend *backend = layer->backend;
    int64_t width = c->latent + c->rope;
    struct mla_kv_gather gather = {.kv = mla_step_view(layer->cache, index, mb),
                                   .rows = chunk->rows,
                                   .begin = chunk->begin,
                                   .context_first = chunk->first,
                                   .dst = layer->context,
                                   .dst_stride = width};
    struct mla_attend_prefill attend = over_expanded(layer, mb);
    attend.keys = chunk->rows;
    attend.keys_max = chunk->rows_max;
    attend.key_first = chunk->first;
    attend.k_rope = element(layer, layer->context, c->latent);
    attend.k_rope_stride = width;
    attend.out = layer->chunk_out;
    attend.lse = layer->chunk_lse;
    struct mla_merge merge = {.rows = mb->rows,
                              .heads = layer->shard->heads,
                              .v_dim = c->v,
                              .out = layer->heads_out,
                              .lse = layer->lse,
                              .out_b = layer->chunk_out,
                              .lse_b = layer->chunk_lse,
                              .out_row_stride = attend.out_row_stride,
                              .out_head_stride = attend.out_head_stride};
    TRY(backend->ops->kv_gather(backend, &gather));
    TRY(expand(layer, w, chunk->rows, layer->context, width));
    TRY(backend->ops->attend_prefill(backend, &attend));
    return backend->ops->merge(backend, &merge);
}

/* Multi-head form: the new tokens among themselves, then their cached context. */
static enum mla_status attend_prefill(struct mla_layer *layer, uint32_t index,
                                      const struct mla_layer_weights *w,
                                      const struct mla_microbatch *mb)
{
    const struct mla_config *c = &layer->shard->config;
    int64_t width = latent_row(layer);
    void *ckv = element(layer, layer->latents, ckv_at(layer));
    struct mla_attend_prefill attend = over_expanded(layer, mb);
    attend.keys = mb->rows;
    attend.keys_max = mb->rows_max;
    attend.key_first = mb->row_first;
    attend.k_rope = element(layer, ckv, c->latent);
    attend.k_rope_stride = width;
    attend.out = layer->heads_out;
    attend.lse = layer->lse;
    attend.causal = true;
    TRY(rotate_q(layer, mb, element(layer, q_of(layer), c->nope), q_row(layer), c->nope + c->rope));
    TRY(expand(layer, w, mb->rows, ckv, width));
    TRY(layer->backend->ops->attend_prefill(layer->backend, &attend));
    for (uint32_t i = 0; i < mb->chunk_count; i++)
        TRY(attend_context(layer, index, w, mb, &mb->chunks[i]));
    return MLA_OK;
}

enum mla_status mla_layer_run(struct mla_layer *layer, uint32_t index,
                              const struct mla_microbatch *mb, const void *x, uint32_t turn,
                              void **out)
{
    const struct mla_config *c = &layer->shard->config;
    const struct mla_layer_weights *w = &layer->shard->weights[index];
    struct mla_backend *backend = layer->backend;
    struct mla_collective *collective = layer->collective;
    int64_t own = mb->padded / layer->shard->ranks;
    int64_t width = latent_row(layer);
    int64_t heads = layer->shard->heads;
    void *partial = layer->partial[turn];
    assert(turn < mla_turns(backend));
    assert(mb->padded <= (mb->kind == MLA_DECODE ? layer->decode_rows_max : layer->rows_max));

    struct mla_kv_write write = {.pool = mla_kvcache_pool(layer->cache, index),
                                 .rows = mb->padded,
                                 .src = element(layer, layer->latents, ckv_at(layer)),
                                 .src_stride = width,
                                 .slots = mb->slots};
    struct mla_gemm q = linear(mb->padded, heads * (c->nope + c->rope), mla_q_input(c),
                               layer->latents, width, w->q_b, NULL, layer->q, q_row(layer));
    struct mla_gemm o = linear(mb->padded, c->hidden, heads * c->v, layer->heads_out, heads * c->v,
                               w->o, w->o_bias, partial, c->hidden);

    TRY(project_down(layer, index, w, mb, x));
    TRY(collective->ops->all_gather(collective, layer->latents, (size_t)(own * width)));
    if (!alone(layer))
        TRY(backend->ops->kv_write(backend, &write));
    if (!q_joined(layer))
        TRY(backend->ops->gemm(backend, &q));
    if (mb->kind == MLA_DECODE)
        TRY(attend_decode(layer, index, w, mb));
    else
        TRY(attend_prefill(layer, index, w, mb));
    TRY(backend->ops->gemm(backend, &o));
    return collective->ops->reduce_scatter(collective, partial, (size_t)(own * c->hidden), out);
}
