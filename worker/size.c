#include "worker/size.h"

#include "worker/state.h"

#include <stdio.h>
#include <stdlib.h>

/* ---- A backend and a collective that count what they are asked for, and give nothing. */

struct counter {
    struct mla_backend backend;
    struct mla_collective collective;
    uint64_t bytes;
};

static char nothing; /* what every allocation gets */

static enum mla_status count_device(struct mla_backend *backend, size_t bytes, void **out)
{
    struct counter *counter = (struct counter *)(void *)backend;
    counter->bytes += bytes;
    *out = &nothing;
    return MLA_OK;
}

static enum mla_status give_host(struct mla_backend *backend, size_t bytes, void **out)
{
    (void)backend;
    void *memory = malloc(bytes);
    if (!memory)
        return MLA_MEMORY;
    *out = memory;
    return MLA_OK;
}

static void host_free(struct mla_backend *backend, void *memory)
{
    (void)backend;
    free(memory);
}

static void keep(struct mla_backend *backend, void *memory)
{
    (void)backend;
    (void)memory;
}

static enum mla_status upload(struct mla_backend *backend, void *dst, const void *src, size_t bytes)
{
    (void)backend;
    (void)dst;
    (void)src;
    (void)bytes;
    return MLA_OK;
}

static enum mla_status synchronize(struct mla_backend *backend)
{
    (void)backend;
    return MLA_OK;
}

static enum mla_status fence_create(struct mla_backend *backend, struct mla_fence **out)
{
    (void)backend;
    *out = NULL;
    return MLA_OK;
}

static enum mla_status fence_await(struct mla_backend *backend, struct mla_fence *fence)
{
    (void)backend;
    (void)fence;
    return MLA_OK;
}

static void fence_destroy(struct mla_backend *backend, struct mla_fence *fence)
{
    (void)backend;
    (void)fence;
}

/* All that is called between ADOPT and the first plan. */
static const struct mla_backend_ops backend_ops = {
    .name = "counting",
    .alloc = count_device,
    .free = keep,
    .host_alloc = give_host,
    .host_free = host_free,
    .upload = upload,
    .synchronize = synchronize,
    .fence_create = fence_create,
    .fence_await = fence_await,
    .fence_destroy = fence_destroy,
};

static enum mla_status collective_alloc(struct mla_collective *collective, size_t bytes, void **out)
{
    struct counter *counter =
        (struct counter *)(void *)((char *)collective - offsetof(struct counter, collective));
    return count_device(&counter->backend, bytes, out);
}

static void collective_keep(struct mla_collective *collective, void *memory)
{
    (void)collective;
    (void)memory;
}

static const struct mla_collective_ops collective_ops = {
    .name = "counting",
    .alloc = collective_alloc,
    .free = collective_keep,
};

/* ---- */

/* Lets a rank allocate what comes with ADOPT. */
static enum mla_status count_life(const struct mla_config *config,
                                  const struct mla_size_options *options, uint64_t *bytes)
{
    const struct mla_executor_options executor_options = {.kv_dtype = options->kv_dtype,
                                                          .chunk_rows = options->chunk_rows};
    struct counter counter = {
        .backend = {.ops = &backend_ops, .activation = options->activation},
        .collective = {.ops = &collective_ops, .ranks = options->ranks},
    };
    struct executor *executor = calloc(1, sizeof *executor);
    struct mla_shard *shard = calloc(1, sizeof *shard);
    enum mla_status status = executor && shard ? MLA_OK : MLA_MEMORY;
    if (status == MLA_OK) {
        shard->config = *config;
        shard->ranks = options->ranks;
        shard->heads = config->heads / options->ranks;
        shard->layer_count = options->layer_count;
        executor->options = &executor_options;
        executor->backend = &counter.backend;
        executor->collective = &counter.collective;
        executor->shard = shard;
        executor->life.adopt = *options->sizes;
        status = life_allocate(executor);
        life_end(executor);
    }
    free(executor);
    free(shard);
    *bytes = counter.bytes;
    return status;
}

enum mla_status mla_size_count(const struct mla_config *config,
                               const struct mla_size_options *options, struct mla_size *out,
                               char *why)
{
    enum mla_status status = mla_shard_check(config, options->ranks, why);
    if (status != MLA_OK)
        return status;
    uint64_t life = 0;
    status = count_life(config, options, &life);
    if (status != MLA_OK) {
        snprintf(why, MLA_SENTENCE_BYTES_MAX, "%s", mla_status_sentence(status));
        return status;
    }
    *out = (struct mla_size){.block = mla_kvcache_block_bytes(config, options->kv_dtype) *
                                      options->layer_count};
    uint64_t alike = 0;
    mla_shard_layer_bytes(config, 0, options->ranks, options->activation, &out->weights, &alike);
    out->weights *= options->layer_count;
    out->weights_alike = alike * options->layer_count;
    out->workspaces = life - out->block;
    out->bucket_count = life_buckets(options->sizes, options->ranks, out->buckets);
    return MLA_OK;
}

uint64_t mla_size_kv_memory(uint64_t free_bytes, double fraction, bool unified,
                            uint32_t local_ranks)
{
    if (fraction == 0)
        fraction = unified ? 0.25 : 0.95;
    if (unified)
        fraction /= local_ranks;
    return (uint64_t)((double)free_bytes * fraction);
}

uint32_t mla_size_kv_blocks(uint64_t kv_memory, uint64_t block)
{
    uint64_t blocks = kv_memory / block;
    return blocks < MLA_BLOCKS_MAX ? (uint32_t)blocks : MLA_BLOCKS_MAX;
}
