/* The command line of mla-worker. */
#ifndef MLA_WORKER_OPTIONS_H
#define MLA_WORKER_OPTIONS_H

#include "worker/graphs.h"

enum { MLA_CONTEXT_CHUNK = 1024 }; /* --context-chunk by default */

struct mla_worker_options {
    const char *coordinator, *model;
    const char *trace;                /* NULL: none */
    const char *curve_keys;           /* NULL: none */
    uint32_t group, ranks;            /* ranks: for --check only */
    uint32_t layer_first, layer_last; /* first > last: all */
    uint32_t device;                  /* the GPU of this host's first rank */
    uint32_t threads, chunk_rows, connect_timeout_ms, poll_us;
    enum mla_worker_backend { MLA_WORKER_AUTO, MLA_WORKER_CPU, MLA_WORKER_CUDA } backend;
    enum mla_graphs_mode graphs;
    bool collectives_measured; /* with windows where these are faster */
    enum mla_dtype kv_dtype;   /* 0: the backend's activation dtype */
    uint64_t kv_memory_bytes;  /* 0: a share of what there is */
    double kv_memory_fraction;
    bool check, spin, bind;
};

/* As mla_coordinator_options_parse. */
enum mla_status mla_worker_options_parse(int argc, char **argv, struct mla_worker_options *out);

#endif
