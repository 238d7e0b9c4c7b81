/* Payloads in shared memory, as the coordinator sees them: whose region, which place, which
 * workers have it, and when it goes. */
#include "tests/lib/fake_world.h"

#include <criterion/criterion.h>
#include <stdlib.h>

enum { ROW = WORLD_HIDDEN * sizeof(float), OUT = 32 * 1024 };

static const uint64_t REGION = 65536;

static struct world world;

static void start_with(uint32_t groups, uint32_t ranks, uint64_t region_bytes_max)
{
    struct mla_core_options options;
    world_small_options(&options);
    options.groups = groups;
    options.region_bytes_max = region_bytes_max;
    world_init(&world, &options, ranks);
    cr_assert_eq(mla_core_groups_ready(world.core), groups);
    cr_assert_eq(world_hello(&world, 0), MLA_OK);
    cr_assert_eq(world_hello(&world, 1), MLA_OK);
}

static void start(uint32_t groups, uint32_t ranks)
{
    start_with(groups, ranks, 2 * REGION);
}

/* The client's region. */
static uint64_t share(int client)
{
    cr_assert_eq(world_share(&world, client, REGION), MLA_AGAIN);
    world_work(&world, UINT32_MAX);
    cr_assert_eq(world_last(&world)->header.status, MLA_OK, "%s", world_last(&world)->sentence);
    cr_assert_eq(world_last(&world)->header.type, MLA_SHARE | MLA_REPLY);
    cr_assert_eq(world_last(&world)->header.request_id, 5);
    return world.regions_made;
}

static void check(void)
{
    cr_assert(mla_core_check(world.core));
}

static float *row(uint64_t region, uint64_t at, uint32_t i)
{
    return (float *)(void *)(world.memory[region % 64] + at + (size_t)i * ROW);
}

/* A RUN whose rows must all come back to their places, and nothing else change. */
static void run_and_compare(int client, uint64_t step, uint32_t rows, uint64_t region, uint64_t in,
                            uint64_t out)
{
    struct mla_run_place place = {region, in, out};
    memset(world.memory[region % 64], 0, REGION);
    for (uint32_t i = 0; i < rows; i++)
        for (int k = 0; k < WORLD_HIDDEN; k++)
            row(region, in, i)[k] = (float)(7 + i);
    const struct world_reply *reply = world_run_at(&world, client, step, 3, rows, &place);
    cr_assert_null(reply, "%s", reply ? reply->sentence : "");
    world_work(&world, UINT32_MAX);
    reply = world_last(&world);
    cr_assert_eq(reply->header.status, MLA_OK, "%s", reply->sentence);
    cr_assert_eq(reply->header.payload_bytes, 0);
    for (uint32_t i = 0; i < rows; i++)
        for (int k = 0; k < WORLD_HIDDEN; k++)
            cr_assert_float_eq(row(region, out, i)[k], -(float)(7 + i), 0, "row %u", i);
    cr_assert_eq(*row(region, out, rows), 0, "the row behind the last");
}

/* A decode among prefills longer than a microbatch, in every order, in one and several ranks. The
 * fake workers keep one plan, so there is one group. */
Test(regions, rows_are_where_the_client_has_them)
{
    for (uint32_t ranks = 1; ranks <= 4; ranks++) {
        start(1, ranks);
        uint64_t region = share(0);
        uint32_t length[5] = {0};
        srand(ranks);
        for (uint64_t step = 1; step <= 30; step++) {
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
            world_work(&world, UINT32_MAX);
            run_and_compare(0, step, rows, region, 16 * (step % 3), OUT + 16 * (step % 5));
            run_and_compare(0, step, rows, region, OUT, 0); /* again, and elsewhere */
            cr_assert_eq(world_close(&world, 0, step, MLA_COMMIT), MLA_OK);
            check();
        }
        struct mla_stats stats;
        world_stats(&world, &stats);
        cr_assert_eq(stats.bytes_copied, 0);
        cr_assert_gt(stats.bytes_in, 0);
        world_client_gone(&world, 0);
        world_work(&world, UINT32_MAX);
        cr_assert_eq(world.detached[region % 64], ranks);
        world_fini(&world);
    }
}

static void open_step(int client, uint64_t step, uint32_t tokens)
{
    struct mla_open_entry entry = {step, 0, tokens};
    cr_assert_eq(world_open(&world, client, step, &entry, 1), MLA_OK);
    world_work(&world, UINT32_MAX);
}

/* Clients with a region and without in one service, even of one client. */
Test(regions, inline_and_shared_payloads_mix)
{
    start(1, 2);
    uint64_t region = share(0);
    open_step(1, 2, 5);
    open_step(0, 1, 5);
    for (int i = 0; i < 10; i++) {
        cr_assert_eq(world_run(&world, 1, 2, 3, 5, 40), MLA_AGAIN);
        world_work(&world, UINT32_MAX);
        cr_assert_eq(world_last(&world)->rows, 5);
        cr_assert_float_eq(world_last(&world)->values[4], -44, 0);
        run_and_compare(0, 1, 5, region, 0, OUT);
        cr_assert_eq(world_run(&world, 0, 1, 3, 5, 60), MLA_AGAIN);
        world_work(&world, UINT32_MAX);
        cr_assert_float_eq(world_last(&world)->values[4], -64, 0);
        check();
    }
    world_fini(&world);
}

static void refused(const struct world_reply *reply, enum mla_status status)
{
    cr_assert_not_null(reply);
    cr_assert_eq(reply->header.status, status, "%s: %s",
                 mla_status_name((enum mla_status)reply->header.status), reply->sentence);
    cr_assert_gt(strlen(reply->sentence), 5);
    check();
}

Test(regions, places_outside_the_region_are_refused)
{
    start(1, 2);
    uint64_t region = share(0);
    open_step(0, 1, 4);
    const uint64_t bytes = 4ull * ROW;
    const struct mla_run_place wrong[] = {
        {region, REGION - bytes + 16, 0}, /* one row too far */
        {region, 0, REGION - bytes + 16},
        {region, REGION, 0},
        {region, 0, REGION + 16},
        {region, UINT64_MAX - 15, 0}, /* wraps */
        {region, 0, UINT64_MAX - 15},
        {region, UINT64_MAX - bytes + 1, 0},
        {region, 8, OUT}, /* not aligned */
        {region, 0, OUT + 1},
        {region, 0, 0}, /* overlap */
        {region, 0, bytes - 16},
        {region, OUT + bytes - 16, OUT},
        {region + 1, 0, OUT}, /* no such region */
        {0, 0, OUT},
        {UINT64_MAX, 0, OUT},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        refused(world_run_at(&world, 0, 1, 3, 4, &wrong[i]), MLA_REGION);
    struct mla_run_place last = {region, REGION - bytes, 0};
    refused(world_run_at(&world, 0, 1, 3, 3, &last), MLA_COUNT);
    run_and_compare(0, 1, 4, region, 0, REGION - bytes - ROW);
    run_and_compare(0, 1, 4, region, bytes + ROW, 0);
    world_fini(&world);
}

Test(regions, another_clients_region_is_not_mine)
{
    start(1, 1);
    uint64_t mine = share(0);
    uint64_t other = share(1);
    cr_assert_neq(mine, other);
    open_step(0, 1, 4);
    refused(world_run_at(&world, 0, 1, 3, 4, &(struct mla_run_place){other, 0, OUT}), MLA_REGION);
    world_client_gone(&world, 1);
    world_work(&world, UINT32_MAX);
    refused(world_run_at(&world, 0, 1, 3, 4, &(struct mla_run_place){other, 0, OUT}), MLA_REGION);
    cr_assert_eq(world_hello(&world, 1), MLA_OK); /* the same descriptor, another client */
    open_step(1, 2, 4);
    refused(world_run_at(&world, 1, 2, 3, 4, &(struct mla_run_place){other, 0, OUT}), MLA_REGION);
    run_and_compare(0, 1, 4, mine, 0, OUT);
    world_fini(&world);
}

Test(regions, sizes_are_bounded_over_all_clients)
{
    start(1, 1);
    cr_assert_eq(world_share(&world, 0, 2 * REGION + 1), MLA_LIMIT);
    cr_assert_eq(world_share(&world, 0, UINT64_MAX), MLA_LIMIT);
    uint64_t region = share(0);
    cr_assert_eq(world_share(&world, 0, 16), MLA_REGION, "one for each client");
    cr_assert_eq(world_share(&world, 1, REGION + 1), MLA_BUSY);
    world.refuse_region = true;
    cr_assert_eq(world_share(&world, 1, REGION), MLA_NOT_SHARED);
    world.refuse_region = false;
    check();
    cr_assert_eq(world_share(&world, 0, 0), MLA_OK, "given back");
    world_work(&world, UINT32_MAX);
    cr_assert_eq(world.detached[region % 64], 1);
    cr_assert_eq(world_share(&world, 0, 0), MLA_OK, "there is none, and none to give back");
    open_step(0, 1, 4);
    refused(world_run_at(&world, 0, 1, 3, 4, &(struct mla_run_place){region, 0, OUT}), MLA_REGION);
    cr_assert_eq(world_share(&world, 1, 2 * REGION), MLA_AGAIN);
    cr_assert_eq(world_share(&world, 1, 16), MLA_BUSY, "the first is not there yet");
    world_client_gone(&world, 1); /* nor will it be */
    world_work(&world, UINT32_MAX);
    check();
    (void)share(0);
    world_fini(&world);
    start_with(1, 1, 0);
    cr_assert_eq(world_share(&world, 0, 16), MLA_NOT_SHARED);
    world_fini(&world);
}

Test(regions, one_rank_that_cannot_map_it_means_inline)
{
    start(2, 2);
    world.refuse_attach[1] = true;
    cr_assert_eq(world_share(&world, 0, REGION), MLA_AGAIN);
    world_work(&world, UINT32_MAX);
    refused(world_last(&world), MLA_NOT_SHARED);
    cr_assert_eq(world.regions_removed, 1);
    world_work(&world, UINT32_MAX);
    cr_assert_eq(world.detached[1], 4);
    world.refuse_attach[1] = false;
    (void)share(0);
    world_fini(&world);
}

/* RUNs with frames go on while the workers are asked, and have nothing to do with the answer. */
Test(regions, one_that_is_refused_under_a_run)
{
    start(1, 1);
    open_step(0, 1, 4);
    world.refuse_attach[0] = true;
    cr_assert_eq(world_share(&world, 0, REGION), MLA_AGAIN);
    cr_assert_eq(world_run(&world, 0, 1, 3, 4, 1), MLA_AGAIN);
    cr_assert_eq(world_run(&world, 0, 1, 4, 4, 1), MLA_AGAIN);
    uint32_t replies = world.reply_count;
    while (world.reply_count == replies)
        world_work(&world, 1);
    cr_assert_eq(world.replies[replies].header.status, MLA_NOT_SHARED);
    check();
    world_work(&world, UINT32_MAX);
    cr_assert_eq(world.reply_count, replies + 3);
    cr_assert_float_eq(world_last(&world)->values[3], -4, 0);
    world_fini(&world);
}

/* A group that joins later is told of the regions there are; until it has them RUNs that need it
 * are refused, and the client sends them inline. */
Test(regions, a_new_group_maps_what_there_is)
{
    start(1, 2);
    uint64_t region = share(0);
    world_group_gone(&world, 0);
    check();
    world_join(&world, 0, 4711); /* it works through all that it is sent */
    cr_assert_eq(world.attached[region % 64], 4);
    open_step(0, 1, 4);
    run_and_compare(0, 1, 4, region, 0, OUT);

    world_group_gone(&world, 0);
    world.refuse_attach[0] = true;
    world_join(&world, 0, 4712);
    open_step(0, 2, 4);
    refused(world_run_at(&world, 0, 2, 3, 4, &(struct mla_run_place){region, 0, OUT}),
            MLA_NOT_SHARED);
    cr_assert_eq(world_run(&world, 0, 2, 3, 4, 1), MLA_AGAIN);
    world_work(&world, UINT32_MAX);
    cr_assert_float_eq(world_last(&world)->values[3], -4, 0);
    world_fini(&world);
}

Test(regions, a_group_that_dies_while_it_is_asked_is_not_waited_for)
{
    start(2, 2);
    cr_assert_eq(world_share(&world, 0, REGION), MLA_AGAIN);
    world_group_gone(&world, 0);
    world_work(&world, UINT32_MAX);
    cr_assert_eq(world_last(&world)->header.status, MLA_OK, "%s", world_last(&world)->sentence);
    check();
    cr_assert_eq(world_share(&world, 1, REGION), MLA_AGAIN);
    world_group_gone(&world, 1);
    cr_assert_eq(world_last(&world)->header.type, MLA_SHARE | MLA_REPLY);
    check();
    world_work(&world, UINT32_MAX);
    cr_assert_eq(world_hello(&world, 2), MLA_NOT_READY);
    world_fini(&world);
}

/* The region stays until the workers have returned what was at work. */
Test(regions, a_client_that_goes_in_the_middle_of_a_run)
{
    start(1, 2);
    uint64_t region = share(0);
    open_step(0, 1, 70);
    open_step(1, 2, 4);
    struct mla_run_place place = {region, 0, OUT};
    cr_assert_null(world_run_at(&world, 0, 1, 3, 70, &place));
    cr_assert_eq(world_share(&world, 0, 0), MLA_BUSY, "not while a RUN is in flight");
    world_work(&world, 1);
    world_client_gone(&world, 0);
    cr_assert_eq(world.regions_removed, 0, "one rank is still at it");
    world_work(&world, UINT32_MAX);
    cr_assert_eq(world.regions_removed, 1);
    cr_assert_eq(world.detached[region % 64], 2);
    check();
    cr_assert_eq(world_run(&world, 1, 2, 3, 4, 1), MLA_AGAIN);
    world_work(&world, UINT32_MAX);
    cr_assert_eq(world_last(&world)->header.status, MLA_OK);
    world_fini(&world);
}

/* A rank that answers for a region nobody asked it about is not believed. */
Test(regions, nothing_leaks_over_many_clients)
{
    start(2, 2);
    for (int i = 0; i < 1000; i++) {
        cr_assert_eq(world_hello(&world, 5), MLA_OK);
        cr_assert_eq(world_share(&world, 5, REGION), MLA_AGAIN);
        if (i % 3)
            world_work(&world, (uint32_t)i % 5);
        world_client_gone(&world, 5);
        if (i % 2)
            world_work(&world, UINT32_MAX);
        check();
    }
    world_work(&world, UINT32_MAX);
    cr_assert_eq(world.regions_made, 1000);
    cr_assert_eq(world.regions_removed, 1000);
    world_fini(&world);
}

/* Linked with --wrap: the core's own calls of malloc and its like are counted. */
Test(regions, allocate_nothing_per_run)
{
    start(1, 2);
    uint64_t region = share(0);
    struct mla_open_entry entries[2] = {{1, 0, 40}, {2, 0, 1}};
    cr_assert_eq(world_open(&world, 0, 1, entries, 2), MLA_OK);
    struct mla_run_place place = {region, 0, OUT};
    uint64_t before = world.counted_allocations;
    for (int i = 0; i < 100000; i++) {
        (void)world_run_at(&world, 0, 1, 3 + (uint32_t)i % 2, 41, &place);
        world_work(&world, UINT32_MAX);
    }
    cr_assert_eq(world_last(&world)->header.status, MLA_OK);
    cr_assert_eq(world.counted_allocations, before);
    struct mla_stats stats;
    world_stats(&world, &stats);
    cr_assert_eq(stats.heap_bytes, 0);
    world_fini(&world);
}
