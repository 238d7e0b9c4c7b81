#include "tests/bench/layer_setup.h"

#include "tests/lib/formula.h"

#include <stdio.h>
#include <stdlib.h>

enum { STAGE_VALUES = 1 << 20, CHUNK_ROWS = 1024 /* as mla-worker has it */ };

static uint32_t pages(uint64_t tokens)
{
    return (uint32_t)((tokens + MLA_BLOCK_TOKENS - 1) / MLA_BLOCK_TOKENS);
}

static uint32_t larger(uint32_t a, uint32_t b)
{
    return a > b ? a : b;
}

/* dst[at ..] = the whole tensor, converted to dtype. */
static enum mla_status fill(struct mla_backend *backend, const char *name, uint32_t dims,
                            const uint64_t *shape, enum mla_dtype dtype, void *dst, uint64_t at)
{
    uint64_t count = shape[0] * (dims > 1 ? shape[1] : 1);
    float *host = malloc(STAGE_VALUES * sizeof *host);
    void *stage = NULL;
    enum mla_status status =
        host ? backend->ops->alloc(backend, STAGE_VALUES * sizeof *host, &stage) : MLA_MEMORY;
    for (uint64_t done = 0; status == MLA_OK && done < count;) {
        uint64_t now = count - done < STAGE_VALUES ? count - done : STAGE_VALUES;
        mla_formula_fill(name, dims, shape, done, now, host);
        struct mla_copy copy = {.rows = 1,
                                .n = (int64_t)now,
                                .src = stage,
                                .src_dtype = MLA_F32,
                                .dst = (char *)dst + (at + done) * mla_dtype_bytes(dtype),
                                .dst_dtype = dtype};
        status = backend->ops->upload(backend, stage, host, now * sizeof *host);
        if (status == MLA_OK)
            status = backend->ops->copy(backend, &copy);
        if (status == MLA_OK)
            status = backend->ops->synchronize(backend);
        done += now;
    }
    backend->ops->free(backend, stage);
    free(host);
    return status;
}

/* Tensors of the checkpoint, one over the other. Of those that the model hasn't, nothing. */
static enum mla_status make_weight(struct mla_layer_setup *setup, const enum mla_weight *weights,
                                   uint32_t count, void **out)
{
    struct mla_backend *backend = setup->backend;
    struct mla_weight_spec specs[2];
    uint64_t ends[3] = {0};
    for (uint32_t i = 0; i < count; i++) {
        mla_weight_describe(&setup->config, setup->shard.layers[0], weights[i], &specs[i]);
        ends[i + 1] = ends[i];
        if (specs[i].present)
            ends[i + 1] += specs[i].shape[0] * (specs[i].dims > 1 ? specs[i].shape[1] : 1);
    }
    if (ends[count] == 0)
        return MLA_OK;
    enum mla_status status =
        backend->ops->alloc(backend, ends[count] * mla_dtype_bytes(backend->activation), out);
    for (uint32_t i = 0; status == MLA_OK && i < count; i++)
        if (specs[i].present)
            status = fill(backend, specs[i].name, specs[i].dims, specs[i].shape,
                          backend->activation, *out, ends[i]);
    return status;
}

static enum mla_status make_shard(struct mla_layer_setup *setup, uint32_t layer, uint32_t ranks)
{
    struct mla_layer_weights *w = &setup->shard.weights[0];
    setup->shard = (struct mla_shard){.config = setup->config,
                                      .ranks = ranks,
                                      .heads = setup->config.heads,
                                      .layer_count = 1,
                                      .layers = {layer},
                                      .softmax_scale = mla_config_softmax_scale(&setup->config)};
    bool joined = mla_q_joined(&setup->config, ranks);
    const struct {
        void **out;
        uint32_t count;
        enum mla_weight weights[2];
    } tensors[] = {
        {&w->a, 2, {joined ? MLA_WEIGHT_Q_B : MLA_WEIGHT_Q_A, MLA_WEIGHT_KV_A}},
        {&w->a_bias, 2, {MLA_WEIGHT_Q_A_BIAS, MLA_WEIGHT_KV_A_BIAS}},
        {&w->q_norm, 1, {MLA_WEIGHT_Q_A_NORM}},
        {&w->kv_norm, 1, {MLA_WEIGHT_KV_A_NORM}},
        {&w->q_b, !joined, {MLA_WEIGHT_Q_B}},
        {&w->kv_b, 1, {MLA_WEIGHT_KV_B}},
        {&w->o, 1, {MLA_WEIGHT_O}},
        {&w->o_bias, 1, {MLA_WEIGHT_O_BIAS}},
    };
    enum mla_status status = MLA_OK;
    for (size_t i = 0; status == MLA_OK && i < sizeof tensors / sizeof *tensors; i++)
        status = make_weight(setup, tensors[i].weights, tensors[i].count, tensors[i].out);
    return status;
}

/* Decode's sequences grew together: their pages alternate. Prefill's follow. */
static enum mla_status apply_tables(struct mla_layer_setup *setup,
                                    const struct mla_layer_options *options)
{
    uint32_t sequences = options->decode_rows;
    uint32_t decode_pages = sequences ? pages(options->context) : 0;
    uint32_t prefill_pages =
        options->prefill_tokens
            ? pages((uint64_t)options->prefill_context + options->prefill_tokens)
            : 0;
    uint32_t *blocks = calloc(setup->cache.blocks, sizeof *blocks);
    struct mla_plan_table *tables = calloc(sequences + 1, sizeof *tables);
    enum mla_status status = blocks && tables ? MLA_OK : MLA_MEMORY;
    if (status == MLA_OK) {
        uint32_t used = 0;
        for (uint32_t s = 0; s < sequences; s++) {
            tables[s] = (struct mla_plan_table){.table = s, .count = decode_pages};
            for (uint32_t page = 0; page < decode_pages; page++)
                blocks[used++] = page * sequences + s;
        }
        tables[sequences] = (struct mla_plan_table){.table = sequences, .count = prefill_pages};
        for (uint32_t page = 0; page < prefill_pages; page++, used++)
            blocks[used] = used;
        struct mla_plan_message plan = {
            .table_count = sequences + 1, .tables = tables, .block_count = used, .blocks = blocks};
        status = mla_kvcache_apply(&setup->cache, &plan);
    }
    free(blocks);
    free(tables);
    return status;
}

static uint32_t padded(const struct mla_layer_setup *setup, uint32_t rows)
{
    return (rows + setup->shard.ranks - 1) / setup->shard.ranks * setup->shard.ranks;
}

/* A step of one microbatch. */
static enum mla_status build_step(struct mla_layer_setup *setup, enum mla_microbatch_kind kind,
                                  const struct mla_plan_entry *entries, uint32_t count,
                                  uint32_t rows, struct mla_step *step)
{
    struct mla_plan_microbatch microbatch = {
        .kind = (uint32_t)kind, .rows = rows, .padded = padded(setup, rows), .entry_count = count};
    struct mla_plan_message plan = {.step = 1,
                                    .microbatch_count = 1,
                                    .microbatches = &microbatch,
                                    .entry_count = count,
                                    .entries = entries};
    return mla_step_build(step, &setup->cache, &plan, CHUNK_ROWS, setup->shard.heads);
}

static enum mla_status build_steps(struct mla_layer_setup *setup,
                                   const struct mla_layer_options *options)
{
    struct mla_plan_entry entries[MLA_STEP_SEQUENCES_MAX];
    enum mla_status status = MLA_OK;
    for (uint32_t s = 0; s < options->decode_rows; s++)
        entries[s] =
            (struct mla_plan_entry){.table = s, .start = options->context - 1, .tokens = 1};
    if (options->decode_rows)
        status = build_step(setup, MLA_DECODE, entries, options->decode_rows, options->decode_rows,
                            &setup->decode);
    if (status != MLA_OK || !options->prefill_tokens)
        return status;
    entries[0] = (struct mla_plan_entry){.table = options->decode_rows,
                                         .start = options->prefill_context,
                                         .tokens = options->prefill_tokens};
    return build_step(setup, MLA_PREFILL, entries, 1, options->prefill_tokens, &setup->prefill);
}

static enum mla_status make_cache(struct mla_layer_setup *setup,
                                  const struct mla_layer_options *options)
{
    struct mla_backend *backend = setup->backend;
    uint32_t prefill_length =
        options->prefill_tokens ? options->prefill_context + options->prefill_tokens : 0;
    uint32_t decode_length = options->decode_rows ? options->context : 0;
    uint32_t context_max = larger(decode_length, prefill_length);
    uint32_t blocks = options->decode_rows * pages(decode_length) + pages(prefill_length);
    enum mla_status status =
        mla_kvcache_init(&setup->cache, backend, &setup->config, options->kv_dtype, 1, blocks,
                         options->decode_rows + 1, context_max);
    if (status != MLA_OK)
        return status;
    status = mla_bench_fill(backend, options->kv_dtype,
                            (int64_t)blocks * MLA_BLOCK_TOKENS *
                                (setup->config.latent + setup->config.rope),
                            setup->cache.pools[0]);
    if (status == MLA_OK)
        status = mla_shard_make_rope_table(&setup->shard, backend, context_max);
    if (status == MLA_OK)
        status = apply_tables(setup, options);
    return status == MLA_OK ? build_steps(setup, options) : status;
}

static enum mla_status gather_keys(struct mla_layer_setup *setup, uint32_t context)
{
    const struct mla_microbatch *mb = setup->decode.microbatches;
    struct mla_backend *backend = setup->backend;
    size_t sequences = (size_t)mb->sequences;
    size_t rows = sequences * context;
    size_t width = setup->config.latent + setup->config.rope;
    int32_t *host = calloc(2 * sequences + 1, sizeof *host); /* begin: 0, then context_first */
    if (!host)
        return MLA_MEMORY;
    for (size_t s = 0; s <= sequences; s++)
        host[sequences + s] = (int32_t)(s * context);
    size_t bytes = (2 * sequences + 1) * sizeof *host;
    enum mla_status status = backend->ops->alloc(backend, bytes, &setup->arrays);
    if (status == MLA_OK)
        status = backend->ops->alloc(backend, rows * width * mla_dtype_bytes(backend->activation),
                                     &setup->keys);
    if (status == MLA_OK)
        status = backend->ops->upload(backend, setup->arrays, host, bytes);
    if (status == MLA_OK) {
        const int32_t *arrays = setup->arrays;
        struct mla_kv_gather gather = {.kv = mla_step_view(&setup->cache, 0, mb),
                                       .rows = (int64_t)rows,
                                       .begin = arrays,
                                       .context_first = arrays + sequences,
                                       .dst = setup->keys,
                                       .dst_stride = (int64_t)width};
        status = backend->ops->kv_gather(backend, &gather);
    }
    if (status == MLA_OK)
        status = backend->ops->synchronize(backend);
    free(host);
    return status;
}

static enum mla_status read_config(struct mla_layer_setup *setup,
                                   const struct mla_layer_options *options)
{
    char why[MLA_SENTENCE_BYTES_MAX];
    enum mla_status status = mla_config_read(options->config, &setup->config, why);
    if (status == MLA_OK && options->heads)
        setup->config.heads = options->heads;
    if (status == MLA_OK)
        status = mla_shard_check(&setup->config, options->ranks, why);
    if (status == MLA_OK)
        setup->config.heads /= options->ranks;
    else
        fprintf(stderr, "mla-bench: %s\n", why);
    return status;
}

/* The layer's own memory, x, and the latents that the other ranks would have sent. */
static enum mla_status make_layer(struct mla_layer_setup *setup,
                                  const struct mla_layer_options *options)
{
    struct mla_backend *backend = setup->backend;
    const struct mla_config *c = &setup->config;
    int64_t decode = padded(setup, options->decode_rows);
    int64_t rows = padded(setup, larger(options->decode_rows, options->prefill_tokens));
    mla_alone_init(&setup->collective, backend, setup->shard.ranks);
    enum mla_status status = mla_layer_init(&setup->layer, backend, &setup->collective.base,
                                            &setup->shard, &setup->cache, rows, decode, CHUNK_ROWS);
    if (status == MLA_OK)
        status = mla_bench_fill(backend, backend->activation,
                                rows * mla_latent_row(c, setup->shard.ranks), setup->layer.latents);
    if (status == MLA_OK)
        status = mla_bench_noise(backend, backend->activation,
                                 rows / setup->shard.ranks * c->hidden, &setup->x);
    return status;
}

enum mla_status mla_layer_setup_init(struct mla_layer_setup *setup, struct mla_backend *backend,
                                     const struct mla_layer_options *options)
{
    *setup = (struct mla_layer_setup){.backend = backend};
    enum mla_status status = read_config(setup, options);
    if (status != MLA_OK)
        return status;
    status = make_shard(setup, options->layer, options->ranks);
    if (status == MLA_OK)
        status = make_cache(setup, options);
    if (status == MLA_OK)
        status = make_layer(setup, options);
    if (status == MLA_OK && options->bare && options->decode_rows)
        status = gather_keys(setup, options->context);
    if (status != MLA_OK)
        fprintf(stderr, "mla-bench: setting up the layer failed: %s\n",
                mla_status_sentence(status));
    return status;
}

void mla_layer_setup_fini(struct mla_layer_setup *setup)
{
    struct mla_backend *backend = setup->backend;
    backend->ops->free(backend, setup->x);
    backend->ops->free(backend, setup->keys);
    backend->ops->free(backend, setup->arrays);
    mla_step_fini(&setup->decode, backend);
    mla_step_fini(&setup->prefill, backend);
    if (setup->layer.backend)
        mla_layer_fini(&setup->layer);
    if (setup->cache.backend)
        mla_kvcache_fini(&setup->cache);
    mla_shard_free(&setup->shard, backend);
    *setup = (struct mla_layer_setup){0};
}
