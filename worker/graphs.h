/* Decode layers as captured graphs, one for each layer, bucket and turn. A graph reads a
 * microbatch's arrays from one place: they are moved there before the first layer that needs them.
 */
#ifndef MLA_WORKER_GRAPHS_H
#define MLA_WORKER_GRAPHS_H

#include "worker/layer.h"

enum mla_graphs_mode {
    MLA_GRAPHS_OFF,   /* everything runs eagerly */
    MLA_GRAPHS_LAZY,  /* captured when first needed */
    MLA_GRAPHS_START, /* all captured by mla_graphs_capture */
};

struct mla_graphs {
    struct mla_layer *layer;
    const void *x[MLA_TURNS]; /* what the graphs of a turn read; mla_layer_run's */
    enum mla_graphs_mode mode;
    uint32_t count; /* buckets */
    /* A decode microbatch without rows for each bucket: its arrays are where graphs read. */
    struct mla_step places;
    struct mla_graphs_bucket *buckets; /* [count] */
};

/* buckets: padded rows, ascending, multiples of the ranks and at most the layer's
 * decode_rows_max. Off where the backend has no graphs. With START, each bucket runs once, eagerly.
 * Where a rank can't capture, all go on eagerly with a warning. All ranks call it, and make the
 * same calls after. MLA_MEMORY or a failed operation. */
enum mla_status mla_graphs_init(struct mla_graphs *graphs, struct mla_layer *layer,
                                void *const x[MLA_TURNS], enum mla_graphs_mode mode,
                                const uint32_t *buckets, uint32_t count);
/* With START, captures all; the cache's pools and the layer's buffers stay where they are from here
 * on. Rank 0 tells its progress and what the graphs take on stderr. As mla_graphs_init. */
enum mla_status mla_graphs_capture(struct mla_graphs *graphs);
void mla_graphs_fini(struct mla_graphs *graphs);

/* mla_layer_run of microbatch `microbatch` of the step on the turn's x of mla_graphs_init: by a
 * graph where it is decode and there is one for it. The results are the same, bit for bit. */
enum mla_status mla_graphs_run(struct mla_graphs *graphs, uint32_t index,
                               const struct mla_step *step, uint32_t microbatch, uint32_t turn,
                               void **out);

#endif
