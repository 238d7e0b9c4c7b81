/* The poll loop: sockets on one side, the core on the other. */
#ifndef MLA_COORDINATOR_SERVER_H
#define MLA_COORDINATOR_SERVER_H

#include "coordinator/core.h"

struct mla_server_options {
    struct mla_core_options core;
    const char *endpoint; /* for clients */
    const char *workers;  /* for workers */
    bool payload_inline;  /* whatever core.region_bytes_max says */
    bool spin;            /* never sleep */
};

/* Serves until SIGTERM or SIGINT (MLA_OK). Prints "bound WORKERS_ENDPOINT" and, once all groups
 * are ready, "ready ENDPOINT" to stdout. MLA_ENDPOINT, MLA_OPTION, MLA_MEMORY. */
enum mla_status mla_server_run(const struct mla_server_options *options);

#endif
