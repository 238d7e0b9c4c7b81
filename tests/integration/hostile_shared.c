/* What a service must bear from clients with shared memory; as hostile.c. */
#include "comm/region.h"
#include "comm/region_wire.h"
#include "tests/integration/hostile.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <sys/wait.h>

enum { BYTES = 1 << 20, OUT = BYTES / 2, LONG_ROWS = 200 };

static struct mla_grant grant;
static struct mla_region region;

static enum mla_status ask_share(uint64_t bytes)
{
    request.u.share.bytes = bytes;
    enum mla_status status = ask(MLA_SHARE);
    if (status == MLA_OK)
        grant = reply.u.share_reply;
    return status;
}

static void share(void)
{
    hello();
    cr_assert_eq(info.payload_modes & MLA_PAYLOAD_SHARED, MLA_PAYLOAD_SHARED);
    cr_assert_eq(ask_share(BYTES), MLA_OK, "%s", reply.u.sentence);
    cr_assert_eq(mla_region_map(&grant, PATIENCE_S * 1000, &region), MLA_OK);
}

static enum mla_status ask_run_at(uint64_t number, uint64_t input_at, uint64_t output_at)
{
    set_run();
    request.u.run.place_count = 1;
    request.u.run.places[0] = (struct mla_run_place){number, input_at, output_at};
    return ask_run(0, 0);
}

static void teardown_shared(void)
{
    mla_region_unmap(&region);
    teardown();
}

TestSuite(hostile_shared, .init = setup, .fini = teardown_shared, .timeout = 120);

Test(hostile_shared, wrong_sizes)
{
    hello();
    cr_expect_eq(ask_share(UINT64_MAX), MLA_LIMIT);
    cr_expect_eq(ask_share(1ull << 40), MLA_LIMIT);
    cr_expect_eq(ask_share(0), MLA_OK, "none to give back");
    cr_expect_eq(ask_share(1), MLA_OK, "%s", reply.u.sentence);
    cr_expect_eq(ask_share(1), MLA_REGION, "a second one");
    cr_expect_eq(ask_share(0), MLA_OK);
    cr_expect_eq(ask_share(BYTES), MLA_OK);
    expect_service();
}

Test(hostile_shared, wrong_places)
{
    share();
    open_step();
    size_t bytes = run_bytes();
    cr_expect_eq(ask_run_at(grant.region, BYTES - bytes + 16, 0), MLA_REGION);
    cr_expect_eq(ask_run_at(grant.region, 0, BYTES - bytes + 16), MLA_REGION);
    cr_expect_eq(ask_run_at(grant.region, BYTES, 0), MLA_REGION);
    cr_expect_eq(ask_run_at(grant.region, UINT64_MAX - 15, 0), MLA_REGION);
    cr_expect_eq(ask_run_at(grant.region, 0, UINT64_MAX - bytes + 1), MLA_REGION);
    cr_expect_eq(ask_run_at(grant.region, 8, OUT), MLA_REGION);
    cr_expect_eq(ask_run_at(grant.region, 0, OUT + 4), MLA_REGION);
    cr_expect_eq(ask_run_at(grant.region, 0, bytes - 16), MLA_REGION);
    cr_expect_eq(ask_run_at(grant.region, 0, 0), MLA_REGION);
    cr_expect_eq(ask_run_at(0, 0, OUT), MLA_REGION);
    request.u.run.rows = UINT32_MAX;
    cr_expect_eq(ask_run(0, 0), MLA_COUNT);
    set_run();
    request.u.run.place_count = 1;
    request.u.run.places[0] = (struct mla_run_place){grant.region, 0, OUT};
    cr_expect_eq(ask_run(bytes, bytes), MLA_MALFORMED, "and a payload");
    cr_expect_eq(ask_run_at(grant.region, BYTES - bytes, 0), MLA_OK, "%s", reply.u.sentence);
    expect_service();
}

/* Another client's rows can't be named, whatever number is tried; and its region can't be had. */
Test(hostile_shared, forged_regions)
{
    struct mla_client *other = NULL;
    void *memory = NULL;
    cr_assert_eq(mla_client_connect(endpoint, NULL, &other), MLA_OK);
    cr_assert_eq(mla_client_memory(other, BYTES, &memory), MLA_OK);
    cr_assert(mla_client_is_shared(other));
    memset(memory, 0x3f, BYTES);
    share();
    open_step();
    for (uint64_t number = 0; number < grant.region + 3; number++) {
        struct mla_grant forged = grant;
        struct mla_region got = {0};
        if (number == grant.region)
            continue;
        cr_expect_eq(ask_run_at(number, 0, OUT), MLA_REGION, "region %llu",
                     (unsigned long long)number);
        forged.region = number;
        cr_expect_neq(mla_region_map(&forged, PATIENCE_S * 1000, &got), MLA_OK);
    }
    for (size_t i = 0; i < BYTES; i++)
        cr_assert_eq(((uint8_t *)memory)[i], 0x3f);
    mla_client_close_connection(&other);
    cr_expect_eq(ask_run_at(grant.region - 1, 0, OUT), MLA_REGION, "it is gone");
    expect_service();
}

/* The socket that gives out regions: silence, garbage, more connections than are kept. */
Test(hostile_shared, garbage_at_the_socket_for_regions)
{
    static uint8_t garbage[4096];
    struct sockaddr_un address;
    struct mla_region again = {0};
    int fds[200];
    share();
    cr_assert(mla_region_address(grant.path, grant.path_bytes, &address));
    for (int i = 0; i < 200; i++) {
        fds[i] = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
        cr_assert(fds[i] >= 0 && connect(fds[i], (struct sockaddr *)&address, sizeof address) == 0);
        if (i % 2)
            (void)send(fds[i], garbage, (size_t)i * 20, MSG_NOSIGNAL);
    }
    cr_expect_eq(mla_region_map(&grant, PATIENCE_S * 1000, &again), MLA_OK);
    mla_region_unmap(&again);
    for (int i = 0; i < 200; i++)
        close(fds[i]);
    expect_service();
}

/* RUNs that take the workers a while. */
static void send_runs(void)
{
    set_open();
    for (uint32_t i = 0; i < ROWS; i++)
        request.u.open.entries[i].tokens = LONG_ROWS;
    cr_assert_eq(ask(MLA_OPEN), MLA_OK, "%s", reply.u.sentence);
    for (int i = 0; i < 20; i++) {
        set_run();
        request.u.run.rows = ROWS * LONG_ROWS;
        request.u.run.dtype = request.u.run.reply_dtype = MLA_BF16;
        request.u.run.place_count = 1;
        request.u.run.places[0] = (struct mla_run_place){grant.region, 0, OUT};
        encode(MLA_RUN, 0);
        send_message(frame.data, frame.bytes, NULL);
    }
}

Test(hostile_shared, leaves_with_runs_in_flight)
{
    share();
    send_runs();
    cr_assert_eq(receive_reply(), MLA_OK, "%s", reply.u.sentence); /* so they have arrived */
    mla_region_unmap(&region);
    expect_service();
}

/* As the last one, and it ends from one moment to the next. */
Test(hostile_shared, dies_with_runs_in_flight)
{
    hang_up();
    mla_channel_context_destroy(&context); /* its threads don't outlive a fork */
    pid_t child = fork();
    cr_assert_geq(child, 0);
    if (child == 0) {
        (void)mla_channel_context_create(&context);
        dial();
        share();
        send_runs();
        (void)receive_reply();
        _exit(0);
    }
    int status = 1;
    waitpid(child, &status, 0);
    cr_assert_eq(status, 0);
    cr_assert_eq(mla_channel_context_create(&context), MLA_OK);
    dial();
    expect_service();
}

static atomic_bool done;

static void *scribble(void *unused)
{
    (void)unused;
    for (uint8_t value = 1; !atomic_load(&done); value++)
        memset(region.data, value, BYTES);
    return NULL;
}

/* Rows change while workers read them, results are overwritten: its own loss. */
Test(hostile_shared, writes_while_the_workers_read)
{
    pthread_t thread;
    share();
    cr_assert_eq(pthread_create(&thread, NULL, scribble, NULL), 0);
    send_runs();
    for (int i = 0; i < 20; i++)
        cr_assert_eq(receive_reply(), MLA_OK, "%s", reply.u.sentence);
    atomic_store(&done, true);
    pthread_join(thread, NULL);
    expect_service();
}
