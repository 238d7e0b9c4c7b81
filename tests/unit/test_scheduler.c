#include "tests/bench/run_parts.h"
#include "tests/bench/scheduler.h"
#include "tests/bench/trace.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SEQUENCES = 4096, BLOCK = 4 };

/* A service with so many blocks of 4 tokens, and a clock that a step moves by one second. */
struct fake {
    uint32_t blocks_total;
    uint32_t lengths[SEQUENCES]; /* by sequence id */
    double now_s;
};

static uint32_t blocks_of(uint32_t tokens)
{
    return (tokens + BLOCK - 1) / BLOCK;
}

/* The first share that has no room, or share_count. */
static uint32_t first_without_room(const struct fake *fake, const struct mla_scheduler *scheduler)
{
    uint32_t used = 0;
    for (uint32_t i = 0; i < SEQUENCES; i++)
        used += blocks_of(fake->lengths[i]);
    for (uint32_t i = 0; i < scheduler->share_count; i++) {
        const struct mla_share *share = &scheduler->shares[i];
        uint32_t length = fake->lengths[scheduler->requests[share->request].sequence];
        used += blocks_of(length + share->tokens) - blocks_of(length);
        if (used > fake->blocks_total)
            return i;
    }
    return scheduler->share_count;
}

static void free_leaving(struct fake *fake, struct mla_scheduler *scheduler)
{
    for (uint32_t i = 0; i < scheduler->leaving_count; i++) {
        cr_assert_gt(fake->lengths[scheduler->leaving[i]], 0);
        fake->lengths[scheduler->leaving[i]] = 0;
    }
    mla_scheduler_left(scheduler);
}

static void check_step(const struct fake *fake, const struct mla_scheduler *scheduler)
{
    uint32_t prompt_tokens = 0, tokens = 0;
    bool prompts = false;
    cr_assert_leq(scheduler->active_count, scheduler->options.concurrency);
    for (uint32_t i = 0; i < scheduler->share_count; i++) {
        const struct mla_share *share = &scheduler->shares[i];
        const struct mla_request *request = &scheduler->requests[share->request];
        cr_assert_eq(request->state, MLA_REQUEST_ACTIVE);
        cr_assert_eq(fake->lengths[request->sequence], request->computed);
        cr_assert_geq(share->tokens, 1);
        cr_assert(!share->decode || share->tokens == 1);
        cr_assert(!(prompts && share->decode), "decodes come first");
        prompts = prompts || !share->decode;
        prompt_tokens += share->decode ? 0 : share->tokens;
        tokens += share->tokens;
        for (uint32_t j = 0; j < i; j++)
            cr_assert_neq(scheduler->shares[j].request, share->request);
    }
    cr_assert_leq(prompt_tokens, scheduler->options.prefill_budget);
    cr_assert_leq(tokens, scheduler->options.step_tokens_max);
}

/* Runs everything; returns the steps it took. */
static uint32_t run_all(struct fake *fake, struct mla_scheduler *scheduler)
{
    uint32_t steps = 0;
    for (;;) {
        mla_scheduler_next(scheduler, fake->now_s);
        if (scheduler->share_count == 0)
            return steps;
        check_step(fake, scheduler);
        uint32_t refused;
        while ((refused = first_without_room(fake, scheduler)) < scheduler->share_count) {
            mla_scheduler_no_room(scheduler, refused);
            free_leaving(fake, scheduler);
        }
        if (scheduler->share_count == 0)
            continue;
        for (uint32_t i = 0; i < scheduler->share_count; i++) {
            const struct mla_share *share = &scheduler->shares[i];
            fake->lengths[scheduler->requests[share->request].sequence] += share->tokens;
        }
        fake->now_s += 1;
        cr_assert_eq(mla_scheduler_commit(scheduler, fake->now_s), MLA_OK);
        free_leaving(fake, scheduler);
        cr_assert_lt(++steps, 100000);
    }
}

static const struct mla_scheduler_options roomy = {
    .concurrency = 4, .prefill_budget = 8, .step_tokens_max = 64, .context_max = 1000};

Test(scheduler, one_request_step_by_step)
{
    struct mla_request request = {.prompt = 20, .output = 4};
    struct mla_scheduler scheduler;
    struct fake fake = {.blocks_total = 100, .now_s = 5};
    cr_assert_eq(mla_scheduler_init(&scheduler, &roomy, &request, 1), MLA_OK);
    /* Prompt: 8 + 8 + 4, the third step brings the first token; three more steps. */
    cr_assert_eq(run_all(&fake, &scheduler), 6);
    cr_assert_eq(request.state, MLA_REQUEST_DONE);
    cr_assert_eq(request.emitted, 4);
    cr_assert_eq(scheduler.latencies.ttft.count, 1);
    cr_assert_eq(scheduler.latencies.ttft.values[0], 3);
    cr_assert_eq(scheduler.latencies.itl.count, 3);
    cr_assert_eq(scheduler.latencies.tpot.count, 1);
    cr_assert_eq(scheduler.latencies.tpot.values[0], 1);
    mla_scheduler_fini(&scheduler);
}

Test(scheduler, decodes_go_on_beside_prompts)
{
    struct mla_request requests[2] = {{.prompt = 1, .output = 10}, {.prompt = 16, .output = 1}};
    struct mla_scheduler scheduler;
    struct fake fake = {.blocks_total = 100, .now_s = 1};
    cr_assert_eq(mla_scheduler_init(&scheduler, &roomy, requests, 2), MLA_OK);
    /* 1 + 7, then a decode and 8, then a decode and 1: nobody waits for the other's prompt. */
    cr_assert_eq(run_all(&fake, &scheduler), 10);
    for (size_t i = 0; i < scheduler.latencies.itl.count; i++)
        cr_assert_eq(scheduler.latencies.itl.values[i], 1);
    cr_assert_eq(scheduler.latencies.tpot.count, 1, "one token has no time between tokens");
    mla_scheduler_fini(&scheduler);
}

Test(scheduler, gives_up_what_can_never_fit)
{
    struct mla_request requests[3] = {
        {.prompt = 900, .output = 102}, /* context */
        {.prompt = 41, .output = 1},    /* blocks */
        {.prompt = 30, .output = 11},   /* just fits */
    };
    struct mla_scheduler scheduler;
    struct fake fake = {.blocks_total = 10, .now_s = 1};
    cr_assert_eq(mla_scheduler_init(&scheduler, &roomy, requests, 3), MLA_OK);
    run_all(&fake, &scheduler);
    cr_assert_eq(requests[0].state, MLA_REQUEST_GIVEN_UP);
    cr_assert_eq(requests[1].state, MLA_REQUEST_GIVEN_UP);
    cr_assert_eq(requests[2].state, MLA_REQUEST_DONE);
    cr_assert_eq(scheduler.finished_count, 3);
    mla_scheduler_fini(&scheduler);
}

Test(scheduler, begins_again_what_was_lost)
{
    struct mla_request requests[2] = {{.prompt = 3, .output = 5}, {.prompt = 3, .output = 5}};
    struct mla_scheduler scheduler;
    struct fake fake = {.blocks_total = 100, .now_s = 1};
    cr_assert_eq(mla_scheduler_init(&scheduler, &roomy, requests, 2), MLA_OK);
    for (int step = 0; step < 3; step++) {
        mla_scheduler_next(&scheduler, fake.now_s);
        for (uint32_t i = 0; i < scheduler.share_count; i++)
            fake.lengths[requests[scheduler.shares[i].request].sequence] +=
                scheduler.shares[i].tokens;
        cr_assert_eq(mla_scheduler_commit(&scheduler, ++fake.now_s), MLA_OK);
    }
    mla_scheduler_next(&scheduler, fake.now_s);
    uint64_t lost = requests[1].sequence;
    mla_scheduler_lost(&scheduler, 1);
    cr_assert_eq(scheduler.leaving_count, 1);
    cr_assert_eq(scheduler.leaving[0], lost);
    cr_assert_eq(scheduler.share_count, 1);
    free_leaving(&fake, &scheduler);
    run_all(&fake, &scheduler);
    cr_assert_neq(requests[1].sequence, lost);
    cr_assert_eq(requests[1].sent_s, 1, "it was sent once");
    cr_assert_eq(requests[0].state, MLA_REQUEST_DONE);
    cr_assert_eq(requests[1].state, MLA_REQUEST_DONE);
    cr_assert_eq(scheduler.latencies.ttft.count, 2, "a first token comes once");
    mla_scheduler_fini(&scheduler);
}

Test(scheduler, ends_and_leaks_nothing_whatever_the_load)
{
    uint32_t preemptions = 0;
    for (uint32_t seed = 1; seed <= 300; seed++) {
        srand(seed);
        struct mla_request requests[40] = {0};
        struct fake fake = {.blocks_total = 5 + (uint32_t)rand() % 60, .now_s = 1};
        uint64_t outputs = 0;
        for (uint32_t i = 0; i < 40; i++) {
            requests[i].prompt = 1 + (uint32_t)rand() % 60;
            requests[i].output = 1 + (uint32_t)rand() % 30;
        }
        struct mla_scheduler_options options = {
            .concurrency = 1 + (uint32_t)rand() % 12,
            .prefill_budget = 1 + (uint32_t)rand() % 40,
            .step_tokens_max = 12 + (uint32_t)rand() % 40,
            .context_max = 40 + (uint32_t)rand() % 60,
        };
        struct mla_scheduler scheduler;
        cr_assert_eq(mla_scheduler_init(&scheduler, &options, requests, 40), MLA_OK);
        run_all(&fake, &scheduler);
        cr_assert_eq(scheduler.finished_count, 40);
        cr_assert_eq(scheduler.active_count, 0);
        for (uint32_t i = 0; i < 40; i++) {
            uint32_t length = requests[i].prompt + requests[i].output - 1;
            bool fits = length <= options.context_max && blocks_of(length) <= fake.blocks_total;
            cr_assert_eq(requests[i].state, fits ? MLA_REQUEST_DONE : MLA_REQUEST_GIVEN_UP,
                         "seed %u", seed);
            cr_assert(!fits || requests[i].emitted == requests[i].output);
            outputs += requests[i].emitted;
        }
        cr_assert_eq(scheduler.latencies.ttft.count + scheduler.latencies.itl.count, outputs);
        for (uint32_t i = 0; i < SEQUENCES; i++)
            cr_assert_eq(fake.lengths[i], 0);
        preemptions += scheduler.preemptions;
        mla_scheduler_fini(&scheduler);
    }
    cr_assert_gt(preemptions, 0);
}

Test(series, percentiles)
{
    struct mla_series series = {0};
    struct mla_summary summary;
    mla_series_summarize(&series, &summary);
    cr_assert_eq(summary.count, 0);
    cr_assert_eq(summary.p99, 0);
    for (int i = 3000; i >= 0; i--)
        cr_assert_eq(mla_series_add(&series, i), MLA_OK);
    mla_series_summarize(&series, &summary);
    cr_assert_eq(summary.count, 3001);
    cr_assert_float_eq(summary.mean, 1500, 1e-9);
    cr_assert_float_eq(summary.median, 1500, 1e-9);
    cr_assert_float_eq(summary.p99, 2970, 1e-9);
    cr_assert_eq(mla_series_add(&series, 3001), MLA_OK);
    mla_series_summarize(&series, &summary);
    cr_assert_float_eq(summary.median, 1500.5, 1e-9);
    mla_series_fini(&series);
}

Test(run_parts, sum_to_the_total)
{
    struct mla_run_parts parts = {0};
    struct mla_run_times times = {.received_ns = 11000,
                                  .replied_ns = 90000,
                                  .queued_ns = 2000,
                                  .compute_ns = 50000,
                                  .collective_ns = 9000,
                                  .gathered_ns = 4000};
    cr_assert_eq(mla_run_parts_add(&parts, 10000, 97000, &times), MLA_OK);
    cr_assert_float_eq(parts.parts[MLA_PART_WIRE].values[0], 14, 1e-9);
    cr_assert_float_eq(parts.parts[MLA_PART_TO_CLIENT].values[0], 7, 1e-9);
    cr_assert_float_eq(parts.parts[MLA_PART_NOT_COMPUTE].values[0], 37, 1e-9);
    double sum = 0;
    for (int i = 0; i < MLA_PART_TOTAL; i++)
        sum += parts.parts[i].values[0];
    cr_assert_float_eq(sum, parts.parts[MLA_PART_TOTAL].values[0], 1e-9);
    cr_assert_not(parts.clocks_differ);
    cr_assert_eq(mla_run_parts_add(&parts, 11001, 97000, &times), MLA_OK);
    cr_assert(parts.clocks_differ);
    mla_run_parts_fini(&parts);
}

static enum mla_status read_text(const char *text, uint32_t limit, struct mla_request **requests,
                                 uint32_t *count)
{
    char path[] = "/tmp/mla-test-trace-XXXXXX";
    int fd = mkstemp(path);
    cr_assert_geq(fd, 0);
    cr_assert_eq(write(fd, text, strlen(text)), (ssize_t)strlen(text));
    close(fd);
    enum mla_status status = mla_trace_read(path, limit, requests, count);
    unlink(path);
    return status;
}

Test(trace, reads_requests)
{
    struct mla_request *requests = NULL;
    uint32_t count = 0;
    cr_assert_eq(mla_trace_read(MLA_TESTS_DIR "/traces/chat-128.csv", 0, &requests, &count),
                 MLA_OK);
    cr_assert_eq(count, 128);
    cr_assert_eq(requests[0].prompt, 461);
    cr_assert_eq(requests[127].state, MLA_REQUEST_WAITING);
    free(requests);
    cr_assert_eq(mla_trace_read(MLA_TESTS_DIR "/traces/chat-128.csv", 3, &requests, &count),
                 MLA_OK);
    cr_assert_eq(count, 3);
    cr_assert_eq(requests[2].output, 153);
    free(requests);
    cr_assert_eq(read_text("prompt_tokens,output_tokens\r\n7,8\r\n", 0, &requests, &count), MLA_OK);
    cr_assert_eq(count, 1);
    cr_assert_eq(requests[0].output, 8);
    free(requests);
}

Test(trace, refuses_what_is_none)
{
    static const char *const wrong[] = {
        "",
        "prompt_tokens,output_tokens\n",
        "prompt,output\n1,2\n",
        "prompt_tokens,output_tokens\n1\n",
        "prompt_tokens,output_tokens\n1,0\n",
        "prompt_tokens,output_tokens\n1,2\n1,x\n",
        "prompt_tokens,output_tokens\n99999999999,2\n",
    };
    struct mla_request *requests = NULL;
    uint32_t count = 0;
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++)
        cr_assert_eq(read_text(wrong[i], 0, &requests, &count), MLA_OPTION, "%zu", i);
    cr_assert_eq(mla_trace_read("/nonexistent", 0, &requests, &count), MLA_OPTION);
    cr_assert_null(requests);
}
