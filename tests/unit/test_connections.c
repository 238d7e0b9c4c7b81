/* Numbers of connections, whatever order messages and news of them come in. */
#include "comm/connections.h"

#include <criterion/criterion.h>

static struct mla_connections *connections;

static void setup(void)
{
    cr_assert_eq(mla_connections_create(&connections), MLA_OK);
}

static void teardown(void)
{
    mla_connections_destroy(&connections);
}

TestSuite(connections, .init = setup, .fini = teardown);

static void accepted(int fd)
{
    cr_assert_eq(mla_connections_reserve(connections), MLA_OK);
    mla_connections_accepted(connections, fd);
}

static void closed(int fd)
{
    cr_assert_eq(mla_connections_reserve(connections), MLA_OK);
    mla_connections_closed(connections, fd);
}

/* A message of the peer that the ROUTER counted as `count`th; 0: of one that has ended. */
static uint64_t message(int fd, uint8_t count)
{
    struct mla_peer peer = {.size = 5, .id = {0, 255, 255, 255, count}, .fd = fd};
    return mla_connections_number(connections, &peer) ? peer.number : 0;
}

static uint64_t chosen(int fd, char name)
{
    struct mla_peer peer = {.size = 1, .id = {(uint8_t)name}, .fd = fd};
    return mla_connections_number(connections, &peer) ? peer.number : 0;
}

static uint64_t ended(void)
{
    int fd = -1;
    uint64_t number = 0;
    return mla_connections_next_ended(connections, &fd, &number) ? number : 0;
}

Test(connections, have_numbers_of_their_own)
{
    accepted(7);
    accepted(8);
    cr_expect_eq(message(7, 1), 1);
    cr_expect_eq(message(8, 2), 2);
    cr_expect_eq(message(7, 1), 1);
    closed(7);
    cr_expect_eq(ended(), 1);
    cr_expect_eq(ended(), 0);
    accepted(7);
    cr_expect_eq(message(7, 3), 3);
    cr_expect_eq(message(8, 2), 2);
}

Test(connections, a_silent_end_is_told_with_its_own_number)
{
    accepted(7);
    closed(7);
    accepted(7);
    cr_expect_eq(message(7, 2), 2);
    cr_expect_eq(ended(), 1);
    cr_expect_eq(ended(), 0);
}

Test(connections, what_comes_after_the_end_is_from_nobody)
{
    accepted(7);
    cr_expect_eq(message(7, 1), 1);
    closed(7);
    cr_expect_eq(message(7, 1), 0);
    cr_expect_eq(message(9, 1), 0, "was never accepted");
    cr_expect_eq(message(-1, 1), 0);
    cr_expect_eq(message((int)MLA_CONNECTION_FDS_MAX, 1), 0);
}

/* A message of a connection that has ended is read when the next one is there. */
Test(connections, the_newer_of_two_at_a_descriptor_stays)
{
    accepted(7);
    closed(7);
    accepted(7);
    cr_expect_eq(ended(), 1);
    cr_expect_eq(message(7, 1), 2, "nothing tells it from the one that is there");
    cr_expect_eq(message(7, 2), 3, "this does");
    cr_expect_eq(ended(), 2);
    cr_expect_eq(message(7, 1), 0);
    cr_expect_eq(message(7, 2), 3);
    closed(7);
    cr_expect_eq(ended(), 3);
    accepted(7);
    cr_expect_eq(message(7, 0), 4, "counts start again after the largest");
}

Test(connections, ids_that_peers_choose)
{
    accepted(7);
    cr_expect_eq(chosen(7, 'a'), 1);
    struct mla_peer peer = {.size = 1, .id = {'a'}, .fd = 7};
    cr_expect_not(mla_connections_is_known(connections, &peer), "it may have come back");
    closed(7);
    accepted(7);
    cr_expect_eq(chosen(7, 'a'), 2);
    cr_expect_eq(chosen(7, 'b'), 3);
    cr_expect_eq(ended(), 1);
    cr_expect_eq(ended(), 2);
    cr_expect_eq(ended(), 0);
}

Test(connections, many_ends_keep_their_order)
{
    for (uint64_t i = 1; i <= 1000; i++) {
        accepted((int)(i % 3));
        if (i % 7 == 0)
            (void)ended();
    }
    uint64_t last = 0;
    uint64_t number = 0;
    uint64_t count = 0;
    while (mla_connections_has_ended(connections)) {
        number = ended();
        cr_assert_gt(number, last);
        last = number;
        count++;
    }
    cr_expect_eq(count, 997 - 1000 / 7);
}
