/* Bounds on connections, with socket pairs and a clock of our own. */
#include "comm/crowd.h"

#include <criterion/criterion.h>
#include <malloc.h>
#include <sys/socket.h>
#include <unistd.h>

#define MS 1000000ull

enum { PAIRS = 4, SILENT_MS = 5000, UNREAD_MS = 4000, LATE_MS = 500000 };

static struct mla_crowd *crowd;
static int fds[PAIRS], others[PAIRS];
static struct mla_crowd_counts counts;

static void setup(void)
{
    const struct mla_crowd_limits limits = {.connections_max = PAIRS - 1,
                                            .silent_ms = SILENT_MS,
                                            .unread_ms = UNREAD_MS,
                                            .first_bytes_max = 1000};
    cr_assert_eq(mla_crowd_create(&limits, &crowd), MLA_OK);
    for (int i = 0; i < PAIRS; i++) {
        int pair[2];
        cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
        fds[i] = pair[0];
        others[i] = pair[1];
    }
}

static void teardown(void)
{
    mla_crowd_destroy(&crowd);
}

TestSuite(crowd, .init = setup, .fini = teardown);

static bool is_cut(int i)
{
    char byte;
    return recv(others[i], &byte, 1, MSG_DONTWAIT) == 0;
}

static void count(void)
{
    mla_crowd_count(crowd, &counts);
}

Test(crowd, silent_ones_end)
{
    mla_crowd_opened(crowd, fds[0], 0);
    mla_crowd_opened(crowd, fds[1], 0);
    mla_crowd_heard(crowd, fds[1], 7);
    mla_crowd_tend(crowd, SILENT_MS * MS, 0);
    cr_expect(!is_cut(0) && !is_cut(1), "not yet");
    mla_crowd_tend(crowd, SILENT_MS * MS + 1, 0);
    cr_expect(is_cut(0));
    cr_expect(!is_cut(1));
    mla_crowd_tend(crowd, LATE_MS * MS, 0);
    count();
    cr_expect_eq(counts.silent, 1, "it is counted once");
    cr_expect_eq(counts.open, 2);
    mla_crowd_closed(crowd, fds[0]);
    count();
    cr_expect_eq(counts.open, 1);
}

Test(crowd, those_that_do_not_read_end)
{
    for (int i = 0; i < 2; i++) {
        mla_crowd_opened(crowd, fds[i], 0);
        mla_crowd_heard(crowd, fds[i], 7);
        mla_crowd_tend(crowd, 100000 * MS, 0);
    }
    atomic_uint *slow = mla_crowd_submit(crowd, fds[0], 100000 * MS);
    cr_assert_eq(mla_crowd_submit(crowd, fds[0], 100000 * MS), slow);
    atomic_uint *quick = mla_crowd_submit(crowd, fds[1], 100000 * MS);
    mla_crowd_tend(crowd, 103000 * MS, 0);
    atomic_fetch_add(slow, 1);
    atomic_fetch_add(quick, 1);
    mla_crowd_tend(crowd, 104000 * MS, 0);
    mla_crowd_tend(crowd, 108000 * MS, 0);
    cr_expect(!is_cut(0), "it took one of two at 104 s");
    mla_crowd_tend(crowd, 108000 * MS + 1, 0);
    cr_expect(is_cut(0));
    cr_expect(!is_cut(1));
    count();
    cr_expect_eq(counts.unread, 1);
}

Test(crowd, one_connection_is_cut_off)
{
    mla_crowd_opened(crowd, fds[0], 0);
    mla_crowd_heard(crowd, fds[0], 7);
    mla_crowd_opened(crowd, fds[1], 0);
    mla_crowd_heard(crowd, fds[1], 8);
    mla_crowd_cut(crowd, fds[0], 6);
    cr_expect(!is_cut(0), "it is another's descriptor by now");
    mla_crowd_cut(crowd, fds[0], 7);
    cr_expect(is_cut(0));
    cr_expect(!is_cut(1));
}

/* What the last connection left is given back later, and says nothing about this one. */
Test(crowd, a_descriptor_used_again)
{
    mla_crowd_opened(crowd, fds[0], 0);
    mla_crowd_heard(crowd, fds[0], 7);
    atomic_uint *sent = mla_crowd_submit(crowd, fds[0], 0);
    mla_crowd_closed(crowd, fds[0]);
    mla_crowd_opened(crowd, fds[0], 1000000 * MS);
    mla_crowd_heard(crowd, fds[0], 7);
    mla_crowd_tend(crowd, 1000001 * MS, 0);
    cr_expect(!is_cut(0));
    atomic_fetch_add(sent, 1);
    mla_crowd_tend(crowd, 2000000 * MS, 0);
    cr_expect(!is_cut(0));
}

Test(crowd, one_too_many)
{
    for (int i = 0; i < PAIRS - 1; i++)
        mla_crowd_opened(crowd, fds[i], (uint64_t)i);
    mla_crowd_heard(crowd, fds[0], 7);
    mla_crowd_opened(crowd, fds[PAIRS - 1], PAIRS);
    cr_expect(!is_cut(0), "it has said something");
    cr_expect(is_cut(1), "the oldest that has not");
    cr_expect(!is_cut(2) && !is_cut(3));
    count();
    cr_expect_eq(counts.crowded, 1);
}

Test(crowd, one_too_many_among_those_that_spoke)
{
    for (int i = 0; i < PAIRS - 1; i++) {
        mla_crowd_opened(crowd, fds[i], (uint64_t)i);
        mla_crowd_heard(crowd, fds[i], 7);
    }
    mla_crowd_opened(crowd, fds[PAIRS - 1], PAIRS);
    cr_expect(is_cut(PAIRS - 1), "the newest");
    cr_expect(!is_cut(0) && !is_cut(1) && !is_cut(2));
}

/* Before its first message nobody has much to say. */
Test(crowd, a_first_message_that_does_not_come)
{
    for (int i = 0; i < 2; i++) {
        mla_crowd_opened(crowd, fds[i], 0);
        cr_assert_eq(send(others[i], "x", 1, 0), 1);
    }
    mla_crowd_tend(crowd, 250 * MS, 0);
    cr_expect(!is_cut(0) && !is_cut(1));
    mla_crowd_heard(crowd, fds[1], 7);
    mla_crowd_tend(crowd, 500 * MS, 0);
    cr_expect(is_cut(0));
    cr_expect(!is_cut(1));
    count();
    cr_expect_eq(counts.endless, 1);
}

/* What a long message takes is there when it begins; frames without end take more and more. */
Test(crowd, a_message_without_end)
{
    enum { PIECES = 1000, PIECE_BYTES = 100000 };
    static void *volatile pieces[PIECES];
    for (int i = 0; i < 2; i++) {
        mla_crowd_opened(crowd, fds[i], 0);
        mla_crowd_heard(crowd, fds[i], 7);
    }
    cr_assert_eq(send(others[0], "x", 1, 0), 1);
    for (uint64_t ms = 250; ms <= 4000; ms += 250)
        mla_crowd_tend(crowd, ms * MS, 0);
    cr_expect(!is_cut(0), "it takes its time");
    for (int i = 0; i < PIECES; i++)
        pieces[i] = malloc(PIECE_BYTES);
    mla_crowd_tend(crowd, 4250 * MS, (uint64_t)PIECES * PIECE_BYTES);
    cr_expect(!is_cut(0), "all of that are payloads of others");
    mla_crowd_tend(crowd, 4500 * MS, 0);
    if (mallinfo2().uordblks > 0) /* else another allocator is in use, a sanitizer's */
        cr_expect(is_cut(0));
    cr_expect(!is_cut(1));
    for (int i = 0; i < PIECES; i++)
        free(pieces[i]);
}

Test(crowd, relief)
{
    for (int i = 0; i < 3; i++)
        mla_crowd_opened(crowd, fds[i], 0);
    cr_assert_eq(send(others[1], "x", 1, 0), 1);
    mla_crowd_relieve(crowd, false);
    cr_expect(is_cut(1), "it sends");
    cr_expect(!is_cut(0) && !is_cut(2));
    mla_crowd_relieve(crowd, true);
    cr_expect(is_cut(0) && is_cut(2));
    count();
    cr_expect_eq(counts.relieved, 3);
}

Test(crowd, descriptors_beyond_the_table)
{
    mla_crowd_opened(crowd, -1, 0);
    mla_crowd_opened(crowd, 65536, 0);
    mla_crowd_heard(crowd, 1 << 30, 7);
    mla_crowd_closed(crowd, 65536);
    cr_expect_null(mla_crowd_submit(crowd, 65536, 0));
    count();
    cr_expect_eq(counts.open, 0);
}
