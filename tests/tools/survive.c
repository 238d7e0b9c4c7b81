/* mla-survive: a client that lives through whatever happens to its service, and compares all it
 * gets with a golden case. */
#include "proto/client.h"
#include "proto/clock.h"
#include "proto/parse.h"
#include "tests/lib/case.h"
#include "tests/lib/payload_option.h"

#include <inttypes.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    TRACKS = 6,
    STEP_ROWS = 96,
    TIMEOUT_MS = 15000,
    PAUSE_NS = 1000000,
    STATUSES = 128,
};

#define PATIENCE_NS 30000000000ull /* with a service that does not come back */

static const double row_tolerance = 1e-4;

static const char usage[] =
    "usage: mla-survive CASE_DIR --endpoint E --seconds N [--payload auto|inline] [--seed N]\n"
    "                   [--curve-keys DIR]\n"
    "\n"
    "Gives the sequences of a golden case to a service in random steps for N seconds and compares\n"
    "every row that comes back. Typed errors are answered as proto/README.md says: steps are\n"
    "aborted, lost sequences begin again from 0, a lost connection is made again. SIGTERM ends it\n"
    "early. Prints when failures began and ended ('NS bad NAME' and 'NS good', CLOCK_REALTIME;\n"
    "the first result is good, too) and at the end what was checked. The service must then hold\n"
    "nothing of this client.\n"
    "\n"
    "Ends with 0 when every row was right and the service is well, 1 when not, 2 for options,\n"
    "3 or 4 for a wrong case, 7 when the service did not come back.\n";

struct track {
    uint64_t id;       /* 0: none yet */
    uint32_t sequence; /* of the case */
    uint32_t done;     /* committed tokens */
    uint32_t tokens;   /* of the step at hand */
};

struct survive {
    const char *dir, *endpoint, *curve_keys;
    uint64_t seconds, seed;
    bool payload_inline;
    struct mla_case golden;
    struct mla_client *client;
    float *x, *y, *expected;
    struct track tracks[TRACKS];
    struct track *parts[TRACKS]; /* of the step at hand */
    uint32_t part_count, rows;
    uint64_t ids, steps, runs, rows_checked, wrong, restarts, connections;
    uint64_t errors[STATUSES];
    bool bad;
    uint64_t last_good_ns, longest_ns;
};

static volatile sig_atomic_t stopped;

static void stop(int signal_number)
{
    (void)signal_number;
    stopped = 1;
}

static uint64_t next_random(struct survive *survive)
{
    survive->seed ^= survive->seed << 13;
    survive->seed ^= survive->seed >> 7;
    survive->seed ^= survive->seed << 17;
    return survive->seed;
}

static void tell(const char *what)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    printf("%lld%09ld %s\n", (long long)now.tv_sec, now.tv_nsec, what);
    fflush(stdout);
}

static void good(struct survive *survive)
{
    uint64_t now_ns = mla_now_ns();
    if (survive->last_good_ns && now_ns - survive->last_good_ns > survive->longest_ns)
        survive->longest_ns = now_ns - survive->last_good_ns;
    survive->last_good_ns = now_ns;
    if (survive->bad)
        tell("good");
    survive->bad = false;
}

static void bad(struct survive *survive, enum mla_status status)
{
    char what[64];
    survive->errors[(unsigned)status % STATUSES]++;
    snprintf(what, sizeof what, "bad %s", mla_status_name(status));
    if (!survive->bad)
        tell(what);
    survive->bad = true;
}

static void pause_briefly(void)
{
    nanosleep(&(struct timespec){.tv_nsec = PAUSE_NS}, NULL);
}

static bool is_lost(enum mla_status status)
{
    return status == MLA_CLOSED || status == MLA_TIMEOUT || status == MLA_MALFORMED;
}

/* A new connection knows nothing of what was. */
static enum mla_status reconnect(struct survive *survive)
{
    struct mla_client_options options = {.timeout_ms = TIMEOUT_MS,
                                         .curve_keys = survive->curve_keys,
                                         .payload_inline = survive->payload_inline};
    size_t row = survive->golden.config.hidden * sizeof(float);
    void *memory = NULL;
    uint64_t end_ns = mla_now_ns() + PATIENCE_NS;
    enum mla_status status;
    do { /* what it connects to may be dying just then */
        mla_client_close_connection(&survive->client);
        status = mla_client_connect(survive->endpoint, &options, &survive->client);
        if (status == MLA_OK)
            status = mla_client_memory(survive->client, 2 * (size_t)STEP_ROWS * row, &memory);
    } while (is_lost(status) && !stopped && mla_now_ns() < end_ns);
    if (status != MLA_OK)
        return status;
    survive->connections++;
    survive->x = memory;
    survive->y = survive->x + (size_t)STEP_ROWS * survive->golden.config.hidden;
    for (int i = 0; i < TRACKS; i++)
        survive->tracks[i].id = 0;
    return MLA_OK;
}

static void begin_track(struct survive *survive, struct track *track)
{
    if (track->id)
        return;
    *track = (struct track){.id = ++survive->ids,
                            .sequence = (uint32_t)(survive->ids % survive->golden.sequence_count)};
}

/* Some of the tracks, with some tokens each: decodes and chunks of prompts. */
static void choose_step(struct survive *survive)
{
    survive->part_count = survive->rows = 0;
    while (survive->part_count == 0) {
        for (int i = 0; i < TRACKS; i++) {
            struct track *track = &survive->tracks[i];
            begin_track(survive, track);
            uint32_t left = survive->golden.lengths[track->sequence] - track->done;
            uint64_t random = next_random(survive);
            uint32_t most = random % 2 ? 1 : 1 + (uint32_t)(random >> 8) % 40;
            if (random % 3 == 0)
                continue;
            track->tokens = most < left ? most : left;
            if (survive->rows + track->tokens > STEP_ROWS)
                continue;
            survive->parts[survive->part_count++] = track;
            survive->rows += track->tokens;
        }
    }
}

/* Opens the step that was chosen, or MLA_KV_LOST: one of its sequences begins again. */
static enum mla_status open_step(struct survive *survive, uint64_t step)
{
    struct mla_open_entry entries[TRACKS];
    for (uint32_t i = 0; i < survive->part_count; i++) {
        const struct track *track = survive->parts[i];
        entries[i] = (struct mla_open_entry){track->id, track->done, track->tokens};
    }
    enum mla_status status =
        mla_client_open(survive->client, step, entries, survive->part_count, NULL);
    uint32_t index = mla_client_error(survive->client)->index;
    if (status == MLA_KV_LOST && index < survive->part_count) {
        survive->parts[index]->done = 0;
        survive->restarts++;
    }
    return status;
}

static void compare(struct survive *survive, uint32_t layer)
{
    uint32_t hidden = survive->golden.config.hidden;
    const float *row = survive->y;
    for (uint32_t i = 0; i < survive->part_count; i++) {
        const struct track *track = survive->parts[i];
        for (uint32_t k = 0; k < track->tokens; k++, row += hidden) {
            double difference = 0;
            double norm = 0;
            if (!mla_case_golden(&survive->golden, layer, track->sequence, track->done + k,
                                 survive->expected))
                continue;
            for (uint32_t j = 0; j < hidden; j++) {
                double d = (double)row[j] - survive->expected[j];
                difference += d * d;
                norm += (double)survive->expected[j] * survive->expected[j];
            }
            survive->rows_checked++;
            if (difference <= row_tolerance * row_tolerance * norm)
                continue;
            survive->wrong++;
            fprintf(stderr,
                    "mla-survive: wrong: sequence %" PRIu32 " at %" PRIu32 ", layer %" PRIu32
                    ": %g\n",
                    track->sequence, track->done + k, survive->golden.layers[layer],
                    sqrt(difference / norm));
        }
    }
}

static enum mla_status run_layers(struct survive *survive, uint64_t step)
{
    uint32_t hidden = survive->golden.config.hidden;
    for (uint32_t layer = 0; layer < survive->golden.layer_count; layer++) {
        float *row = survive->x;
        for (uint32_t i = 0; i < survive->part_count; i++) {
            const struct track *track = survive->parts[i];
            mla_case_input(&survive->golden, "input", layer, track->sequence, track->done,
                           track->tokens, row);
            row += (size_t)track->tokens * hidden;
        }
        struct mla_client_run run = {.step = step,
                                     .layer = survive->golden.layers[layer],
                                     .dtype = MLA_F32,
                                     .reply_dtype = MLA_F32,
                                     .rows = survive->rows,
                                     .x = survive->x,
                                     .y = survive->y};
        memset(survive->y, 0xff, (size_t)survive->rows * hidden * sizeof *survive->y);
        enum mla_status status;
        while ((status = mla_client_run(survive->client, &run, NULL)) == MLA_BUSY && !stopped)
            pause_briefly();
        if (status != MLA_OK)
            return status;
        survive->runs++;
        good(survive);
        compare(survive, layer);
    }
    return MLA_OK;
}

static enum mla_status close_step(struct survive *survive, uint64_t step,
                                  enum mla_close_action action)
{
    enum mla_status status;
    while ((status = mla_client_close(survive->client, step, action)) == MLA_STEP_BUSY)
        pause_briefly();
    return status;
}

/* Those that are at their end leave. */
static enum mla_status advance(struct survive *survive)
{
    for (uint32_t i = 0; i < survive->part_count; i++) {
        struct track *track = survive->parts[i];
        track->done += track->tokens;
        if (track->done < survive->golden.lengths[track->sequence])
            continue;
        enum mla_status status = mla_client_free(survive->client, &track->id, 1);
        if (status != MLA_OK)
            return status;
        track->id = 0;
    }
    return MLA_OK;
}

static enum mla_status run_step(struct survive *survive)
{
    uint64_t step = ++survive->steps;
    choose_step(survive);
    enum mla_status status = open_step(survive, step);
    if (status != MLA_OK)
        return status;
    status = run_layers(survive, step);
    if (is_lost(status))
        return status;
    enum mla_status closed = close_step(survive, step, status == MLA_OK ? MLA_COMMIT : MLA_ABORT);
    if (status == MLA_OK && closed == MLA_STEP_LOST) {
        /* It died after the last RUN. */
        status = closed;
        closed = close_step(survive, step, MLA_ABORT);
    }
    if (closed != MLA_OK)
        return closed;
    return status == MLA_OK ? advance(survive) : status;
}

/* What a client may meet when something of the service dies; all else is a failure. */
static bool is_expected(enum mla_status status)
{
    return status == MLA_GROUP_LOST || status == MLA_STEP_LOST || status == MLA_DEADLINE ||
           status == MLA_KV_LOST || status == MLA_NOT_READY || status == MLA_BUSY;
}

static enum mla_status give_all_back(struct survive *survive)
{
    for (int i = 0; i < TRACKS; i++) {
        struct track *track = &survive->tracks[i];
        if (!track->id)
            continue;
        enum mla_status status = mla_client_free(survive->client, &track->id, 1);
        if (status != MLA_OK && status != MLA_SEQUENCE_UNKNOWN) /* its OPEN was never done */
            return status;
        track->id = 0;
    }
    return MLA_OK;
}

static enum mla_status live(struct survive *survive)
{
    uint64_t end_ns = mla_now_ns() + survive->seconds * 1000000000u;
    enum mla_status status = reconnect(survive);
    while (status == MLA_OK && !stopped && mla_now_ns() < end_ns) {
        enum mla_status step = run_step(survive);
        if (step == MLA_OK)
            continue;
        bad(survive, step);
        if (is_lost(step))
            status = reconnect(survive);
        else if (!is_expected(step))
            status = step;
        else if (step == MLA_NOT_READY || step == MLA_BUSY)
            pause_briefly();
    }
    return status == MLA_OK ? give_all_back(survive) : status;
}

static enum mla_status report(struct survive *survive, bool *ok)
{
    struct mla_stats stats = {0};
    enum mla_status status = mla_client_stats(survive->client, &stats);
    printf("%" PRIu64 " RUNs, %" PRIu64 " rows checked, %" PRIu64 " wrong; %" PRIu64
           " connections, %" PRIu64 " sequences begun again; longest without a result %.0f ms\n",
           survive->runs, survive->rows_checked, survive->wrong, survive->connections,
           survive->restarts, (double)survive->longest_ns / 1e6);
    for (unsigned i = 0; i < STATUSES; i++)
        if (survive->errors[i])
            printf("%s: %" PRIu64 "\n", mla_status_name((enum mla_status)i), survive->errors[i]);
    if (stats.clients == 1 && (stats.blocks_used > 0 || stats.sequences > 0))
        fprintf(stderr, "mla-survive: left: %" PRIu64 " blocks, %" PRIu64 " sequences\n",
                stats.blocks_used, stats.sequences);
    *ok = survive->wrong == 0 && survive->rows_checked > 0 &&
          stats.blocks_free + stats.blocks_used == stats.blocks_total &&
          (stats.clients > 1 || (stats.blocks_used == 0 && stats.sequences == 0));
    return status;
}

enum option_id {
    OPTION_ENDPOINT = 256,
    OPTION_SECONDS,
    OPTION_PAYLOAD,
    OPTION_SEED,
    OPTION_KEYS,
    OPTION_HELP
};

static const struct option known[] = {
    {"endpoint", required_argument, NULL, OPTION_ENDPOINT},
    {"seconds", required_argument, NULL, OPTION_SECONDS},
    {"payload", required_argument, NULL, OPTION_PAYLOAD},
    {"seed", required_argument, NULL, OPTION_SEED},
    {"curve-keys", required_argument, NULL, OPTION_KEYS},
    {"help", no_argument, NULL, OPTION_HELP},
    {0},
};

static bool set(void *context, int id, const char *text)
{
    struct survive *out = context;
    switch (id) {
    case OPTION_ENDPOINT:
        out->endpoint = text;
        return true;
    case OPTION_SECONDS:
        return mla_parse_number(text, 1, 1000000, &out->seconds);
    case OPTION_PAYLOAD:
        return mla_payload_set(text, &out->payload_inline);
    case OPTION_SEED:
        return mla_parse_number(text, 1, UINT64_MAX, &out->seed);
    default:
        out->curve_keys = text;
        return true;
    }
}

static enum mla_status read_options(int argc, char **argv, struct survive *out)
{
    enum mla_status status = mla_parse_command(argc, argv, known, usage, set, out, &out->dir);
    if (status == MLA_OK && (!out->dir || !out->endpoint || !out->seconds)) {
        fputs("mla-survive: a case folder, --endpoint and --seconds must be given "
              "(mla-survive --help)\n",
              stderr);
        return MLA_OPTION;
    }
    return status;
}

int main(int argc, char **argv)
{
    static struct survive survive = {.seed = 1, .bad = true};
    char why[MLA_SENTENCE_BYTES_MAX] = "";
    bool ok = false;
    enum mla_status status = read_options(argc, argv, &survive);
    if (status != MLA_OK)
        return status == MLA_AGAIN ? 0 : mla_status_exit_code(status);
    struct sigaction action = {.sa_handler = stop};
    sigemptyset(&action.sa_mask);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    survive.seed = survive.seed * 0x9e3779b97f4a7c15u | 1;
    status = mla_case_open(survive.dir, &survive.golden, why);
    if (status != MLA_OK)
        fprintf(stderr, "mla-survive: %s\n", why);
    survive.expected =
        malloc((status == MLA_OK ? survive.golden.config.hidden : 1) * sizeof(float));
    if (status == MLA_OK && !survive.expected)
        status = MLA_MEMORY;
    if (status == MLA_OK) {
        status = live(&survive);
        if (status != MLA_OK)
            fprintf(stderr, "mla-survive: %s: %s\n", mla_status_name(status),
                    survive.client ? mla_client_error(survive.client)->sentence : "");
        else
            status = report(&survive, &ok);
    }
    mla_client_close_connection(&survive.client);
    mla_case_close(&survive.golden);
    free(survive.expected);
    if (status != MLA_OK)
        return status == MLA_CLOSED || status == MLA_TIMEOUT ? 7 : mla_status_exit_code(status);
    return ok ? 0 : 1;
}
