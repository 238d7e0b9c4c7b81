/* What a rank's memory goes to, without a rank: for choosing the number of GPUs beforehand. */
#ifndef MLA_WORKER_SIZE_H
#define MLA_WORKER_SIZE_H

#include "proto/worker_message.h"
#include "worker/config.h"

#include "proto/dtype.h"

struct mla_size {
    /* Bytes on one rank, all layers. */
    uint64_t weights;       /* of rank 0, which has the most */
    uint64_t weights_alike; /* of these, what every rank has, however many there are */
    uint64_t block;         /* of a KV block, in each of the layers' pools together */
    uint64_t workspaces;    /* what comes with ADOPT besides the pools, on the device */
    uint32_t bucket_count;  /* decode buckets as the ranks pad them */
    uint32_t buckets[MLA_DECODE_BUCKETS_MAX];
};

struct mla_size_options {
    uint32_t ranks, layer_count;
    enum mla_dtype activation, kv_dtype;
    uint32_t chunk_rows; /* cached context expanded at a time */
    const struct mla_adopt
        *sizes; /* what the coordinator will ask for; kv_blocks is not looked at */
};

/* Counted by letting the worker's own code allocate on a backend that only counts. What that
 * can't know is left out: a device's own context, libraries, graphs, rounding of allocations, and
 * the arrays of open steps. MLA_OPTION with a sentence in `why` where the heads can't be shared
 * out so; MLA_MEMORY. */
enum mla_status mla_size_count(const struct mla_config *config,
                               const struct mla_size_options *options, struct mla_size *out,
                               char *why);

/* What the KV pools of a rank take when --kv-memory doesn't say: a share of what is free once
 * weights and workspaces are there. fraction 0: the default. unified: the device's memory is the
 * host's, which its ranks share. */
uint64_t mla_size_kv_memory(uint64_t free_bytes, double fraction, bool unified,
                            uint32_t local_ranks);
/* How many blocks that is. */
uint32_t mla_size_kv_blocks(uint64_t kv_memory, uint64_t block);

#endif
