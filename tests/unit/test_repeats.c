/* Requests that come again: OPEN, CLOSE and RUN are done once and answered each time. */
#include "tests/lib/fake_world.h"

#include <criterion/criterion.h>

static struct world world;
static struct mla_message request;

static void start(void)
{
    world_init(&world, NULL, 2);
    cr_assert_eq(world_hello(&world, 0), MLA_OK);
}

static void finish(uint64_t sequences, uint64_t blocks)
{
    struct mla_stats stats;
    world_stats(&world, &stats);
    cr_expect_eq(stats.sequences, sequences);
    cr_expect_eq(stats.blocks_used, blocks);
    cr_expect(mla_core_check(world.core));
    world_fini(&world);
}

static enum mla_status open_as(uint64_t request_id, uint64_t step, uint64_t sequence,
                               uint32_t begin, uint32_t tokens)
{
    request.header = (struct mla_header){.type = MLA_OPEN, .request_id = request_id};
    request.u.open = (struct mla_open){
        .step = step, .count = 2, .entries = {{sequence, begin, tokens}, {sequence + 1, begin, 1}}};
    const struct world_reply *reply = world_send(&world, 0, &request, NULL, 0);
    cr_assert_not_null(reply);
    cr_assert_eq(reply->header.request_id, request_id);
    return (enum mla_status)reply->header.status;
}

static uint64_t steps_open(void)
{
    struct mla_stats stats;
    world_stats(&world, &stats);
    return stats.steps_open;
}

Test(repeats, open_of_an_open_step)
{
    start();
    cr_assert_eq(open_as(1, 5, 1, 0, 70), MLA_OK);
    world_work(&world, UINT32_MAX);
    struct mla_stats before;
    world_stats(&world, &before);
    cr_expect_eq(open_as(1, 5, 1, 0, 70), MLA_OK);
    cr_expect_eq(open_as(2, 5, 1, 0, 70), MLA_OK, "the step's id says what it is");
    struct mla_stats after;
    world_stats(&world, &after);
    cr_expect_eq(after.blocks_used, before.blocks_used);
    cr_expect_eq(after.rows_prefill, before.rows_prefill);
    cr_expect_eq(after.steps_open, 1);
    cr_expect_null(world.first, "workers are told again");
    cr_expect_eq(open_as(3, 5, 1, 0, 71), MLA_STEP_EXISTS);
    cr_expect_eq(open_as(3, 5, 2, 0, 70), MLA_STEP_EXISTS);
    cr_expect_eq(open_as(3, 5, 1, 1, 70), MLA_STEP_EXISTS);
    cr_assert_eq(world_close(&world, 0, 5, MLA_COMMIT), MLA_OK);
    finish(2, 3);
}

/* Also when nothing could be opened now. */
Test(repeats, open_of_a_step_that_lost_its_group)
{
    start();
    cr_assert_eq(open_as(1, 5, 1, 0, 70), MLA_OK);
    world_group_gone(&world, 0);
    cr_expect_eq(open_as(1, 5, 1, 0, 70), MLA_OK);
    cr_expect_eq(world_run(&world, 0, 5, 3, 71, 0), MLA_STEP_LOST);
    cr_expect_eq(world_close(&world, 0, 5, MLA_COMMIT), MLA_STEP_LOST);
    cr_expect_eq(world_close(&world, 0, 5, MLA_ABORT), MLA_OK);
    cr_expect_eq(world_close(&world, 0, 5, MLA_ABORT), MLA_OK);
    finish(2, 0);
}

Test(repeats, open_that_comes_after_its_close)
{
    start();
    cr_assert_eq(open_as(1, 5, 1, 0, 70), MLA_OK);
    cr_assert_eq(world_close(&world, 0, 5, MLA_ABORT), MLA_OK);
    cr_expect_eq(open_as(1, 5, 1, 0, 70), MLA_OK, "as before");
    cr_expect_eq(steps_open(), 0, "and not done");
    cr_expect_eq(open_as(2, 5, 1, 0, 70), MLA_OK, "another request: the id is free");
    cr_expect_eq(steps_open(), 1);
    cr_assert_eq(world_close(&world, 0, 5, MLA_COMMIT), MLA_OK);
    cr_expect_eq(open_as(2, 5, 1, 0, 70), MLA_OK);
    cr_expect_eq(open_as(3, 5, 1, 0, 70), MLA_OUT_OF_ORDER);
    cr_expect_eq(open_as(2, 5, 1, 0, 69), MLA_OUT_OF_ORDER, "other entries are another request");
    cr_expect_eq(steps_open(), 0);
    finish(2, 3);
}

Test(repeats, close_of_a_closed_step)
{
    start();
    cr_assert_eq(open_as(1, 5, 1, 0, 70), MLA_OK);
    cr_assert_eq(world_close(&world, 0, 5, MLA_COMMIT), MLA_OK);
    cr_expect_eq(world_close(&world, 0, 5, MLA_COMMIT), MLA_OK);
    cr_expect_eq(world_close(&world, 0, 5, MLA_ABORT), MLA_STEP_UNKNOWN);
    cr_expect_str_eq(world_last(&world)->sentence, "step 5 was committed");
    cr_expect_eq(world_close(&world, 0, 6, MLA_COMMIT), MLA_STEP_UNKNOWN);
    cr_expect_eq(world_run(&world, 0, 5, 3, 71, 0), MLA_STEP_UNKNOWN);
    world_hello(&world, 1);
    cr_expect_eq(world_close(&world, 1, 5, MLA_COMMIT), MLA_STEP_UNKNOWN, "of another client");
    finish(2, 3);
}

/* As many as are remembered, and no more. */
Test(repeats, closed_steps_are_remembered_for_a_while)
{
    start();
    for (uint64_t step = 0; step <= MLA_STEPS_CLOSED_MAX; step++) {
        cr_assert_eq(open_as(step, step, 1, 0, 1), MLA_OK);
        cr_assert_eq(world_close(&world, 0, step, MLA_ABORT), MLA_OK);
        world_work(&world, UINT32_MAX);
    }
    cr_expect_eq(world_close(&world, 0, 0, MLA_ABORT), MLA_STEP_UNKNOWN);
    for (uint64_t step = 1; step <= MLA_STEPS_CLOSED_MAX; step++)
        cr_expect_eq(world_close(&world, 0, step, MLA_ABORT), MLA_OK);
    world_client_gone(&world, 0);
    world_hello(&world, 0);
    cr_expect_eq(world_close(&world, 0, 1, MLA_ABORT), MLA_STEP_UNKNOWN, "of the client before");
    finish(0, 0);
}

/* Each copy has its own reply. */
Test(repeats, runs)
{
    start();
    cr_assert_eq(open_as(1, 5, 1, 0, 70), MLA_OK);
    for (int i = 0; i < 3; i++)
        cr_expect_eq(world_run(&world, 0, 5, 3, 71, 7), MLA_AGAIN);
    uint32_t before = world.reply_count;
    world_work(&world, UINT32_MAX);
    cr_assert_eq(world.reply_count, before + 3);
    for (uint32_t i = before; i < before + 3; i++) {
        const struct world_reply *reply = &world.replies[i];
        cr_expect_eq(reply->header.status, MLA_OK);
        cr_assert_eq(reply->rows, 71);
        for (uint32_t row = 0; row < 71; row++)
            cr_expect_float_eq(reply->values[row], -(7 + (float)row), 0);
    }
    cr_assert_eq(world_close(&world, 0, 5, MLA_COMMIT), MLA_OK);
    finish(2, 3);
}
