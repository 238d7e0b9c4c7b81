/* How long work on a backend takes by the backend's own fences: on a GPU without what the host
 * does meanwhile, with nothing of the work's data in the L2 cache at its start. */
#ifndef MLA_TESTS_BENCH_TIMER_H
#define MLA_TESTS_BENCH_TIMER_H

#include "kernels/backend.h"
#include "tests/bench/series.h"

/* Queues operations on the backend, and does not wait for them. */
struct mla_timer_body {
    enum mla_status (*run)(void *context);
    void *context;
};

struct mla_timer {
    struct mla_backend *backend;
    struct mla_fence *from, *to;
    void *cold; /* two halves of MLA_TIMER_COLD_BYTES, where the backend queues its work */
};

enum {
    MLA_TIMER_COLD_BYTES = 256 << 20,
    MLA_TIMER_EAGER_COOLS = 4, /* so that the host can queue the operations of a whole layer */
    MLA_TIMER_REPEAT_MAX = 10000,
};

/* Whatever the status, mla_timer_fini frees it. MLA_MEMORY. */
enum mla_status mla_timer_init(struct mla_timer *timer, struct mla_backend *backend);
void mla_timer_fini(struct mla_timer *timer);

/* Empties the cache, `times` times, by copying more than it holds. This also keeps the device busy
 * while the host queues what is to be timed, so that the device never waits for it. Nothing on a
 * backend whose operations have finished when they return. */
enum mla_status mla_timer_cool(struct mla_timer *timer, uint32_t times);

/* Adds `repeat` samples of body, in microseconds, after one run that isn't counted. graph: where
 * the backend has graphs, body is captured once and replayed. */
enum mla_status mla_timer_samples(struct mla_timer *timer, struct mla_timer_body body, bool graph,
                                  uint32_t repeat, struct mla_series *us);

#endif
