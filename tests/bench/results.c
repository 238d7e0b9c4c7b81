#include "tests/bench/results.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum mla_status mla_results_init(struct mla_results *results, const struct mla_ceilings *ceilings,
                                 const char *count_name)
{
    *results =
        (struct mla_results){.ceilings = *ceilings, .count_name = count_name, .rows = json_array()};
    printf("%-18s %6s %10s %10s %9s %8s %9s %9s %6s\n", "", count_name, "median us", "least us",
           "MB", "GB/s", "TFLOP/s", "floor us", "share");
    return results->rows ? MLA_OK : MLA_MEMORY;
}

void mla_results_fini(struct mla_results *results)
{
    json_decref(results->rows);
    *results = (struct mla_results){0};
}

enum mla_status mla_results_add(struct mla_results *results, const struct mla_result *result)
{
    struct mla_summary summary;
    const struct mla_cost *cost = &result->cost;
    double floor_us = mla_cost_floor_us(*cost, &results->ceilings);
    mla_series_summarize(result->us, &summary);
    double us = summary.median;
    double least = result->us->count ? result->us->values[0] : 0;
    printf("%-18s %6" PRIu32 " %10.1f %10.1f %9.2f %8.0f %9.2f %9.1f %6.2f\n", result->name,
           result->count, us, least, cost->bytes / 1e6, cost->bytes / us / 1e3,
           cost->flops / us / 1e6, floor_us, floor_us / us);
    fflush(stdout);
    json_t *row = json_pack("{s:s, s:i, s:i, s:f, s:f, s:f, s:f, s:f}", "name", result->name,
                            results->count_name, (int)result->count, "samples",
                            (int)result->us->count, "median_us", us, "least_us", least, "bytes",
                            cost->bytes, "flops", cost->flops, "floor_us", floor_us);
    return json_array_append_new(results->rows, row) == 0 ? MLA_OK : MLA_MEMORY;
}

enum mla_status mla_bench_begin(struct mla_timer *timer, const struct mla_bench_options *options,
                                const char *bench, struct mla_ceilings *ceilings, json_t **root)
{
    char device[128];
    const char *backend = timer->backend->ops->name;
    const char *dtype = mla_dtype_name(timer->backend->activation);
    double fences_us = 0;
    enum mla_status status = mla_bench_ceilings(timer, ceilings);
    if (status == MLA_OK)
        status = mla_bench_fences(timer, &fences_us);
    if (status != MLA_OK)
        return status;
    mla_bench_device_name(options, device, sizeof device);
    printf("%s, %s: %s; %s; copy %.0f GB/s, product %.2f TFLOP/s; fences %.1f us\n", bench, backend,
           device, dtype, ceilings->bytes_per_s / 1e9, ceilings->flops_per_s / 1e12, fences_us);
    *root = json_pack("{s:s, s:s, s:s, s:s, s:f, s:f, s:f}", "bench", bench, "backend", backend,
                      "device", device, "dtype", dtype, "bandwidth_bytes_s", ceilings->bytes_per_s,
                      "peak_flops_s", ceilings->flops_per_s, "fences_us", fences_us);
    return *root ? MLA_OK : MLA_MEMORY;
}

enum mla_status mla_bench_end(const struct mla_bench_options *options, enum mla_status status,
                              json_t *root, struct mla_results *results)
{
    if (status == MLA_OK && json_object_set(root, "results", results->rows) != 0)
        status = MLA_MEMORY;
    mla_results_fini(results);
    if (status == MLA_OK)
        return mla_bench_write(options->json, root);
    json_decref(root);
    return status;
}

enum mla_status mla_bench_write(const char *path, json_t *root)
{
    int written = 0;
    errno = 0;
    if (path)
        written = json_dump_file(root, path, JSON_INDENT(1) | JSON_REAL_PRECISION(9));
    json_decref(root);
    if (written == 0)
        return MLA_OK;
    fprintf(stderr, "mla-bench: %s: %s\n", path, strerror(errno));
    return MLA_SYSTEM;
}
