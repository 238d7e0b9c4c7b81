#include "tests/bench/series.h"

#include <stdlib.h>

enum mla_status mla_series_add(struct mla_series *series, double value)
{
    if (series->count == series->capacity) {
        size_t capacity = series->capacity ? 2 * series->capacity : 1024;
        double *values = realloc(series->values, capacity * sizeof *values);
        if (!values)
            return MLA_MEMORY;
        series->values = values;
        series->capacity = capacity;
    }
    series->values[series->count++] = value;
    return MLA_OK;
}

enum mla_status mla_series_append(struct mla_series *series, const struct mla_series *from)
{
    enum mla_status status = MLA_OK;
    for (size_t i = 0; i < from->count && status == MLA_OK; i++)
        status = mla_series_add(series, from->values[i]);
    return status;
}

void mla_series_fini(struct mla_series *series)
{
    free(series->values);
    *series = (struct mla_series){0};
}

static int compare(const void *left, const void *right)
{
    double a = *(const double *)left, b = *(const double *)right;
    return (a > b) - (a < b);
}

static double percentile(const struct mla_series *sorted, double percent)
{
    double at = percent / 100 * (double)(sorted->count - 1);
    size_t below = (size_t)at;
    if (below + 1 >= sorted->count)
        return sorted->values[sorted->count - 1];
    double share = at - (double)below;
    return sorted->values[below] * (1 - share) + sorted->values[below + 1] * share;
}

void mla_series_summarize(struct mla_series *series, struct mla_summary *out)
{
    *out = (struct mla_summary){.count = series->count};
    if (series->count == 0)
        return;
    qsort(series->values, series->count, sizeof *series->values, compare);
    double sum = 0;
    for (size_t i = 0; i < series->count; i++)
        sum += series->values[i];
    out->mean = sum / (double)series->count;
    out->median = percentile(series, 50);
    out->p99 = percentile(series, 99);
}
