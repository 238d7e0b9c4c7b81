/* The command line of mla-worker. */
#ifndef MLA_WORKER_OPTIONS_H
#define MLA_WORKER_OPTIONS_H

#include "proto/dtype.h"
#include "proto/status.h"

#include <stdbool.h>
#include <stdint.h>

struct mla_worker_options {
    const char *coordinator, *model;
    uint32_t group, ranks;            /* ranks: for --check only */
    uint32_t layer_first, layer_last; /* first > last: all */
    uint32_t threads, chunk_rows, connect_timeout_ms, poll_us;
    enum mla_dtype kv_dtype;
    uint64_t kv_memory_bytes; /* 0: a quarter of the host's memory, shared by its ranks */
    bool check;
};

/* As mla_coordinator_options_parse. */
enum mla_status mla_worker_options_parse(int argc, char **argv, struct mla_worker_options *out);

#endif
