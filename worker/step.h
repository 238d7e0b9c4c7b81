/* One open step on a rank: the plan as the arrays that the operations read, built once at OPEN
 * and used by the RUNs of every layer. */
#ifndef MLA_WORKER_STEP_H
#define MLA_WORKER_STEP_H

#include "worker/kvcache.h"

/* A piece of the cached context of a prefill microbatch, small enough for the workspace. */
struct mla_context_chunk {
    int64_t rows;         /* cached rows in it, all sequences together */
    int64_t rows_max;     /* of one sequence */
    const int32_t *begin; /* [sequences] first position; the backend's, as all arrays here */
    const int32_t *first; /* [sequences + 1] */
};

/* Decode has as many sequences as padded rows, the last ones without rows: what a captured graph
 * does depends on `padded` alone, and its arrays are one block that can be moved to where the
 * graph reads them. */
struct mla_microbatch {
    enum mla_microbatch_kind kind;
    int64_t rows, padded; /* padded: a multiple of the ranks */
    int64_t sequences;
    int64_t rows_max;         /* new rows of one sequence */
    const int32_t *positions; /* [padded] */
    const int64_t *slots;     /* [padded], MLA_SLOT_NONE for padding */
    const int32_t *table;     /* [sequences] */
    const int32_t *row_first; /* [sequences + 1] */
    const int32_t *kv_length; /* [sequences], 0 of a sequence without rows */
    void *schedule;           /* decode: attend_decode's */
    void *block;              /* decode: all of the arrays above, */
    size_t block_bytes;       /* of a size that follows from `padded` */
    uint32_t chunk_count;     /* prefill with cached context */
    struct mla_context_chunk *chunks;
};

struct mla_step {
    uint64_t number; /* 0: none */
    uint32_t microbatch_count;
    struct mla_microbatch *microbatches;
    /* storage, kept and grown */
    uint32_t microbatch_capacity, chunk_capacity;
    struct mla_context_chunk *chunks;
    uint8_t *host, *device;
    size_t bytes;
    struct mla_fence *uploaded; /* host has been read */
};

/* Builds the step of a plan whose tables were applied to the cache. chunk_rows: context rows
 * that fit the workspace; heads: of this rank. MLA_MALFORMED for entries out of range,
 * MLA_MEMORY. */
enum mla_status mla_step_build(struct mla_step *step, const struct mla_kvcache *cache,
                               const struct mla_plan_message *plan, uint32_t chunk_rows,
                               uint32_t heads);
/* A microbatch's sequences in the pool of layer `index`. */
struct mla_kv_view mla_step_view(const struct mla_kvcache *cache, uint32_t index,
                                 const struct mla_microbatch *microbatch);
void mla_step_fini(struct mla_step *step, struct mla_backend *backend);

#endif
