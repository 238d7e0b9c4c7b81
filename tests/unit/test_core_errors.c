/* Bad input: every wrong field, sequence, order, dtype, count or length has a code of its own and
 * a sentence, changes nothing, and the next correct request works. */
#include "tests/lib/fake_world.h"

#include <criterion/criterion.h>
#include <stdio.h>

static struct world world;
static struct mla_message request;
static float x[WORLD_ROWS_MAX * WORLD_HIDDEN];

/* Client 0 with sequence 1 of 10 tokens, sequence 2 in open step 5 (3 tokens). */
static void start(void)
{
    world_init(&world, NULL, 2);
    cr_assert_eq(world_hello(&world, 0), MLA_OK);
    struct mla_open_entry entry = {1, 0, 10};
    cr_assert_eq(world_open(&world, 0, 1, &entry, 1), MLA_OK);
    cr_assert_eq(world_close(&world, 0, 1, MLA_COMMIT), MLA_OK);
    entry = (struct mla_open_entry){2, 0, 3};
    cr_assert_eq(world_open(&world, 0, 5, &entry, 1), MLA_OK);
    world_work(&world, UINT32_MAX);
}

static const struct world_reply *refused(const struct world_reply *reply, enum mla_status status)
{
    cr_assert_not_null(reply);
    cr_assert_eq(reply->header.status, status, "%s instead of %s: %s",
                 mla_status_name((enum mla_status)reply->header.status), mla_status_name(status),
                 reply->sentence);
    cr_assert_gt(strlen(reply->sentence), 5);
    return reply;
}

/* What must be as before after a refusal, and a request that must work. */
static void expect_unchanged(void)
{
    struct mla_stats stats;
    world_stats(&world, &stats);
    cr_assert_eq(stats.blocks_used, 2);
    cr_assert_eq(stats.sequences, 2);
    cr_assert_eq(stats.steps_open, 1);
    cr_assert_eq(stats.runs_in_flight, 0);
    cr_assert(mla_core_check(world.core));
    struct mla_open_entry entry = {1, 10, 1};
    cr_assert_eq(world_open(&world, 0, 8, &entry, 1), MLA_OK);
    cr_assert_eq(world_run(&world, 0, 8, 4, 1, 3), MLA_AGAIN);
    world_work(&world, UINT32_MAX);
    cr_assert_eq(world_last(&world)->header.status, MLA_OK);
    cr_assert_float_eq(world_last(&world)->values[0], -3, 0);
    cr_assert_eq(world_close(&world, 0, 8, MLA_ABORT), MLA_OK);
}

Test(core_errors, hello)
{
    start();
    struct mla_open_entry entry = {1, 0, 1};
    cr_assert_eq(world_open(&world, 3, 1, &entry, 1), MLA_HELLO_REQUIRED);
    request.header = (struct mla_header){.type = MLA_HELLO, .request_id = 9};
    request.u.hello = (struct mla_hello){.version_min = 2, .version_max = 3};
    const struct world_reply *reply =
        refused(world_send(&world, 3, &request, NULL, 0), MLA_VERSION);
    cr_assert_eq(reply->header.request_id, 9);
    expect_unchanged();
    world_fini(&world);
}

Test(core_errors, open)
{
    start();
    const struct {
        uint64_t step;
        uint32_t count;
        struct mla_open_entry entries[3];
        enum mla_status status;
        uint32_t index;
    } cases[] = {
        {5, 1, {{1, 10, 1}}, MLA_STEP_EXISTS, MLA_INDEX_NONE},
        {6, 0, {{0}}, MLA_COUNT, MLA_INDEX_NONE},
        {6, 2, {{1, 10, 1}, {3, 0, 0}}, MLA_COUNT, 1},
        {6, 2, {{1, 10, 1}, {3, 4, 1}}, MLA_SEQUENCE_UNKNOWN, 1},
        {6, 2, {{1, 10, 1}, {2, 3, 1}}, MLA_SEQUENCE_BUSY, 1},
        {6, 3, {{3, 0, 1}, {1, 10, 1}, {3, 0, 1}}, MLA_SEQUENCE_REPEATED, 2},
        {6, 2, {{3, 0, 9}, {1, 11, 1}}, MLA_OUT_OF_ORDER, 1},
        {6, 2, {{3, 0, 9}, {1, 9, 1}}, MLA_OUT_OF_ORDER, 1},
        {6, 2, {{3, 0, 9}, {1, 10, 513}}, MLA_LIMIT, 1},
        {6, 2, {{3, 0, 9}, {1, 4095, 2}}, MLA_CONTEXT, 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        enum mla_status status =
            world_open(&world, 0, cases[i].step, cases[i].entries, cases[i].count);
        cr_assert_eq(status, cases[i].status, "case %zu: %s", i, mla_status_name(status));
        cr_assert_eq(world_last(&world)->header.index, cases[i].index, "case %zu", i);
        refused(world_last(&world), cases[i].status);
        expect_unchanged();
    }
    world_fini(&world);
}

static const struct world_reply *run(struct mla_run fields, size_t payload_bytes)
{
    request.header = (struct mla_header){.type = MLA_RUN, .request_id = 4};
    request.u.run = fields;
    return world_send(&world, 0, &request, payload_bytes ? x : NULL, payload_bytes);
}

Test(core_errors, run)
{
    start();
    const struct mla_run good = {.step = 5,
                                 .layer = 3,
                                 .dtype = MLA_F32,
                                 .reply_dtype = MLA_F32,
                                 .rows = 3,
                                 .hidden = WORLD_HIDDEN};
    const size_t bytes = sizeof(float) * 3 * WORLD_HIDDEN;
    struct mla_run bad = good;
    bad.step = 6;
    refused(run(bad, bytes), MLA_STEP_UNKNOWN);
    bad = good;
    bad.layer = 5;
    refused(run(bad, bytes), MLA_LAYER);
    bad = good;
    bad.dtype = MLA_F16;
    refused(run(bad, bytes), MLA_DTYPE);
    bad = good;
    bad.reply_dtype = 9;
    refused(run(bad, bytes), MLA_DTYPE);
    bad = good;
    bad.rows = 4;
    refused(run(bad, bytes), MLA_COUNT);
    bad = good;
    bad.hidden = 9;
    refused(run(bad, bytes), MLA_COUNT);
    refused(run(good, bytes - 4), MLA_LENGTH);
    refused(run(good, bytes + 4), MLA_LENGTH);
    refused(run(good, 0), MLA_LENGTH);
    bad = good;
    bad.dtype = MLA_BF16; /* a payload of f32 */
    refused(run(bad, bytes), MLA_LENGTH);
    expect_unchanged();
    cr_assert_null(run(good, bytes));
    world_work(&world, UINT32_MAX);
    cr_assert_eq(world_last(&world)->header.status, MLA_OK);
    world_fini(&world);
}

Test(core_errors, close)
{
    start();
    cr_assert_eq(world_close(&world, 0, 77, MLA_COMMIT), MLA_STEP_UNKNOWN);
    cr_assert_eq(world_run(&world, 0, 5, 3, 3, 0), MLA_AGAIN);
    cr_assert_eq(world_close(&world, 0, 5, MLA_COMMIT), MLA_STEP_BUSY);
    world_work(&world, UINT32_MAX);
    cr_assert_eq(world_last(&world)->header.status, MLA_OK);
    expect_unchanged();
    world_fini(&world);
}

static const struct world_reply *fork_pairs(uint32_t count, const struct mla_fork_entry *entries)
{
    request.header = (struct mla_header){.type = MLA_FORK, .request_id = 4};
    request.u.fork.count = count;
    memcpy(request.u.fork.entries, entries, count * sizeof *entries);
    return world_send(&world, 0, &request, NULL, 0);
}

Test(core_errors, fork)
{
    start();
    const struct {
        struct mla_fork_entry entry;
        enum mla_status status;
    } cases[] = {
        {{9, 3, 1}, MLA_SEQUENCE_UNKNOWN},
        {{2, 3, 1}, MLA_SEQUENCE_BUSY},
        {{1, 3, 0}, MLA_COUNT},
        {{1, 3, 11}, MLA_OUT_OF_ORDER},
        {{1, 1, 4}, MLA_SEQUENCE_EXISTS},
        {{1, 4, 4}, MLA_SEQUENCE_EXISTS},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct mla_fork_entry pair[2] = {{1, 4, 10}, cases[i].entry}; /* all or nothing */
        cr_assert_eq(refused(fork_pairs(2, pair), cases[i].status)->header.index, 1);
        expect_unchanged();
    }
    struct mla_fork_entry good = {1, 3, 10};
    cr_assert_eq(fork_pairs(1, &good)->header.status, MLA_OK);
    world_fini(&world);
}

static const struct world_reply *truncate_pairs(uint32_t count,
                                                const struct mla_truncate_entry *entries)
{
    request.header = (struct mla_header){.type = MLA_TRUNCATE, .request_id = 4};
    request.u.truncate.count = count;
    memcpy(request.u.truncate.entries, entries, count * sizeof *entries);
    return world_send(&world, 0, &request, NULL, 0);
}

Test(core_errors, truncate)
{
    start();
    const struct {
        struct mla_truncate_entry entry;
        enum mla_status status;
    } cases[] = {
        {{9, 1}, MLA_SEQUENCE_UNKNOWN},
        {{2, 1}, MLA_SEQUENCE_BUSY},
        {{1, 2}, MLA_SEQUENCE_REPEATED},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct mla_truncate_entry pair[2] = {{1, 4}, cases[i].entry};
        cr_assert_eq(refused(truncate_pairs(2, pair), cases[i].status)->header.index, 1);
        expect_unchanged();
    }
    struct mla_truncate_entry longer = {1, 11};
    refused(truncate_pairs(1, &longer), MLA_OUT_OF_ORDER);
    expect_unchanged();
    world_fini(&world);
}

Test(core_errors, free)
{
    start();
    const uint64_t unknown[2] = {1, 9};
    const uint64_t busy[2] = {1, 2};
    const uint64_t repeated[2] = {1, 1};
    cr_assert_eq(world_free(&world, 0, unknown, 2), MLA_SEQUENCE_UNKNOWN);
    expect_unchanged();
    cr_assert_eq(world_free(&world, 0, busy, 2), MLA_SEQUENCE_BUSY);
    expect_unchanged();
    cr_assert_eq(world_free(&world, 0, repeated, 2), MLA_SEQUENCE_REPEATED);
    expect_unchanged();
    world_fini(&world);
}

Test(core_errors, sequences_are_the_clients_own)
{
    start();
    cr_assert_eq(world_hello(&world, 1), MLA_OK);
    const uint64_t of_another = 1;
    cr_assert_eq(world_free(&world, 1, &of_another, 1), MLA_SEQUENCE_UNKNOWN);
    cr_assert_eq(world_close(&world, 1, 5, MLA_ABORT), MLA_STEP_UNKNOWN);
    expect_unchanged();
    world_fini(&world);
}

/* Frames that are no message at all. */
Test(core_errors, frames)
{
    start();
    request.header = (struct mla_header){.type = MLA_STATS, .request_id = 4};
    uint8_t good[256];
    uint8_t bad[256];
    size_t bytes = 0;
    cr_assert_eq(mla_message_encode(&request, good, sizeof good, &bytes), MLA_OK);

    world_send_frames(&world, 0, good, bytes - 1, 1, NULL, 0);
    refused(world_last(&world), MLA_MALFORMED);
    world_send_frames(&world, 0, good, 0, 1, NULL, 0);
    refused(world_last(&world), MLA_MALFORMED);
    world_send_frames(&world, 0, good, bytes, 2, x, 16);
    refused(world_last(&world), MLA_FRAMES);
    world_send_frames(&world, 0, good, bytes, 3, NULL, 0);
    refused(world_last(&world), MLA_FRAMES);

    memcpy(bad, good, bytes);
    bad[0] ^= 1;
    world_send_frames(&world, 0, bad, bytes, 1, NULL, 0);
    refused(world_last(&world), MLA_MALFORMED);
    memcpy(bad, good, bytes);
    bad[4] = 9;
    world_send_frames(&world, 0, bad, bytes, 1, NULL, 0);
    refused(world_last(&world), MLA_VERSION);
    memcpy(bad, good, bytes);
    bad[6] = 99;
    world_send_frames(&world, 0, bad, bytes, 1, NULL, 0);
    refused(world_last(&world), MLA_TYPE);
    memcpy(bad, good, bytes);
    bad[6] = MLA_STATS | MLA_REPLY;
    world_send_frames(&world, 0, bad, bytes, 1, NULL, 0);
    cr_assert_neq(world_last(&world)->header.status, MLA_OK);

    request.header = (struct mla_header){.type = MLA_CLOSE, .request_id = 4};
    request.u.close = (struct mla_close){.step = 5, .action = 3};
    refused(world_send(&world, 0, &request, NULL, 0), MLA_FIELD);

    request.header = (struct mla_header){.type = MLA_FREE, .request_id = 4};
    request.u.free.count = 1;
    cr_assert_eq(mla_message_encode(&request, bad, sizeof bad, &bytes), MLA_OK);
    const uint32_t many = MLA_STEP_SEQUENCES_MAX + 1;
    memcpy(bad + 32, &many, sizeof many);
    world_send_frames(&world, 0, bad, bytes, 1, NULL, 0);
    refused(world_last(&world), MLA_LIMIT);
    expect_unchanged();
    world_fini(&world);
}
