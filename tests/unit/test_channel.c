#include "comm/channel.h"
#include "tests/lib/zmtp.h"

#include "proto/clock.h"

#include <criterion/criterion.h>
#include <netinet/in.h>
#include <poll.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PATIENCE_S = 10, QUEUE_MAX = 16, FRAME_BYTES_MAX = 1 << 20 };

static struct mla_channel_options options = {.queue_max = QUEUE_MAX,
                                             .frame_bytes_max = FRAME_BYTES_MAX};
static char folder[] = "/tmp/mla-test-channel-XXXXXX";
static char ipc[64];
static struct mla_channel_context *context;
static struct mla_channel *server, *client;
static const char *const transports[] = {"tcp://127.0.0.1:*", ipc};

static void setup(void)
{
    cr_assert_not_null(mkdtemp(folder));
    snprintf(ipc, sizeof ipc, "ipc://%s/socket", folder);
    cr_assert_eq(mla_channel_context_create(&context), MLA_OK);
}

static void teardown(void)
{
    mla_channel_destroy(&client);
    mla_channel_destroy(&server);
    mla_channel_context_destroy(&context);
    unlink(ipc + strlen("ipc://"));
    rmdir(folder);
}

TestSuite(channel, .init = setup, .fini = teardown, .timeout = 60);

static int64_t now_s(void)
{
    return (int64_t)(mla_now_ns() / 1000000000u);
}

static void listen_at(const char *endpoint)
{
    cr_assert_eq(mla_channel_bind(context, endpoint, &options, &server), MLA_OK);
}

static struct mla_channel *dial(void)
{
    struct mla_channel *channel = NULL;
    const char *endpoint = mla_channel_endpoint(server);
    cr_assert_eq(mla_channel_connect(context, endpoint, &options, &channel), MLA_OK);
    return channel;
}

/* A message that must come. */
static struct mla_incoming receive(struct mla_channel *channel)
{
    struct mla_incoming incoming = {0};
    int64_t deadline_s = now_s() + PATIENCE_S;
    while (mla_channel_receive(channel, &incoming) == MLA_AGAIN) {
        cr_assert_lt(now_s(), deadline_s, "no message came");
        cr_assert_eq(mla_channel_wait(&channel, 1, 100), MLA_OK);
    }
    return incoming;
}

static uint64_t gone_number; /* of the last end that was told */

/* The end of a connection, which must come. */
static int gone(struct mla_channel *channel)
{
    int fd = -1;
    int64_t deadline_s = now_s() + PATIENCE_S;
    while (mla_channel_gone(channel, &fd, &gone_number) == MLA_AGAIN) {
        struct pollfd none;
        cr_assert_lt(now_s(), deadline_s, "no end was told");
        poll(&none, 0,
             1); /* a message that nobody takes would keep mla_channel_wait from waiting */
    }
    return fd;
}

/* Until the outcome is `wanted`: a connection begins and ends in a thread of its own. */
static void send_until(enum mla_status wanted, struct mla_channel *channel,
                       const struct mla_peer *peer, const char *head)
{
    int64_t deadline_s = now_s() + PATIENCE_S;
    enum mla_status status;
    while ((status = mla_channel_send(channel, peer, head, strlen(head), NULL, 0, 0)) != wanted) {
        cr_assert_lt(now_s(), deadline_s, "the outcome is still %s", mla_status_name(status));
        cr_assert_eq(mla_channel_wait(&channel, 1, 1), MLA_OK);
    }
}

static bool is(const struct mla_incoming *incoming, const char *head)
{
    return incoming->head_bytes == strlen(head) &&
           memcmp(incoming->head, head, incoming->head_bytes) == 0;
}

/* Who the client is to the server. */
static struct mla_peer greet(void)
{
    send_until(MLA_OK, client, NULL, "hello");
    struct mla_incoming incoming = receive(server);
    cr_assert(is(&incoming, "hello"));
    cr_assert_eq(incoming.frames, 1);
    cr_assert_null(incoming.payload);
    return incoming.peer;
}

/* The same after a loss. What is sent while a connection ends may be lost with it. */
static struct mla_peer greet_again(void)
{
    struct mla_incoming incoming;
    int64_t deadline_s = now_s() + PATIENCE_S;
    do {
        cr_assert_lt(now_s(), deadline_s, "the client doesn't come back");
        send_until(MLA_OK, client, NULL, "again");
        cr_assert_eq(mla_channel_wait(&server, 1, 100), MLA_OK);
    } while (mla_channel_receive(server, &incoming) != MLA_OK);
    cr_assert(is(&incoming, "again"));
    return incoming.peer;
}

/* A payload that tells when it is let go. */
struct told {
    struct mla_blob blob;
    sem_t released;
};

static void tell(struct mla_blob *blob)
{
    sem_post(&((struct told *)blob)->released);
}

static void told_init(struct told *told, size_t bytes)
{
    *told = (struct told){.blob = {.data = malloc(bytes), .bytes = bytes, .release = tell}};
    for (size_t i = 0; i < bytes; i++)
        told->blob.data[i] = (uint8_t)(i * 31 + i / 256);
    atomic_store(&told->blob.references, 1);
    sem_init(&told->released, 0, 0);
}

static bool is_released(struct told *told)
{
    return sem_trywait(&told->released) == 0;
}

/* A channel learns what happened to its connections when it is used. */
static void wait_released(struct told *told)
{
    int64_t deadline_s = now_s() + PATIENCE_S;
    while (!is_released(told)) {
        cr_assert_lt(now_s(), deadline_s, "still held");
        if (server)
            cr_assert_eq(mla_channel_wait(&server, 1, 1), MLA_OK);
    }
    cr_assert(!is_released(told), "released twice");
    free(told->blob.data);
}

static void exchange(const char *endpoint)
{
    struct told told;
    told_init(&told, 5000);
    listen_at(endpoint);
    client = dial();
    struct mla_peer peer = greet();

    cr_assert_eq(mla_channel_send(client, NULL, "run", 3, &told.blob, 100, 4900), MLA_OK);
    struct mla_incoming incoming = receive(server);
    cr_expect(is(&incoming, "run"));
    cr_expect_eq(incoming.frames, 2);
    cr_assert_eq(incoming.payload->bytes, 4900);
    cr_expect_arr_eq(incoming.payload->data, told.blob.data + 100, 4900);
    cr_expect_eq(incoming.peer.size, peer.size);
    cr_expect_arr_eq(incoming.peer.id, peer.id, peer.size);
    /* What came in goes out again as it is. */
    cr_assert_eq(mla_channel_send(server, &peer, "answer", 6, incoming.payload, 900, 4000), MLA_OK);
    mla_blob_drop(incoming.payload);
    incoming = receive(client);
    cr_expect(is(&incoming, "answer"));
    cr_expect_eq(incoming.frames, 2);
    cr_assert_eq(incoming.payload->bytes, 4000);
    cr_expect_arr_eq(incoming.payload->data, told.blob.data + 1000, 4000);
    mla_blob_drop(incoming.payload);

    cr_assert_eq(mla_channel_send(server, &peer, "empty", 5, &told.blob, 5000, 0), MLA_OK);
    incoming = receive(client);
    cr_expect_eq(incoming.frames, 2);
    cr_expect_eq(incoming.payload->bytes, 0);
    mla_blob_drop(incoming.payload);
    cr_expect_eq(mla_channel_receive(client, &incoming), MLA_AGAIN);
    cr_expect(!is_released(&told));
    mla_blob_drop(&told.blob);
    wait_released(&told);
}

Test(channel, exchange_over_tcp)
{
    exchange(transports[0]);
}

Test(channel, exchange_over_ipc)
{
    exchange(transports[1]);
}

/* What was received stays until it is dropped. */
Test(channel, payloads_outlive_their_channel)
{
    struct told told;
    told_init(&told, 100000);
    listen_at(transports[0]);
    client = dial();
    (void)greet();
    cr_assert_eq(mla_channel_send(client, NULL, "run", 3, &told.blob, 0, 100000), MLA_OK);
    struct mla_blob *payload = receive(server).payload;
    mla_channel_destroy(&client);
    mla_channel_destroy(&server);
    cr_expect_arr_eq(payload->data, told.blob.data, 100000);
    mla_blob_drop(payload);
    mla_blob_drop(&told.blob);
    wait_released(&told);
}

/* Sends pieces of the blob until nothing on the way to the peer has room any more. */
static uint32_t fill(struct mla_channel *channel, const struct mla_peer *peer,
                     struct mla_blob *blob, size_t piece)
{
    uint32_t count = 0;
    for (int refused = 0; refused < 50;) {
        size_t at = count * piece % blob->bytes;
        enum mla_status status =
            mla_channel_send(channel, peer, &count, sizeof count, blob, at, piece);
        if (status == MLA_OK) {
            count++;
            refused = 0;
        } else {
            cr_assert_eq(status, MLA_AGAIN);
            refused++;
            cr_assert_eq(mla_channel_wait(&channel, 1, 10), MLA_OK);
        }
        cr_assert_lt(count, 500, "the queue has no end");
    }
    cr_assert_gt(count, QUEUE_MAX);
    return count;
}

/* All of them arrive, in order and whole. */
static void drain(struct mla_channel *channel, const struct mla_blob *blob, size_t piece,
                  uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        struct mla_incoming incoming = receive(channel);
        cr_assert_eq(incoming.head_bytes, sizeof i);
        cr_assert_eq(memcmp(incoming.head, &i, sizeof i), 0, "message %u is another", i);
        cr_assert_eq(incoming.frames, 2);
        cr_assert_eq(incoming.payload->bytes, piece);
        cr_assert_eq(memcmp(incoming.payload->data, blob->data + i * piece % blob->bytes, piece),
                     0);
        mla_blob_drop(incoming.payload);
    }
    struct mla_incoming none;
    cr_expect_eq(mla_channel_receive(channel, &none), MLA_AGAIN, "more came than was sent");
}

enum { BLOB_BYTES = 1 << 20, PIECE_BYTES = 1 << 17 };

static void full_queue(struct mla_channel *from, const struct mla_peer *peer,
                       struct mla_channel *to)
{
    struct told told;
    told_init(&told, BLOB_BYTES);
    uint32_t count = fill(from, peer, &told.blob, PIECE_BYTES);
    mla_blob_drop(&told.blob);
    cr_expect(!is_released(&told), "released before it was sent");
    cr_expect_geq(atomic_load(&told.blob.references), 1);
    drain(to, &told.blob, PIECE_BYTES, count);
    wait_released(&told);
    send_until(MLA_OK, from, peer, "again");
    struct mla_incoming incoming = receive(to);
    cr_expect(is(&incoming, "again"));
}

Test(channel, full_queue_of_a_client)
{
    listen_at(transports[0]);
    client = dial();
    (void)greet();
    full_queue(client, NULL, server);
}

Test(channel, full_queue_of_a_server)
{
    listen_at(transports[1]);
    client = dial();
    struct mla_peer peer = greet();
    full_queue(server, &peer, client);
}

/* One peer's full queue is nobody else's. */
Test(channel, full_queue_is_per_peer)
{
    struct told told;
    told_init(&told, BLOB_BYTES);
    listen_at(transports[1]);
    client = dial();
    struct mla_peer slow = greet();
    struct mla_channel *reader = client;
    client = dial();
    struct mla_peer quick = greet();
    (void)fill(server, &slow, &told.blob, PIECE_BYTES);
    cr_expect_eq(mla_channel_send(server, &quick, "quick", 5, NULL, 0, 0), MLA_OK);
    struct mla_incoming incoming = receive(client);
    cr_expect(is(&incoming, "quick"));
    mla_channel_destroy(&reader);
    mla_blob_drop(&told.blob);
    wait_released(&told);
}

/* What is not sent at the end is let go of, though the peer is still there. */
Test(channel, destroy_releases)
{
    struct told told;
    struct mla_channel_context *own = NULL;
    told_init(&told, BLOB_BYTES);
    listen_at(transports[0]);
    cr_assert_eq(mla_channel_context_create(&own), MLA_OK);
    cr_assert_eq(mla_channel_connect(own, mla_channel_endpoint(server), &options, &client), MLA_OK);
    (void)greet();
    (void)fill(client, NULL, &told.blob, PIECE_BYTES);
    mla_blob_drop(&told.blob);
    cr_expect(!is_released(&told), "released before it was sent");
    mla_channel_destroy(&client);
    mla_channel_context_destroy(&own);
    cr_expect(is_released(&told), "the context is gone and the payload still held");
    free(told.blob.data);
}

static void send_frames(int fd, const char *head, uint32_t frames)
{
    cr_assert(mla_zmtp_send(fd, head, strlen(head), frames > 1));
    for (uint32_t i = 1; i < frames; i++)
        cr_assert(mla_zmtp_send(fd, "frame", 5, i + 1 < frames));
}

Test(channel, too_many_frames)
{
    static const uint32_t counts[] = {3, 4, 1000};
    listen_at(transports[0]);
    int fd = mla_zmtp_connect(mla_channel_endpoint(server));
    cr_assert_geq(fd, 0);
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        send_frames(fd, "many", counts[i]);
        send_frames(fd, "two", 2);
        struct mla_incoming incoming = receive(server);
        cr_expect_eq(incoming.frames, 3, "%u frames came as %u", counts[i], incoming.frames);
        cr_expect(is(&incoming, "many"));
        cr_expect_null(incoming.payload);
        incoming = receive(server);
        cr_expect_eq(incoming.frames, 2);
        cr_expect(is(&incoming, "two"));
        cr_assert_not_null(incoming.payload);
        cr_expect_eq(incoming.payload->bytes, 5);
        mla_blob_drop(incoming.payload);
    }
    close(fd);
}

/* The half that came is never seen. */
Test(channel, message_that_breaks_off)
{
    listen_at(transports[0]);
    int fd = mla_zmtp_connect(mla_channel_endpoint(server));
    cr_assert(mla_zmtp_send(fd, "half", 4, true));
    cr_assert(mla_zmtp_send_head(fd, 1000, false));
    cr_assert(mla_zmtp_send_bytes(fd, "only these", 10));
    close(fd);
    (void)gone(server);
    client = dial();
    (void)greet();
}

Test(channel, empty_frames)
{
    listen_at(transports[0]);
    int fd = mla_zmtp_connect(mla_channel_endpoint(server));
    send_frames(fd, "", 1);
    send_frames(fd, "", 2);
    struct mla_incoming incoming = receive(server);
    cr_expect(incoming.frames == 1 && incoming.head_bytes == 0 && !incoming.payload);
    incoming = receive(server);
    cr_expect(incoming.frames == 2 && incoming.head_bytes == 0 && incoming.payload);
    mla_blob_drop(incoming.payload);
    close(fd);
}

Test(channel, frame_over_the_limit)
{
    struct told told;
    told_init(&told, FRAME_BYTES_MAX + 1);
    listen_at(transports[0]);
    client = dial();
    struct mla_peer peer = greet();
    cr_assert_eq(mla_channel_send(client, NULL, "most", 4, &told.blob, 0, FRAME_BYTES_MAX), MLA_OK);
    struct mla_incoming incoming = receive(server);
    cr_assert_eq(incoming.payload->bytes, FRAME_BYTES_MAX);
    mla_blob_drop(incoming.payload);

    cr_assert_eq(mla_channel_send(client, NULL, "over", 4, &told.blob, 0, told.blob.bytes), MLA_OK);
    cr_expect_eq(gone(server), peer.fd);
    cr_expect_geq(gone(client), 0);
    cr_expect_eq(mla_channel_receive(server, &incoming), MLA_AGAIN, "the head came");
    /* The client comes back, as another peer. */
    struct mla_peer again = greet_again();
    cr_expect(again.size != peer.size || memcmp(again.id, peer.id, peer.size) != 0);
    mla_channel_destroy(&client);
    mla_blob_drop(&told.blob);
    wait_released(&told);
}

/* Nothing of the kind is allocated, so nothing waits for it. */
Test(channel, frame_that_announces_too_much)
{
    listen_at(transports[0]);
    int fd = mla_zmtp_connect(mla_channel_endpoint(server));
    cr_assert(mla_zmtp_send_head(fd, (uint64_t)1 << 62, false));
    cr_expect(mla_zmtp_closed(fd), "the connection stays");
    (void)gone(server);
    close(fd);
}

/* A server's send to a peer that left; the other peer stays. */
static void peer_leaves(const char *endpoint)
{
    listen_at(endpoint);
    client = dial();
    struct mla_peer stays = greet();
    struct mla_channel *other = client;
    client = dial();
    struct mla_peer leaves = greet();
    cr_expect_neq(stays.fd, leaves.fd);
    cr_expect_geq(leaves.fd, 0);
    for (int i = 0; i < 3; i++)
        cr_expect_eq(greet().fd, leaves.fd, "message %d came from another descriptor", i);
    mla_channel_destroy(&client);
    cr_expect_eq(gone(server), leaves.fd);
    send_until(MLA_CLOSED, server, &leaves, "late");
    client = other;
    cr_expect_eq(greet().fd, stays.fd);
    cr_expect_eq(mla_channel_send(server, &stays, "still", 5, NULL, 0, 0), MLA_OK);
    struct mla_incoming incoming = receive(client);
    cr_expect(is(&incoming, "still"));
    int fd = -1;
    cr_expect_eq(mla_channel_gone(server, &fd, &gone_number), MLA_AGAIN, "%d is told to be gone",
                 fd);
}

Test(channel, peer_leaves_tcp)
{
    peer_leaves(transports[0]);
}

Test(channel, peer_leaves_ipc)
{
    peer_leaves(transports[1]);
}

/* A connection that never spoke ends, and the next one at its descriptor speaks before anybody asks
 * for ends. */
static void silent_peer(const char *endpoint)
{
    listen_at(endpoint);
    struct mla_peer speaks;
    int fd = -1;
    for (int tries = 0; fd < 0 || fd != speaks.fd; tries++) {
        cr_assert_lt(tries, 1000, "no descriptor was used again");
        close(mla_zmtp_connect(mla_channel_endpoint(server))); /* silent */
        int again = mla_zmtp_connect(mla_channel_endpoint(server));
        cr_assert(mla_zmtp_send(again, "hello", 5, false));
        speaks = receive(server).peer;
        fd = gone(server); /* the silent one's */
        cr_assert_neq(gone_number, speaks.number, "the one that speaks is told to be gone");
        uint64_t number = 0;
        int none = -1;
        cr_assert_eq(mla_channel_gone(server, &none, &number), MLA_AGAIN);
        close(again);
        cr_assert_eq(gone(server), speaks.fd);
        cr_assert_eq(gone_number, speaks.number);
    }
}

Test(channel, silent_peer_tcp)
{
    silent_peer(transports[0]);
}

Test(channel, silent_peer_ipc)
{
    silent_peer(transports[1]);
}

Test(channel, unknown_peer)
{
    struct mla_peer nobody = {.size = 5, .id = "nobod"};
    listen_at(transports[0]);
    cr_expect_eq(mla_channel_send(server, &nobody, "x", 1, NULL, 0, 0), MLA_CLOSED);
}

/* Without a server nothing is queued; with the next one the client goes on. */
Test(channel, server_leaves)
{
    char endpoint[64];
    listen_at(transports[0]);
    snprintf(endpoint, sizeof endpoint, "%s", mla_channel_endpoint(server));
    client = dial();
    (void)greet();
    mla_channel_destroy(&server);
    cr_expect_geq(gone(client), 0);
    send_until(MLA_AGAIN, client, NULL, "nobody is there");
    listen_at(endpoint);
    (void)greet_again();
}

/* As when a server dies: its socket still takes a connection, and then goes. */
Test(channel, attempts_are_no_connections)
{
    enum { ATTEMPTS = 3 };
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t bytes = sizeof address;
    char endpoint[64];
    struct mla_channel_counts counts = {0};
    uint64_t number = 0;
    int fd = -1;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    cr_assert_eq(bind(listener, (struct sockaddr *)&address, sizeof address), 0);
    cr_assert_eq(listen(listener, 1), 0);
    cr_assert_eq(getsockname(listener, (struct sockaddr *)&address, &bytes), 0);
    snprintf(endpoint, sizeof endpoint, "tcp://127.0.0.1:%d", ntohs(address.sin_port));
    cr_assert_eq(mla_channel_connect(context, endpoint, &options, &client), MLA_OK);
    for (int i = 0; i < ATTEMPTS; i++)
        close(accept(listener, NULL, NULL));
    int64_t deadline_s = now_s() + PATIENCE_S;
    while (counts.handshakes < ATTEMPTS - 1) { /* the last end may be yet to come */
        cr_assert_lt(now_s(), deadline_s, "no attempt was told to fail");
        cr_assert_eq(mla_channel_wait(&client, 1, 100), MLA_OK);
        cr_assert_eq(mla_channel_gone(client, &fd, &number), MLA_AGAIN);
        mla_channel_counts(client, &counts);
    }
    close(listener);
}

Test(channel, nothing_is_there)
{
    struct mla_incoming incoming = {.frames = 12345};
    int fd = 12345;
    listen_at(transports[0]);
    cr_assert_eq(mla_channel_connect(context, "tcp://127.0.0.1:1", &options, &client), MLA_OK);
    cr_expect_eq(mla_channel_receive(server, &incoming), MLA_AGAIN);
    cr_expect_eq(mla_channel_receive(client, &incoming), MLA_AGAIN);
    cr_expect_eq(mla_channel_gone(server, &fd, &gone_number), MLA_AGAIN);
    cr_expect(incoming.frames == 12345 && fd == 12345, "a result was touched");
    cr_expect_eq(mla_channel_send(client, NULL, "x", 1, NULL, 0, 0), MLA_AGAIN);
    struct mla_channel *both[] = {server, client};
    cr_expect_eq(mla_channel_wait(both, 2, 0), MLA_OK);
}

/* What a wait saw to be empty is not looked at again, and yet nothing is missed. */
Test(channel, waits_between_messages)
{
    struct mla_incoming incoming;
    listen_at(transports[1]);
    client = dial();
    (void)greet();
    for (int i = 0; i < 200; i++) {
        cr_assert_eq(mla_channel_receive(server, &incoming), MLA_AGAIN);
        cr_assert_eq(mla_channel_wait(&server, 1, 0), MLA_OK);
        send_until(MLA_OK, client, NULL, "next");
        incoming = receive(server);
        cr_assert(is(&incoming, "next"));
    }
}

Test(channel, spins)
{
    options.spin = true;
    exchange(transports[1]);
}

Test(channel, a_descriptor_ends_a_wait)
{
    int ends[2];
    bool ready = true;
    listen_at(transports[0]);
    cr_assert_eq(pipe(ends), 0);
    cr_expect_eq(mla_channel_wait_fd(&server, 1, ends[0], 1, &ready), MLA_OK);
    cr_expect(!ready);
    cr_assert_eq(write(ends[1], "x", 1), 1);
    cr_expect_eq(mla_channel_wait_fd(&server, 1, ends[0], -1, &ready), MLA_OK);
    cr_expect(ready);
    close(ends[0]);
    close(ends[1]);
}

static void on_alarm(int signal_number)
{
    (void)signal_number;
}

Test(channel, signals_end_a_wait)
{
    struct itimerval every = {.it_interval.tv_usec = 10000, .it_value.tv_usec = 10000};
    struct sigaction action = {.sa_handler = on_alarm};
    listen_at(transports[0]);
    sigaction(SIGALRM, &action, NULL);
    setitimer(ITIMER_REAL, &every, NULL);
    cr_expect_eq(mla_channel_wait(&server, 1, -1), MLA_OK);
}

Test(channel, invalid_endpoints)
{
    static const char *const endpoints[] = {
        "",
        "nonsense",
        "nonsense://x",
        "inproc://x",
        "tcp://",
        "tcp://:1",
        "tcp://127.0.0.1",
        "tcp://127.0.0.1:",
        "tcp://127.0.0.1:x",
        "tcp://127.0.0.1:65536",
        "ipc://",
        "ipc://relative",
        ("ipc:///a/path/that/is/longer/than/the/one/hundred/and/seven/bytes/"
         "which/the/address/of/a/unix/socket/has/room/for/on/linux"),
    };
    struct mla_channel *none = NULL;
    for (size_t i = 0; i < sizeof endpoints / sizeof *endpoints; i++) {
        cr_expect_eq(mla_channel_bind(context, endpoints[i], &options, &none), MLA_ENDPOINT, "%s",
                     endpoints[i]);
        cr_expect_eq(mla_channel_connect(context, endpoints[i], &options, &none), MLA_ENDPOINT,
                     "%s", endpoints[i]);
        cr_expect_null(none);
    }
    cr_expect_eq(mla_channel_bind(context, "ipc:///no/such/folder/socket", &options, &none),
                 MLA_ENDPOINT);
    cr_expect_eq(mla_channel_bind(context, "tcp://192.0.2.1:5755", &options, &none), MLA_ENDPOINT,
                 "an address of another host");
}

static void endpoint_in_use(const char *endpoint)
{
    struct mla_channel *second = NULL;
    listen_at(endpoint);
    cr_expect_eq(mla_channel_bind(context, mla_channel_endpoint(server), &options, &second),
                 MLA_ENDPOINT);
    cr_expect_null(second);
    client = dial();
    (void)greet();
}

Test(channel, endpoint_in_use_tcp)
{
    endpoint_in_use(transports[0]);
}

Test(channel, endpoint_in_use_ipc)
{
    endpoint_in_use(transports[1]);
}

/* A socket that a killed server left in the file system is nobody's. */
Test(channel, endpoint_left_behind)
{
    pid_t child = fork();
    if (child == 0) {
        struct mla_channel_context *own = NULL;
        struct mla_channel *channel = NULL;
        bool bound = mla_channel_context_create(&own) == MLA_OK &&
                     mla_channel_bind(own, ipc, &options, &channel) == MLA_OK;
        _exit(bound ? 0 : 1);
    }
    int status = -1;
    cr_assert_eq(waitpid(child, &status, 0), child);
    cr_assert_eq(status, 0);
    cr_assert_eq(access(ipc + strlen("ipc://"), F_OK), 0);
    listen_at(ipc);
    client = dial();
    (void)greet();
}
