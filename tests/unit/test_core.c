/* The coordinator's state machine against fake workers: order of rows, steps, fairness, loss. */
#include "tests/lib/fake_world.h"

#include <criterion/criterion.h>
#include <stdlib.h>

static struct world world;

static void start(uint32_t groups, uint32_t ranks)
{
    struct mla_core_options options;
    world_small_options(&options);
    options.groups = groups;
    world_init(&world, &options, ranks);
    cr_assert_eq(mla_core_groups_ready(world.core), groups);
}

static void expect_negated(const struct world_reply *reply, uint32_t rows, float base)
{
    cr_assert_eq(reply->header.status, MLA_OK, "%s", reply->sentence);
    cr_assert_eq(reply->rows, rows);
    for (uint32_t i = 0; i < rows; i++)
        cr_assert_float_eq(reply->values[i], -(base + (float)i), 0, "row %u", i);
}

static uint64_t blocks_used(void)
{
    struct mla_stats stats;
    world_stats(&world, &stats);
    cr_assert_eq(stats.blocks_used + stats.blocks_free, stats.blocks_total);
    cr_assert(mla_core_check(world.core));
    return stats.blocks_used;
}

/* A decode among prefills of which one is longer than a microbatch, in every client order. */
Test(core, rows_come_back_in_the_clients_order)
{
    for (uint32_t groups = 1; groups <= 3; groups++) {
        for (uint32_t ranks = 1; ranks <= 4; ranks++) {
            start(groups, ranks);
            cr_assert_eq(world_hello(&world, 0), MLA_OK);
            uint32_t length[5] = {0};
            srand(groups * 10 + ranks);
            for (uint64_t step = 1; step <= 40; step++) {
                struct mla_open_entry entries[5];
                uint32_t rows = 0;
                uint32_t rotate = (uint32_t)rand() % 5;
                for (uint32_t i = 0; i < 5; i++) {
                    uint32_t s = (i + rotate) % 5;
                    uint32_t tokens = rand() % 2 ? 1 : 1 + (uint32_t)rand() % 40;
                    entries[i] = (struct mla_open_entry){s + 100, length[s], tokens};
                    length[s] += tokens;
                    rows += tokens;
                }
                if (world_open(&world, 0, step, entries, 5) == MLA_KV_FULL)
                    break;
                cr_assert_eq(world_last(&world)->header.status, MLA_OK, "%s",
                             world_last(&world)->sentence);
                cr_assert_eq(world_run(&world, 0, step, 3, rows, 7), MLA_AGAIN);
                world_work(&world, UINT32_MAX);
                expect_negated(world_last(&world), rows, 7);
                cr_assert_eq(world_close(&world, 0, step, MLA_COMMIT), MLA_OK);
            }
            world_client_gone(&world, 0);
            cr_assert_eq(blocks_used(), 0);
            world_fini(&world);
        }
    }
}

Test(core, an_empty_half_costs_nothing)
{
    start(1, 2);
    world_hello(&world, 0);
    struct mla_open_entry prompt = {1, 0, 10};
    cr_assert_eq(world_open(&world, 0, 1, &prompt, 1), MLA_OK);
    world_run(&world, 0, 1, 3, 10, 0);
    world_work(&world, UINT32_MAX);
    cr_assert_eq(world.microbatches_seen, 1);
    world_close(&world, 0, 1, MLA_COMMIT);
    struct mla_open_entry token = {1, 10, 1};
    cr_assert_eq(world_open(&world, 0, 2, &token, 1), MLA_OK);
    world_run(&world, 0, 2, 3, 1, 5); /* fewer rows than ranks */
    world_work(&world, UINT32_MAX);
    expect_negated(world_last(&world), 1, 5);
    cr_assert_eq(world.microbatches_seen, 2);
    world_fini(&world);
}

Test(core, decode_goes_before_prefill_and_clients_take_turns)
{
    struct mla_core_options options;
    world_small_options(&options);
    options.credits = 1;
    world_init(&world, &options, 1);
    for (int client = 0; client < 2; client++) {
        world_hello(&world, client);
        struct mla_open_entry prompt = {1, 0, 64}; /* four microbatches */
        cr_assert_eq(world_open(&world, client, 1, &prompt, 1), MLA_OK);
        struct mla_open_entry token = {2, 0, 1};
        cr_assert_eq(world_open(&world, client, 2, &token, 1), MLA_OK);
    }
    /* Client 0's two RUNs of layer 3 come first; client 1's of layer 4 must not wait for all of
     * them. */
    world_run(&world, 0, 1, 3, 64, 0);
    world_run(&world, 0, 2, 3, 1, 100);
    world_run(&world, 1, 1, 4, 64, 0);
    world_run(&world, 1, 2, 4, 1, 100);
    world_work(&world, UINT32_MAX);
    cr_assert_eq(world.works_count, 10);
    const uint64_t expected[10] = {3, 4, 3, 4, 3, 4, 3, 4, 3, 4};
    for (int i = 0; i < 10; i++)
        cr_assert_eq(world.works_order[i], expected[i], "dispatch %d", i);
    /* decode of each client second: after the prefill microbatch that was already out */
    cr_assert_eq(world.reply_count, 2u + 4u + 4u);
    cr_assert_eq(world.replies[6].header.request_id, 204, "client 1's decode is answered first");
    cr_assert_eq(world.replies[7].header.request_id, 203);
    world_fini(&world);
}

Test(core, requests_beyond_the_bound_are_busy_and_change_nothing)
{
    start(1, 1);
    world_hello(&world, 0);
    struct mla_open_entry entry = {1, 0, 4};
    cr_assert_eq(world_open(&world, 0, 1, &entry, 1), MLA_OK);
    for (int i = 0; i < 8; i++)
        cr_assert_eq(world_run(&world, 0, 1, 3, 4, (float)i), MLA_AGAIN);
    cr_assert_eq(world_run(&world, 0, 1, 3, 4, 9), MLA_BUSY);
    uint32_t before = world.reply_count;
    world_work(&world, UINT32_MAX);
    cr_assert_eq(world.reply_count - before, 8);
    for (uint32_t i = 0; i < 8; i++)
        expect_negated(&world.replies[before + i], 4, (float)i);
    cr_assert_eq(world_run(&world, 0, 1, 3, 4, 9), MLA_AGAIN);
    world_work(&world, UINT32_MAX);
    expect_negated(world_last(&world), 4, 9);

    for (uint64_t step = 2; step <= 4; step++) {
        entry.sequence = step;
        cr_assert_eq(world_open(&world, 0, step, &entry, 1), MLA_OK);
    }
    entry.sequence = 5;
    uint64_t used = blocks_used();
    cr_assert_eq(world_open(&world, 0, 5, &entry, 1), MLA_BUSY);
    cr_assert_eq(blocks_used(), used);
    cr_assert_eq(world_close(&world, 0, 2, MLA_ABORT), MLA_OK);
    cr_assert_eq(world_open(&world, 0, 5, &entry, 1), MLA_OK);
    world_fini(&world);
}

Test(core, kv_full_changes_nothing)
{
    start(1, 1);
    world_hello(&world, 0);
    struct mla_open_entry entries[3] = {{1, 0, 500}, {2, 0, 6}, {3, 0, 6}};
    for (uint64_t step = 1; step <= 7; step++) {
        entries[0].sequence = step;
        cr_assert_eq(world_open(&world, 0, step, entries, 1), MLA_OK);
        cr_assert_eq(world_close(&world, 0, step, MLA_COMMIT), MLA_OK);
    }
    cr_assert_eq(blocks_used(), 56);
    struct mla_open_entry more[3] = {{20, 0, 100}, {21, 0, 128}, {22, 0, 270}};
    struct mla_stats before;
    world_stats(&world, &before);
    cr_assert_eq(world_open(&world, 0, 9, more, 3), MLA_KV_FULL);
    cr_assert_eq(world_last(&world)->header.index, 2);
    cr_assert_eq(blocks_used(), 56);
    struct mla_stats after;
    world_stats(&world, &after);
    cr_assert_eq(after.sequences, before.sequences);
    more[2].tokens = 256;
    cr_assert_eq(world_open(&world, 0, 9, more, 3), MLA_OK);
    cr_assert_eq(blocks_used(), 64);
    world_fini(&world);
}

Test(core, a_client_that_goes_costs_only_itself)
{
    start(1, 2);
    for (int client = 0; client < 2; client++) {
        world_hello(&world, client);
        struct mla_open_entry entry = {1, 0, 70};
        cr_assert_eq(world_open(&world, client, 1, &entry, 1), MLA_OK);
        cr_assert_eq(world_run(&world, client, 1, 3, 70, (float)client), MLA_AGAIN);
    }
    cr_assert_eq(blocks_used(), 4);
    world_work(&world, 3); /* in the middle of it */
    world_client_gone(&world, 0);
    world_work(&world, UINT32_MAX);
    expect_negated(world_last(&world), 70, 1);
    cr_assert_eq(world_last(&world)->client, 1);
    cr_assert_eq(blocks_used(), 2);
    cr_assert_eq(world_hello(&world, 0), MLA_OK); /* the same descriptor, a new client */
    struct mla_open_entry entry = {1, 0, 1};
    cr_assert_eq(world_open(&world, 0, 1, &entry, 1), MLA_OK);
    world_fini(&world);
}

Test(core, a_client_that_does_not_read_is_dropped_alone)
{
    start(1, 1);
    world_hello(&world, 0);
    world_hello(&world, 1);
    struct mla_open_entry entry = {1, 0, 70};
    cr_assert_eq(world_open(&world, 0, 1, &entry, 1), MLA_OK);
    cr_assert_eq(world_open(&world, 1, 1, &entry, 1), MLA_OK);
    world.refuse_client[0] = true;
    cr_assert_eq(world_run(&world, 0, 1, 3, 70, 0), MLA_AGAIN);
    cr_assert_eq(world_run(&world, 1, 1, 3, 70, 5), MLA_AGAIN);
    world_work(&world, UINT32_MAX);
    expect_negated(world_last(&world), 70, 5);
    cr_assert_eq(blocks_used(), 2);
    world_fini(&world);
}

Test(core, a_lost_group_takes_only_its_own_along)
{
    start(2, 2);
    world_hello(&world, 0);
    /* One sequence in each group: the second goes where more blocks are free. */
    struct mla_open_entry entries[2] = {{1, 0, 70}, {2, 0, 70}};
    cr_assert_eq(world_open(&world, 0, 1, &entries[0], 1), MLA_OK);
    cr_assert_eq(world_open(&world, 0, 2, &entries[1], 1), MLA_OK);
    cr_assert_eq(world_run(&world, 0, 1, 3, 70, 0), MLA_AGAIN);
    cr_assert_eq(world_run(&world, 0, 2, 3, 70, 1), MLA_AGAIN);
    uint32_t before = world.reply_count;
    world_group_gone(&world, 0);
    cr_assert_eq(world.reply_count, before + 1, "the error comes at once");
    cr_assert_eq(world_last(&world)->header.status, MLA_GROUP_LOST);
    cr_assert_eq(world_last(&world)->header.request_id, 103);
    world_work(&world, UINT32_MAX);
    expect_negated(world_last(&world), 70, 1);

    cr_assert_eq(world_run(&world, 0, 1, 3, 70, 0), MLA_STEP_LOST);
    cr_assert_eq(world_close(&world, 0, 1, MLA_COMMIT), MLA_STEP_LOST);
    cr_assert_eq(world_close(&world, 0, 1, MLA_ABORT), MLA_OK);
    cr_assert_eq(world_close(&world, 0, 2, MLA_COMMIT), MLA_OK);
    entries[0].start = 70;
    cr_assert_eq(world_open(&world, 0, 3, &entries[0], 1), MLA_KV_LOST);
    uint64_t epoch = world_last(&world)->header.epoch;
    world_join(&world, 0, 77);
    cr_assert_eq(mla_core_groups_ready(world.core), 2);
    entries[0].start = 0;
    cr_assert_eq(world_open(&world, 0, 3, &entries[0], 1), MLA_OK);
    cr_assert_gt(world_last(&world)->header.epoch, epoch);
    cr_assert_eq(world_run(&world, 0, 3, 4, 70, 2), MLA_AGAIN);
    world_work(&world, UINT32_MAX);
    expect_negated(world_last(&world), 70, 2);
    world_client_gone(&world, 0);
    cr_assert_eq(blocks_used(), 0);
    world_fini(&world);
}

Test(core, a_group_without_heartbeat_is_lost)
{
    start(1, 2);
    world_hello(&world, 0);
    world.now_ns += 1700000000u;
    mla_core_tick(world.core);
    cr_assert_eq(mla_core_groups_ready(world.core), 1);
    world.now_ns += 200000000u;
    mla_core_tick(world.core);
    cr_assert_eq(mla_core_groups_ready(world.core), 0);
    struct mla_open_entry entry = {1, 0, 1};
    cr_assert_eq(world_open(&world, 0, 1, &entry, 1), MLA_NOT_READY);
    world_fini(&world);
}

Test(core, results_of_an_old_epoch_are_dropped)
{
    start(1, 1);
    world_hello(&world, 0);
    struct mla_open_entry entry = {1, 0, 4};
    world_open(&world, 0, 1, &entry, 1);
    world_run(&world, 0, 1, 3, 4, 0); /* stays unanswered in the workers' queue */
    struct world_work *old = world.first;
    struct world_work *old_last = world.last;
    world.first = world.last = NULL;
    world_join(&world, 0, 2000); /* another job in its place */
    cr_assert_eq(world_last(&world)->header.status, MLA_GROUP_LOST);
    world_close(&world, 0, 1, MLA_ABORT);
    world_open(&world, 0, 2, &entry, 1);
    world_work(&world, UINT32_MAX);
    uint32_t replies = world.reply_count;
    world.first = old;
    world.last = old_last;
    world_work(&world, UINT32_MAX);
    cr_assert_eq(world.reply_count, replies);
    cr_assert_eq(mla_core_groups_ready(world.core), 1);
    world_fini(&world);
}

Test(core, padding_reaches_the_workers_when_asked_for)
{
    struct mla_core_options options;
    world_small_options(&options);
    options.pad_to_bucket = true;
    world_init(&world, &options, 2);
    world_hello(&world, 0);
    struct mla_open_entry entry = {1, 0, 1};
    world_open(&world, 0, 1, &entry, 1);
    world_run(&world, 0, 1, 3, 1, 3);
    world_work(&world, UINT32_MAX);
    expect_negated(world_last(&world), 1, 3);
    cr_assert_eq(world.padded_rows_seen, 2 * 3); /* bucket of 4, both ranks are told */
    world_fini(&world);
}

/* The descriptor of a client that went is taken by another before its end is told. */
Test(core, a_late_end_is_not_taken_for_the_next_clients)
{
    start(1, 1);
    world_hello(&world, 0);
    struct mla_open_entry entry = {1, 0, 70};
    cr_assert_eq(world_open(&world, 0, 1, &entry, 1), MLA_OK);
    world.generation[0]++;
    cr_assert_eq(world_open(&world, 0, 1, &entry, 1), MLA_HELLO_REQUIRED);
    cr_assert_eq(blocks_used(), 0);
    cr_assert_eq(world_hello(&world, 0), MLA_OK);
    cr_assert_eq(world_open(&world, 0, 1, &entry, 1), MLA_OK);
    world_generation_gone(&world, 0, 0);
    cr_assert_eq(blocks_used(), 2);
    world_client_gone(&world, 0);
    cr_assert_eq(blocks_used(), 0);
    world_fini(&world);
}

/* A connection that never said anything ends after another client has its descriptor. */
Test(core, the_end_of_a_silent_connection_is_nobodys)
{
    start(1, 1);
    world.generation[0] = 1;
    world_hello(&world, 0);
    struct mla_open_entry entry = {1, 0, 70};
    cr_assert_eq(world_open(&world, 0, 1, &entry, 1), MLA_OK);
    world_generation_gone(&world, 0, 0);
    cr_assert_eq(blocks_used(), 2);
    cr_assert_eq(world_close(&world, 0, 1, MLA_COMMIT), MLA_OK);
    world_fini(&world);
}

Test(core, shutdown_tells_the_workers_and_leaves_the_rest)
{
    start(1, 2);
    world_hello(&world, 0);
    struct mla_open_entry entry = {1, 0, 4};
    world_open(&world, 0, 1, &entry, 1);
    world_work(&world, UINT32_MAX);
    cr_assert_eq(mla_core_shutdown(world.core), 2);
    cr_assert(mla_core_check(world.core));
    world_work(&world, UINT32_MAX);
    cr_assert_eq(world.shutdowns_seen, 2);
    world_fini(&world);
}

Test(core, a_result_that_comes_twice_ends_the_group)
{
    start(1, 2);
    world_hello(&world, 0);
    struct mla_open_entry entry = {1, 0, 4};
    world_open(&world, 0, 1, &entry, 1);
    world_run(&world, 0, 1, 3, 4, 0);
    world.repeat_done = true;
    uint32_t replies = world.reply_count;
    world_work(&world, UINT32_MAX);
    cr_assert_eq(mla_core_groups_ready(world.core), 0);
    cr_assert_eq(world.reply_count, replies + 1);
    cr_assert_eq(world_last(&world)->header.status, MLA_GROUP_LOST);
    cr_assert(mla_core_check(world.core));
    world_fini(&world);
}

/* Two forks that share a partial block write in one step that fails: the block is shared again. */
Test(core, a_failed_open_takes_copies_on_write_back)
{
    start(1, 1);
    world_hello(&world, 0);
    struct mla_open_entry entry = {1, 0, 10};
    world_open(&world, 0, 1, &entry, 1);
    world_close(&world, 0, 1, MLA_COMMIT);
    static struct mla_message fork = {.header = {.type = MLA_FORK}};
    fork.u.fork.count = 2;
    fork.u.fork.entries[0] = (struct mla_fork_entry){1, 2, 10};
    fork.u.fork.entries[1] = (struct mla_fork_entry){1, 3, 9};
    cr_assert_eq(world_send(&world, 0, &fork, NULL, 0)->header.status, MLA_OK);
    struct mla_open_entry filler = {9, 0, 60 * 8};
    for (uint64_t step = 2; step <= 9; step++, filler.sequence++) {
        cr_assert_eq(world_open(&world, 0, step, &filler, 1), MLA_OK);
        cr_assert_eq(world_close(&world, 0, step, MLA_COMMIT), MLA_OK);
        if (blocks_used() > 56)
            break;
    }
    uint64_t used = blocks_used();
    struct mla_open_entry entries[4] = {{1, 10, 1}, {2, 10, 1}, {3, 9, 1}, {99, 0, 500}};
    cr_assert_eq(world_open(&world, 0, 20, entries, 4), MLA_KV_FULL);
    cr_assert_eq(blocks_used(), used);
    cr_assert_eq(world_open(&world, 0, 20, entries, 3), MLA_OK);
    cr_assert_eq(blocks_used(), used + 2, "two of the three get a block of their own");
    cr_assert_eq(world_close(&world, 0, 20, MLA_COMMIT), MLA_OK);
    world_client_gone(&world, 0);
    cr_assert_eq(blocks_used(), 0);
    world_fini(&world);
}

/* Clients that do anything in any order; after every message the books must balance. */
Test(core, survives_a_storm_of_requests)
{
    start(2, 3);
    srand(5);
    for (int i = 0; i < 20000; i++) {
        int client = rand() % 3;
        uint64_t step = (uint64_t)(rand() % 5);
        struct mla_open_entry entries[3] = {0};
        uint32_t count = 1 + (uint32_t)rand() % 3;
        uint64_t ids[3];
        for (uint32_t k = 0; k < count; k++) {
            entries[k] = (struct mla_open_entry){(uint64_t)(rand() % 9),
                                                 rand() % 3 ? 0 : (uint32_t)rand() % 90,
                                                 (uint32_t)rand() % 90};
            ids[k] = (uint64_t)(rand() % 9);
        }
        switch (rand() % 12) {
        case 0:
            world_hello(&world, client);
            break;
        case 1:
        case 2:
        case 3:
            world_open(&world, client, step, entries, count);
            break;
        case 4:
        case 5:
            world_run(&world, client, step, 3, entries[0].tokens + entries[0].start, 0);
            break;
        case 6:
            world_close(&world, client, step, rand() % 2 ? MLA_COMMIT : MLA_ABORT);
            break;
        case 7:
            world_free(&world, client, ids, count);
            break;
        case 8:
            if (rand() % 20 == 0)
                world_client_gone(&world, client);
            break;
        case 9:
            if (rand() % 100 == 0) {
                world_group_gone(&world, (uint32_t)rand() % 2);
                world_work(&world, UINT32_MAX);
                world_join(&world, 0, 2000u + (uint64_t)i);
                world_join(&world, 1, 2000u + (uint64_t)i);
            }
            break;
        default:
            world_work(&world, (uint32_t)rand() % 10);
        }
        cr_assert(mla_core_check(world.core), "after event %d", i);
    }
    for (int client = 0; client < 3; client++)
        world_client_gone(&world, client);
    world_work(&world, UINT32_MAX);
    struct mla_stats stats;
    world_stats(&world, &stats);
    cr_assert_eq(stats.runs_in_flight, 0);
    cr_assert_eq(stats.steps_open, 0);
    cr_assert_eq(stats.sequences, 0);
    cr_assert_eq(stats.clients, 0);
    cr_assert_eq(blocks_used(), 0);
    world_fini(&world);
}

/* Linked with --wrap: the core's own calls of malloc and its like are counted. */
Test(core, allocates_nothing_per_run)
{
    start(1, 2);
    world_hello(&world, 0);
    struct mla_open_entry entries[2] = {{1, 0, 40}, {2, 0, 1}}; /* rows have to be copied */
    cr_assert_eq(world_open(&world, 0, 1, entries, 2), MLA_OK);
    for (int i = 0; i < 10; i++) {
        world_run(&world, 0, 1, 3, 41, 0);
        world_work(&world, UINT32_MAX);
    }
    cr_assert_gt(world.counted_allocations, 0, "the counter counts");
    uint64_t before = world.counted_allocations;
    struct mla_stats stats;
    world_stats(&world, &stats);
    uint64_t heap_bytes = stats.heap_bytes;
    for (int i = 0; i < 100000; i++) {
        world_run(&world, 0, 1, 3 + (uint32_t)i % 2, 41, 0);
        world_work(&world, UINT32_MAX);
    }
    expect_negated(world_last(&world), 41, 0);
    cr_assert_eq(world.counted_allocations, before);
    world_stats(&world, &stats);
    cr_assert_eq(stats.heap_bytes, heap_bytes);
    world_fini(&world);
}
