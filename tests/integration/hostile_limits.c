/* Clients that take what they can get, against a service whose limits limits.sh has set low: each
 * is cut off, and others are served. */
#include "tests/integration/hostile.h"
#include "tests/lib/zmtp.h"

#include <poll.h>
#include <sys/socket.h>

enum { FLOOD = 400, CUT_MS = 1000, UNREAD_MS = 5000, GARBAGE = 20, RUN_TOKENS = 200, RUNS = 40 };

static const char *workers;

static void begin(void)
{
    setup();
    workers = getenv("MLA_TEST_WORKERS");
    cr_assert_not_null(workers, "MLA_TEST_WORKERS says where workers connect");
}

TestSuite(limits, .init = begin, .fini = teardown, .timeout = 120);

static int64_t now_ms(void)
{
    return (int64_t)(mla_now_ns() / 1000000u);
}

/* A bound, stretched for programs with sanitizers (MLA_SLOW, in thousandths). */
static int64_t within(int64_t bound_ms)
{
    const char *slow = getenv("MLA_SLOW");
    return slow ? bound_ms * strtoll(slow, NULL, 10) / 1000 : bound_ms;
}

/* How long until the other end closes, in ms; fails after PATIENCE_S. */
static int64_t closed_after_ms(int fd, int64_t begin_ms)
{
    cr_assert(mla_zmtp_closed(fd), "the connection stays");
    close(fd);
    return now_ms() - begin_ms;
}

static size_t put_random(uint8_t *bytes, size_t count)
{
    for (size_t i = 0; i < count; i++)
        bytes[i] = (uint8_t)frame_random(&frame);
    return count;
}

/* tests/reliability reads this, beside the bound. */
static void measured(const char *what, int64_t took_ms, int64_t bound_ms)
{
    printf("measured %s %lld\n", what, (long long)took_ms);
    fflush(stdout);
    cr_expect_leq(took_ms, within(bound_ms), "%s", what);
}

Test(limits, garbage_on_every_port)
{
    static uint8_t bytes[4096];
    const char *const ports[] = {endpoint, workers};
    int64_t worst_ms[2] = {0, 0};
    for (int i = 0; i < 2 * GARBAGE; i++) {
        int64_t begin_ms = now_ms();
        int raw = mla_zmtp_dial(ports[i % 2]);
        cr_assert_geq(raw, 0);
        (void)mla_zmtp_send_bytes(raw, bytes, put_random(bytes, sizeof bytes));
        int64_t took_ms = closed_after_ms(raw, begin_ms);
        if (took_ms > worst_ms[i % 2])
            worst_ms[i % 2] = took_ms;
        int fd = mla_zmtp_connect(ports[i % 2]);
        cr_assert_geq(fd, 0);
        for (int k = 0; k < 20; k++)
            (void)mla_zmtp_send(fd, bytes, put_random(bytes, sizeof bytes / 8), k % 3 == 0);
        close(fd);
    }
    measured("garbage-clients", worst_ms[0], CUT_MS);
    measured("garbage-workers", worst_ms[1], CUT_MS);
    expect_service();
}

Test(limits, a_frame_that_is_too_large)
{
    const char *const ports[] = {endpoint, workers};
    for (size_t i = 0; i < sizeof ports / sizeof *ports; i++) {
        int fd = mla_zmtp_connect(ports[i]);
        int64_t begin_ms = now_ms();
        cr_assert(mla_zmtp_send_head(fd, ((uint64_t)16 << 20) + 1, false));
        measured(i == 0 ? "oversize-clients" : "oversize-workers", closed_after_ms(fd, begin_ms),
                 CUT_MS);
    }
    expect_service();
}

/* One message of frames without end. */
static void send_endless(const char *what, int fd, int64_t bound_ms)
{
    static uint8_t frames[3 << 15];
    for (size_t i = 0; i < sizeof frames; i += 3)
        frames[i] = frames[i + 1] = 1; /* more to come; 1 byte */
    int64_t begin_ms = now_ms();
    while (mla_zmtp_send_bytes(fd, frames, sizeof frames))
        cr_assert_lt(now_ms(), begin_ms + 60000, "it may go on for ever");
    measured(what, now_ms() - begin_ms, bound_ms);
    close(fd);
}

Test(limits, frames_without_end)
{
    int fd = mla_zmtp_connect(endpoint);
    cr_assert_geq(fd, 0);
    send_endless("endless-clients", fd, CUT_MS);
    cr_assert_geq(fd = mla_zmtp_connect(workers), 0);
    send_endless("endless-workers", fd, CUT_MS);
    expect_service();
}

/* From one that is known what it is about shows in memory alone, and the sooner the faster it
 * sends: beside other work that can take longer than the bound. */
Test(limits, frames_without_end_of_a_client)
{
    if (!getenv("MLA_TEST_MEMORY"))
        cr_skip_test("the service has no bound on memory");
    int fd = mla_zmtp_connect(endpoint);
    cr_assert_geq(fd, 0);
    request.u.hello = (struct mla_hello){1, 1};
    encode(MLA_HELLO, 0);
    cr_assert(mla_zmtp_send(fd, frame.data, frame.bytes, false));
    send_endless("endless-known", fd, 10 * (int64_t)CUT_MS);
    expect_service();
}

/* Each announces a frame as large as there may be, and sends a little of it. */
Test(limits, large_frames_that_do_not_come)
{
    int fds[64];
    for (int i = 0; i < 64; i++) {
        fds[i] = mla_zmtp_connect(endpoint);
        if (fds[i] >= 0)
            (void)(mla_zmtp_send_head(fds[i], (uint64_t)16 << 20, false) &&
                   mla_zmtp_send_bytes(fds[i], "little", 6));
    }
    for (int i = 0; i < 64; i++)
        if (fds[i] >= 0)
            (void)closed_after_ms(fds[i], 0);
    expect_service();
}

static void flood(bool handshake)
{
    static int fds[FLOOD];
    struct mla_client *client = NULL;
    const struct mla_client_options patient = {.timeout_ms = 5000};
    for (int i = 0; i < FLOOD; i++)
        fds[i] = handshake ? mla_zmtp_connect(endpoint) : mla_zmtp_dial(endpoint);
    int64_t begin_ms = now_ms();
    cr_assert_eq(mla_client_connect(endpoint, &patient, &client), MLA_OK);
    printf("with %d connections that %s a client has its HELLO after %lld ms\n", FLOOD,
           handshake ? "say nothing" : "are half-open", (long long)(now_ms() - begin_ms));
    mla_client_close_connection(&client);
    for (int i = 0; i < FLOOD; i++)
        if (fds[i] >= 0)
            (void)closed_after_ms(fds[i], 0); /* all of them, though we leave them alone */
    expect_service();
}

Test(limits, flood_of_half_open_connections)
{
    flood(false);
}

Test(limits, flood_of_silent_connections)
{
    flood(true);
}

/* It has large replies coming and takes none. */
Test(limits, a_client_that_does_not_read)
{
    hello();
    set_open();
    for (uint32_t i = 0; i < ROWS; i++)
        request.u.open.entries[i].tokens = RUN_TOKENS;
    size_t bytes = run_bytes() * RUN_TOKENS;
    struct mla_blob *payload = payload_of(bytes);
    int fd = mla_zmtp_connect(endpoint);
    const int little = 1 << 16;
    cr_assert_geq(fd, 0);
    cr_assert_eq(setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &little, sizeof little), 0);
    struct mla_message open = request;
    request.u.hello = (struct mla_hello){1, 1};
    encode(MLA_HELLO, 0);
    cr_assert(mla_zmtp_send(fd, frame.data, frame.bytes, false));
    request = open;
    encode(MLA_OPEN, 0);
    cr_assert(mla_zmtp_send(fd, frame.data, frame.bytes, false));
    set_run();
    request.u.run.rows = ROWS * RUN_TOKENS;
    bool there = true;
    for (int i = 0; there && i < RUNS; i++) { /* more than the socket's buffers hold replies of */
        encode(MLA_RUN, bytes);
        there = mla_zmtp_send(fd, frame.data, frame.bytes, true) &&
                mla_zmtp_send(fd, payload->data, bytes, false);
    }
    int64_t begin_ms = now_ms();
    while (there) { /* it is found out by its not reading, not by its sending */
        cr_assert_lt(now_ms(), begin_ms + 30000, "it is never cut off");
        encode(MLA_STATS, 0);
        there = mla_zmtp_send(fd, frame.data, frame.bytes, false);
        (void)poll(NULL, 0, 20);
    }
    int64_t took_ms = now_ms() - begin_ms;
    measured("unread", took_ms, UNREAD_MS + CUT_MS); /* buffers take some time to fill */
    close(fd);
    mla_blob_drop(payload);
    expect_service();
}
