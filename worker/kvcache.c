#include "worker/kvcache.h"

#include <stdlib.h>
#include <string.h>

size_t mla_kvcache_block_bytes(const struct mla_config *config, enum mla_dtype dtype)
{
    return (size_t)MLA_BLOCK_TOKENS * (config->latent + config->rope) * mla_dtype_bytes(dtype);
}

enum { CHANGES_MIN = 4096, CHANGE_BYTES = sizeof(int64_t) + sizeof(int32_t) };

static void drop_changes(struct mla_kvcache *cache)
{
    cache->backend->ops->host_free(cache->backend, cache->changes.host);
    cache->backend->ops->free(cache->backend, cache->changes.device);
    cache->changes.host = NULL;
    cache->changes.device = NULL;
    cache->changes.capacity = 0;
}

/* What earlier plans left there has been read when it returns. */
static enum mla_status make_room(struct mla_kvcache *cache, size_t count)
{
    struct mla_backend *backend = cache->backend;
    enum mla_status status = backend->ops->fence_await(backend, cache->changes.applied);
    if (status != MLA_OK || count <= cache->changes.capacity)
        return status;
    void *host = NULL;
    void *device = NULL;
    drop_changes(cache);
    status = backend->ops->host_alloc(backend, 2 * count * CHANGE_BYTES, &host);
    if (status == MLA_OK)
        status = backend->ops->alloc(backend, 2 * count * CHANGE_BYTES, &device);
    cache->changes.host = host;
    cache->changes.device = device;
    if (status == MLA_OK)
        cache->changes.capacity = 2 * count;
    return status;
}

static void free_pools(struct mla_kvcache *cache)
{
    for (uint32_t i = 0; i < cache->layer_count; i++) {
        cache->backend->ops->free(cache->backend, cache->pools[i]);
        cache->pools[i] = NULL;
    }
    cache->blocks = 0;
}

enum mla_status mla_kvcache_resize(struct mla_kvcache *cache, uint32_t blocks)
{
    size_t bytes = (size_t)blocks * MLA_BLOCK_TOKENS * (cache->latent + cache->rope) *
                   mla_dtype_bytes(cache->dtype);
    enum mla_status status = MLA_OK;
    free_pools(cache);
    for (uint32_t i = 0; status == MLA_OK && i < cache->layer_count; i++)
        status = cache->backend->ops->alloc(cache->backend, bytes, &cache->pools[i]);
    if (status == MLA_OK)
        cache->blocks = blocks;
    else
        free_pools(cache);
    return status;
}

enum mla_status mla_kvcache_init(struct mla_kvcache *cache, struct mla_backend *backend,
                                 const struct mla_config *config, enum mla_dtype dtype,
                                 uint32_t layer_count, uint32_t blocks, uint32_t sequences,
                                 uint32_t context_max)
{
    uint32_t stride = (context_max + MLA_BLOCK_TOKENS - 1) / MLA_BLOCK_TOKENS;
    size_t entries = (size_t)sequences * stride;
    void *tables = NULL;
    *cache = (struct mla_kvcache){.backend = backend,
                                  .layer_count = layer_count,
                                  .sequences = sequences,
                                  .context_max = context_max,
                                  .table_stride = stride,
                                  .dtype = dtype,
                                  .latent = config->latent,
                                  .rope = config->rope};
    cache->host_tables = calloc(entries, sizeof *cache->host_tables);
    cache->copy_src = calloc((size_t)2 * MLA_STEP_SEQUENCES_MAX, sizeof *cache->copy_src);
    enum mla_status status = cache->host_tables && cache->copy_src ? MLA_OK : MLA_MEMORY;
    if (status == MLA_OK)
        status = backend->ops->fence_create(backend, &cache->changes.applied);
    if (status == MLA_OK)
        status = make_room(cache, CHANGES_MIN);
    if (status == MLA_OK) {
        cache->copy_dst = cache->copy_src + MLA_STEP_SEQUENCES_MAX;
        status = backend->ops->alloc(backend, entries * sizeof *cache->tables, &tables);
        cache->tables = tables;
    }
    if (status == MLA_OK)
        status = mla_kvcache_resize(cache, blocks);
    if (status != MLA_OK)
        mla_kvcache_fini(cache);
    return status;
}

void mla_kvcache_fini(struct mla_kvcache *cache)
{
    struct mla_backend *backend = cache->backend;
    free_pools(cache);
    if (cache->tables)
        backend->ops->free(backend, cache->tables);
    drop_changes(cache);
    backend->ops->fence_destroy(backend, cache->changes.applied);
    free(cache->host_tables);
    free(cache->copy_src);
    *cache = (struct mla_kvcache){0};
}

static bool plan_fits(const struct mla_kvcache *cache, const struct mla_plan_message *plan)
{
    for (uint32_t i = 0; i < plan->table_count; i++) {
        struct mla_plan_table change = mla_plan_table_at(plan, i);
        if (change.table >= cache->sequences || change.first > cache->table_stride ||
            change.count > cache->table_stride - change.first)
            return false;
    }
    uint32_t block_most = 0;
    for (uint32_t i = 0; i < plan->block_count; i++) {
        uint32_t block = mla_plan_block_at(plan, i);
        block_most = block > block_most ? block : block_most;
    }
    if (block_most >= cache->blocks)
        return false;
    for (uint32_t i = 0; i < plan->copy_count; i++) {
        struct mla_plan_copy copy = mla_plan_copy_at(plan, i);
        if (copy.src >= cache->blocks || copy.dst >= cache->blocks)
            return false;
    }
    return plan->copy_count <= MLA_STEP_SEQUENCES_MAX;
}

static enum mla_status copy_blocks(struct mla_kvcache *cache, const struct mla_plan_message *plan)
{
    for (uint32_t i = 0; i < plan->copy_count; i++) {
        struct mla_plan_copy copy = mla_plan_copy_at(plan, i);
        cache->copy_src[i] = (int32_t)copy.src;
        cache->copy_dst[i] = (int32_t)copy.dst;
    }
    enum mla_status status = MLA_OK;
    for (uint32_t layer = 0; status == MLA_OK && layer < cache->layer_count; layer++) {
        struct mla_kv_copy copy = {.pool = mla_kvcache_pool(cache, layer),
                                   .count = plan->copy_count,
                                   .src = cache->copy_src,
                                   .dst = cache->copy_dst};
        status = cache->backend->ops->kv_copy(cache->backend, &copy);
    }
    return status;
}

/* One upload for all tables, and one operation that puts the ids where they belong. */
static enum mla_status change_tables(struct mla_kvcache *cache, const struct mla_plan_message *plan)
{
    struct mla_backend *backend = cache->backend;
    enum mla_status status = make_room(cache, plan->block_count);
    if (status != MLA_OK)
        return status;
    int64_t *index = (int64_t *)(void *)cache->changes.host;
    int32_t *value = (int32_t *)(void *)(index + plan->block_count);
    uint32_t block = 0;
    for (uint32_t i = 0; i < plan->table_count; i++) {
        struct mla_plan_table change = mla_plan_table_at(plan, i);
        int64_t at = (int64_t)change.table * cache->table_stride + change.first;
        for (uint32_t k = 0; k < change.count; k++) {
            index[block + k] = at + k;
            value[block + k] = (int32_t)mla_plan_block_at(plan, block + k);
        }
        memcpy(cache->host_tables + at, value + block, change.count * sizeof *value);
        block += change.count;
    }
    const int64_t *device = (const int64_t *)(const void *)cache->changes.device;
    struct mla_scatter scatter = {.count = block,
                                  .dst = cache->tables,
                                  .index = device,
                                  .value = (const int32_t *)(const void *)(device + block)};
    status =
        backend->ops->upload(backend, cache->changes.device, index, (size_t)block * CHANGE_BYTES);
    if (status == MLA_OK)
        status = backend->ops->scatter(backend, &scatter);
    if (status == MLA_OK)
        status = backend->ops->fence_record(backend, MLA_QUEUE_COMPUTE, cache->changes.applied);
    return status;
}

enum mla_status mla_kvcache_apply(struct mla_kvcache *cache, const struct mla_plan_message *plan)
{
    if (!plan_fits(cache, plan))
        return MLA_MALFORMED;
    enum mla_status status = plan->block_count > 0 ? change_tables(cache, plan) : MLA_OK;
    if (status == MLA_OK && plan->copy_count > 0)
        status = copy_blocks(cache, plan);
    return status;
}
