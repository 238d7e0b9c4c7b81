/* A table of times beside what they could be at best, on stdout and as JSON. */
#ifndef MLA_TESTS_BENCH_RESULTS_H
#define MLA_TESTS_BENCH_RESULTS_H

#include "tests/bench/device.h"

#include <jansson.h>

struct mla_results {
    struct mla_ceilings ceilings;
    const char *count_name; /* heads, or calls */
    json_t *rows;
};

struct mla_result {
    const char *name;
    uint32_t count;
    struct mla_cost cost;
    struct mla_series *us; /* is sorted */
};

/* Begins a table: prints its head. fini after it, whatever happens. MLA_MEMORY. */
enum mla_status mla_results_init(struct mla_results *results, const struct mla_ceilings *ceilings,
                                 const char *count_name);
void mla_results_fini(struct mla_results *results);

/* Prints a line and keeps it. MLA_MEMORY. */
enum mla_status mla_results_add(struct mla_results *results, const struct mla_result *result);

/* Measures the ceilings that aren't known, prints what runs where, and begins the JSON: bench,
 * backend, device, dtype, ceilings, and the time between
 * two fences. MLA_MEMORY, or a device failure. */
enum mla_status mla_bench_begin(struct mla_timer *timer, const struct mla_bench_options *options,
                                const char *bench, struct mla_ceilings *ceilings, json_t **root);
/* Adds the rows to the JSON, writes it where the options want it, and frees both. The first
 * failure: `status`, MLA_MEMORY, MLA_SYSTEM; logged. */
enum mla_status mla_bench_end(const struct mla_bench_options *options, enum mla_status status,
                              json_t *root, struct mla_results *results);
/* Writes and frees the JSON. Nothing to write without a path. */
enum mla_status mla_bench_write(const char *path, json_t *root);

#endif
