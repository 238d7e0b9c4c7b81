/* mla-bench run inside. */
#ifndef MLA_TESTS_BENCH_RUN_H
#define MLA_TESTS_BENCH_RUN_H

#include "proto/client.h"
#include "tests/bench/cpu_use.h"
#include "tests/bench/run_parts.h"

enum { MLA_RUN_ROUNDS_MAX = 8, MLA_RUN_IN_FLIGHT_MAX = 64 };

enum mla_run_payload { MLA_RUN_AUTO, MLA_RUN_SHARED, MLA_RUN_INLINE };

struct mla_run_options {
    const char *endpoint, *curve_keys, *json, *pids;
    uint32_t rows, context, layers, opens;
    uint32_t in_flight[MLA_RUN_ROUNDS_MAX], round_count, in_flight_max;
    uint64_t repeat; /* RUNs of a round; 0: for `seconds` */
    double seconds, warm_up_s;
    enum mla_run_payload payload;
    enum mla_dtype dtype;
    bool spin;
};

/* With so many steps open, each with one RUN on its way. */
struct mla_run_round {
    uint32_t in_flight;
    double duration_s, computing_s; /* the workers' part of it, over all RUNs */
    double cores[MLA_CPU_ROLES];
    struct mla_run_parts parts;
};

struct mla_run_bench {
    struct mla_run_options options;
    struct mla_client *client;
    const struct mla_hello_reply *info;
    bool cpu_known;
    struct mla_cpu_use cpu;
    size_t payload_bytes;
    uint8_t *x, *y; /* the client's memory: one input, and an output for each step */
    size_t y_stride;
    struct mla_open_entry *entries; /* [MLA_STEP_SEQUENCES_MAX] */
    struct mla_open_reply opened;
    uint64_t steps;                       /* made so far: the last one's id */
    struct mla_series open, first, close; /* microseconds of OPEN, a step's first RUN, CLOSE */
    struct mla_run_round rounds[MLA_RUN_ROUNDS_MAX];
};

/* Measures all that the report tells. Failures are logged. */
enum mla_status mla_run_measure(struct mla_run_bench *bench);
/* On stdout and, where options.json names a file, there. Sorts the samples. MLA_SYSTEM, MLA_MEMORY,
 * both logged. */
enum mla_status mla_run_report(struct mla_run_bench *bench);

#endif
