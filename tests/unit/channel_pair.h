/* What the tests of a channel share: a server, a client, and payloads that tell when they are let
 * go. Each program includes it once. */
#ifndef MLA_TESTS_UNIT_CHANNEL_PAIR_H
#define MLA_TESTS_UNIT_CHANNEL_PAIR_H

#include "comm/channel.h"
#include "proto/clock.h"

#include <criterion/criterion.h>
#include <poll.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PATIENCE_S = 10, QUEUE_MAX = 16, FRAME_BYTES_MAX = 1 << 20 };

static struct mla_channel_options options = {.queue_max = QUEUE_MAX,
                                             .frame_bytes_max = FRAME_BYTES_MAX};
static char folder[] = "/tmp/mla-test-channel-XXXXXX";
static char ipc[64];
static struct mla_channel_context *context;
static struct mla_channel *server, *client;
static const char *const transports[] = {"tcp://127.0.0.1:*", ipc};

static inline void setup(void)
{
    cr_assert_not_null(mkdtemp(folder));
    snprintf(ipc, sizeof ipc, "ipc://%s/socket", folder);
    cr_assert_eq(mla_channel_context_create(&context), MLA_OK);
}

static inline void teardown(void)
{
    mla_channel_destroy(&client);
    mla_channel_destroy(&server);
    mla_channel_context_destroy(&context);
    unlink(ipc + strlen("ipc://"));
    rmdir(folder);
}

TestSuite(channel, .init = setup, .fini = teardown, .timeout = 60);

static inline int64_t now_s(void)
{
    return (int64_t)(mla_now_ns() / 1000000000u);
}

static inline void listen_at(const char *endpoint)
{
    cr_assert_eq(mla_channel_bind(context, endpoint, &options, &server), MLA_OK);
}

static inline struct mla_channel *dial(void)
{
    struct mla_channel *channel = NULL;
    const char *endpoint = mla_channel_endpoint(server);
    cr_assert_eq(mla_channel_connect(context, endpoint, &options, &channel), MLA_OK);
    return channel;
}

/* A message that must come. */
static inline struct mla_incoming receive(struct mla_channel *channel)
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
static inline int gone(struct mla_channel *channel)
{
    int fd = -1;
    int64_t deadline_s = now_s() + PATIENCE_S;
    while (mla_channel_gone(channel, &fd, &gone_number) == MLA_AGAIN) {
        struct pollfd none;
        cr_assert_lt(now_s(), deadline_s, "no end was told");
        /* A message that nobody takes would keep mla_channel_wait from waiting. */
        poll(&none, 0, 1);
    }
    return fd;
}

/* Until the outcome is `wanted`: a connection begins and ends in a thread of its own. */
static inline void send_until(enum mla_status wanted, struct mla_channel *channel,
                              const struct mla_peer *peer, const char *head)
{
    int64_t deadline_s = now_s() + PATIENCE_S;
    enum mla_status status;
    while ((status = mla_channel_send(channel, peer, head, strlen(head), NULL, 0, 0)) != wanted) {
        cr_assert_lt(now_s(), deadline_s, "the outcome is still %s", mla_status_name(status));
        cr_assert_eq(mla_channel_wait(&channel, 1, 1), MLA_OK);
    }
}

static inline bool is(const struct mla_incoming *incoming, const char *head)
{
    return incoming->head_bytes == strlen(head) &&
           memcmp(incoming->head, head, incoming->head_bytes) == 0;
}

/* Who the client is to the server. */
static inline struct mla_peer greet(void)
{
    send_until(MLA_OK, client, NULL, "hello");
    struct mla_incoming incoming = receive(server);
    cr_assert(is(&incoming, "hello"));
    cr_assert_eq(incoming.frames, 1);
    cr_assert_null(incoming.payload);
    return incoming.peer;
}

/* The same after a loss. What is sent while a connection ends may be lost with it. */
static inline struct mla_peer greet_again(void)
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

static inline void tell(struct mla_blob *blob)
{
    sem_post(&((struct told *)blob)->released);
}

static inline void told_init(struct told *told, size_t bytes)
{
    *told = (struct told){.blob = {.data = malloc(bytes), .bytes = bytes, .release = tell}};
    for (size_t i = 0; i < bytes; i++)
        told->blob.data[i] = (uint8_t)(i * 31 + i / 256);
    atomic_store(&told->blob.references, 1);
    sem_init(&told->released, 0, 0);
}

static inline bool is_released(struct told *told)
{
    return sem_trywait(&told->released) == 0;
}

/* A channel learns what happened to its connections when it is used. */
static inline void wait_released(struct told *told)
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

#endif
