/* Samples of one quantity, and what is told of them. */
#ifndef MLA_TESTS_BENCH_SERIES_H
#define MLA_TESTS_BENCH_SERIES_H

#include "proto/status.h"

#include <stddef.h>

/* Zeroed: empty. */
struct mla_series {
    double *values;
    size_t count, capacity;
};

struct mla_summary {
    size_t count;
    double mean, median, p99; /* 0 without samples */
};

/* MLA_MEMORY. */
enum mla_status mla_series_add(struct mla_series *series, double value);
/* All samples of another series. MLA_MEMORY. */
enum mla_status mla_series_append(struct mla_series *series, const struct mla_series *from);
void mla_series_fini(struct mla_series *series);

/* Sorts the samples. Percentiles are interpolated linearly between the two nearest. */
void mla_series_summarize(struct mla_series *series, struct mla_summary *out);

#endif
