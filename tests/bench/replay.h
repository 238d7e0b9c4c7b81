/* mla-bench replay inside. */
#ifndef MLA_TESTS_BENCH_REPLAY_H
#define MLA_TESTS_BENCH_REPLAY_H

#include "proto/client.h"
#include "tests/bench/run_parts.h"
#include "tests/bench/scheduler.h"
#include "tests/bench/timeline.h"

#include <stdint.h>

struct mla_replay_options {
    const char *trace, *endpoint, *json, *curve_keys;
    uint32_t layers, concurrency, limit, prefill_budget, lanes;
    bool payload_inline, halves, spin;
};

/* A lane: one scheduler with its connection, its requests and its results. */
struct mla_replay {
    struct mla_replay_options options;
    bool quiet; /* shows no progress */
    uint32_t lane;
    struct mla_request *requests;
    uint32_t request_count;
    struct mla_scheduler scheduler;
    struct mla_client *client;
    const struct mla_hello_reply *info;
    uint16_t *x, *y; /* the client's memory, bf16: x has some rows more than the largest step, so
                        that steps differ */
    struct mla_open_reply opened; /* the step that is open */
    double started_s, ended_s;
    double runs_s, computing_s; /* of all RUNs: as the client saw them, and the workers' part */
    uint64_t steps, decode_steps, steps_lost;
    uint64_t decode_rows;          /* over the decode-only steps */
    uint32_t decode_rows_max;      /* of one of them */
    struct mla_run_parts decode;   /* RUNs of decode-only steps */
    struct mla_run_parts prefill;  /* RUNs of steps with prefill */
    struct mla_series open, close; /* microseconds of the calls */
    struct mla_timeline timeline;  /* of all steps */
};

/* Connects and runs all requests. */
enum mla_status mla_replay_run(struct mla_replay *replay);
/* Adds another lane's results, and its requests. MLA_MEMORY. */
enum mla_status mla_replay_join(struct mla_replay *into, const struct mla_replay *from);
void mla_replay_fini(struct mla_replay *replay);

/* The result on stdout and, where options.json names a file, there. Sorts the samples.
 * MLA_SYSTEM, MLA_MEMORY, both logged. */
enum mla_status mla_replay_report(struct mla_replay *replay);

#endif
