/* One lane of mla-bench replay: a scheduler and its connection. */
#include "tests/bench/replay.h"

#include "proto/clock.h"
#include "tests/bench/progress.h"
#include "tests/lib/formula.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    TIMEOUT_MS = 60000,
    PAUSE_NS = 1000000,        /* between attempts while the service is busy or starting */
    PATIENCE_S = 30,           /* how long these go on */
    STEPS_LOST_IN_A_ROW = 100, /* more than that, and the service doesn't recover */
    SPARE_ROWS = 64,
};

static double now_s(void)
{
    return (double)mla_now_ns() / 1e9;
}

static enum mla_status failed(const struct mla_replay *replay, const char *what,
                              enum mla_status status)
{
    const struct mla_client_error *error = mla_client_error(replay->client);
    bool known = error->status == status && error->sentence[0];
    fprintf(stderr, "mla-bench: %s failed: %s: %s\n", what, mla_status_name(status),
            known ? error->sentence : mla_status_sentence(status));
    return status;
}

/* True when the call is worth another attempt, after a pause. */
static bool pause_for(enum mla_status status, double since_s)
{
    if ((status != MLA_BUSY && status != MLA_NOT_READY) || now_s() - since_s > PATIENCE_S)
        return false;
    nanosleep(&(struct timespec){.tv_nsec = PAUSE_NS}, NULL);
    return true;
}

static enum mla_status free_leaving(struct mla_replay *replay)
{
    struct mla_scheduler *scheduler = &replay->scheduler;
    if (scheduler->leaving_count == 0)
        return MLA_OK;
    double since_s = now_s();
    enum mla_status status;
    do
        status = mla_client_free(replay->client, scheduler->leaving, scheduler->leaving_count);
    while (pause_for(status, since_s));
    if (status != MLA_OK)
        return failed(replay, "FREE", status);
    mla_scheduler_left(scheduler);
    return MLA_OK;
}

/* Lets the scheduler answer a refused OPEN. *again: the step is another one now. */
static enum mla_status settle(struct mla_replay *replay, enum mla_status status)
{
    struct mla_scheduler *scheduler = &replay->scheduler;
    uint32_t index = mla_client_error(replay->client)->index;
    if (status == MLA_KV_LOST && index < scheduler->share_count)
        mla_scheduler_lost(scheduler, index);
    else if (status == MLA_KV_FULL || status == MLA_SEQUENCES_FULL)
        mla_scheduler_no_room(scheduler,
                              index < scheduler->share_count ? index : scheduler->share_count - 1);
    else
        return failed(replay, "OPEN", status);
    return free_leaving(replay);
}

/* One attempt to open a step of these shares. */
static enum mla_status open_shares(struct mla_replay *replay, uint64_t step, uint32_t first,
                                   uint32_t count)
{
    const struct mla_scheduler *scheduler = &replay->scheduler;
    struct mla_open_entry entries[MLA_STEP_SEQUENCES_MAX];
    for (uint32_t i = 0; i < count; i++) {
        const struct mla_share *share = &scheduler->shares[first + i];
        const struct mla_request *request = &scheduler->requests[share->request];
        entries[i] = (struct mla_open_entry){request->sequence, request->computed, share->tokens};
    }
    uint64_t sent_ns = mla_now_ns();
    enum mla_status status = mla_client_open(replay->client, step, entries, count, &replay->opened);
    if (status == MLA_OK)
        status = mla_series_add(&replay->open, (double)(mla_now_ns() - sent_ns) / 1e3);
    return status;
}

/* Opens the scheduler's step, or what of it has room: maybe nothing. */
static enum mla_status open_step(struct mla_replay *replay, uint64_t step)
{
    const struct mla_scheduler *scheduler = &replay->scheduler;
    double since_s = now_s();
    while (scheduler->share_count > 0) {
        enum mla_status status = open_shares(replay, step, 0, scheduler->share_count);
        if (status == MLA_OK)
            return MLA_OK;
        if (pause_for(status, since_s))
            continue;
        status = settle(replay, status);
        if (status != MLA_OK)
            return status;
    }
    return MLA_OK;
}

static enum mla_status run_layer(struct mla_replay *replay, uint64_t step, uint32_t layer)
{
    bool decode_only = replay->opened.prefill_rows == 0;
    struct mla_client_run run = {
        .step = step,
        .layer = layer,
        .dtype = MLA_BF16,
        .reply_dtype = MLA_BF16,
        .rows = replay->opened.decode_rows + replay->opened.prefill_rows,
        .x = replay->x + step % SPARE_ROWS * replay->info->dims.hidden,
        .y = replay->y,
    };
    struct mla_run_times times;
    uint64_t sent_ns;
    enum mla_status status;
    double since_s = now_s();
    do {
        sent_ns = mla_now_ns();
        status = mla_client_run(replay->client, &run, &times);
    } while (pause_for(status, since_s));
    if (status != MLA_OK)
        return status;
    uint64_t returned_ns = mla_now_ns();
    replay->runs_s += (double)(returned_ns - sent_ns) / 1e9;
    replay->computing_s += ((double)times.compute_ns + times.collective_ns) / 1e9;
    return mla_run_parts_add(decode_only ? &replay->decode : &replay->prefill, sent_ns, returned_ns,
                             &times);
}

/* MLA_MEMORY. */
static enum mla_status count_step(struct mla_replay *replay)
{
    uint32_t total = replay->info->blocks_total, left = replay->opened.blocks_free;
    struct mla_timeline_step step = {
        .ended_s = now_s(),
        .lane = replay->lane,
        .decode_rows = replay->opened.decode_rows,
        .prefill_rows = replay->opened.prefill_rows,
        .active = replay->scheduler.active_count,
        .blocks_used = total > left ? total - left : 0, /* groups may have come since HELLO */
    };
    replay->steps++;
    if (replay->opened.prefill_rows > 0)
        return mla_timeline_add(&replay->timeline, &step);
    replay->decode_steps++;
    replay->decode_rows += replay->opened.decode_rows;
    if (replay->opened.decode_rows > replay->decode_rows_max)
        replay->decode_rows_max = replay->opened.decode_rows;
    return mla_timeline_add(&replay->timeline, &step);
}

static bool is_lost(enum mla_status status)
{
    return status == MLA_GROUP_LOST || status == MLA_STEP_LOST || status == MLA_DEADLINE;
}

/* After a loss, other groups may still be at work for the step. */
static enum mla_status close_step(struct mla_replay *replay, uint64_t step,
                                  enum mla_close_action action)
{
    double since_s = now_s();
    enum mla_status status;
    do
        status = mla_client_close(replay->client, step, action);
    while (pause_for(status == MLA_STEP_BUSY ? MLA_BUSY : status, since_s));
    return status;
}

/* The layers of an open step, then its end. *lost: its workers died and nothing came of it. */
static enum mla_status run_step(struct mla_replay *replay, uint64_t step, bool *lost)
{
    enum mla_status status = MLA_OK;
    for (uint32_t i = 0; i < replay->options.layers && status == MLA_OK; i++)
        status = run_layer(replay, step, replay->info->layers[i]);
    *lost = is_lost(status);
    if (status != MLA_OK && !*lost)
        return failed(replay, "RUN", status);
    uint64_t sent_ns = mla_now_ns();
    status = *lost ? MLA_STEP_LOST : close_step(replay, step, MLA_COMMIT);
    if (is_lost(status)) { /* maybe after its last RUN */
        *lost = true;
        status = close_step(replay, step, MLA_ABORT);
    }
    if (status != MLA_OK)
        return failed(replay, "CLOSE", status);
    if (*lost)
        return MLA_OK;
    status = mla_series_add(&replay->close, (double)(mla_now_ns() - sent_ns) / 1e3);
    return status == MLA_OK ? count_step(replay) : status;
}

/* The step's decodes and its prompt chunks as two steps, one after the other. */
static enum mla_status run_halves(struct mla_replay *replay, uint64_t step, bool *lost)
{
    const struct mla_scheduler *scheduler = &replay->scheduler;
    uint32_t decodes = 0;
    while (decodes < scheduler->share_count && scheduler->shares[decodes].decode)
        decodes++;
    const uint32_t ends[] = {0, decodes, scheduler->share_count};
    enum mla_status status = MLA_OK;
    for (uint32_t half = 0; half < 2 && status == MLA_OK; half++) {
        uint32_t count = ends[half + 1] - ends[half];
        if (count == 0)
            continue;
        status = open_shares(replay, 2 * step + half, ends[half], count);
        if (status != MLA_OK)
            return failed(replay, "OPEN of a half", status);
        status = run_step(replay, 2 * step + half, lost);
        if (*lost)
            return failed(replay, "RUN of a half", MLA_GROUP_LOST);
    }
    return status;
}

static enum mla_status run_requests(struct mla_replay *replay)
{
    struct mla_scheduler *scheduler = &replay->scheduler;
    struct mla_progress progress;
    enum mla_status status = MLA_OK;
    uint32_t lost_in_a_row = 0;
    replay->started_s = now_s();
    if (!replay->quiet)
        mla_progress_begin(&progress, "requests", scheduler->request_count, replay->started_s);
    for (uint64_t step = 1; status == MLA_OK; step++) {
        bool lost = false;
        char note[64];
        mla_scheduler_next(scheduler, now_s());
        if (scheduler->share_count == 0)
            break;
        if (!replay->options.halves) {
            status = open_step(replay, step);
            if (status != MLA_OK || scheduler->share_count == 0)
                continue;
        }
        status = (replay->options.halves ? run_halves : run_step)(replay, step, &lost);
        if (status == MLA_OK && !lost)
            status = mla_scheduler_commit(scheduler, now_s());
        if (status == MLA_OK)
            status = free_leaving(replay);
        replay->steps_lost += lost;
        lost_in_a_row = lost ? lost_in_a_row + 1 : 0;
        if (lost_in_a_row > STEPS_LOST_IN_A_ROW)
            status = failed(replay, "every attempt of a step", MLA_GROUP_LOST);
        snprintf(note, sizeof note, "%" PRIu64 " steps, %" PRIu32 " active", replay->steps,
                 scheduler->active_count);
        if (!replay->quiet)
            mla_progress_update(&progress, scheduler->finished_count, now_s(), note);
    }
    replay->ended_s = now_s();
    if (!replay->quiet)
        mla_progress_end(&progress);
    return status;
}

static enum mla_status connect_service(struct mla_replay *replay)
{
    const struct mla_replay_options *options = &replay->options;
    struct mla_client_options client_options = {.timeout_ms = TIMEOUT_MS,
                                                .payload_inline = options->payload_inline,
                                                .spin = options->spin,
                                                .curve_keys = options->curve_keys};
    enum mla_status status =
        mla_client_connect(options->endpoint, &client_options, &replay->client);
    if (status != MLA_OK) /* the client has said why */
        return status;
    replay->info = mla_client_info(replay->client);
    if (options->layers > replay->info->layer_count) {
        fprintf(stderr, "mla-bench: --layers %" PRIu32 ": the service has %" PRIu32 "\n",
                options->layers, replay->info->layer_count);
        return MLA_OPTION;
    }
    if (options->concurrency > replay->info->step_sequences_max ||
        options->concurrency > replay->info->step_tokens_max) {
        fprintf(stderr,
                "mla-bench: --concurrency %" PRIu32 ": a step of the service holds %" PRIu32
                " sequences and %" PRIu32 " tokens\n",
                options->concurrency, replay->info->step_sequences_max,
                replay->info->step_tokens_max);
        return MLA_OPTION;
    }
    return MLA_OK;
}

/* Inputs are made once; a step takes them from another row on than the one before. */
static enum mla_status make_payloads(struct mla_replay *replay)
{
    uint64_t hidden = replay->info->dims.hidden;
    uint64_t rows = (uint64_t)replay->options.concurrency + replay->options.prefill_budget;
    if (rows > replay->info->step_tokens_max)
        rows = replay->info->step_tokens_max;
    uint64_t shape[2] = {rows + SPARE_ROWS, hidden};
    float *row = malloc(hidden * sizeof *row);
    void *memory = NULL;
    size_t bytes = (shape[0] + rows) * hidden * sizeof *replay->x;
    enum mla_status status = row ? mla_client_memory(replay->client, bytes, &memory) : MLA_MEMORY;
    if (status != MLA_OK) {
        free(row);
        return failed(replay, "memory for payloads", status);
    }
    replay->x = memory;
    replay->y = replay->x + shape[0] * hidden;
    for (uint64_t i = 0; i < shape[0]; i++) {
        mla_formula_fill("replay", 2, shape, i * hidden, hidden, row);
        for (uint64_t j = 0; j < hidden; j++)
            replay->x[i * hidden + j] = mla_f32_to_bf16(row[j]);
    }
    free(row);
    return MLA_OK;
}

enum mla_status mla_replay_run(struct mla_replay *replay)
{
    const struct mla_replay_options *options = &replay->options;
    enum mla_status status = connect_service(replay);
    if (status == MLA_OK)
        status = make_payloads(replay);
    if (status != MLA_OK)
        return status;
    struct mla_scheduler_options scheduler_options = {
        .concurrency = options->concurrency,
        .prefill_budget = options->prefill_budget,
        .step_tokens_max = replay->info->step_tokens_max,
        .context_max = replay->info->context_max,
    };
    status = mla_scheduler_init(&replay->scheduler, &scheduler_options, replay->requests,
                                replay->request_count);
    return status == MLA_OK ? run_requests(replay) : status;
}

void mla_replay_fini(struct mla_replay *replay)
{
    mla_client_close_connection(&replay->client);
    mla_scheduler_fini(&replay->scheduler);
    mla_run_parts_fini(&replay->decode);
    mla_run_parts_fini(&replay->prefill);
    mla_series_fini(&replay->open);
    mla_series_fini(&replay->close);
    mla_timeline_fini(&replay->timeline);
    free(replay->requests);
}

/* Requests are told apart by nothing but their place. */
static enum mla_status join_requests(struct mla_replay *into, const struct mla_replay *from)
{
    size_t count = (size_t)into->request_count + from->request_count;
    struct mla_request *requests = realloc(into->requests, count * sizeof *requests);
    if (!requests)
        return MLA_MEMORY;
    memcpy(requests + into->request_count, from->requests, from->request_count * sizeof *requests);
    into->requests = into->scheduler.requests = requests;
    into->request_count = into->scheduler.request_count = (uint32_t)count;
    return MLA_OK;
}

enum mla_status mla_replay_join(struct mla_replay *into, const struct mla_replay *from)
{
    const struct mla_latencies *latencies = &from->scheduler.latencies;
    enum mla_status status = join_requests(into, from);
    if (status == MLA_OK)
        status = mla_series_append(&into->scheduler.latencies.ttft, &latencies->ttft);
    if (status == MLA_OK)
        status = mla_series_append(&into->scheduler.latencies.tpot, &latencies->tpot);
    if (status == MLA_OK)
        status = mla_series_append(&into->scheduler.latencies.itl, &latencies->itl);
    if (status == MLA_OK)
        status = mla_run_parts_append(&into->decode, &from->decode);
    if (status == MLA_OK)
        status = mla_run_parts_append(&into->prefill, &from->prefill);
    if (status == MLA_OK)
        status = mla_series_append(&into->open, &from->open);
    if (status == MLA_OK)
        status = mla_series_append(&into->close, &from->close);
    if (status == MLA_OK)
        status = mla_timeline_append(&into->timeline, &from->timeline);
    if (from->started_s < into->started_s)
        into->started_s = from->started_s;
    if (from->ended_s > into->ended_s)
        into->ended_s = from->ended_s;
    into->scheduler.preemptions += from->scheduler.preemptions;
    into->steps += from->steps;
    into->decode_steps += from->decode_steps;
    into->steps_lost += from->steps_lost;
    into->decode_rows += from->decode_rows;
    if (from->decode_rows_max > into->decode_rows_max)
        into->decode_rows_max = from->decode_rows_max;
    into->runs_s += from->runs_s;
    into->computing_s += from->computing_s;
    return status;
}
