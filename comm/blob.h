/* A payload that several holders share: a received frame that is forwarded to ranks piece by
 * piece, or a buffer that is being filled and then sent. Counted references; the last one gives
 * the memory back. Safe across threads, as sockets let go of a frame in a thread of their own. */
#ifndef MLA_COMM_BLOB_H
#define MLA_COMM_BLOB_H

#include "proto/status.h"

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

struct mla_blob {
    uint8_t *data;
    size_t bytes;
    atomic_uint references;
    void (*release)(struct mla_blob *); /* when the last reference goes */
};

struct mla_blob *mla_blob_hold(struct mla_blob *blob);
void mla_blob_drop(struct mla_blob *blob); /* NULL is allowed */

/* Buffers in size classes of powers of two, kept for reuse: after a while nothing is allocated.
 * The pool holds at most bytes_max, lent and kept together. */
struct mla_blob_pool;
enum mla_status mla_blob_pool_create(size_t bytes_max, struct mla_blob_pool **out);
/* The same in other memory than malloc's. free is called from any thread. */
struct mla_blob_memory {
    void *context;
    enum mla_status (*alloc)(void *context, size_t bytes, void **out);
    void (*free)(void *context, void *memory);
};
enum mla_status mla_blob_pool_create_in(size_t bytes_max, const struct mla_blob_memory *memory,
                                        struct mla_blob_pool **out);
/* Blobs that are still lent stay valid; the last one to come back ends the pool. */
void mla_blob_pool_destroy(struct mla_blob_pool **pool);
/* A blob of `bytes` with one reference. MLA_AGAIN over bytes_max, MLA_MEMORY. */
enum mla_status mla_blob_pool_get(struct mla_blob_pool *pool, size_t bytes, struct mla_blob **out);
size_t mla_blob_pool_bytes(struct mla_blob_pool *pool); /* lent and kept */

#endif
