/* Tells the coordinator that this rank is alive, from a thread and over a connection of its own,
 * so that a long microbatch does not look like a death. */
#ifndef MLA_WORKER_HEARTBEAT_H
#define MLA_WORKER_HEARTBEAT_H

#include "proto/status.h"

#include <stdatomic.h>
#include <stdint.h>

struct mla_heartbeat_options {
    const char *coordinator;
    uint64_t epoch;
    uint32_t group, rank, interval_ms;
    const atomic_ullong *progress;
};

struct mla_heartbeat_thread;

/* The progress counter is read until stop. MLA_MEMORY, MLA_SYSTEM, MLA_ENDPOINT. */
enum mla_status mla_heartbeat_start(const struct mla_heartbeat_options *options,
                                    struct mla_heartbeat_thread **out);
void mla_heartbeat_stop(struct mla_heartbeat_thread **thread);

#endif
