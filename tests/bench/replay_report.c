#include "tests/bench/replay.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

struct totals {
    uint32_t succeeded, failed;
    uint64_t input_tokens, output_tokens; /* of the successful requests */
    double duration_s, requests_per_s, output_per_s, tokens_per_s;
    struct mla_summary ttft, tpot, itl;
    double decode_rows_mean;
};

static void count_totals(struct mla_replay *replay, struct totals *out)
{
    struct totals totals = {.duration_s = replay->ended_s - replay->started_s};
    for (uint32_t i = 0; i < replay->scheduler.request_count; i++) {
        const struct mla_request *request = &replay->requests[i];
        if (request->state != MLA_REQUEST_DONE) {
            totals.failed++;
            continue;
        }
        totals.succeeded++;
        totals.input_tokens += request->prompt;
        totals.output_tokens += request->output;
    }
    totals.requests_per_s = totals.succeeded / totals.duration_s;
    totals.output_per_s = (double)totals.output_tokens / totals.duration_s;
    totals.tokens_per_s = (double)(totals.input_tokens + totals.output_tokens) / totals.duration_s;
    mla_series_summarize(&replay->scheduler.latencies.ttft, &totals.ttft);
    mla_series_summarize(&replay->scheduler.latencies.tpot, &totals.tpot);
    mla_series_summarize(&replay->scheduler.latencies.itl, &totals.itl);
    if (replay->decode_steps > 0)
        totals.decode_rows_mean = (double)replay->decode_rows / (double)replay->decode_steps;
    *out = totals;
}

static void print_count(const char *name, uint64_t value)
{
    printf("%-40s %12" PRIu64 "\n", name, value);
}

static void print_value(const char *name, double value)
{
    printf("%-40s %12.2f\n", name, value);
}

static void print_latency(const char *title, const char *name, const struct mla_summary *seconds)
{
    char line[64];
    printf("%s\n", title);
    snprintf(line, sizeof line, "Mean %s (ms):", name);
    print_value(line, seconds->mean * 1e3);
    snprintf(line, sizeof line, "Median %s (ms):", name);
    print_value(line, seconds->median * 1e3);
    snprintf(line, sizeof line, "P99 %s (ms):", name);
    print_value(line, seconds->p99 * 1e3);
}

static void print_totals(const struct mla_replay *replay, const struct totals *totals)
{
    puts("================= Replay of a trace =================");
    print_count("Successful requests:", totals->succeeded);
    print_count("Failed requests:", totals->failed);
    print_count("Maximum request concurrency:", replay->options.concurrency);
    if (replay->options.lanes > 1)
        print_count("Lanes:", replay->options.lanes);
    print_count("Layers:", replay->options.layers);
    printf("%-40s %12s\n", "Payloads:", mla_client_is_shared(replay->client) ? "shared" : "inline");
    print_value("Benchmark duration (s):", totals->duration_s);
    print_count("Total input tokens:", totals->input_tokens);
    print_count("Total generated tokens:", totals->output_tokens);
    print_value("Request throughput (req/s):", totals->requests_per_s);
    print_value("Output token throughput (tok/s):", totals->output_per_s);
    print_value("Total token throughput (tok/s):", totals->tokens_per_s);
    print_value("In RUNs (s):", replay->runs_s);
    print_value("Workers computing (s):", replay->computing_s);
    print_value("Workers computing (% of duration):",
                100 * replay->computing_s / totals->duration_s);
    print_latency("----------------- Time to first token ---------------", "TTFT", &totals->ttft);
    print_latency("-------- Time per output token (without the 1st) ----", "TPOT", &totals->tpot);
    print_latency("----------------- Inter-token latency ---------------", "ITL", &totals->itl);
    puts("----------------- Steps -----------------------------");
    print_count("Steps:", replay->steps);
    print_count("Decode-only steps:", replay->decode_steps);
    print_value("Rows of a decode-only step, mean:", totals->decode_rows_mean);
    print_count("Rows of a decode-only step, most:", replay->decode_rows_max);
    print_count("Preemptions:", replay->scheduler.preemptions);
    if (replay->steps_lost > 0)
        print_count("Steps lost:", replay->steps_lost);
    puts("=====================================================");
}

static void print_call(const char *name, struct mla_series *microseconds)
{
    struct mla_summary summary;
    mla_series_summarize(microseconds, &summary);
    printf("%-28s %12.1f %12.1f\n", name, summary.median, summary.p99);
}

/* Two runs of one service are compared by this line. */
static void print_overhead(struct mla_replay *replay)
{
    struct mla_summary overhead, total;
    mla_series_summarize(&replay->decode.parts[MLA_PART_NOT_COMPUTE], &overhead);
    mla_series_summarize(&replay->decode.parts[MLA_PART_TOTAL], &total);
    if (total.count > 0)
        printf("\nNot compute, median over decode-only RUNs: %.1f us of %.1f us\n", overhead.median,
               total.median);
}

static json_t *summary_json(const struct mla_summary *seconds)
{
    return json_pack("{s:f, s:f, s:f}", "mean", seconds->mean * 1e3, "median",
                     seconds->median * 1e3, "p99", seconds->p99 * 1e3);
}

/* When each request was sent and had its first and last token; those that are done. */
static json_t *requests_json(const struct mla_replay *replay)
{
    json_t *json = json_array();
    for (uint32_t i = 0; json && i < replay->scheduler.request_count; i++) {
        const struct mla_request *request = &replay->requests[i];
        if (request->state != MLA_REQUEST_DONE)
            continue;
        json_t *entry = json_pack(
            "{s:I, s:I, s:f, s:f, s:f}", "prompt", (json_int_t)request->prompt, "output",
            (json_int_t)request->output, "sent_s", request->sent_s - replay->started_s, "first_s",
            request->first_s - replay->started_s, "last_s", request->last_s - replay->started_s);
        if (json_array_append_new(json, entry) != 0) {
            json_decref(json);
            json = NULL;
        }
    }
    return json;
}

static json_t *report_json(struct mla_replay *replay, const struct totals *totals)
{
    json_t *json = json_pack(
        "{s:s, s:i, s:i, s:i, s:i, s:f, s:I, s:I, s:f, s:f, s:f}", "bench", "replay", "completed",
        (int)totals->succeeded, "failed", (int)totals->failed, "max_concurrency",
        (int)replay->options.concurrency, "layers", (int)replay->options.layers, "duration_s",
        totals->duration_s, "total_input_tokens", (json_int_t)totals->input_tokens,
        "total_output_tokens", (json_int_t)totals->output_tokens, "request_throughput",
        totals->requests_per_s, "output_throughput", totals->output_per_s, "total_token_throughput",
        totals->tokens_per_s);
    json_t *rest = json_pack(
        "{s:i, s:b, s:f, s:f, s:o, s:o, s:o, s:I, s:I, s:f, s:i, s:i, s:I, s:o, s:o, s:I, s:o, "
        "s:o}",
        "lanes", (int)replay->options.lanes, "client_spins", (int)replay->options.spin, "runs_s",
        replay->runs_s, "computing_s", replay->computing_s, "ttft_ms", summary_json(&totals->ttft),
        "tpot_ms", summary_json(&totals->tpot), "itl_ms", summary_json(&totals->itl), "steps",
        (json_int_t)replay->steps, "decode_steps", (json_int_t)replay->decode_steps,
        "decode_rows_mean", totals->decode_rows_mean, "decode_rows_max",
        (int)replay->decode_rows_max, "preemptions", (int)replay->scheduler.preemptions,
        "steps_lost", (json_int_t)replay->steps_lost, "decode_runs",
        mla_run_parts_json(&replay->decode), "prefill_runs", mla_run_parts_json(&replay->prefill),
        "blocks_total", (json_int_t)replay->info->blocks_total, "timeline",
        mla_timeline_json(&replay->timeline, replay->started_s), "requests", requests_json(replay));
    if (json && rest && json_object_update(json, rest) == 0) {
        json_decref(rest);
        return json;
    }
    json_decref(json);
    json_decref(rest);
    return NULL;
}

static void tell_failures(const struct mla_replay *replay)
{
    uint32_t context_max = replay->scheduler.options.context_max;
    uint32_t too_long = 0, no_room = 0;
    for (uint32_t i = 0; i < replay->scheduler.request_count; i++) {
        const struct mla_request *request = &replay->requests[i];
        if (request->state == MLA_REQUEST_DONE)
            continue;
        bool fits = (uint64_t)request->prompt + request->output - 1 <= context_max;
        too_long += !fits;
        no_room += fits;
    }
    if (too_long > 0)
        fprintf(stderr,
                "mla-bench: %" PRIu32 " requests are longer than the service's context of %" PRIu32
                " tokens\n",
                too_long, context_max);
    if (no_room > 0)
        fprintf(stderr, "mla-bench: %" PRIu32 " requests had no room in the KV cache\n", no_room);
}

enum mla_status mla_replay_report(struct mla_replay *replay)
{
    struct totals totals;
    count_totals(replay, &totals);
    print_totals(replay, &totals);
    tell_failures(replay);
    mla_run_parts_print(&replay->decode, "RUNs of decode-only steps", stdout);
    mla_run_parts_print(&replay->prefill, "RUNs of steps with prefill", stdout);
    printf("\n%-28s %12s %12s\n", "Other calls, microseconds", "median", "P99");
    print_call("OPEN", &replay->open);
    print_call("CLOSE", &replay->close);
    print_overhead(replay);
    if (!replay->options.json)
        return MLA_OK;

    json_t *json = report_json(replay, &totals);
    if (!json) {
        fputs("mla-bench: out of memory\n", stderr);
        return MLA_MEMORY;
    }
    errno = 0;
    int written =
        json_dump_file(json, replay->options.json, JSON_INDENT(1) | JSON_REAL_PRECISION(9));
    json_decref(json);
    if (written == 0)
        return MLA_OK;
    fprintf(stderr, "mla-bench: %s: %s\n", replay->options.json, strerror(errno));
    return MLA_SYSTEM;
}
