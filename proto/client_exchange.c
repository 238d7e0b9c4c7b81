#include "proto/client_exchange.h"

#include "proto/clock.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

int64_t mla_exchange_now_ms(void)
{
    return (int64_t)(mla_now_ns() / 1000000);
}

enum mla_status mla_exchange_fail(struct mla_client *client, enum mla_status status,
                                  const char *sentence)
{
    client->error = (struct mla_client_error){.status = status, .index = MLA_INDEX_NONE};
    snprintf(client->error.sentence, sizeof client->error.sentence, "%s", sentence);
    return status;
}

void mla_exchange_disconnect(struct mla_client *client)
{
    mla_channel_destroy(&client->channel);
    mla_channel_context_destroy(&client->context);
}

enum mla_status mla_exchange_fail_closed(struct mla_client *client)
{
    return mla_exchange_fail(client, MLA_CLOSED, mla_status_sentence(MLA_CLOSED));
}

enum mla_status mla_exchange_fail_for_good(struct mla_client *client, enum mla_status status,
                                           const char *sentence)
{
    mla_exchange_disconnect(client);
    return mla_exchange_fail(client, status, sentence);
}

/* ---- Requests */

static void x_release(struct mla_blob *blob)
{
    struct slot *slot = (struct slot *)((uint8_t *)blob - offsetof(struct slot, x));
    sem_post(&slot->x_free);
}

void mla_exchange_slots_create(struct mla_client *client)
{
    for (int i = 0; i < SLOTS; i++) {
        client->slots[i].x.release = x_release;
        sem_init(&client->slots[i].x_free, 0, 0);
    }
}

void mla_exchange_slots_destroy(struct mla_client *client)
{
    for (int i = 0; i < SLOTS; i++)
        sem_destroy(&client->slots[i].x_free);
}

/* Waits until the socket's thread has let go of x. It has written x when the reply is there, so
 * this is short, but for a peer that answers what it did not receive. */
static bool x_take_back(struct mla_client *client, struct slot *slot)
{
    struct timespec deadline;
    if (!slot->x_lent)
        return true;
    clock_gettime(CLOCK_MONOTONIC, &deadline);
    deadline.tv_sec += client->timeout_ms / 1000 + 1;
    while (sem_clockwait(&slot->x_free, CLOCK_MONOTONIC, &deadline) != 0)
        if (errno != EINTR)
            return false;
    slot->x_lent = false;
    return true;
}

static size_t payload_bytes(const struct mla_client *client, uint32_t rows, enum mla_dtype dtype)
{
    return (size_t)rows * client->info.dims.hidden * mla_dtype_bytes(dtype);
}

/* Where in the region `bytes` at `data` are. */
static bool find_place(const struct mla_client *client, const void *data, size_t bytes,
                       uint64_t *at)
{
    uintptr_t base = (uintptr_t)client->region.data;
    uintptr_t begin = (uintptr_t)data;
    *at = begin - base;
    return client->region.number && begin >= base && *at % MLA_REGION_ALIGNMENT == 0 &&
           bytes <= client->region.bytes && *at <= client->region.bytes - bytes;
}

/* Sends client->request under this id. `run`: the payload's, or NULL. */
static enum mla_status send_request(struct mla_client *client, uint32_t index, uint16_t type,
                                    uint64_t request_id, const struct mla_client_run *run)
{
    struct slot *slot = &client->slots[index];
    bool shared = run && client->request.u.run.place_count > 0;
    size_t x_bytes = 0;
    size_t bytes = 0;
    if (!client->channel)
        return mla_exchange_fail_closed(client);
    if (run && !shared)
        x_bytes = payload_bytes(client, run->rows, run->dtype);
    if (x_bytes > MLA_PAYLOAD_BYTES_MAX)
        return mla_exchange_fail(client, MLA_LIMIT, "the payload is longer than a frame may be");
    client->request.header =
        (struct mla_header){.type = type, .request_id = request_id, .payload_bytes = x_bytes};
    enum mla_status status =
        mla_message_encode(&client->request, client->frame, sizeof client->frame, &bytes);
    if (status != MLA_OK)
        return mla_exchange_fail(client, status, mla_status_sentence(status));

    struct mla_blob *x = NULL;
    if (x_bytes) {
        x = &slot->x;
        x->data = (uint8_t *)run->x; /* only read, but blobs are not const */
        x->bytes = x_bytes;
        atomic_store(&x->references, 1);
        slot->x_lent = true;
    }
    status = mla_channel_send(client->channel, NULL, client->frame, bytes, x, 0, x_bytes);
    mla_blob_drop(x);
    if (status != MLA_OK) {
        (void)x_take_back(client, slot);
        /* The queue holds all requests there can be, so no room means no connection. After
         * HELLO that is an end: a service that comes back does not know this client. */
        if (status == MLA_AGAIN && client->info.version)
            return mla_exchange_fail_for_good(client, MLA_CLOSED, "the service is gone");
        return mla_exchange_fail(client, status, mla_status_sentence(status));
    }
    slot->shared = shared;
    slot->state = SLOT_WAITING;
    slot->completion = (struct mla_completion){.request = request_id, .type = type};
    return MLA_OK;
}

enum mla_status mla_exchange_submit(struct mla_client *client, uint32_t index, uint16_t type,
                                    const struct mla_client_run *run)
{
    enum mla_status status =
        send_request(client, index, type, ++client->requests * SLOTS + index, run);
    if (status == MLA_OK && run)
        client->slots[index].run = *run;
    return status;
}

void mla_exchange_set_run(struct mla_client *client, const struct mla_client_run *run,
                          bool may_share)
{
    struct mla_run_place place = {.region = client->region.number};
    bool shared =
        may_share &&
        find_place(client, run->x, payload_bytes(client, run->rows, run->dtype), &place.input_at) &&
        find_place(client, run->y, payload_bytes(client, run->rows, run->reply_dtype),
                   &place.output_at);
    client->request.u.run = (struct mla_run){.step = run->step,
                                             .layer = run->layer,
                                             .dtype = run->dtype,
                                             .reply_dtype = run->reply_dtype,
                                             .rows = run->rows,
                                             .hidden = client->info.dims.hidden,
                                             .place_count = shared,
                                             .places = {place}};
}

/* The workers of this step don't have the region: the same request again, with a frame. */
static bool send_inline(struct mla_client *client, uint32_t index)
{
    const struct slot *slot = &client->slots[index];
    mla_exchange_set_run(client, &slot->run, false);
    return send_request(client, index, MLA_RUN, slot->completion.request, &slot->run) == MLA_OK;
}

/* ---- Replies */

static bool run_fits(const struct mla_client *client, const struct slot *slot,
                     const struct mla_run_reply *reply, const struct mla_blob *payload)
{
    const struct mla_client_run *run = &slot->run;
    size_t bytes = slot->shared ? 0 : payload_bytes(client, run->rows, run->reply_dtype);
    return reply->step == run->step && reply->layer == run->layer &&
           reply->dtype == (uint32_t)run->reply_dtype && reply->rows == run->rows &&
           reply->hidden == client->info.dims.hidden && (payload ? payload->bytes : 0) == bytes;
}

/* Asked again, the model is still the same. */
static bool take_hello(struct mla_client *client)
{
    const struct mla_hello_reply *info = &client->reply.u.hello_reply;
    if (info->version != MLA_PROTOCOL_VERSION ||
        (client->info.version && memcmp(&info->dims, &client->info.dims, sizeof info->dims) != 0))
        return false;
    client->info = *info;
    return true;
}

/* The result of a request that succeeded. False: it does not belong to what was asked. */
static bool take_result(struct mla_client *client, struct slot *slot,
                        const struct mla_blob *payload)
{
    const struct mla_message *reply = &client->reply;
    switch (slot->completion.type) {
    case MLA_HELLO:
        return take_hello(client);
    case MLA_OPEN:
        slot->completion.u.open = reply->u.open_reply;
        return reply->u.open_reply.step == slot->step;
    case MLA_RUN:
        if (!run_fits(client, slot, &reply->u.run_reply, payload))
            return false;
        if (payload)
            memcpy(slot->run.y, payload->data, payload->bytes);
        slot->completion.u.run = reply->u.run_reply.times;
        return true;
    case MLA_CLOSE:
        slot->completion.u.close = reply->u.close_reply;
        return reply->u.close_reply.step == slot->step;
    case MLA_STATS:
        client->stats = reply->u.stats_reply;
        return true;
    case MLA_SHARE:
        client->grant = reply->u.share_reply;
        return true;
    default: /* FORK, TRUNCATE, FREE: nothing to keep */
        return true;
    }
}

/* False: the peer does not speak this protocol. */
static bool take_reply(struct mla_client *client, const struct mla_incoming *incoming)
{
    const struct mla_header *header = &client->reply.header;
    size_t payload_bytes = incoming->payload ? incoming->payload->bytes : 0;
    if (mla_message_decode(incoming->head, incoming->head_bytes, &client->reply) != MLA_OK ||
        incoming->frames != (header->payload_bytes ? 2 : 1) ||
        header->payload_bytes != payload_bytes)
        return false;
    uint32_t index = (uint32_t)(header->request_id % SLOTS);
    struct slot *slot = &client->slots[index];
    struct mla_completion *completion = &slot->completion;
    if (slot->state != SLOT_WAITING || completion->request != header->request_id ||
        header->type != (completion->type | MLA_REPLY) || !x_take_back(client, slot))
        return false;

    if (header->status == MLA_NOT_SHARED && completion->type == MLA_RUN && slot->shared)
        return send_inline(client, index);
    if (header->status != MLA_OK) {
        completion->error.status = (enum mla_status)header->status;
        completion->error.index = header->index;
        memcpy(completion->error.sentence, client->reply.u.sentence,
               sizeof completion->error.sentence);
    } else if (!take_result(client, slot, incoming->payload)) {
        return false;
    }
    slot->state = SLOT_ARRIVED;
    if (index != SYNC)
        client->arrived[(client->arrived_first + client->arrived_count++) % ASYNC_MAX] =
            (uint16_t)index;
    return true;
}

/* One message, if there is one: MLA_OK, MLA_AGAIN. Others: the connection is closed. */
static enum mla_status receive(struct mla_client *client)
{
    struct mla_incoming incoming;
    int fd = -1;
    uint64_t number = 0;
    enum mla_status status = mla_channel_receive(client->channel, &incoming);
    /* What was sent before the end still counts. */
    if (status == MLA_AGAIN && mla_channel_gone(client->channel, &fd, &number) == MLA_OK &&
        (status = mla_channel_receive(client->channel, &incoming)) == MLA_AGAIN)
        return mla_exchange_fail_for_good(client, MLA_CLOSED, "the service is gone");
    if (status == MLA_AGAIN)
        return status;
    if (status != MLA_OK)
        return mla_exchange_fail_for_good(client, status, mla_status_sentence(status));
    bool good = take_reply(client, &incoming);
    mla_blob_drop(incoming.payload);
    if (!good)
        return mla_exchange_fail_for_good(client, MLA_MALFORMED,
                                          "the service sent what is no reply");
    if (client->reply.header.status == MLA_HELLO_REQUIRED)
        return mla_exchange_fail_for_good(client, MLA_CLOSED, "the service was restarted");
    return MLA_OK;
}

static bool is_there(const struct mla_client *client, bool sync)
{
    return sync ? client->slots[SYNC].state == SLOT_ARRIVED : client->arrived_count > 0;
}

enum mla_status mla_exchange_receive_until(struct mla_client *client, bool sync, int timeout_ms)
{
    int64_t deadline_ms = mla_exchange_now_ms() + timeout_ms;
    for (;;) {
        enum mla_status status = MLA_OK;
        while (!is_there(client, sync) && (status = receive(client)) == MLA_OK) {}
        if (status != MLA_AGAIN)
            return status;
        int64_t left_ms = timeout_ms < 0 ? -1 : deadline_ms - mla_exchange_now_ms();
        if (timeout_ms >= 0 && left_ms <= 0)
            return MLA_AGAIN;
        status = mla_channel_wait(&client->channel, 1, (int)left_ms);
        if (status != MLA_OK)
            return mla_exchange_fail_for_good(client, status, mla_status_sentence(status));
    }
}

enum mla_status mla_exchange_finish(struct mla_client *client, int timeout_ms)
{
    enum mla_status status = mla_exchange_receive_until(client, true, timeout_ms);
    if (status == MLA_AGAIN)
        return mla_exchange_fail_for_good(client, MLA_TIMEOUT, mla_status_sentence(MLA_TIMEOUT));
    if (status != MLA_OK)
        return status;
    struct slot *slot = &client->slots[SYNC];
    slot->state = SLOT_FREE;
    if (slot->completion.error.status != MLA_OK)
        client->error = slot->completion.error;
    return slot->completion.error.status;
}

enum mla_status mla_exchange_call(struct mla_client *client, uint16_t type,
                                  const struct mla_client_run *run)
{
    enum mla_status status = mla_exchange_submit(client, SYNC, type, run);
    return status == MLA_OK ? mla_exchange_finish(client, client->timeout_ms) : status;
}
