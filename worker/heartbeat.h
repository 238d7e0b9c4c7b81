/* Tells the coordinator that this rank is alive, and hears from it, in a thread and over a
 * connection of its own, so that loading or a long microbatch looks like a death to neither. */
#ifndef MLA_WORKER_HEARTBEAT_H
#define MLA_WORKER_HEARTBEAT_H

#include "comm/keys.h"
#include "worker/watchdog.h"

struct mla_heartbeat_options {
    const char *coordinator;
    const struct mla_keys *keys; /* NULL: none */
    uint32_t group, rank;
    struct mla_watch *watch; /* progress is told, an order to end is noted */
};

struct mla_heartbeat_thread;

/* Beats in epoch 0, ten times a second. Ends the process at once when the coordinator dismisses the
 * group. `watch` is used until stop. MLA_MEMORY, MLA_SYSTEM, MLA_ENDPOINT. */
enum mla_status mla_heartbeat_start(const struct mla_heartbeat_options *options,
                                    struct mla_heartbeat_thread **out);
/* Until the first is sent, at most half a second: who stops later is missed. */
void mla_heartbeat_await(const struct mla_heartbeat_thread *thread);
/* From now on in this epoch, which the coordinator must answer. */
void mla_heartbeat_adopted(struct mla_heartbeat_thread *thread, uint64_t epoch,
                           uint32_t interval_ms);
void mla_heartbeat_stop(struct mla_heartbeat_thread **thread);

/* How long the coordinator has not answered, from adoption on. */
uint64_t mla_heartbeat_silence_ns(const struct mla_heartbeat_thread *thread);

/* Ends the process as the coordinator's DISMISS says, which is not an orderly end: other ranks may
 * be inside a collective, and mpirun ends them with this one. */
_Noreturn void mla_dismissed(uint32_t rank, uint32_t status);

#endif
