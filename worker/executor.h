/* A rank at work: joins the coordinator, allocates what it is told to, and runs plans and
 * microbatches in the order in which they come until it is told to end. */
#ifndef MLA_WORKER_EXECUTOR_H
#define MLA_WORKER_EXECUTOR_H

#include "comm/collective.h"
#include "worker/graphs.h"

struct mla_executor_options {
    const char *coordinator; /* endpoint for workers */
    uint32_t group;
    uint64_t job; /* the same on all ranks of this mpirun job, another next time */
    enum mla_dtype kv_dtype;
    uint64_t kv_memory_bytes; /* what the KV pools of this rank may take */
    enum mla_graphs_mode graphs;
    const char *trace;   /* file to write a trace to, or NULL */
    uint32_t chunk_rows; /* cached context expanded at a time */
    uint32_t connect_timeout_ms;
    uint32_t poll_us; /* after a microbatch, how long to look for the next before sleeping */
};

/* MLA_OK after SHUTDOWN or a signal; MLA_CLOSED when the coordinator went, MLA_TIMEOUT when it
 * was never there; MLA_MEMORY; MLA_COLLECTIVE and MLA_INTERNAL when the group can't go on. */
enum mla_status mla_executor_run(const struct mla_executor_options *options,
                                 struct mla_backend *backend, struct mla_collective *collective,
                                 struct mla_shard *shard);

#endif
