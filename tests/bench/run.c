/* mla-bench run: what a RUN of a service takes, as a client sees it. */
#include "tests/bench/run.h"

#include "proto/parse.h"
#include "tests/bench/bench.h"
#include "tests/lib/formula.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TIMEOUT_MS = 60000, PAGE_BYTES = 4096 };

static const char help[] =
    "usage: mla-bench run --endpoint E [options]\n"
    "\n"
    "Latency and throughput of RUN against a running service: decode steps of --rows sequences,\n"
    "--in-flight of them open at a time, each with one RUN on its way, layer after layer. Tells\n"
    "median, P99, mean, where the time goes, and which part of it the workers compute. Then times\n"
    "OPEN, a step's first RUN (which waits for the workers to have built the step) and CLOSE.\n"
    "Sequences get their length from steps without RUNs, so nothing is computed for it and the\n"
    "cached values are whatever was there.\n"
    "\n"
    "  --endpoint E          of the service (tcp://host:port or ipc:///path)\n"
    "  --curve-keys DIR      for a service on tcp with keys: client.key and server.pub\n"
    "  --rows B              sequences of a step, each with one new token (16)\n"
    "  --context C           tokens that they have already (512)\n"
    "  --layers N            the first N layers of the service, in turn (all)\n"
    "  --in-flight LIST      steps open at a time; one round for each, as 1,2,3 (1)\n"
    "  --payload P           shared, inline, or auto: shared where it can be (auto)\n"
    "  --dtype D             bf16 or f32, of inputs and outputs (bf16)\n"
    "  --repeat N            RUNs of a round (as many as --seconds has room for)\n"
    "  --seconds S           how long a round measures (5)\n"
    "  --warm-up S           seconds of RUNs before each round that don't count (0.5)\n"
    "  --opens N             steps opened and closed to time that (100)\n"
    "  --pids LIST           processes of coordinator and workers, whose CPU use is told (all\n"
    "                        mla-coordinator and mla-worker of this host, if that is one service)\n"
    "  --spin                this client and ZeroMQ's thread in it never sleep: two cores\n"
    "  --json FILE           writes the numbers there as well\n";

enum option_id {
    OPTION_ENDPOINT = 256,
    OPTION_KEYS,
    OPTION_ROWS,
    OPTION_CONTEXT,
    OPTION_LAYERS,
    OPTION_IN_FLIGHT,
    OPTION_PAYLOAD,
    OPTION_DTYPE,
    OPTION_REPEAT,
    OPTION_SECONDS,
    OPTION_WARM_UP,
    OPTION_OPENS,
    OPTION_PIDS,
    OPTION_SPIN,
    OPTION_JSON,
    OPTION_HELP,
};

static const struct option known[] = {
    {"endpoint", required_argument, NULL, OPTION_ENDPOINT},
    {"curve-keys", required_argument, NULL, OPTION_KEYS},
    {"rows", required_argument, NULL, OPTION_ROWS},
    {"context", required_argument, NULL, OPTION_CONTEXT},
    {"layers", required_argument, NULL, OPTION_LAYERS},
    {"in-flight", required_argument, NULL, OPTION_IN_FLIGHT},
    {"payload", required_argument, NULL, OPTION_PAYLOAD},
    {"dtype", required_argument, NULL, OPTION_DTYPE},
    {"repeat", required_argument, NULL, OPTION_REPEAT},
    {"seconds", required_argument, NULL, OPTION_SECONDS},
    {"warm-up", required_argument, NULL, OPTION_WARM_UP},
    {"opens", required_argument, NULL, OPTION_OPENS},
    {"pids", required_argument, NULL, OPTION_PIDS},
    {"spin", no_argument, NULL, OPTION_SPIN},
    {"json", required_argument, NULL, OPTION_JSON},
    {"help", no_argument, NULL, OPTION_HELP},
    {0},
};

static bool set_seconds(const char *text, double least, double *out)
{
    char *end = NULL;
    double value = strtod(text, &end);
    if (end == text || *end != '\0' || !(value >= least && value <= 3600))
        return false;
    *out = value;
    return true;
}

/* In any order, so not mla_parse_list. */
static bool set_in_flight(const char *text, struct mla_run_options *out)
{
    out->round_count = 0;
    out->in_flight_max = 0;
    for (const char *at = text; at; at = strchr(at, ',') ? strchr(at, ',') + 1 : NULL) {
        char number[8];
        size_t length = strcspn(at, ",");
        if (out->round_count == MLA_RUN_ROUNDS_MAX || length >= sizeof number)
            return false;
        snprintf(number, sizeof number, "%.*s", (int)length, at);
        uint32_t *in_flight = &out->in_flight[out->round_count++];
        if (!mla_parse_u32(number, 1, MLA_RUN_IN_FLIGHT_MAX, in_flight))
            return false;
        if (*in_flight > out->in_flight_max)
            out->in_flight_max = *in_flight;
    }
    return true;
}

static bool set_payload(const char *text, struct mla_run_options *out)
{
    static const char *const names[] = {
        [MLA_RUN_AUTO] = "auto", [MLA_RUN_SHARED] = "shared", [MLA_RUN_INLINE] = "inline"};
    for (int i = 0; i < 3; i++) {
        if (strcmp(text, names[i]) != 0)
            continue;
        out->payload = (enum mla_run_payload)i;
        return true;
    }
    return false;
}

static bool set(void *context, int id, const char *text)
{
    struct mla_run_options *out = context;
    switch (id) {
    case OPTION_ENDPOINT:
        out->endpoint = text;
        return true;
    case OPTION_KEYS:
        out->curve_keys = text;
        return *text != '\0';
    case OPTION_ROWS:
        return mla_parse_u32(text, 1, MLA_STEP_SEQUENCES_MAX, &out->rows);
    case OPTION_CONTEXT:
        return mla_parse_u32(text, 0, MLA_CONTEXT_MAX - 1, &out->context);
    case OPTION_LAYERS:
        return mla_parse_u32(text, 1, MLA_LAYERS_MAX, &out->layers);
    case OPTION_IN_FLIGHT:
        return set_in_flight(text, out);
    case OPTION_PAYLOAD:
        return set_payload(text, out);
    case OPTION_DTYPE:
        out->dtype = strcmp(text, "f32") == 0 ? MLA_F32 : MLA_BF16;
        return strcmp(text, mla_dtype_name(out->dtype)) == 0;
    case OPTION_REPEAT:
        return mla_parse_number(text, 1, 1000000000, &out->repeat);
    case OPTION_SECONDS:
        return set_seconds(text, 0.01, &out->seconds);
    case OPTION_WARM_UP:
        return set_seconds(text, 0, &out->warm_up_s);
    case OPTION_OPENS:
        return mla_parse_u32(text, 1, 1000000, &out->opens);
    case OPTION_PIDS:
        out->pids = text;
        return true;
    case OPTION_SPIN:
        out->spin = true;
        return true;
    default:
        out->json = text;
        return *text != '\0';
    }
}

static enum mla_status read_options(int argc, char **argv, struct mla_run_options *out)
{
    *out = (struct mla_run_options){.rows = 16,
                                    .context = 512,
                                    .in_flight = {1},
                                    .round_count = 1,
                                    .in_flight_max = 1,
                                    .opens = 100,
                                    .seconds = 5,
                                    .warm_up_s = 0.5,
                                    .dtype = MLA_BF16};
    enum mla_status status = mla_parse_options(argc, argv, known, help, set, out);
    if (status == MLA_OK && !out->endpoint) {
        fputs("mla-bench: --endpoint must be given (mla-bench run --help)\n", stderr);
        return MLA_OPTION;
    }
    return status;
}

/* What the service can't do is told before anything is asked of it. */
static enum mla_status check_service(struct mla_run_options *options,
                                     const struct mla_hello_reply *info)
{
    uint32_t steps =
        info->steps_open_max < info->runs_queued_max ? info->steps_open_max : info->runs_queued_max;
    const struct {
        const char *name;
        uint32_t value, most;
    } bounds[] = {
        {"--rows", options->rows, info->step_sequences_max},
        {"--rows", options->rows, info->step_tokens_max},
        {"--context", options->context, info->context_max - 1},
        {"--layers", options->layers, info->layer_count},
        {"--in-flight", options->in_flight_max, steps},
    };
    for (size_t i = 0; i < sizeof bounds / sizeof *bounds; i++) {
        if (bounds[i].value <= bounds[i].most)
            continue;
        fprintf(stderr, "mla-bench: %s %" PRIu32 ": the service has at most %" PRIu32 "\n",
                bounds[i].name, bounds[i].value, bounds[i].most);
        return MLA_OPTION;
    }
    if (options->layers == 0)
        options->layers = info->layer_count;
    return MLA_OK;
}

static size_t to_pages(size_t bytes)
{
    return (bytes + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
}

static enum mla_status make_payloads(struct mla_run_bench *bench)
{
    const struct mla_run_options *options = &bench->options;
    uint64_t shape[2] = {options->rows, bench->info->dims.hidden};
    uint64_t values = shape[0] * shape[1];
    void *memory = NULL;
    bench->payload_bytes = values * mla_dtype_bytes(options->dtype);
    bench->y_stride = to_pages(bench->payload_bytes);
    enum mla_status status = mla_client_memory(
        bench->client, (1 + (size_t)options->in_flight_max) * bench->y_stride, &memory);
    if (status != MLA_OK) {
        fprintf(stderr, "mla-bench: memory for payloads: %s\n",
                mla_client_error(bench->client)->sentence);
        return status;
    }
    if (options->payload == MLA_RUN_SHARED && !mla_client_is_shared(bench->client)) {
        fputs("mla-bench: the service shares no memory with this process\n", stderr);
        return MLA_UNSUPPORTED;
    }
    bench->x = memory;
    bench->y = bench->x + bench->y_stride;
    for (uint64_t i = 0; i < values; i++) {
        float value = 0;
        mla_formula_fill("run", 2, shape, i, 1, &value);
        uint16_t narrow = mla_f32_to_bf16(value);
        if (options->dtype == MLA_F32)
            memcpy(bench->x + i * sizeof value, &value, sizeof value);
        else
            memcpy(bench->x + i * sizeof narrow, &narrow, sizeof narrow);
    }
    return MLA_OK;
}

static enum mla_status prepare(struct mla_run_bench *bench)
{
    struct mla_run_options *options = &bench->options;
    struct mla_client_options client = {.timeout_ms = TIMEOUT_MS,
                                        .curve_keys = options->curve_keys,
                                        .payload_inline = options->payload == MLA_RUN_INLINE,
                                        .spin = options->spin};
    char why[MLA_SENTENCE_BYTES_MAX];
    bench->cpu_known = mla_cpu_use_find(options->pids, &bench->cpu, why);
    if (!bench->cpu_known) {
        fprintf(stderr, "mla-bench: CPU use is not told: %s\n", why);
        if (options->pids)
            return MLA_OPTION;
    }
    bench->entries = calloc(MLA_STEP_SEQUENCES_MAX, sizeof *bench->entries);
    if (!bench->entries)
        return MLA_MEMORY;
    enum mla_status status = mla_client_connect(options->endpoint, &client, &bench->client);
    if (status != MLA_OK) /* the client has said why */
        return status;
    bench->info = mla_client_info(bench->client);
    status = check_service(options, bench->info);
    return status == MLA_OK ? make_payloads(bench) : status;
}

static void bench_fini(struct mla_run_bench *bench)
{
    mla_client_close_connection(&bench->client);
    for (uint32_t i = 0; i < MLA_RUN_ROUNDS_MAX; i++)
        mla_run_parts_fini(&bench->rounds[i].parts);
    mla_series_fini(&bench->open);
    mla_series_fini(&bench->first);
    mla_series_fini(&bench->close);
    free(bench->entries);
}

int mla_bench_run(int argc, char **argv)
{
    static struct mla_run_bench bench;
    enum mla_status status = read_options(argc, argv, &bench.options);
    if (status == MLA_AGAIN)
        return 0;
    if (status == MLA_OK)
        status = prepare(&bench);
    if (status == MLA_OK)
        status = mla_run_measure(&bench);
    if (status == MLA_OK)
        status = mla_run_report(&bench);
    bench_fini(&bench);
    return mla_status_exit_code(status);
}
