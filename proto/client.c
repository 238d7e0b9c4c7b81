#include "proto/client.h"

#include "comm/channel.h"
#include "comm/region.h"
#include "proto/clock.h"

#include <errno.h>
#include <semaphore.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

enum {
    ASYNC_MAX = MLA_RUNS_QUEUED_MAX,
    SYNC = ASYNC_MAX, /* the slot of synchronous calls */
    SLOTS,
    /* ZeroMQ learns in batches of up to half its queue's length what the peer has read. */
    QUEUE_MAX = 4 * SLOTS,
    CONNECT_RETRY_MS = 5,
    HELLO_RETRY_MS = 50,
    TIMEOUT_MS = 30000,
    MAP_TIMEOUT_MS = 2000,
};

enum slot_state { SLOT_FREE, SLOT_WAITING, SLOT_ARRIVED };

/* One request, until its completion was given to the caller. */
struct slot {
    enum slot_state state;
    uint64_t step;
    struct mla_client_run run;
    bool shared;       /* x and y are in the region */
    struct mla_blob x; /* the caller's memory */
    sem_t x_free;      /* posted when nothing reads it any more */
    bool x_lent;
    struct mla_completion completion;
};

struct mla_client {
    struct mla_channel_context *context;
    struct mla_channel *channel; /* NULL: closed */
    int timeout_ms;
    bool payload_inline;
    void *memory; /* the caller's payloads; region.data where it is shared */
    size_t memory_bytes;
    struct mla_region region; /* number 0: not shared */
    struct mla_grant grant;
    struct mla_hello_reply info;
    struct mla_stats stats;
    struct mla_client_error error;
    uint64_t requests;
    uint32_t async_count, async_next; /* slots in use; where to look for a free one */
    uint32_t arrived_first, arrived_count;
    uint16_t arrived[ASYNC_MAX]; /* ring: asynchronous completions in the order they came */
    struct slot slots[SLOTS];
    struct mla_message request, reply;
    uint8_t frame[MLA_MESSAGE_BYTES_MAX];
};

static int64_t now_ms(void)
{
    return (int64_t)(mla_now_ns() / 1000000);
}

static enum mla_status fail(struct mla_client *client, enum mla_status status, const char *sentence)
{
    client->error = (struct mla_client_error){.status = status, .index = MLA_INDEX_NONE};
    snprintf(client->error.sentence, sizeof client->error.sentence, "%s", sentence);
    return status;
}

/* Also when nothing is connected. Afterwards no caller's memory is referred to. */
static void disconnect(struct mla_client *client)
{
    mla_channel_destroy(&client->channel);
    mla_channel_context_destroy(&client->context);
}

static enum mla_status fail_closed(struct mla_client *client)
{
    return fail(client, MLA_CLOSED, mla_status_sentence(MLA_CLOSED));
}

/* The connection can't be relied on after this. */
static enum mla_status fail_for_good(struct mla_client *client, enum mla_status status,
                                     const char *sentence)
{
    disconnect(client);
    return fail(client, status, sentence);
}

/* ---- Requests */

static void x_release(struct mla_blob *blob)
{
    struct slot *slot = (struct slot *)((uint8_t *)blob - offsetof(struct slot, x));
    sem_post(&slot->x_free);
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
        return fail_closed(client);
    if (run && !shared)
        x_bytes = payload_bytes(client, run->rows, run->dtype);
    if (x_bytes > MLA_PAYLOAD_BYTES_MAX)
        return fail(client, MLA_LIMIT, "the payload is longer than a frame may be");
    client->request.header =
        (struct mla_header){.type = type, .request_id = request_id, .payload_bytes = x_bytes};
    enum mla_status status =
        mla_message_encode(&client->request, client->frame, sizeof client->frame, &bytes);
    if (status != MLA_OK)
        return fail(client, status, mla_status_sentence(status));

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
            return fail_for_good(client, MLA_CLOSED, "the service is gone");
        return fail(client, status, mla_status_sentence(status));
    }
    slot->shared = shared;
    slot->state = SLOT_WAITING;
    slot->completion = (struct mla_completion){.request = request_id, .type = type};
    return MLA_OK;
}

static enum mla_status submit(struct mla_client *client, uint32_t index, uint16_t type,
                              const struct mla_client_run *run)
{
    enum mla_status status =
        send_request(client, index, type, ++client->requests * SLOTS + index, run);
    if (status == MLA_OK && run)
        client->slots[index].run = *run;
    return status;
}

static void set_run(struct mla_client *client, const struct mla_client_run *run, bool may_share)
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
    set_run(client, &slot->run, false);
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
        return fail_for_good(client, MLA_CLOSED, "the service is gone");
    if (status == MLA_AGAIN)
        return status;
    if (status != MLA_OK)
        return fail_for_good(client, status, mla_status_sentence(status));
    bool good = take_reply(client, &incoming);
    mla_blob_drop(incoming.payload);
    if (!good)
        return fail_for_good(client, MLA_MALFORMED, "the service sent what is no reply");
    if (client->reply.header.status == MLA_HELLO_REQUIRED)
        return fail_for_good(client, MLA_CLOSED, "the service was restarted");
    return MLA_OK;
}

static bool is_there(const struct mla_client *client, bool sync)
{
    return sync ? client->slots[SYNC].state == SLOT_ARRIVED : client->arrived_count > 0;
}

/* Until the synchronous request, or any other, has its completion; MLA_AGAIN: not in time. */
static enum mla_status receive_until(struct mla_client *client, bool sync, int timeout_ms)
{
    int64_t deadline_ms = now_ms() + timeout_ms;
    for (;;) {
        enum mla_status status = MLA_OK;
        while (!is_there(client, sync) && (status = receive(client)) == MLA_OK) {}
        if (status != MLA_AGAIN)
            return status;
        int64_t left_ms = timeout_ms < 0 ? -1 : deadline_ms - now_ms();
        if (timeout_ms >= 0 && left_ms <= 0)
            return MLA_AGAIN;
        status = mla_channel_wait(&client->channel, 1, (int)left_ms);
        if (status != MLA_OK)
            return fail_for_good(client, status, mla_status_sentence(status));
    }
}

/* ---- Synchronous calls */

static enum mla_status finish(struct mla_client *client, int timeout_ms)
{
    enum mla_status status = receive_until(client, true, timeout_ms);
    if (status == MLA_AGAIN)
        return fail_for_good(client, MLA_TIMEOUT, mla_status_sentence(MLA_TIMEOUT));
    if (status != MLA_OK)
        return status;
    struct slot *slot = &client->slots[SYNC];
    slot->state = SLOT_FREE;
    if (slot->completion.error.status != MLA_OK)
        client->error = slot->completion.error;
    return slot->completion.error.status;
}

/* Sends client->request and waits for its completion in the slot SYNC. */
static enum mla_status call(struct mla_client *client, uint16_t type,
                            const struct mla_client_run *run)
{
    enum mla_status status = submit(client, SYNC, type, run);
    return status == MLA_OK ? finish(client, client->timeout_ms) : status;
}

/* A copy of entries into the request, with the count that encoding checks. */
#define SET_ENTRIES(client, message, array, entries, entry_count)                                  \
    do {                                                                                           \
        (client)->request.u.message.count = (entry_count);                                         \
        if ((entry_count) <= MLA_STEP_SEQUENCES_MAX && (entry_count) > 0)                          \
            memcpy((client)->request.u.message.array, (entries),                                   \
                   (entry_count) * sizeof *(entries));                                             \
    } while (0)

static void set_open(struct mla_client *client, uint32_t index, uint64_t step,
                     const struct mla_open_entry *entries, uint32_t count)
{
    client->request.u.open.step = step;
    client->slots[index].step = step;
    SET_ENTRIES(client, open, entries, entries, count);
}

static void set_close(struct mla_client *client, uint32_t index, uint64_t step,
                      enum mla_close_action action)
{
    client->request.u.close = (struct mla_close){.step = step, .action = action};
    client->slots[index].step = step;
}

enum mla_status mla_client_hello(struct mla_client *client)
{
    client->request.u.hello = (struct mla_hello){MLA_PROTOCOL_VERSION, MLA_PROTOCOL_VERSION};
    return call(client, MLA_HELLO, NULL);
}

enum mla_status mla_client_open(struct mla_client *client, uint64_t step,
                                const struct mla_open_entry *entries, uint32_t count,
                                struct mla_open_reply *reply)
{
    set_open(client, SYNC, step, entries, count);
    enum mla_status status = call(client, MLA_OPEN, NULL);
    if (status == MLA_OK && reply)
        *reply = client->slots[SYNC].completion.u.open;
    return status;
}

enum mla_status mla_client_run(struct mla_client *client, const struct mla_client_run *run,
                               struct mla_run_times *times)
{
    set_run(client, run, true);
    enum mla_status status = call(client, MLA_RUN, run);
    if (status == MLA_OK && times)
        *times = client->slots[SYNC].completion.u.run;
    return status;
}

enum mla_status mla_client_close(struct mla_client *client, uint64_t step,
                                 enum mla_close_action action)
{
    set_close(client, SYNC, step, action);
    return call(client, MLA_CLOSE, NULL);
}

enum mla_status mla_client_fork(struct mla_client *client, const struct mla_fork_entry *entries,
                                uint32_t count)
{
    SET_ENTRIES(client, fork, entries, entries, count);
    return call(client, MLA_FORK, NULL);
}

enum mla_status mla_client_truncate(struct mla_client *client,
                                    const struct mla_truncate_entry *entries, uint32_t count)
{
    SET_ENTRIES(client, truncate, entries, entries, count);
    return call(client, MLA_TRUNCATE, NULL);
}

enum mla_status mla_client_free(struct mla_client *client, const uint64_t *sequences,
                                uint32_t count)
{
    SET_ENTRIES(client, free, sequences, sequences, count);
    return call(client, MLA_FREE, NULL);
}

enum mla_status mla_client_stats(struct mla_client *client, struct mla_stats *out)
{
    enum mla_status status = call(client, MLA_STATS, NULL);
    if (status == MLA_OK)
        *out = client->stats;
    return status;
}

enum mla_status mla_client_run_layer(struct mla_client *client,
                                     const struct mla_open_entry *entries, uint32_t count,
                                     struct mla_client_run *run)
{
    enum mla_status status = mla_client_open(client, run->step, entries, count, NULL);
    if (status != MLA_OK)
        return status;
    status = mla_client_run(client, run, NULL);
    if (status == MLA_OK)
        return mla_client_close(client, run->step, MLA_COMMIT);
    struct mla_client_error error = client->error;
    (void)mla_client_close(client, run->step, MLA_ABORT);
    client->error = error;
    return status;
}

/* ---- Asynchronous calls */

/* A free slot for an asynchronous request. */
static enum mla_status find_slot(struct mla_client *client, uint32_t *index)
{
    uint32_t most = client->info.runs_queued_max;
    if (!client->channel)
        return fail_closed(client);
    if (client->async_count >= (most < ASYNC_MAX ? most : ASYNC_MAX))
        return fail(client, MLA_AGAIN, "too many requests are in flight");
    while (client->slots[client->async_next].state != SLOT_FREE)
        client->async_next = (client->async_next + 1) % ASYNC_MAX;
    *index = client->async_next;
    return MLA_OK;
}

static enum mla_status submit_async(struct mla_client *client, uint32_t index, uint16_t type,
                                    const struct mla_client_run *run, uint64_t *request)
{
    enum mla_status status = submit(client, index, type, run);
    if (status != MLA_OK)
        return status;
    client->async_count++;
    *request = client->slots[index].completion.request;
    return MLA_OK;
}

enum mla_status mla_client_submit_open(struct mla_client *client, uint64_t step,
                                       const struct mla_open_entry *entries, uint32_t count,
                                       uint64_t *request)
{
    uint32_t index = 0;
    enum mla_status status = find_slot(client, &index);
    if (status != MLA_OK)
        return status;
    set_open(client, index, step, entries, count);
    return submit_async(client, index, MLA_OPEN, NULL, request);
}

enum mla_status mla_client_submit_run(struct mla_client *client, const struct mla_client_run *run,
                                      uint64_t *request)
{
    uint32_t index = 0;
    enum mla_status status = find_slot(client, &index);
    if (status != MLA_OK)
        return status;
    set_run(client, run, true);
    return submit_async(client, index, MLA_RUN, run, request);
}

enum mla_status mla_client_submit_close(struct mla_client *client, uint64_t step,
                                        enum mla_close_action action, uint64_t *request)
{
    uint32_t index = 0;
    enum mla_status status = find_slot(client, &index);
    if (status != MLA_OK)
        return status;
    set_close(client, index, step, action);
    return submit_async(client, index, MLA_CLOSE, NULL, request);
}

enum mla_status mla_client_poll(struct mla_client *client, int timeout_ms,
                                struct mla_completion *out)
{
    if (!client->channel)
        return fail_closed(client);
    enum mla_status status = receive_until(client, false, timeout_ms);
    if (status != MLA_OK)
        return status;
    struct slot *slot = &client->slots[client->arrived[client->arrived_first]];
    client->arrived_first = (client->arrived_first + 1) % ASYNC_MAX;
    client->arrived_count--;
    client->async_count--;
    slot->state = SLOT_FREE;
    *out = slot->completion;
    return MLA_OK;
}

/* ---- Connection */

/* Whether there is no use in trying again; looks at the attempts to connect that failed. */
static bool is_refused(struct mla_client *client, bool *differs)
{
    struct mla_channel_counts counts;
    int fd = -1;
    uint64_t number = 0;
    while (mla_channel_gone(client->channel, &fd, &number) == MLA_OK) {}
    mla_channel_counts(client->channel, &counts);
    *differs = counts.handshakes > 0;
    return counts.refused > 0;
}

/* The first HELLO: again and again while nobody is there or no group is ready. */
static enum mla_status say_hello(struct mla_client *client)
{
    int64_t deadline_ms = now_ms() + client->timeout_ms;
    for (;;) {
        client->request.u.hello = (struct mla_hello){MLA_PROTOCOL_VERSION, MLA_PROTOCOL_VERSION};
        int retry_ms = CONNECT_RETRY_MS;
        enum mla_status status = submit(client, SYNC, MLA_HELLO, NULL);
        if (status == MLA_OK) {
            int64_t left_ms = deadline_ms - now_ms();
            retry_ms = HELLO_RETRY_MS;
            status = finish(client, left_ms > 0 ? (int)left_ms : 0);
        }
        if (status != MLA_AGAIN && status != MLA_NOT_READY)
            return status;
        bool differs = false;
        if (status == MLA_AGAIN && is_refused(client, &differs))
            return fail(client, MLA_CLOSED, "the service does not allow this key");
        int64_t left_ms = deadline_ms - now_ms();
        if (left_ms <= retry_ms && differs)
            return fail(client, MLA_TIMEOUT, "the service there has other keys, or none");
        if (left_ms <= retry_ms)
            return fail(client, MLA_TIMEOUT,
                        status == MLA_AGAIN ? "nobody is there" : mla_status_sentence(status));
        (void)mla_channel_wait(&client->channel, 1, retry_ms);
    }
}

enum mla_status mla_client_connect(const char *endpoint, const struct mla_client_options *options,
                                   struct mla_client **out)
{
    struct mla_channel_options channel_options = {.queue_max = QUEUE_MAX,
                                                  .frame_bytes_max = MLA_PAYLOAD_BYTES_MAX,
                                                  .spin = options && options->spin};
    struct mla_keys keys;
    struct mla_client *client = calloc(1, sizeof *client);
    if (!client)
        return MLA_MEMORY;
    client->timeout_ms = options && options->timeout_ms ? options->timeout_ms : TIMEOUT_MS;
    client->payload_inline = options && options->payload_inline;
    for (int i = 0; i < SLOTS; i++) {
        client->slots[i].x.release = x_release;
        sem_init(&client->slots[i].x_free, 0, 0);
    }
    enum mla_status status = mla_keys_for(endpoint, options ? options->curve_keys : NULL, "client",
                                          &keys, &channel_options.keys);
    if (status == MLA_OK)
        status = mla_channel_context_create(&client->context);
    if (status != MLA_OK)
        goto fail;
    status = mla_channel_connect(client->context, endpoint, &channel_options, &client->channel);
    if (status != MLA_OK)
        goto fail;
    status = say_hello(client);
    if (status != MLA_OK) {
        fprintf(stderr, "%s: %s\n", endpoint, client->error.sentence);
        goto fail;
    }
    *out = client;
    return MLA_OK;
fail:
    mla_client_close_connection(&client);
    return status;
}

void mla_client_close_connection(struct mla_client **client_at)
{
    struct mla_client *client = *client_at;
    if (!client)
        return;
    disconnect(client);
    for (int i = 0; i < SLOTS; i++)
        sem_destroy(&client->slots[i].x_free);
    if (client->region.number)
        mla_region_unmap(&client->region);
    else if (client->memory)
        munmap(client->memory, client->memory_bytes);
    free(client);
    *client_at = NULL;
}

/* ---- Memory of payloads */

/* MLA_NOT_SHARED: it can't be had, and the connection is as good as before. */
static enum mla_status share(struct mla_client *client, size_t bytes)
{
    if (client->payload_inline || !(client->info.payload_modes & MLA_PAYLOAD_SHARED))
        return MLA_NOT_SHARED;
    client->request.u.share.bytes = bytes;
    enum mla_status status = call(client, MLA_SHARE, NULL);
    if (status == MLA_OK &&
        mla_region_map(&client->grant, MAP_TIMEOUT_MS, &client->region) != MLA_OK) {
        /* The service is on another host, or another user's. */
        client->request.u.share.bytes = 0;
        status = call(client, MLA_SHARE, NULL);
        if (status == MLA_OK)
            return MLA_NOT_SHARED;
    }
    return status == MLA_OK || !client->channel ? status : MLA_NOT_SHARED;
}

enum mla_status mla_client_memory(struct mla_client *client, size_t bytes, void **out)
{
    if (client->memory)
        return fail(client, MLA_OPTION, "this connection has its memory");
    enum mla_status status = client->channel ? share(client, bytes) : MLA_NOT_SHARED;
    if (status != MLA_OK && status != MLA_NOT_SHARED)
        return status;
    void *memory = client->region.data;
    if (status == MLA_NOT_SHARED)
        memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return fail(client, MLA_MEMORY, mla_status_sentence(MLA_MEMORY));
    client->memory = memory;
    client->memory_bytes = bytes;
    *out = memory;
    return MLA_OK;
}

bool mla_client_is_shared(const struct mla_client *client)
{
    return client->region.number != 0;
}

const struct mla_hello_reply *mla_client_info(const struct mla_client *client)
{
    return &client->info;
}

const struct mla_client_error *mla_client_error(const struct mla_client *client)
{
    return &client->error;
}
