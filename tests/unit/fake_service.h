/* A coordinator of a few lines, for tests of the client: it computes twice x. */
#ifndef MLA_TESTS_UNIT_FAKE_SERVICE_H
#define MLA_TESTS_UNIT_FAKE_SERVICE_H

#include "comm/channel.h"
#include "proto/client.h"

#include <criterion/criterion.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

enum { HIDDEN = 64, RUNS_QUEUED_MAX = 3, HELD_MAX = 8, ROWS_MAX = 65536 };

/* A request that is answered later. */
struct held {
    struct mla_peer peer;
    struct mla_header header;
    struct mla_run run;
    struct mla_blob *payload;
};

/* A coordinator of a few lines, in a thread. A test's hook may answer in its place. */
struct fake {
    struct mla_channel_context *context;
    struct mla_channel *channel;
    struct mla_blob_pool *pool;
    pthread_t thread;
    bool running;
    atomic_bool stop;
    bool (*hook)(struct fake *, const struct mla_incoming *);
    int kind; /* the hook's own */
    atomic_int seen[MLA_SHARE + 1];
    atomic_uint last_action;
    struct held held[HELD_MAX];
    uint32_t held_count;
    struct mla_message request, reply;
    uint8_t frame[MLA_MESSAGE_BYTES_MAX];
};

static struct fake fake;

static inline void send_frame(const struct mla_peer *peer, size_t bytes, struct mla_blob *payload)
{
    (void)mla_channel_send(fake.channel, peer, fake.frame, bytes, payload, 0,
                           payload ? payload->bytes : 0);
}

/* fake.reply, whose body is set. */
static inline void send_reply(const struct mla_peer *peer, uint16_t type, uint64_t request_id,
                              struct mla_blob *payload)
{
    size_t bytes = 0;
    fake.reply.header = (struct mla_header){.type = type | MLA_REPLY,
                                            .request_id = request_id,
                                            .epoch = 3,
                                            .payload_bytes = payload ? payload->bytes : 0};
    enum mla_status status = mla_message_encode(&fake.reply, fake.frame, sizeof fake.frame, &bytes);
    cr_assert_eq(status, MLA_OK);
    send_frame(peer, bytes, payload);
}

static inline void send_error(const struct mla_incoming *in, enum mla_status status, uint32_t index,
                              const char *sentence)
{
    size_t bytes = 0;
    fake.reply.header = (struct mla_header){.type = fake.request.header.type | MLA_REPLY,
                                            .request_id = fake.request.header.request_id,
                                            .status = status,
                                            .index = index};
    snprintf(fake.reply.u.sentence, sizeof fake.reply.u.sentence, "%s", sentence);
    cr_assert_eq(mla_message_encode(&fake.reply, fake.frame, sizeof fake.frame, &bytes), MLA_OK);
    send_frame(&in->peer, bytes, NULL);
}

/* Payloads arrive at any address. */
static inline float element(const struct mla_blob *blob, uint32_t dtype, size_t i)
{
    uint16_t half;
    float value;
    if (dtype == MLA_F32) {
        memcpy(&value, blob->data + i * sizeof value, sizeof value);
        return value;
    }
    memcpy(&half, blob->data + i * sizeof half, sizeof half);
    return mla_bf16_to_f32(half);
}

/* What the fake computes: twice x. */
static inline struct mla_blob *twice(const struct mla_run *run, const struct mla_blob *in)
{
    struct mla_blob *out = NULL;
    size_t count = (size_t)run->rows * run->hidden;
    size_t bytes = count * mla_dtype_bytes((enum mla_dtype)run->reply_dtype);
    cr_assert_eq(mla_blob_pool_get(fake.pool, bytes, &out), MLA_OK);
    cr_assert_eq(in->bytes, count * mla_dtype_bytes((enum mla_dtype)run->dtype));
    for (size_t i = 0; i < count; i++) {
        float value = 2 * element(in, run->dtype, i);
        if (run->reply_dtype == MLA_F32)
            ((float *)out->data)[i] = value;
        else
            ((uint16_t *)out->data)[i] = mla_f32_to_bf16(value);
    }
    return out;
}

static inline void answer_run(const struct mla_peer *peer, uint64_t request_id,
                              const struct mla_run *run, const struct mla_blob *in)
{
    struct mla_blob *out = twice(run, in);
    fake.reply.u.run_reply = (struct mla_run_reply){.step = run->step,
                                                    .layer = run->layer,
                                                    .dtype = run->reply_dtype,
                                                    .rows = run->rows,
                                                    .hidden = run->hidden,
                                                    .times = {.compute_ns = 5 + run->layer}};
    send_reply(peer, MLA_RUN, request_id, out);
    mla_blob_drop(out);
}

static inline void set_info(struct mla_hello_reply *info)
{
    *info = (struct mla_hello_reply){.version = 1,
                                     .payload_modes = MLA_PAYLOAD_INLINE | MLA_PAYLOAD_SHARED,
                                     .dims = {.hidden = HIDDEN, .heads = 4},
                                     .groups = 1,
                                     .ranks = 2,
                                     .runs_queued_max = RUNS_QUEUED_MAX,
                                     .layer_count = 2,
                                     .layers = {0, 7}};
}

static inline void answer(const struct mla_incoming *in)
{
    const struct mla_header *header = &fake.request.header;
    switch (header->type) {
    case MLA_HELLO:
        set_info(&fake.reply.u.hello_reply);
        break;
    case MLA_OPEN:
        fake.reply.u.open_reply = (struct mla_open_reply){.step = fake.request.u.open.step,
                                                          .decode_rows = 4,
                                                          .prefill_rows = 5,
                                                          .microbatches = 6,
                                                          .blocks_free = 7};
        break;
    case MLA_RUN:
        answer_run(&in->peer, header->request_id, &fake.request.u.run, in->payload);
        return;
    case MLA_CLOSE:
        fake.last_action = fake.request.u.close.action;
        fake.reply.u.close_reply =
            (struct mla_close_reply){.step = fake.request.u.close.step, .blocks_free = 9};
        break;
    case MLA_STATS:
        fake.reply.u.stats_reply = (struct mla_stats){.requests = 11, .heap_bytes = 12};
        break;
    default:
        fake.reply.u.blocks_reply.blocks_free = 13;
        break;
    }
    send_reply(&in->peer, header->type, header->request_id, NULL);
}

static inline void *serve(void *unused)
{
    (void)unused;
    struct mla_incoming in;
    while (!atomic_load(&fake.stop)) {
        if (mla_channel_receive(fake.channel, &in) != MLA_OK) {
            (void)mla_channel_wait(&fake.channel, 1, 10);
            int fd = -1;
            uint64_t number = 0;
            while (mla_channel_gone(fake.channel, &fd, &number) == MLA_OK) {}
            continue;
        }
        cr_assert_eq(mla_message_decode(in.head, in.head_bytes, &fake.request), MLA_OK);
        cr_assert_eq(in.frames, fake.request.header.payload_bytes ? 2 : 1);
        fake.seen[fake.request.header.type]++;
        if (!fake.hook || !fake.hook(&fake, &in))
            answer(&in);
        mla_blob_drop(in.payload);
    }
    return NULL;
}

static inline void fake_start(bool (*hook)(struct fake *, const struct mla_incoming *), int kind)
{
    const struct mla_channel_options options = {.queue_max = 1000, .frame_bytes_max = 1u << 30};
    fake.hook = hook;
    fake.kind = kind;
    cr_assert_eq(mla_blob_pool_create(1u << 30, &fake.pool), MLA_OK);
    cr_assert_eq(mla_channel_context_create(&fake.context), MLA_OK);
    cr_assert_eq(mla_channel_bind(fake.context, "tcp://127.0.0.1:*", &options, &fake.channel),
                 MLA_OK);
    cr_assert_eq(pthread_create(&fake.thread, NULL, serve, NULL), 0);
    fake.running = true;
}

static inline void fake_stop(void)
{
    if (!fake.running)
        return;
    atomic_store(&fake.stop, true);
    pthread_join(fake.thread, NULL);
    for (uint32_t i = 0; i < fake.held_count; i++)
        mla_blob_drop(fake.held[i].payload);
    mla_channel_destroy(&fake.channel);
    mla_channel_context_destroy(&fake.context);
    mla_blob_pool_destroy(&fake.pool);
    memset(&fake, 0, sizeof fake);
}

static struct mla_client *client;
static float x[ROWS_MAX * HIDDEN], y[ROWS_MAX * HIDDEN];

static inline void connect_client(int timeout_ms)
{
    const struct mla_client_options options = {.timeout_ms = timeout_ms};
    enum mla_status status =
        mla_client_connect(mla_channel_endpoint(fake.channel), &options, &client);
    cr_assert_eq(status, MLA_OK, "%s", mla_status_name(status));
}

static inline void start(bool (*hook)(struct fake *, const struct mla_incoming *), int kind)
{
    fake_start(hook, kind);
    connect_client(0);
}

static inline void stop(void)
{
    mla_client_close_connection(&client);
    fake_stop();
}

static inline struct mla_client_run make_run(uint64_t step, uint32_t layer, uint32_t rows)
{
    for (size_t i = 0; i < (size_t)rows * HIDDEN; i++) {
        x[i] = (float)(i % 1000) + (float)layer;
        y[i] = -1;
    }
    return (struct mla_client_run){.step = step,
                                   .layer = layer,
                                   .dtype = MLA_F32,
                                   .reply_dtype = MLA_F32,
                                   .rows = rows,
                                   .x = x,
                                   .y = y};
}

static inline void check_error(enum mla_status status, uint32_t index)
{
    cr_assert_eq(mla_client_error(client)->status, status);
    cr_assert_eq(mla_client_error(client)->index, index);
    cr_assert_gt(strlen(mla_client_error(client)->sentence), 5);
}

static inline void check_closed(void)
{
    struct mla_client_run run = make_run(1, 0, 1);
    struct mla_completion completion;
    uint64_t request = 0;
    cr_assert_eq(mla_client_hello(client), MLA_CLOSED);
    cr_assert_eq(mla_client_run(client, &run, NULL), MLA_CLOSED);
    cr_assert_eq(mla_client_submit_run(client, &run, &request), MLA_CLOSED);
    cr_assert_eq(mla_client_poll(client, -1, &completion), MLA_CLOSED);
    check_error(MLA_CLOSED, MLA_INDEX_NONE);
}

#endif
