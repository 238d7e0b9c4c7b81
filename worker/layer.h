/* One MLA layer on one rank, written once over the backend's operations: eager execution calls
 * it, graph capture captures it. (DeepSeek-V2, section 2.1 and appendix C; the split over ranks
 * is described in worker/README.md.) */
#ifndef MLA_WORKER_LAYER_H
#define MLA_WORKER_LAYER_H

#include "comm/collective.h"
#include "worker/kvcache.h"
#include "worker/shard.h"
#include "worker/step.h"

/* The rows of one microbatch go in and out while another computes: they take turns, each with an x
 * and a result of its own. */
enum { MLA_TURNS = 2 };

/* Where operations have finished when they return, there is nothing to take turns with. */
static inline uint32_t mla_turns(const struct mla_backend *backend)
{
    return backend->unified ? 1 : MLA_TURNS;
}

/* What a layer needs besides a microbatch. Buffers are sized for rows_max padded rows, of decode
 * decode_rows_max, and chunk_rows of cached context, activation dtype, the backend's memory;
 * what collectives read and write is from theirs. */
struct mla_layer {
    struct mla_backend *backend;
    struct mla_collective *collective;
    const struct mla_shard *shard;
    const struct mla_kvcache *cache;
    int64_t rows_max, decode_rows_max, chunk_rows;
    void *latents;          /* [rows, mla_latent_row]: q's input, or q itself; ckv, kpe */
    void *q;                /* [rows, N, nope + rope]; NULL where it is joined */
    void *absorbed;         /* [decode rows, N, latent + rope] */
    void *o_latent;         /* [decode rows, N, latent] */
    void *expanded;         /* [max(rows, chunk_rows), N, nope + v]: k_nope and v */
    void *context;          /* [chunk_rows, latent + rope] */
    void *heads_out;        /* [rows, N, v] */
    void *chunk_out;        /* [rows, N, v] */
    float *lse, *chunk_lse; /* [rows, N] */
    /* [rows, hidden] of each turn */
    void *partial[MLA_TURNS];
};

/* rows_max, decode_rows_max (at most rows_max): multiples of the ranks. MLA_MEMORY. */
enum mla_status mla_layer_init(struct mla_layer *layer, struct mla_backend *backend,
                               struct mla_collective *collective, const struct mla_shard *shard,
                               const struct mla_kvcache *cache, int64_t rows_max,
                               int64_t decode_rows_max, int64_t chunk_rows);
void mla_layer_fini(struct mla_layer *layer);

/* Runs layer `index` (of the shard's list) on a microbatch. x [padded / ranks, hidden]: this
 * rank's own rows; *out: its own finished rows, in partial[turn], valid until the next run of the
 * same turn (below mla_turns). All ranks call it with the same plan in the same order. */
enum mla_status mla_layer_run(struct mla_layer *layer, uint32_t index,
                              const struct mla_microbatch *microbatch, const void *x, uint32_t turn,
                              void **out);

#endif
