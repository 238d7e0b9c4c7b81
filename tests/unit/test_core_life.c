/* Groups as they come and go: deadlines, heartbeats, ranks that join again, dismissal. */
#include "tests/lib/fake_world.h"

#include <criterion/criterion.h>

static struct world world;

enum { ROWS = 4 };

#define MS 1000000ull

/* One client with an open step of ROWS rows on each group. */
static void start(uint32_t groups, uint32_t ranks)
{
    struct mla_core_options options;
    world_small_options(&options);
    options.groups = groups;
    options.run_timeout_ms = 1000;
    options.heartbeat_timeout_ms = 100000;
    world_init(&world, &options, ranks);
    cr_assert_eq(world_hello(&world, 0), MLA_OK);
    for (uint32_t g = 0; g < groups; g++) {
        struct mla_open_entry entry = {1 + g, 0, ROWS};
        cr_assert_eq(world_open(&world, 0, 1 + g, &entry, 1), MLA_OK);
    }
    world_work(&world, UINT32_MAX);
}

static void tick(uint64_t ns)
{
    world.now_ns += ns;
    mla_core_tick(world.core);
    cr_assert(mla_core_check(world.core));
}

static const struct world_reply *reply(uint32_t back)
{
    return &world.replies[(world.reply_count - 1 - back) % WORLD_REPLIES_MAX];
}

static uint64_t epoch(void)
{
    cr_assert_eq(world_hello(&world, 0), MLA_OK);
    return world_last(&world)->header.epoch;
}

Test(life, a_group_that_hangs_in_a_run_is_given_up_at_the_deadline)
{
    start(2, 2);
    cr_assert_eq(world_run(&world, 0, 1, 3, ROWS, 0), MLA_AGAIN);
    cr_assert_eq(world_run(&world, 0, 1, 4, ROWS, 0), MLA_AGAIN);
    uint32_t before = world.reply_count;
    tick(999 * MS);
    cr_assert_eq(world.reply_count, before);
    tick(1 * MS);
    cr_assert_eq(world.reply_count, before + 2);
    cr_assert_eq(reply(0)->header.status, MLA_DEADLINE);
    cr_assert_eq(reply(1)->header.status, MLA_DEADLINE);
    cr_assert_eq(mla_core_groups_ready(world.core), 1, "the other group had no part in it");
    cr_assert_eq(world.groups_lost, 1);
    cr_assert_eq(world.groups_hung, 1);
    world_work(&world, UINT32_MAX); /* results of what was dismissed */
    cr_assert_eq(world.reply_count, before + 2);
    cr_assert_eq(world.dismissals_seen, 2);
    cr_assert_eq(world.dismissed_status, MLA_DEADLINE);
    cr_assert_eq(world_run(&world, 0, 1, 3, ROWS, 0), MLA_STEP_LOST);
    cr_assert_eq(world_close(&world, 0, 1, MLA_ABORT), MLA_OK);
    cr_assert_eq(world_close(&world, 0, 2, MLA_COMMIT), MLA_OK);
    world_fini(&world);
}

/* One rank answers and the other doesn't: what came counts as movement. */
Test(life, a_group_that_moves_is_not_to_blame_for_a_late_run)
{
    start(1, 2);
    cr_assert_eq(world_run(&world, 0, 1, 3, ROWS, 0), MLA_AGAIN);
    tick(900 * MS);
    world_work(&world, 1); /* of rank 0 alone */
    tick(200 * MS);
    cr_assert_eq(world_last(&world)->header.status, MLA_DEADLINE);
    cr_assert_eq(mla_core_groups_ready(world.core), 1);
    cr_assert_eq(world_close(&world, 0, 1, MLA_ABORT), MLA_STEP_BUSY, "it is still at work");
    uint32_t before = world.reply_count;
    world_work(&world, UINT32_MAX);
    cr_assert_eq(world.reply_count, before, "a RUN is answered once");
    cr_assert_eq(world_close(&world, 0, 1, MLA_ABORT), MLA_OK);
    world_fini(&world);
}

/* Nobody waits for the answer any more, and yet the group hangs. */
Test(life, a_group_that_hangs_in_the_run_of_a_client_that_went_is_given_up)
{
    start(1, 2);
    cr_assert_eq(world_run(&world, 0, 1, 3, ROWS, 0), MLA_AGAIN);
    world_client_gone(&world, 0);
    tick(1000 * MS);
    cr_assert_eq(mla_core_groups_ready(world.core), 0);
    struct mla_stats stats;
    world_stats(&world, &stats);
    cr_assert_eq(stats.clients, 0);
    cr_assert_eq(stats.runs_in_flight, 0);
    world_fini(&world);
}

Test(life, a_run_that_waits_for_credits_can_be_late_too)
{
    start(1, 1);
    for (int i = 0; i < 5; i++) /* credits are 3 */
        cr_assert_eq(world_run(&world, 0, 1, 3, ROWS, 0), MLA_AGAIN);
    tick(900 * MS);
    world_work(&world, 1);
    uint32_t before = world.reply_count;
    tick(100 * MS);
    cr_assert_eq(world.reply_count, before + 4);
    for (uint32_t i = 0; i < 4; i++)
        cr_assert_eq(reply(i)->header.status, MLA_DEADLINE);
    cr_assert_eq(mla_core_groups_ready(world.core), 1);
    world_work(&world, UINT32_MAX);
    cr_assert_eq(world.reply_count, before + 4);
    cr_assert_eq(world_run(&world, 0, 1, 3, ROWS, 0), MLA_AGAIN);
    world_work(&world, UINT32_MAX);
    cr_assert_eq(world_last(&world)->header.status, MLA_OK);
    world_fini(&world);
}

Test(life, heartbeats_are_answered_in_their_epoch_alone)
{
    start(1, 2);
    uint64_t now = epoch();
    world_beat(&world, 0, 1, now);
    world_beat(&world, 0, 1, now - 1);
    world_beat(&world, 0, 2, now);  /* no such rank */
    world_beat(&world, 31, 0, now); /* no such group */
    world_work(&world, UINT32_MAX);
    cr_assert_eq(world.alive_seen, 1);
    /* Dismissal goes over both connections of the rank that has two. */
    world_group_gone(&world, 0);
    world_beat(&world, 0, 1, now);
    world_work(&world, UINT32_MAX);
    cr_assert_eq(world.alive_seen, 1);
    cr_assert_eq(world.dismissals_seen, 3);
    cr_assert_eq(world.groups_hung, 0);
    world_fini(&world);
}

Test(life, a_group_between_adoption_and_readiness_needs_heartbeats_too)
{
    start(1, 2);
    world_group_gone(&world, 0);
    uint32_t joined = world.groups_joined;
    world.mute = true; /* adopted, and never ready */
    world_join(&world, 0, 9);
    cr_assert_eq(world.groups_joined, joined + 1);
    cr_assert_eq(mla_core_groups_ready(world.core), 0);
    uint32_t lost = world.groups_lost;
    tick(100000 * MS);
    cr_assert_eq(world.groups_lost, lost);
    tick(1 * MS);
    cr_assert_eq(world.groups_lost, lost + 1);
    world_fini(&world);
}

/* A rank that was cut off joins again under the same job. */
Test(life, a_job_that_joins_again_gets_a_new_epoch_and_loses_its_sequences)
{
    start(1, 2);
    uint64_t before = epoch();
    cr_assert_eq(world_close(&world, 0, 1, MLA_COMMIT), MLA_OK);
    struct mla_open_entry entry = {1, ROWS, 1};
    cr_assert_eq(world_open(&world, 0, 2, &entry, 1), MLA_OK);
    cr_assert_eq(world_run(&world, 0, 2, 3, 1, 0), MLA_AGAIN);
    world_join(&world, 0, 1000);
    cr_assert_eq(world_last(&world)->header.status, MLA_GROUP_LOST);
    cr_assert_eq(mla_core_groups_ready(world.core), 1);
    cr_assert_gt(epoch(), before);
    cr_assert_eq(world_close(&world, 0, 2, MLA_ABORT), MLA_OK);
    cr_assert_eq(world_open(&world, 0, 3, &entry, 1), MLA_KV_LOST);
    entry = (struct mla_open_entry){1, 0, ROWS};
    cr_assert_eq(world_open(&world, 0, 3, &entry, 1), MLA_OK);
    world_fini(&world);
}

/* Its processes were slow, or cut off, while it was replaced. */
Test(life, an_older_job_that_joins_late_is_dismissed)
{
    start(1, 2);
    uint64_t before = epoch();
    uint32_t lost = world.groups_lost;
    world_join(&world, 0, 999);
    cr_assert_eq(world.dismissals_seen, 2);
    cr_assert_eq(world.dismissed_status, MLA_GROUP_LOST);
    cr_assert_eq(world.groups_lost, lost);
    cr_assert_eq(epoch(), before);
    cr_assert_eq(world_run(&world, 0, 1, 3, ROWS, 0), MLA_AGAIN);
    world_work(&world, UINT32_MAX);
    cr_assert_eq(world_last(&world)->header.status, MLA_OK);
    world_group_gone(&world, 0); /* nobody is in its way now: it is better than none */
    world_join(&world, 0, 999);
    cr_assert_eq(mla_core_groups_ready(world.core), 1);
    world_join(&world, 0, 1001);
    cr_assert_eq(world.groups_lost, lost + 2);
    cr_assert_eq(mla_core_groups_ready(world.core), 1);
    world_fini(&world);
}

/* The others wait for it in their collectives, and answer. */
Test(life, a_rank_that_stops_while_it_loads_is_found)
{
    start(1, 2);
    world_group_gone(&world, 0);
    world_work(&world, UINT32_MAX);
    uint32_t lost = world.groups_lost;
    uint32_t dismissals = world.dismissals_seen;
    world_beat(&world, 0, 0, 0);
    world_beat(&world, 0, 1, 0);
    tick(99999 * MS); /* it takes its time */
    world_beat(&world, 0, 1, 0);
    tick(1 * MS);
    cr_assert_eq(world.groups_lost, lost);
    tick(1 * MS);
    cr_assert_eq(world.groups_lost, lost + 1);
    cr_assert_eq(world.groups_hung, 1);
    world_work(&world, UINT32_MAX);
    cr_assert_eq(world.dismissals_seen, dismissals + 2);
    tick(200000 * MS);
    cr_assert_eq(world.groups_lost, lost + 1, "it is told once");
    world_join(&world, 0, 2000);
    cr_assert_eq(mla_core_groups_ready(world.core), 1);
    tick(99999 * MS);
    cr_assert_eq(mla_core_groups_ready(world.core), 1, "heartbeats of before don't count");
    world_fini(&world);
}

Test(life, a_rank_that_never_joins_is_found)
{
    start(1, 3);
    world_group_gone(&world, 0);
    uint32_t lost = world.groups_lost;
    world.missing = 1;
    world_join(&world, 0, 2000);
    tick(101000 * MS); /* a RUN's time and a silence */
    cr_assert_eq(world.groups_lost, lost);
    world_beat(&world, 0, 2, 0); /* it loads */
    tick(50000 * MS);
    cr_assert_eq(world.groups_lost, lost);
    tick(50001 * MS); /* and stops */
    cr_assert_eq(world.groups_lost, lost + 1);
    world_join(&world, 0, 3000);
    tick(101001 * MS);
    cr_assert_eq(world.groups_lost, lost + 2);
    cr_assert_eq(world.groups_hung, 2);
    world.missing = 0;
    world_join(&world, 0, 4000);
    cr_assert_eq(mla_core_groups_ready(world.core), 1);
    world_fini(&world);
}

Test(life, epochs_go_on_from_the_one_that_was_given)
{
    struct mla_core_options options;
    world_small_options(&options);
    options.epoch = 5000;
    world_init(&world, &options, 1);
    cr_assert_eq(epoch(), 5001);
    world_fini(&world);
}

static uint32_t blocks_total(void)
{
    struct mla_stats stats;
    world_stats(&world, &stats);
    return (uint32_t)stats.blocks_total;
}

Test(life, the_smallest_pool_of_a_group_counts)
{
    struct mla_core_options options;
    world_small_options(&options);
    options.kv_blocks = 0;
    world_init(&world, &options, 3);
    cr_assert_eq(blocks_total(), 64);
    world.pool_blocks[0] = 40;
    world.pool_blocks[1] = 7;
    world_join(&world, 0, 1000);
    cr_assert_eq(mla_core_groups_ready(world.core), 1);
    cr_assert_eq(blocks_total(), 7);
    cr_assert_eq(world_hello(&world, 0), MLA_OK);
    struct mla_open_entry entry = {1, 0, 7 * 64 + 1};
    cr_assert_eq(world_open(&world, 0, 1, &entry, 1), MLA_KV_FULL);
    entry.tokens--;
    cr_assert_eq(world_open(&world, 0, 1, &entry, 1), MLA_OK);
    world_fini(&world);
}

/* As many as were asked for, or a number at all. */
Test(life, a_pool_of_another_size_than_asked_for_is_refused)
{
    for (int i = 0; i < 3; i++) {
        struct mla_core_options options;
        world_small_options(&options);
        options.kv_blocks = i == 0 ? 64 : 0;
        world_init(&world, &options, 2);
        world.pool_blocks[1] = (const uint32_t[]){63, MLA_BLOCKS_MAX + 1, UINT32_MAX}[i];
        world_join(&world, 0, 1000);
        cr_expect_eq(mla_core_groups_ready(world.core), 0);
        cr_expect_eq(world.dismissals_seen, 4, "the first job's, and this one's");
        cr_expect_eq(world.dismissed_status, MLA_GROUP_LOST);
        world_fini(&world);
    }
}

Test(life, an_impossible_cache_is_told_as_a_wrong_option)
{
    struct mla_core_options options;
    world_small_options(&options);
    options.kv_blocks = 65; /* 64 fit */
    world_init(&world, &options, 2);
    world_work(&world, UINT32_MAX);
    cr_assert_eq(mla_core_groups_ready(world.core), 0);
    cr_assert_eq(world.dismissals_seen, 2);
    cr_assert_eq(world.dismissed_status, MLA_OPTION);
    world_fini(&world);
}
