/* The poll loop: sockets on one side, the core on the other. */
#ifndef MLA_COORDINATOR_SERVER_H
#define MLA_COORDINATOR_SERVER_H

#include "coordinator/core.h"

struct mla_server_options {
    struct mla_core_options core;
    const char *endpoint;      /* for clients */
    const char *workers;       /* for workers */
    bool payload_inline;       /* whatever core.region_bytes_max says */
    bool spin;                 /* never sleep */
    const char *metrics;       /* address:port of the metrics page; NULL: none */
    const char *curve_keys;    /* folder of keys for tcp endpoints; NULL: none */
    bool keep_workers;         /* at the end they are not told to end, and wait for the next one */
    bool insecure;             /* endpoints may be open to others without keys */
    uint64_t frame_bytes_max;  /* of one frame; 0: see mla_server_run */
    uint64_t memory_bytes_max; /* address space; 0: see mla_server_run */
};

/* Serves until SIGTERM or SIGINT (MLA_OK). A frame is at most frame_bytes_max, by default what a
 * step of the largest size takes in f32 at a hidden size of 8192; the address space at most
 * memory_bytes_max, by default what it is at start-up, payload_bytes_max and 16 GiB. Prints "bound
 * WORKERS_ENDPOINT" and, once all groups are ready, "ready ENDPOINT" to stdout. MLA_ENDPOINT,
 * MLA_OPTION, MLA_MEMORY. */
enum mla_status mla_server_run(const struct mla_server_options *options);

#endif
