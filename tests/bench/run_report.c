#include "tests/bench/results.h"
#include "tests/bench/run.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>

static const char *const role_keys[MLA_CPU_ROLES] = {[MLA_CPU_COORDINATOR] = "coordinator",
                                                     [MLA_CPU_WORKERS] = "workers",
                                                     [MLA_CPU_CLIENT] = "client"};

static const char *payload_name(const struct mla_run_bench *bench)
{
    return mla_client_is_shared(bench->client) ? "shared" : "inline";
}

/* What a round comes to. */
struct totals {
    struct mla_summary latency;
    double runs_per_s, computing_percent;
};

static struct totals total(struct mla_run_round *round)
{
    struct totals totals;
    mla_series_summarize(&round->parts.parts[MLA_PART_TOTAL], &totals.latency);
    totals.runs_per_s = (double)totals.latency.count / round->duration_s;
    totals.computing_percent = 100 * round->computing_s / round->duration_s;
    return totals;
}

static void print_rounds(struct mla_run_bench *bench)
{
    printf("\n%-10s %8s %10s %10s %10s %10s %9s  %s\n", "in flight", "RUNs", "RUNs/s", "median us",
           "P99 us", "mean us", "computing", "cores: coordinator, workers, this client");
    for (uint32_t i = 0; i < bench->options.round_count; i++) {
        struct mla_run_round *round = &bench->rounds[i];
        struct totals totals = total(round);
        printf("%-10" PRIu32 " %8zu %10.1f %10.1f %10.1f %10.1f %8.1f%%  ", round->in_flight,
               totals.latency.count, totals.runs_per_s, totals.latency.median, totals.latency.p99,
               totals.latency.mean, totals.computing_percent);
        if (bench->cpu_known)
            printf("%.2f, %.2f, %.2f\n", round->cores[MLA_CPU_COORDINATOR],
                   round->cores[MLA_CPU_WORKERS], round->cores[MLA_CPU_CLIENT]);
        else
            puts("unknown");
    }
}

static void print_call(const char *name, struct mla_series *microseconds)
{
    struct mla_summary summary;
    mla_series_summarize(microseconds, &summary);
    printf("%-28s %12.1f %12.1f\n", name, summary.median, summary.p99);
}

static void print(struct mla_run_bench *bench)
{
    const struct mla_run_options *options = &bench->options;
    printf("%" PRIu32 " rows, context %" PRIu32 ", %" PRIu32 " layers, %s, payloads %s, %" PRIu32
           " groups of %" PRIu32 " ranks\n",
           options->rows, options->context, options->layers, mla_dtype_name(options->dtype),
           payload_name(bench), bench->info->groups, bench->info->ranks);
    print_rounds(bench);
    for (uint32_t i = 0; i < options->round_count; i++) {
        char title[64];
        snprintf(title, sizeof title, "RUNs, %" PRIu32 " in flight", options->in_flight[i]);
        mla_run_parts_print(&bench->rounds[i].parts, title, stdout);
    }
    printf("\nSteps (%zu), microseconds\n%-28s %12s %12s\n", bench->open.count, "", "median",
           "P99");
    print_call("OPEN", &bench->open);
    print_call("first RUN", &bench->first);
    print_call("CLOSE", &bench->close);
}

static json_t *round_json(const struct mla_run_bench *bench, struct mla_run_round *round)
{
    struct totals totals = total(round);
    json_t *json = json_pack(
        "{s:i, s:f, s:f, s:f, s:f, s:f, s:o}", "in_flight", (int)round->in_flight, "duration_s",
        round->duration_s, "runs_per_s", totals.runs_per_s, "rows_per_s",
        totals.runs_per_s * bench->options.rows, "mean_us", totals.latency.mean,
        "computing_percent", totals.computing_percent, "parts", mla_run_parts_json(&round->parts));
    for (int role = 0; json && bench->cpu_known && role < MLA_CPU_ROLES; role++) {
        char key[32];
        snprintf(key, sizeof key, "%s_cores", role_keys[role]);
        if (json_object_set_new(json, key, json_real(round->cores[role])) != 0) {
            json_decref(json);
            json = NULL;
        }
    }
    return json;
}

static json_t *series_json(struct mla_series *microseconds)
{
    struct mla_summary summary;
    mla_series_summarize(microseconds, &summary);
    return json_pack("{s:f, s:f}", "median", summary.median, "p99", summary.p99);
}

static json_t *report_json(struct mla_run_bench *bench)
{
    const struct mla_run_options *options = &bench->options;
    json_t *rounds = json_array();
    for (uint32_t i = 0; rounds && i < options->round_count; i++) {
        if (json_array_append_new(rounds, round_json(bench, &bench->rounds[i])) != 0) {
            json_decref(rounds);
            rounds = NULL;
        }
    }
    return json_pack("{s:s, s:i, s:i, s:i, s:s, s:s, s:i, s:i, s:b, s:o, s:o, s:o, s:o}", "bench",
                     "run", "rows", (int)options->rows, "context", (int)options->context, "layers",
                     (int)options->layers, "dtype", mla_dtype_name(options->dtype), "payload",
                     payload_name(bench), "groups", (int)bench->info->groups, "ranks",
                     (int)bench->info->ranks, "client_spins", (int)options->spin, "rounds", rounds,
                     "open_us", series_json(&bench->open), "first_run_us",
                     series_json(&bench->first), "close_us", series_json(&bench->close));
}

enum mla_status mla_run_report(struct mla_run_bench *bench)
{
    print(bench);
    if (!bench->options.json)
        return MLA_OK;
    json_t *json = report_json(bench);
    if (json)
        return mla_bench_write(bench->options.json, json);
    fputs("mla-bench: out of memory\n", stderr);
    return MLA_MEMORY;
}
