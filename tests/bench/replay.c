/* mla-bench replay: gives a trace of requests to a service, as an upstream scheduler would. */
#include "tests/bench/replay.h"

#include "proto/parse.h"
#include "tests/bench/bench.h"
#include "tests/bench/trace.h"
#include "tests/lib/payload_option.h"

#include <assert.h>
#include <getopt.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LANES_MAX = 16 };

static const char usage[] =
    "usage: mla-bench replay --trace FILE --endpoint E --layers L --concurrency C\n"
    "                        [--limit N] [--prefill-budget N] [--lanes N] [--halves] [--spin]\n"
    "                        [--payload P] [--curve-keys DIR] [--json FILE]\n"
    "\n"
    "Runs the requests of a trace (CSV: prompt_tokens,output_tokens) with continuous batching\n"
    "and chunked prefill, C at a time. Each step is one token of every request past its prompt\n"
    "and prompt tokens up to the budget; its hidden states (bf16, random) go through L layers.\n"
    "Prints what serving benchmarks print, and where the time of the RUNs goes.\n"
    "\n"
    "  --trace FILE          the requests\n"
    "  --endpoint E          of the service (tcp://host:port or ipc:///path)\n"
    "  --layers L            the first L layers that the service has\n"
    "  --concurrency C       requests at a time; the next is sent when one ends\n"
    "  --limit N             only the first N requests\n"
    "  --prefill-budget N    prompt tokens of one step (512)\n"
    "  --payload auto|inline inline: no shared memory, also on the service's host (auto)\n"
    "  --curve-keys DIR      for a service on tcp with keys: client.key and server.pub\n"
    "  --lanes N             N schedulers side by side, each with a connection and its share of\n"
    "                        the requests: one lane's step computes while another's travels (1)\n"
    "  --halves              each step's decodes and prompt chunks as two steps, one after the\n"
    "                        other: what a mixed step is compared with\n"
    "  --spin                these clients and ZeroMQ's threads in them never sleep: two cores of\n"
    "                        this host for each lane\n"
    "  --json FILE           writes the numbers there as well\n";

struct lane {
    struct mla_replay replay;
    enum mla_status status;
    pthread_t thread;
};

static void *run_lane(void *context)
{
    struct lane *lane = context;
    lane->status = mla_replay_run(&lane->replay);
    return NULL;
}

/* Requests are dealt out like cards. MLA_MEMORY. */
static enum mla_status deal(const struct mla_replay_options *options,
                            const struct mla_request *requests, uint32_t count, struct lane *lanes)
{
    assert(count > 0);
    for (uint32_t l = 0; l < options->lanes; l++) {
        struct mla_replay *replay = &lanes[l].replay;
        replay->options = *options;
        replay->options.concurrency =
            (options->concurrency + options->lanes - 1 - l) / options->lanes;
        replay->quiet = l > 0;
        replay->lane = l;
        replay->requests = calloc(count, sizeof *requests);
        if (!replay->requests)
            return MLA_MEMORY;
        for (uint32_t i = l; i < count; i += options->lanes)
            replay->requests[replay->request_count++] = requests[i];
    }
    return MLA_OK;
}

/* All lanes at once; the first one has everybody's results in the end. */
static enum mla_status run_lanes(struct lane *lanes, uint32_t count)
{
    enum mla_status status = MLA_OK;
    uint32_t started = 0;
    while (started < count &&
           pthread_create(&lanes[started].thread, NULL, run_lane, &lanes[started]) == 0)
        started++;
    if (started < count)
        status = MLA_SYSTEM;
    for (uint32_t l = 0; l < started; l++) {
        pthread_join(lanes[l].thread, NULL);
        if (status == MLA_OK)
            status = lanes[l].status;
    }
    for (uint32_t l = 1; l < count && status == MLA_OK; l++)
        status = mla_replay_join(&lanes[0].replay, &lanes[l].replay);
    return status;
}

static enum mla_status run(const struct mla_replay_options *options)
{
    static struct lane lanes[LANES_MAX];
    struct mla_request *requests = NULL;
    uint32_t count = 0;
    enum mla_status status = mla_trace_read(options->trace, options->limit, &requests, &count);
    if (status == MLA_OK && (count < options->lanes || options->concurrency < options->lanes)) {
        fprintf(stderr, "mla-bench: %" PRIu32 " lanes want as many requests at a time\n",
                options->lanes);
        status = MLA_OPTION;
    }
    if (status == MLA_OK)
        status = deal(options, requests, count, lanes);
    if (status == MLA_OK)
        status = run_lanes(lanes, options->lanes);
    if (status == MLA_OK) {
        lanes[0].replay.options.concurrency = options->concurrency;
        status = mla_replay_report(&lanes[0].replay);
    }
    for (uint32_t l = 0; l < options->lanes; l++)
        mla_replay_fini(&lanes[l].replay);
    free(requests);
    return status;
}

static bool read_number(const char *name, uint32_t max, uint32_t *out)
{
    if (mla_parse_u32(optarg, 1, max, out))
        return true;
    fprintf(stderr, "mla-bench: --%s must be a number from 1 to %" PRIu32 ", not %s\n", name, max,
            optarg);
    return false;
}

/* *help: it was asked for, and nothing else is set. */
static enum mla_status read_options(int argc, char **argv, struct mla_replay_options *out,
                                    bool *help)
{
    static const struct option known[] = {
        {"trace", required_argument, NULL, 't'},
        {"endpoint", required_argument, NULL, 'e'},
        {"layers", required_argument, NULL, 'l'},
        {"concurrency", required_argument, NULL, 'c'},
        {"limit", required_argument, NULL, 'n'},
        {"prefill-budget", required_argument, NULL, 'p'},
        {"json", required_argument, NULL, 'j'},
        {"payload", required_argument, NULL, 'P'},
        {"curve-keys", required_argument, NULL, 'k'},
        {"lanes", required_argument, NULL, 'L'},
        {"halves", no_argument, NULL, 'H'},
        {"spin", no_argument, NULL, 's'},
        {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    struct mla_replay_options options = {.prefill_budget = 512, .lanes = 1};
    int option;
    bool ok = true;
    while (ok && (option = getopt_long(argc, argv, "h", known, NULL)) != -1) {
        switch (option) {
        case 't':
            options.trace = optarg;
            break;
        case 'e':
            options.endpoint = optarg;
            break;
        case 'l':
            ok = read_number("layers", MLA_LAYERS_MAX, &options.layers);
            break;
        case 'c':
            ok = read_number("concurrency", MLA_STEP_SEQUENCES_MAX, &options.concurrency);
            break;
        case 'n':
            ok = read_number("limit", UINT32_MAX, &options.limit);
            break;
        case 'p':
            ok = read_number("prefill-budget", MLA_STEP_TOKENS_MAX, &options.prefill_budget);
            break;
        case 'k':
            options.curve_keys = optarg;
            break;
        case 'P':
            ok = mla_payload_option("mla-bench", optarg, &options.payload_inline);
            break;
        case 'j':
            options.json = optarg;
            break;
        case 'L':
            ok = read_number("lanes", LANES_MAX, &options.lanes);
            break;
        case 'H':
            options.halves = true;
            break;
        case 's':
            options.spin = true;
            break;
        case 'h':
            *help = true;
            return MLA_OK;
        default: /* getopt_long has said what is wrong */
            ok = false;
        }
    }
    if (!ok)
        return MLA_OPTION;
    if (optind != argc || !options.trace || !options.endpoint || !options.layers ||
        !options.concurrency) {
        fputs("mla-bench: --trace, --endpoint, --layers and --concurrency must be given, and "
              "nothing but options (mla-bench replay --help)\n",
              stderr);
        return MLA_OPTION;
    }
    *out = options;
    return MLA_OK;
}

int mla_bench_replay(int argc, char **argv)
{
    struct mla_replay_options options;
    bool help = false;
    enum mla_status status = read_options(argc, argv, &options, &help);
    if (help) {
        fputs(usage, stdout);
        return 0;
    }
    if (status == MLA_OK)
        status = run(&options);
    return mla_status_exit_code(status);
}
