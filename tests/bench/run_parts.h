/* Where the time of RUNs goes, part by part. */
#ifndef MLA_TESTS_BENCH_RUN_PARTS_H
#define MLA_TESTS_BENCH_RUN_PARTS_H

#include "proto/message.h"
#include "tests/bench/series.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

enum mla_run_part {
    MLA_PART_TO_COORDINATOR, /* from the call to the request's arrival */
    MLA_PART_QUEUED,         /* until the last dispatch to the workers */
    MLA_PART_WIRE,           /* to the workers and back: what is left between dispatch and gather */
    MLA_PART_COMPUTE,        /* the slowest rank, without collectives */
    MLA_PART_COLLECTIVES,    /* the same rank */
    MLA_PART_GATHER,         /* from the last rank's result to the reply */
    MLA_PART_TO_CLIENT,      /* from the reply to the call's return */
    MLA_PART_TOTAL,          /* of the call */
    MLA_PART_NOT_COMPUTE,    /* the call without compute */
    MLA_PART_COUNT,
};

/* In microseconds. Zeroed: empty. */
struct mla_run_parts {
    struct mla_series parts[MLA_PART_COUNT];
    bool clocks_differ; /* a reply was not between the client's two times: another host's clock */
};

/* sent_ns, returned_ns: CLOCK_MONOTONIC around the call. MLA_MEMORY. */
enum mla_status mla_run_parts_add(struct mla_run_parts *parts, uint64_t sent_ns,
                                  uint64_t returned_ns, const struct mla_run_times *times);
/* All samples of another. MLA_MEMORY. */
enum mla_status mla_run_parts_append(struct mla_run_parts *parts, const struct mla_run_parts *from);
void mla_run_parts_fini(struct mla_run_parts *parts);

/* A table of median and P99, nothing without samples. Sorts the samples. */
void mla_run_parts_print(struct mla_run_parts *parts, const char *title, FILE *out);
/* {"runs": n, "total_us": {"median": m, "p99": p}, ...}. NULL when memory is out. */
json_t *mla_run_parts_json(struct mla_run_parts *parts);

#endif
