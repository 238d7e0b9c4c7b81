/* mla-soak: gives a service a great many RUNs of one step, to see what it does in the long run. */
#include "proto/client.h"
#include "proto/clock.h"
#include "proto/parse.h"
#include "tests/lib/formula.h"
#include "tests/lib/payload_option.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { IN_FLIGHT_MAX = 64, TIMEOUT_MS = 30000, STEP = 1 };

static const char usage[] =
    "usage: mla-soak --endpoint E --runs N [--rows N] [--in-flight N]\n"
    "\n"
    "Opens a step of --rows sequences with one token each, gives it N RUNs over all layers and\n"
    "compares every output with the first of its layer, bit for bit. At the end the service must\n"
    "hold nothing any more, so nobody else may use it.\n"
    "\n"
    "  --endpoint E     of the service (tcp://host:port or ipc:///path)\n"
    "  --runs N         how many\n"
    "  --rows N         rows of a RUN, up to 1024 (16)\n"
    "  --in-flight N    RUNs at a time, up to 64 (4)\n"
    "  --payload P      auto, or inline: no shared memory, also on the service's host (auto)\n"
    "  --curve-keys DIR for a service on tcp with keys: client.key and server.pub\n"
    "\n"
    "Ends with 0 when all outputs are alike and nothing is left, 1 when not, 2 for wrong options,\n"
    "7 when the service does not answer.\n";

struct options {
    const char *endpoint, *curve_keys;
    uint64_t runs, rows, in_flight;
    bool payload_inline;
};

/* A place for a RUN that is on its way. */
struct place {
    bool used;
    uint64_t request;
    struct mla_client_run run;
};

struct soak {
    struct options options;
    struct mla_client *client;
    const struct mla_hello_reply *info;
    struct mla_open_entry *entries;
    uint64_t *sequences;
    size_t bytes;   /* of a payload */
    float *x;       /* one input for all, and the outputs behind it: the client's memory */
    uint8_t *first; /* [layers, rows, hidden]: the first output of each layer */
    bool *known;    /* [layers] */
    struct place places[IN_FLIGHT_MAX];
    uint64_t submitted, done, busy, differing;
};

static enum mla_status failed(const struct soak *soak, const char *what, enum mla_status status)
{
    const struct mla_client_error *error = mla_client_error(soak->client);
    fprintf(stderr, "mla-soak: %s: %s: %s\n", what, mla_status_name(status),
            error->status == status ? error->sentence : mla_status_sentence(status));
    return status;
}

static double now_s(void)
{
    return (double)mla_now_ns() / 1e9;
}

static enum mla_status allocate(struct soak *soak)
{
    const struct options *options = &soak->options;
    uint64_t hidden = soak->info->dims.hidden;
    uint64_t shape[2] = {options->rows, hidden};
    soak->bytes = options->rows * hidden * sizeof *soak->x;
    soak->first = malloc(soak->info->layer_count * soak->bytes);
    soak->known = calloc(soak->info->layer_count, sizeof *soak->known);
    soak->entries = calloc(options->rows, sizeof *soak->entries);
    soak->sequences = calloc(options->rows, sizeof *soak->sequences);
    bool ok = soak->first && soak->known && soak->entries && soak->sequences;
    if (!ok) {
        fputs("mla-soak: out of memory\n", stderr);
        return MLA_MEMORY;
    }
    size_t step =
        (soak->bytes + MLA_REGION_ALIGNMENT - 1) / MLA_REGION_ALIGNMENT * MLA_REGION_ALIGNMENT;
    void *memory = NULL;
    enum mla_status status =
        mla_client_memory(soak->client, (1 + options->in_flight) * step, &memory);
    if (status != MLA_OK)
        return failed(soak, "memory for payloads", status);
    soak->x = memory;
    for (uint64_t i = 0; i < options->in_flight; i++)
        soak->places[i].run.y = (uint8_t *)memory + (1 + i) * step;
    mla_formula_fill("soak", 2, shape, 0, options->rows * hidden, soak->x);
    for (uint64_t i = 0; i < options->rows; i++) {
        soak->entries[i] = (struct mla_open_entry){.sequence = i + 1, .tokens = 1};
        soak->sequences[i] = i + 1;
    }
    return MLA_OK;
}

/* Gives a RUN to every place that has none, as far as the service takes them. */
static enum mla_status submit(struct soak *soak)
{
    for (uint64_t i = 0; i < soak->options.in_flight && soak->submitted < soak->options.runs; i++) {
        struct place *place = &soak->places[i];
        if (place->used)
            continue;
        place->run = (struct mla_client_run){
            .step = STEP,
            .layer = soak->info->layers[soak->submitted % soak->info->layer_count],
            .dtype = MLA_F32,
            .reply_dtype = MLA_F32,
            .rows = (uint32_t)soak->options.rows,
            .x = soak->x,
            .y = place->run.y};
        enum mla_status status = mla_client_submit_run(soak->client, &place->run, &place->request);
        if (status == MLA_AGAIN)
            return MLA_OK;
        if (status != MLA_OK)
            return failed(soak, "RUN", status);
        place->used = true;
        soak->submitted++;
    }
    return MLA_OK;
}

static void compare(struct soak *soak, const struct mla_client_run *run)
{
    uint32_t layer = 0;
    while (soak->info->layers[layer] != run->layer)
        layer++;
    uint8_t *first = soak->first + layer * soak->bytes;
    if (!soak->known[layer])
        memcpy(first, run->y, soak->bytes);
    soak->known[layer] = true;
    soak->differing += memcmp(first, run->y, soak->bytes) != 0;
}

/* Takes one completion. A RUN that the service was too busy for is given to it again. */
static enum mla_status take(struct soak *soak)
{
    struct mla_completion completion;
    enum mla_status status = mla_client_poll(soak->client, TIMEOUT_MS, &completion);
    if (status != MLA_OK)
        return failed(soak, "no reply", status == MLA_AGAIN ? MLA_TIMEOUT : status);
    struct place *place = soak->places;
    while (!place->used || place->request != completion.request)
        place++;
    place->used = false;
    if (completion.error.status == MLA_BUSY) {
        soak->busy++;
        soak->submitted--;
        return MLA_OK;
    }
    if (completion.error.status != MLA_OK) {
        fprintf(stderr, "mla-soak: RUN: %s: %s\n", mla_status_name(completion.error.status),
                completion.error.sentence);
        return completion.error.status;
    }
    soak->done++;
    compare(soak, &place->run);
    return MLA_OK;
}

/* The service must be as empty as it began. */
static enum mla_status check_empty(struct soak *soak, bool *ok)
{
    struct mla_stats stats;
    enum mla_status status = mla_client_stats(soak->client, &stats);
    if (status != MLA_OK)
        return failed(soak, "STATS", status);
    *ok = stats.blocks_used == 0 && stats.blocks_free == stats.blocks_total &&
          stats.sequences == 0 && stats.steps_open == 0 && stats.runs_in_flight == 0;
    if (!*ok)
        fprintf(stderr,
                "mla-soak: left in the service: %" PRIu64 " blocks, %" PRIu64 " sequences, %" PRIu64
                " steps, %" PRIu64 " RUNs\n",
                stats.blocks_used, stats.sequences, stats.steps_open, stats.runs_in_flight);
    return MLA_OK;
}

static enum mla_status run(struct soak *soak, bool *ok)
{
    const struct options *options = &soak->options;
    struct mla_client_options client_options = {.timeout_ms = TIMEOUT_MS,
                                                .payload_inline = options->payload_inline,
                                                .curve_keys = options->curve_keys};
    enum mla_status status = mla_client_connect(options->endpoint, &client_options, &soak->client);
    if (status != MLA_OK) /* the client has said why */
        return status;
    soak->info = mla_client_info(soak->client);
    status = allocate(soak);
    if (status != MLA_OK)
        return status;
    status = mla_client_open(soak->client, STEP, soak->entries, (uint32_t)options->rows, NULL);
    if (status != MLA_OK)
        return failed(soak, "OPEN", status);

    double begin_s = now_s();
    while (status == MLA_OK && soak->done < options->runs) {
        status = submit(soak);
        if (status == MLA_OK)
            status = take(soak);
    }
    if (status != MLA_OK)
        return status;
    double seconds = now_s() - begin_s;

    status = mla_client_close(soak->client, STEP, MLA_COMMIT);
    if (status != MLA_OK)
        return failed(soak, "CLOSE", status);
    status = mla_client_free(soak->client, soak->sequences, (uint32_t)options->rows);
    if (status != MLA_OK)
        return failed(soak, "FREE", status);
    printf("payloads: %s\n", mla_client_is_shared(soak->client) ? "shared memory" : "inline");
    printf("%" PRIu64 " RUNs of %" PRIu64 " rows in %.1f s, %.0f a second, %" PRIu64
           " refused as BUSY, %" PRIu64 " differing\n",
           soak->done, options->rows, seconds, (double)soak->done / seconds, soak->busy,
           soak->differing);
    status = check_empty(soak, ok);
    *ok = *ok && soak->differing == 0;
    return status;
}

static void soak_fini(struct soak *soak)
{
    mla_client_close_connection(&soak->client);
    free(soak->first);
    free(soak->known);
    free(soak->entries);
    free(soak->sequences);
}

enum option_id {
    OPTION_ENDPOINT = 256,
    OPTION_RUNS,
    OPTION_ROWS,
    OPTION_IN_FLIGHT,
    OPTION_PAYLOAD,
    OPTION_KEYS,
    OPTION_HELP
};

static const struct option known[] = {
    {"endpoint", required_argument, NULL, OPTION_ENDPOINT},
    {"runs", required_argument, NULL, OPTION_RUNS},
    {"rows", required_argument, NULL, OPTION_ROWS},
    {"in-flight", required_argument, NULL, OPTION_IN_FLIGHT},
    {"payload", required_argument, NULL, OPTION_PAYLOAD},
    {"curve-keys", required_argument, NULL, OPTION_KEYS},
    {"help", no_argument, NULL, OPTION_HELP},
    {0},
};

static bool set(void *context, int id, const char *text)
{
    struct options *out = context;
    switch (id) {
    case OPTION_ENDPOINT:
        out->endpoint = text;
        return true;
    case OPTION_RUNS:
        return mla_parse_number(text, 1, UINT32_MAX, &out->runs);
    case OPTION_ROWS:
        return mla_parse_number(text, 1, MLA_STEP_SEQUENCES_MAX, &out->rows);
    case OPTION_IN_FLIGHT:
        return mla_parse_number(text, 1, IN_FLIGHT_MAX, &out->in_flight);
    case OPTION_PAYLOAD:
        return mla_payload_set(text, &out->payload_inline);
    default:
        out->curve_keys = text;
        return true;
    }
}

static enum mla_status read_options(int argc, char **argv, struct options *out)
{
    *out = (struct options){.rows = 16, .in_flight = 4};
    enum mla_status status = mla_parse_options(argc, argv, known, usage, set, out);
    if (status == MLA_OK && (!out->endpoint || !out->runs)) {
        fputs("mla-soak: --endpoint and --runs must be given (mla-soak --help)\n", stderr);
        return MLA_OPTION;
    }
    return status;
}

int main(int argc, char **argv)
{
    static struct soak soak;
    bool ok = false;
    enum mla_status status = read_options(argc, argv, &soak.options);
    if (status != MLA_OK)
        return status == MLA_AGAIN ? 0 : mla_status_exit_code(status);
    status = run(&soak, &ok);
    soak_fini(&soak);
    if (status != MLA_OK)
        return mla_status_exit_code(status);
    return ok ? 0 : 1;
}
