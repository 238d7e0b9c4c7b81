/* What the hostile clients share: a raw connection, and a look at the service after each. Each test
 * ends with expect_service. (Not in the fixture's end: Criterion does not count what fails there.)
 */
#ifndef MLA_TESTS_INTEGRATION_HOSTILE_H
#define MLA_TESTS_INTEGRATION_HOSTILE_H

#include "comm/channel.h"
#include "proto/client.h"
#include "proto/clock.h"
#include "tests/unit/frames.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PATIENCE_S = 20, STEP = 5, ROWS = 3 };

static const char *endpoint;
static struct mla_channel_context *context;
static struct mla_channel *channel;
static struct mla_blob_pool *pool;
static struct mla_hello_reply info;
static struct mla_message request, reply;
static struct frame frame;
static uint64_t request_id;

static inline int64_t now_s(void)
{
    return (int64_t)(mla_now_ns() / 1000000000u);
}

static inline void dial(void)
{
    const struct mla_channel_options options = {.queue_max = 1024,
                                                .frame_bytes_max = MLA_PAYLOAD_BYTES_MAX};
    cr_assert_eq(mla_channel_connect(context, endpoint, &options, &channel), MLA_OK);
}

static inline void hang_up(void)
{
    mla_channel_destroy(&channel);
}

static inline struct mla_blob *payload_of(size_t bytes)
{
    struct mla_blob *blob = NULL;
    cr_assert_eq(mla_blob_pool_get(pool, bytes, &blob), MLA_OK);
    memset(blob->data, 0, bytes);
    return blob;
}

static inline void send_message(const void *head, size_t head_bytes, struct mla_blob *payload)
{
    int64_t deadline_s = now_s() + PATIENCE_S;
    enum mla_status status;
    while ((status = mla_channel_send(channel, NULL, head, head_bytes, payload, 0,
                                      payload ? payload->bytes : 0)) == MLA_AGAIN) {
        cr_assert_lt(now_s(), deadline_s, "the service does not take messages");
        cr_assert_eq(mla_channel_wait(&channel, 1, 5), MLA_OK);
    }
    cr_assert_eq(status, MLA_OK);
}

/* The status of the next reply. */
static inline enum mla_status receive_reply(void)
{
    struct mla_incoming incoming;
    int64_t deadline_s = now_s() + PATIENCE_S;
    while (mla_channel_receive(channel, &incoming) == MLA_AGAIN) {
        cr_assert_lt(now_s(), deadline_s, "no reply came");
        cr_assert_eq(mla_channel_wait(&channel, 1, 100), MLA_OK);
    }
    enum mla_status status = mla_message_decode(incoming.head, incoming.head_bytes, &reply);
    cr_assert_eq(status, MLA_OK, "the reply is not one: %s", mla_status_name(status));
    cr_assert(reply.header.type & MLA_REPLY);
    mla_blob_drop(incoming.payload);
    return (enum mla_status)reply.header.status;
}

/* Sends `frame` and returns the status of its reply. */
static inline enum mla_status ask_frame(struct mla_blob *payload)
{
    send_message(frame.data, frame.bytes, payload);
    return receive_reply();
}

/* `request`, whose body is set, into `frame`. */
static inline void encode(uint16_t type, uint64_t payload_bytes)
{
    request.header = (struct mla_header){
        .type = type, .request_id = ++request_id, .payload_bytes = payload_bytes};
    cr_assert_eq(mla_message_encode(&request, frame.data, sizeof frame.data, &frame.bytes), MLA_OK);
}

static inline enum mla_status ask(uint16_t type)
{
    encode(type, 0);
    enum mla_status status = ask_frame(NULL);
    cr_assert_eq(reply.header.request_id, request_id);
    return status;
}

static inline void hello(void)
{
    request.u.hello = (struct mla_hello){1, 1};
    cr_assert_eq(ask(MLA_HELLO), MLA_OK);
    info = reply.u.hello_reply;
}

/* ROWS new sequences of one token. */
static inline void set_open(void)
{
    request.u.open = (struct mla_open){.step = STEP, .count = ROWS};
    for (uint32_t i = 0; i < ROWS; i++)
        request.u.open.entries[i] = (struct mla_open_entry){.sequence = i, .tokens = 1};
}

static inline void open_step(void)
{
    set_open();
    cr_assert_eq(ask(MLA_OPEN), MLA_OK, "%s", reply.u.sentence);
}

static inline void set_run(void)
{
    request.u.run = (struct mla_run){.step = STEP,
                                     .layer = info.layers[0],
                                     .dtype = MLA_F32,
                                     .reply_dtype = MLA_F32,
                                     .rows = ROWS,
                                     .hidden = info.dims.hidden};
}

static inline size_t run_bytes(void)
{
    return (size_t)ROWS * info.dims.hidden * sizeof(float);
}

/* request.u.run with that many bytes announced and that many sent (0: no payload frame). */
static inline enum mla_status ask_run(uint64_t announced, size_t sent)
{
    struct mla_blob *payload = sent ? payload_of(sent) : NULL;
    encode(MLA_RUN, announced);
    enum mla_status status = ask_frame(payload);
    mla_blob_drop(payload);
    return status;
}

/* A client that does everything right is there before the other goes; in the end it is alone and
 * nothing is in use. */
static inline void expect_service(void)
{
    struct mla_client *client = NULL;
    struct mla_stats stats = {0};
    const struct mla_open_entry entry = {.sequence = 1, .tokens = 100};
    cr_assert_eq(mla_client_connect(endpoint, NULL, &client), MLA_OK);
    hang_up();
    const struct mla_hello_reply *model = mla_client_info(client);
    size_t values = (size_t)entry.tokens * model->dims.hidden;
    float *x = malloc(values * sizeof *x);
    float *y = malloc(values * sizeof *y);
    for (size_t i = 0; i < values; i++)
        x[i] = (float)(i % 17) - 8;
    for (uint32_t i = 0; i < model->layer_count; i++) {
        struct mla_client_run run = {.step = 1 + i,
                                     .layer = model->layers[i],
                                     .dtype = MLA_F32,
                                     .reply_dtype = MLA_F32,
                                     .rows = entry.tokens,
                                     .x = x,
                                     .y = y};
        cr_assert_eq(mla_client_run_layer(client, &entry, 1, &run), MLA_OK, "%s",
                     mla_client_error(client)->sentence);
        for (size_t k = 0; k < values; k++)
            cr_assert(isfinite(y[k]), "layer %u, value %zu", model->layers[i], k);
        cr_assert_eq(mla_client_free(client, &entry.sequence, 1), MLA_OK);
    }
    int64_t deadline_s = now_s() + PATIENCE_S;
    do {
        cr_assert_lt(now_s(), deadline_s, "left: %llu clients, %llu blocks, %llu sequences",
                     (unsigned long long)stats.clients, (unsigned long long)stats.blocks_used,
                     (unsigned long long)stats.sequences);
        cr_assert_eq(mla_client_stats(client, &stats), MLA_OK);
    } while (stats.clients > 1 || stats.blocks_used > 0 || stats.sequences > 0);
    cr_expect(stats.steps_open == 0 && stats.runs_in_flight == 0 &&
              stats.blocks_free == stats.blocks_total);
    free(x);
    free(y);
    mla_client_close_connection(&client);
}

static inline void setup(void)
{
    endpoint = getenv("MLA_TEST_ENDPOINT");
    cr_assert_not_null(endpoint, "MLA_TEST_ENDPOINT says where the service is");
    cr_assert_eq(mla_channel_context_create(&context), MLA_OK);
    cr_assert_eq(mla_blob_pool_create((size_t)1 << 30, &pool), MLA_OK);
    frame.seed = 42;
    dial();
}

static inline void teardown(void)
{
    hang_up();
    mla_blob_pool_destroy(&pool);
    mla_channel_context_destroy(&context);
}

#endif
