/* The latent KV cache of one rank: a pool of pages per layer, and one block table per sequence,
 * both in the backend's memory. The coordinator's ledger says what is in them. */
#ifndef MLA_WORKER_KVCACHE_H
#define MLA_WORKER_KVCACHE_H

#include "kernels/backend.h"
#include "proto/limits.h"
#include "proto/worker_message.h"
#include "worker/config.h"

struct mla_kvcache {
    struct mla_backend *backend;
    uint32_t layer_count, blocks, sequences, context_max, table_stride;
    uint32_t tokens_max; /* of a decode sequence, as in mla_kv_view: 0 until its owner says more */
    enum mla_dtype dtype;
    uint32_t latent, rope;
    void *pools[MLA_LAYERS_MAX];
    int32_t *tables;              /* [sequences, table_stride], the backend's */
    int32_t *host_tables;         /* the same, for building plans */
    int32_t *copy_src, *copy_dst; /* [MLA_STEP_SEQUENCES_MAX], host */
    /* Changes of tables on their way to the device: [capacity] indices, then values. */
    struct mla_kv_changes {
        uint8_t *host, *device;
        size_t capacity;
        struct mla_fence *applied;
    } changes;
};

/* Bytes of one block in one layer. */
size_t mla_kvcache_block_bytes(const struct mla_config *config, enum mla_dtype dtype);

/* MLA_MEMORY. */
enum mla_status mla_kvcache_init(struct mla_kvcache *cache, struct mla_backend *backend,
                                 const struct mla_config *config, enum mla_dtype dtype,
                                 uint32_t layer_count, uint32_t blocks, uint32_t sequences,
                                 uint32_t context_max);
void mla_kvcache_fini(struct mla_kvcache *cache);

/* Other pools, of `blocks` blocks each, in place of those that were there: what was in them is
 * lost, block tables stay. Not while a graph or a queued operation uses them. MLA_MEMORY: there are
 * no pools, and it may be tried again. */
enum mla_status mla_kvcache_resize(struct mla_kvcache *cache, uint32_t blocks);

/* Applies a plan's block-table changes and block copies. MLA_MALFORMED for ids out of range
 * (nothing was applied), or a device failure. */
enum mla_status mla_kvcache_apply(struct mla_kvcache *cache, const struct mla_plan_message *plan);

static inline struct mla_kv_pool mla_kvcache_pool(const struct mla_kvcache *cache, uint32_t layer)
{
    return mla_kv_pool_of(cache->backend, cache->pools[layer], cache->dtype, cache->latent,
                          cache->rope);
}

#endif
