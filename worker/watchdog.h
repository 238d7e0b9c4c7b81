/* A thread that ends this process when it hangs: a microbatch that takes longer than anything may,
 * or an order to end that the main thread does not follow. It calls nothing but the clock, because
 * whatever hangs (CUDA, NCCL, MPI) can hang its callers too, and ends with _exit, because their
 * orderly ends can hang as well. */
#ifndef MLA_WORKER_WATCHDOG_H
#define MLA_WORKER_WATCHDOG_H

#include "proto/status.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/* Written by the other threads of this rank. */
struct mla_watch {
    uint32_t rank;
    atomic_ullong progress; /* grows with every microbatch finished */
    atomic_ullong begun_ns; /* when the oldest microbatch at work began; 0: none is */
    atomic_ullong stall_ns; /* how long it may take; 0: for ever */
    atomic_ullong told_ns;  /* when the coordinator told this rank to end; 0: it did not */
    atomic_bool following;  /* the main thread knows */
};

struct mla_watchdog;

/* `watch` is read until stop. MLA_MEMORY, MLA_SYSTEM. */
enum mla_status mla_watchdog_start(struct mla_watch *watch, struct mla_watchdog **out);
void mla_watchdog_stop(struct mla_watchdog **watchdog);

#endif
