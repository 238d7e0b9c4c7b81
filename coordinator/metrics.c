#include "coordinator/metrics.h"

#include "coordinator/state.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>

static const uint64_t run_bounds_ns[] = {
    100000,   250000,    500000,    1000000,   2500000,    5000000,    10000000,   25000000,
    50000000, 100000000, 250000000, 500000000, 1000000000, 2500000000, 5000000000, 10000000000};
static const uint64_t row_bounds[] = {1,   2,   4,   8,    16,   32,   64,
                                      128, 256, 512, 1024, 2048, 4096, 8192};

enum {
    RUN_BOUNDS = sizeof run_bounds_ns / sizeof *run_bounds_ns,
    ROW_BOUNDS = sizeof row_bounds / sizeof *row_bounds,
};
_Static_assert((int)RUN_BOUNDS <= (int)MLA_HISTOGRAM_BOUNDS_MAX &&
                   (int)ROW_BOUNDS <= (int)MLA_HISTOGRAM_BOUNDS_MAX,
               "a histogram has room for all its bounds");

static const char *const phases[] = {
    [MLA_PHASE_DECODE] = "decode", [MLA_PHASE_PREFILL] = "prefill"};
static const char *const types[] = {"unknown", "hello",    "open", "run",   "close",
                                    "fork",    "truncate", "free", "stats", "share"};
_Static_assert(sizeof types / sizeof *types == MLA_METRICS_TYPES, "every type has a name");

static void observe(struct mla_histogram *histogram, const uint64_t *bounds, uint32_t count,
                    uint64_t value)
{
    uint32_t i = 0;
    while (i < count && value > bounds[i])
        i++;
    histogram->counts[i]++;
    histogram->sum += value;
}

void mla_metrics_request(struct mla_metrics *metrics, uint16_t type)
{
    metrics->requests[type < MLA_METRICS_TYPES ? type : 0]++;
}

void mla_metrics_error(struct mla_metrics *metrics, uint32_t status)
{
    metrics->errors[status < MLA_METRICS_CODES ? status : 0]++;
}

void mla_metrics_run(struct mla_metrics *metrics, enum mla_phase phase, uint64_t ns)
{
    observe(&metrics->run_ns[phase], run_bounds_ns, RUN_BOUNDS, ns);
}

void mla_metrics_microbatch(struct mla_metrics *metrics, enum mla_phase phase, uint32_t rows,
                            uint32_t padded, uint32_t bucket)
{
    observe(&metrics->rows[phase], row_bounds, ROW_BOUNDS, rows);
    metrics->padding[phase] += padded - rows;
    if (bucket < MLA_DECODE_BUCKETS_MAX)
        metrics->bucket_hits[bucket]++;
}

struct page {
    char *text;
    size_t used, capacity;
    bool full;
};

static void put(struct page *page, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void put(struct page *page, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int bytes = vsnprintf(page->text + page->used, page->capacity - page->used, format, arguments);
    va_end(arguments);
    if (bytes < 0 || (size_t)bytes >= page->capacity - page->used)
        page->full = true;
    else
        page->used += (size_t)bytes;
}

static void head(struct page *page, const char *name, const char *type, const char *help)
{
    put(page, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

static void single(struct page *page, const char *name, const char *type, const char *help,
                   uint64_t value)
{
    head(page, name, type, help);
    put(page, "%s %" PRIu64 "\n", name, value);
}

static void histogram(struct page *page, const char *name, const char *phase,
                      const struct mla_histogram *of, const uint64_t *bounds, uint32_t count,
                      double unit)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < count; i++) {
        sum += of->counts[i];
        put(page, "%s_bucket{phase=\"%s\",le=\"%g\"} %" PRIu64 "\n", name, phase,
            (double)bounds[i] * unit, sum);
    }
    sum += of->counts[count];
    put(page, "%s_bucket{phase=\"%s\",le=\"+Inf\"} %" PRIu64 "\n", name, phase, sum);
    put(page, "%s_sum{phase=\"%s\"} %.9g\n", name, phase, (double)of->sum * unit);
    put(page, "%s_count{phase=\"%s\"} %" PRIu64 "\n", name, phase, sum);
}

static void put_requests(struct page *page, const struct mla_metrics *metrics,
                         const struct mla_stats *stats)
{
    head(page, "mla_requests_total", "counter", "Requests of clients, by type.");
    for (int i = 0; i < MLA_METRICS_TYPES; i++)
        put(page, "mla_requests_total{type=\"%s\"} %" PRIu64 "\n", types[i], metrics->requests[i]);
    head(page, "mla_errors_total", "counter", "Requests answered with an error, by code.");
    for (uint32_t i = 0; i < MLA_METRICS_CODES; i++)
        if (i == 0 || strcmp(mla_status_name((enum mla_status)i), "UNKNOWN") != 0)
            put(page, "mla_errors_total{code=\"%s\"} %" PRIu64 "\n",
                i == 0 ? "UNKNOWN" : mla_status_name((enum mla_status)i), metrics->errors[i]);
    head(page, "mla_tokens_total", "counter", "New tokens of opened steps, by phase.");
    put(page, "mla_tokens_total{phase=\"decode\"} %" PRIu64 "\n", stats->rows_decode);
    put(page, "mla_tokens_total{phase=\"prefill\"} %" PRIu64 "\n", stats->rows_prefill);
    single(page, "mla_payload_received_bytes_total", "counter", "Payloads of RUNs.",
           stats->bytes_in);
    single(page, "mla_payload_sent_bytes_total", "counter", "Payloads of replies to RUNs.",
           stats->bytes_out);
    single(page, "mla_payload_copied_bytes_total", "counter",
           "Payloads that the coordinator copied.", stats->bytes_copied);
}

static void put_work(struct page *page, const struct mla_core *core)
{
    const struct mla_metrics *metrics = &core->metrics;
    const struct mla_plan_options *plan = &core->options.plan;
    head(page, "mla_run_duration_seconds", "histogram",
         "From a RUN's arrival to its reply, by phase; a step with any prefill is one of prefill.");
    for (int i = 0; i < MLA_PHASES; i++)
        histogram(page, "mla_run_duration_seconds", phases[i], &metrics->run_ns[i], run_bounds_ns,
                  RUN_BOUNDS, 1e-9);
    head(page, "mla_microbatch_rows", "histogram", "Rows of microbatches, without padding.");
    for (int i = 0; i < MLA_PHASES; i++)
        histogram(page, "mla_microbatch_rows", phases[i], &metrics->rows[i], row_bounds, ROW_BOUNDS,
                  1);
    head(page, "mla_padding_rows_total", "counter", "Rows that are computed for nobody.");
    for (int i = 0; i < MLA_PHASES; i++)
        put(page, "mla_padding_rows_total{phase=\"%s\"} %" PRIu64 "\n", phases[i],
            metrics->padding[i]);
    head(page, "mla_decode_bucket_hits_total", "counter",
         "Decode microbatches that were padded to a bucket.");
    for (uint32_t i = 0; i < plan->bucket_count; i++)
        put(page, "mla_decode_bucket_hits_total{bucket=\"%u\"} %" PRIu64 "\n", plan->buckets[i],
            metrics->bucket_hits[i]);
}

static void put_state(struct page *page, const struct mla_stats *stats)
{
    const struct {
        const char *name, *help;
        uint64_t value;
    } gauges[] = {
        {"mla_clients", "Clients with a session.", stats->clients},
        {"mla_steps_open", "Open steps.", stats->steps_open},
        {"mla_runs_in_flight", "RUNs that are not answered.", stats->runs_in_flight},
        {"mla_sequences", "Sequences.", stats->sequences},
        {"mla_kv_blocks", "KV blocks of all ready groups.", stats->blocks_total},
        {"mla_kv_blocks_used", "KV blocks in use.", stats->blocks_used},
        {"mla_kv_blocks_free", "KV blocks that are free.", stats->blocks_free},
        {"mla_payload_held_bytes", "Buffers of payloads in the coordinator.", stats->heap_bytes},
        {"mla_groups_ready", "Groups of workers that are ready.", stats->groups_ready},
    };
    for (size_t i = 0; i < sizeof gauges / sizeof *gauges; i++)
        single(page, gauges[i].name, "gauge", gauges[i].help, gauges[i].value);
}

static void put_groups(struct page *page, const struct mla_core *core)
{
    static const char *const states[] = {[GROUP_EMPTY] = "empty",
                                         [GROUP_JOINING] = "joining",
                                         [GROUP_ADOPTED] = "adopted",
                                         [GROUP_READY] = "ready"};
    head(page, "mla_group_state", "gauge", "1 for the state that a group is in, else 0.");
    for (uint32_t g = 0; g < core->options.groups; g++)
        for (int i = GROUP_EMPTY; i <= GROUP_READY; i++)
            put(page, "mla_group_state{group=\"%u\",state=\"%s\"} %d\n", g, states[i],
                core->groups[g].state == (enum group_state)i);
    head(page, "mla_group_epoch", "gauge", "Epoch of a group's job; 0: none was adopted.");
    for (uint32_t g = 0; g < core->options.groups; g++)
        put(page, "mla_group_epoch{group=\"%u\"} %" PRIu64 "\n", g, core->groups[g].epoch);
    head(page, "mla_group_restarts_total", "counter", "Jobs that a group had after its first.");
    for (uint32_t g = 0; g < core->options.groups; g++)
        put(page, "mla_group_restarts_total{group=\"%u\"} %" PRIu64 "\n", g,
            core->metrics.adopted[g] > 0 ? core->metrics.adopted[g] - 1 : 0);
    head(page, "mla_group_losses_total", "counter", "Jobs of a group that were lost.");
    for (uint32_t g = 0; g < core->options.groups; g++)
        put(page, "mla_group_losses_total{group=\"%u\"} %" PRIu64 "\n", g, core->metrics.lost[g]);
}

static void put_connections(struct page *page, const struct mla_metrics_endpoint *endpoints,
                            size_t count)
{
    head(page, "mla_connections_refused_total", "counter",
         "Connections that were refused: for their key, or before they had one.");
    for (size_t i = 0; i < count; i++) {
        const struct mla_channel_counts *of = &endpoints[i].counts;
        put(page, "mla_connections_refused_total{endpoint=\"%s\",reason=\"key\"} %" PRIu64 "\n",
            endpoints[i].name, of->refused);
        put(page,
            "mla_connections_refused_total{endpoint=\"%s\",reason=\"handshake\"} %" PRIu64 "\n",
            endpoints[i].name, of->handshakes);
    }
    head(page, "mla_connections_cut_total", "counter",
         "Connections of clients that were cut off, by what they did.");
    for (size_t i = 0; i < count; i++) {
        const struct mla_crowd_counts *of = &endpoints[i].counts.connections;
        const struct {
            const char *reason;
            uint64_t value;
        } cuts[] = {{"crowded", of->crowded},
                    {"silent", of->silent},
                    {"unread", of->unread},
                    {"endless", of->endless},
                    {"memory", of->relieved}};
        for (size_t k = 0; k < sizeof cuts / sizeof *cuts; k++)
            put(page, "mla_connections_cut_total{endpoint=\"%s\",reason=\"%s\"} %" PRIu64 "\n",
                endpoints[i].name, cuts[k].reason, cuts[k].value);
    }
}

bool mla_metrics_page(const struct mla_core *core, const struct mla_metrics_endpoint *endpoints,
                      size_t endpoint_count, char *out, size_t capacity)
{
    struct page page = {.text = out, .capacity = capacity};
    struct mla_stats stats;
    mla_core_stats(core, &stats);
    put_requests(&page, &core->metrics, &stats);
    put_work(&page, core);
    put_state(&page, &stats);
    put_groups(&page, core);
    put_connections(&page, endpoints, endpoint_count);
    return !page.full;
}
