/* A rank at work: joins the coordinator, allocates what it is told to, and runs plans and
 * microbatches in the order in which they come. When the coordinator goes, it drops all but its
 * weights and joins the next one. */
#ifndef MLA_WORKER_EXECUTOR_H
#define MLA_WORKER_EXECUTOR_H

#include "comm/collective.h"
#include "comm/keys.h"
#include "worker/graphs.h"

struct mla_executor_options {
    const char *coordinator;     /* endpoint for workers */
    const struct mla_keys *keys; /* for it, or NULL */
    uint32_t group;
    uint32_t local_ranks; /* of this job on this host */
    uint64_t job;         /* the same on all ranks of this mpirun job, another next time */
    enum mla_dtype kv_dtype;
    uint64_t kv_memory_bytes;  /* what the KV pools of this rank may take; 0: a share of the free */
    double kv_memory_fraction; /* 0: the default share */
    enum mla_graphs_mode graphs;
    const char *trace;           /* file to write a trace to, or NULL */
    uint32_t chunk_rows;         /* cached context expanded at a time */
    uint32_t connect_timeout_ms; /* how long to wait for a coordinator, each time */
    uint32_t poll_us; /* after a microbatch, how long to look for the next before sleeping */
    bool spin;        /* or for ever */
};

/* MLA_OK after SHUTDOWN or a signal; MLA_TIMEOUT when no coordinator is there, or comes again;
 * MLA_MEMORY; MLA_COLLECTIVE and MLA_INTERNAL when the group can't go on. Ends the process when
 * the coordinator gives up the group or this rank hangs. All ranks of the job call it. */
enum mla_status mla_executor_run(const struct mla_executor_options *options,
                                 struct mla_backend *backend, struct mla_collective *collective,
                                 struct mla_shard *shard);

#endif
