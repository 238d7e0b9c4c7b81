#include "comm/blob.h"

#include <assert.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>

struct mla_blob *mla_blob_hold(struct mla_blob *blob)
{
    unsigned before = atomic_fetch_add_explicit(&blob->references, 1, memory_order_relaxed);
    assert(before > 0);
    (void)before;
    return blob;
}

void mla_blob_drop(struct mla_blob *blob)
{
    if (!blob)
        return;
    unsigned before = atomic_fetch_sub_explicit(&blob->references, 1, memory_order_acq_rel);
    assert(before > 0);
    if (before == 1)
        blob->release(blob);
}

enum { CLASS_SHIFT_MIN = 12, CLASSES = 36 };

struct pooled {
    struct mla_blob blob;
    struct mla_blob_pool *pool;
    struct pooled *next;
    int size_class;
};

/* Blobs come back in a socket's own thread, so the lists are behind a lock. */
struct mla_blob_pool {
    struct mla_blob_memory memory;
    pthread_mutex_t lock;
    struct pooled *kept[CLASSES];
    size_t bytes, bytes_max, lent;
    bool closed; /* destroyed by its owner; the last blob to come back ends it */
};

static size_t class_bytes(int size_class)
{
    return (size_t)1 << (size_class + CLASS_SHIFT_MIN);
}

static enum mla_status host_alloc(void *context, size_t bytes, void **out)
{
    (void)context;
    *out = aligned_alloc(4096, bytes);
    return *out ? MLA_OK : MLA_MEMORY;
}

static void host_free(void *context, void *memory)
{
    (void)context;
    free(memory);
}

static void pooled_free(struct pooled *pooled)
{
    const struct mla_blob_memory *memory = &pooled->pool->memory;
    memory->free(memory->context, pooled->blob.data);
    free(pooled);
}

/* Kept buffers of other sizes make room for one that is needed. */
static void shrink(struct mla_blob_pool *pool, size_t bytes)
{
    for (int size_class = CLASSES - 1; size_class >= 0; size_class--) {
        while (pool->kept[size_class] && pool->bytes + bytes > pool->bytes_max) {
            struct pooled *pooled = pool->kept[size_class];
            pool->kept[size_class] = pooled->next;
            pool->bytes -= class_bytes(size_class);
            pooled_free(pooled);
        }
    }
}

static void pool_free(struct mla_blob_pool *pool)
{
    shrink(pool, pool->bytes_max + 1);
    pthread_mutex_destroy(&pool->lock);
    free(pool);
}

static void pooled_release(struct mla_blob *blob)
{
    struct pooled *pooled = (struct pooled *)blob;
    struct mla_blob_pool *pool = pooled->pool;
    pthread_mutex_lock(&pool->lock);
    pooled->next = pool->kept[pooled->size_class];
    pool->kept[pooled->size_class] = pooled;
    bool last = --pool->lent == 0 && pool->closed;
    pthread_mutex_unlock(&pool->lock);
    if (last)
        pool_free(pool);
}

enum mla_status mla_blob_pool_create(size_t bytes_max, struct mla_blob_pool **out)
{
    const struct mla_blob_memory memory = {.alloc = host_alloc, .free = host_free};
    return mla_blob_pool_create_in(bytes_max, &memory, out);
}

enum mla_status mla_blob_pool_create_in(size_t bytes_max, const struct mla_blob_memory *memory,
                                        struct mla_blob_pool **out)
{
    struct mla_blob_pool *pool = calloc(1, sizeof *pool);
    if (!pool)
        return MLA_MEMORY;
    pool->memory = *memory;
    pthread_mutex_init(&pool->lock, NULL);
    pool->bytes_max = bytes_max;
    *out = pool;
    return MLA_OK;
}

void mla_blob_pool_destroy(struct mla_blob_pool **pool_at)
{
    struct mla_blob_pool *pool = *pool_at;
    if (!pool)
        return;
    pthread_mutex_lock(&pool->lock);
    pool->closed = true;
    bool last = pool->lent == 0;
    pthread_mutex_unlock(&pool->lock);
    if (last)
        pool_free(pool);
    *pool_at = NULL;
}

static enum mla_status pooled_create(struct mla_blob_pool *pool, int size_class,
                                     struct pooled **out)
{
    struct pooled *pooled = malloc(sizeof *pooled);
    void *data = NULL;
    if (!pooled ||
        pool->memory.alloc(pool->memory.context, class_bytes(size_class), &data) != MLA_OK) {
        free(pooled);
        return MLA_MEMORY;
    }
    pooled->blob.data = data;
    pooled->blob.release = pooled_release;
    pooled->pool = pool;
    pooled->size_class = size_class;
    pool->bytes += class_bytes(size_class);
    *out = pooled;
    return MLA_OK;
}

enum mla_status mla_blob_pool_get(struct mla_blob_pool *pool, size_t bytes, struct mla_blob **out)
{
    int size_class = 0;
    while (size_class < CLASSES && class_bytes(size_class) < bytes)
        size_class++;
    if (size_class == CLASSES)
        return MLA_AGAIN;

    enum mla_status status = MLA_OK;
    pthread_mutex_lock(&pool->lock);
    struct pooled *pooled = pool->kept[size_class];
    if (pooled) {
        pool->kept[size_class] = pooled->next;
    } else {
        if (pool->bytes + class_bytes(size_class) > pool->bytes_max)
            shrink(pool, class_bytes(size_class));
        if (pool->bytes + class_bytes(size_class) > pool->bytes_max)
            status = MLA_AGAIN;
        else
            status = pooled_create(pool, size_class, &pooled);
    }
    if (status == MLA_OK)
        pool->lent++;
    pthread_mutex_unlock(&pool->lock);
    if (status != MLA_OK)
        return status;
    pooled->blob.bytes = bytes;
    atomic_store_explicit(&pooled->blob.references, 1, memory_order_relaxed);
    *out = &pooled->blob;
    return MLA_OK;
}

size_t mla_blob_pool_bytes(struct mla_blob_pool *pool)
{
    pthread_mutex_lock(&pool->lock);
    size_t bytes = pool->bytes;
    pthread_mutex_unlock(&pool->lock);
    return bytes;
}
