#include "proto/clock.h"
#include "tests/bench/run.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

enum { REPLY_TIMEOUT_MS = 60000 };

static enum mla_status failed(const struct mla_run_bench *bench, const char *what,
                              enum mla_status status)
{
    const struct mla_client_error *error = mla_client_error(bench->client);
    bool known = error->status == status && error->sentence[0];
    fprintf(stderr, "mla-bench: %s failed: %s: %s\n", what, mla_status_name(status),
            known ? error->sentence : mla_status_sentence(status));
    return status;
}

static enum mla_status close_step(struct mla_run_bench *bench, uint64_t step,
                                  enum mla_close_action action)
{
    enum mla_status status = mla_client_close(bench->client, step, action);
    return status == MLA_OK ? MLA_OK : failed(bench, "CLOSE", status);
}

/* Sequences 1, 2, .. of `context` tokens each. Nothing is computed: a step without RUNs can be
 * committed, and leaves the KV of its tokens as it was. */
static enum mla_status lengthen(struct mla_run_bench *bench)
{
    const struct mla_run_options *options = &bench->options;
    uint32_t count = options->rows * options->in_flight_max;
    uint32_t sequence = 0;
    uint32_t length = 0;
    enum mla_status status = MLA_OK;
    while (status == MLA_OK && options->context > 0 && sequence < count) {
        uint32_t entries = 0;
        uint32_t room = bench->info->step_tokens_max;
        while (sequence < count && room > 0 && entries < bench->info->step_sequences_max) {
            uint32_t left = options->context - length;
            uint32_t tokens = left < room ? left : room;
            bench->entries[entries++] =
                (struct mla_open_entry){.sequence = sequence + 1, length, tokens};
            room -= tokens;
            length += tokens;
            if (length == options->context) {
                sequence++;
                length = 0;
            }
        }
        status = mla_client_open(bench->client, ++bench->steps, bench->entries, entries, NULL);
        status = status == MLA_OK ? close_step(bench, bench->steps, MLA_COMMIT)
                                  : failed(bench, "OPEN, to lengthen sequences,", status);
    }
    return status;
}

/* One new token for each of the `which`-th set of sequences. */
static enum mla_status open_step(struct mla_run_bench *bench, uint32_t which, uint64_t *step)
{
    uint32_t rows = bench->options.rows;
    for (uint32_t i = 0; i < rows; i++)
        bench->entries[i] = (struct mla_open_entry){
            .sequence = (uint64_t)which * rows + i + 1, bench->options.context, 1};
    *step = ++bench->steps;
    enum mla_status status =
        mla_client_open(bench->client, *step, bench->entries, rows, &bench->opened);
    return status == MLA_OK ? MLA_OK : failed(bench, "OPEN", status);
}

static struct mla_client_run run_of(const struct mla_run_bench *bench, uint32_t which,
                                    uint64_t step, uint32_t layer)
{
    return (struct mla_client_run){.step = step,
                                   .layer = bench->info->layers[layer % bench->options.layers],
                                   .dtype = bench->options.dtype,
                                   .reply_dtype = bench->options.dtype,
                                   .rows = bench->options.rows,
                                   .x = bench->x,
                                   .y = bench->y + which * bench->y_stride};
}

static enum mla_status add_span(struct mla_series *series, uint64_t since_ns)
{
    return mla_series_add(series, (double)(mla_now_ns() - since_ns) / 1e3);
}

/* A step with a single RUN, which waits for the workers to be done with the plan. Aborted, so that
 * each one begins where the last did. */
static enum mla_status time_open(struct mla_run_bench *bench)
{
    uint64_t step = 0;
    uint64_t begin_ns = mla_now_ns();
    enum mla_status status = open_step(bench, 0, &step);
    if (status == MLA_OK)
        status = add_span(&bench->open, begin_ns);
    if (status != MLA_OK)
        return status;
    struct mla_client_run run = run_of(bench, 0, step, 0);
    begin_ns = mla_now_ns();
    status = mla_client_run(bench->client, &run, NULL);
    if (status != MLA_OK)
        return failed(bench, "RUN", status);
    status = add_span(&bench->first, begin_ns);
    begin_ns = mla_now_ns();
    if (status == MLA_OK)
        status = close_step(bench, step, MLA_ABORT);
    return status == MLA_OK ? add_span(&bench->close, begin_ns) : status;
}

/* An open step and its RUN on the way. */
struct lane {
    uint64_t step, request, sent_ns;
    uint32_t layer;
};

static enum mla_status submit(struct mla_run_bench *bench, struct lane *lanes, uint32_t which)
{
    struct lane *lane = &lanes[which];
    struct mla_client_run run = run_of(bench, which, lane->step, lane->layer++);
    lane->sent_ns = mla_now_ns();
    enum mla_status status = mla_client_submit_run(bench->client, &run, &lane->request);
    return status == MLA_OK ? MLA_OK : failed(bench, "RUN", status);
}

/* The next reply: which lane's, when it came, and its times. */
static enum mla_status take(struct mla_run_bench *bench, const struct lane *lanes, uint32_t count,
                            uint32_t *which, uint64_t *returned_ns, struct mla_run_times *times)
{
    struct mla_completion completion;
    enum mla_status status = mla_client_poll(bench->client, REPLY_TIMEOUT_MS, &completion);
    *returned_ns = mla_now_ns();
    if (status != MLA_OK)
        return failed(bench, "RUN", status == MLA_AGAIN ? MLA_TIMEOUT : status);
    if (completion.error.status != MLA_OK) {
        fprintf(stderr, "mla-bench: RUN failed: %s: %s\n", mla_status_name(completion.error.status),
                completion.error.sentence);
        return completion.error.status;
    }
    *which = 0;
    while (*which < count && lanes[*which].request != completion.request)
        ++*which;
    *times = completion.u.run;
    return *which < count ? MLA_OK : failed(bench, "an unknown RUN", MLA_INTERNAL);
}

/* All lanes go on with their next layer as soon as they have their last one's reply, until
 * `repeat` replies came or, if that is 0, until `seconds` have passed. `round` NULL: not kept. */
static enum mla_status drive(struct mla_run_bench *bench, struct lane *lanes, uint32_t count,
                             uint64_t repeat, double seconds, struct mla_run_round *round)
{
    enum mla_status status = MLA_OK;
    uint64_t begin_ns = mla_now_ns();
    uint64_t submitted = count;
    uint64_t taken = 0;
    uint64_t returned_ns = begin_ns;
    for (uint32_t i = 0; status == MLA_OK && i < count; i++)
        status = submit(bench, lanes, i);
    while (status == MLA_OK && taken < submitted) {
        uint32_t which = 0;
        struct mla_run_times times = {0};
        status = take(bench, lanes, count, &which, &returned_ns, &times);
        if (status != MLA_OK)
            return status;
        taken++;
        uint64_t sent_ns = lanes[which].sent_ns;
        bool enough =
            repeat ? submitted >= repeat : (double)(returned_ns - begin_ns) / 1e9 >= seconds;
        if (!enough) {
            submitted++;
            status = submit(bench, lanes, which);
        }
        if (status == MLA_OK && round) {
            round->computing_s += ((double)times.compute_ns + times.collective_ns) / 1e9;
            status = mla_run_parts_add(&round->parts, sent_ns, returned_ns, &times);
        }
    }
    if (round)
        round->duration_s = (double)(returned_ns - begin_ns) / 1e9;
    return status;
}

static enum mla_status measure_round(struct mla_run_bench *bench, struct mla_run_round *round)
{
    const struct mla_run_options *options = &bench->options;
    struct lane lanes[MLA_RUN_IN_FLIGHT_MAX] = {0};
    double before[MLA_CPU_ROLES] = {0};
    double after[MLA_CPU_ROLES] = {0};
    enum mla_status status = MLA_OK;
    for (uint32_t i = 0; status == MLA_OK && i < round->in_flight; i++)
        status = open_step(bench, i, &lanes[i].step);
    if (status == MLA_OK)
        status = drive(bench, lanes, round->in_flight, 0, options->warm_up_s, NULL);
    mla_cpu_use_read(&bench->cpu, before);
    if (status == MLA_OK)
        status = drive(bench, lanes, round->in_flight, options->repeat, options->seconds, round);
    mla_cpu_use_read(&bench->cpu, after);
    for (int role = 0; status == MLA_OK && role < MLA_CPU_ROLES; role++)
        round->cores[role] = (after[role] - before[role]) / round->duration_s;
    for (uint32_t i = 0; status == MLA_OK && i < round->in_flight; i++)
        status = close_step(bench, lanes[i].step, MLA_ABORT);
    return status;
}

static enum mla_status free_sequences(struct mla_run_bench *bench)
{
    uint64_t sequences[MLA_STEP_SEQUENCES_MAX];
    uint32_t rows = bench->options.rows;
    for (uint32_t which = 0; which < bench->options.in_flight_max; which++) {
        for (uint32_t i = 0; i < rows; i++)
            sequences[i] = (uint64_t)which * rows + i + 1;
        enum mla_status status = mla_client_free(bench->client, sequences, rows);
        if (status != MLA_OK)
            return failed(bench, "FREE", status);
    }
    return MLA_OK;
}

enum mla_status mla_run_measure(struct mla_run_bench *bench)
{
    const struct mla_run_options *options = &bench->options;
    enum mla_status status = lengthen(bench);
    for (uint32_t i = 0; status == MLA_OK && i < options->round_count; i++) {
        bench->rounds[i].in_flight = options->in_flight[i];
        status = measure_round(bench, &bench->rounds[i]);
    }
    for (uint32_t i = 0; status == MLA_OK && i < options->opens; i++)
        status = time_open(bench);
    return status == MLA_OK ? free_sequences(bench) : status;
}
