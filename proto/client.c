#include "proto/client.h"

#include "proto/client_exchange.h"

#include <string.h>

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
    return mla_exchange_call(client, MLA_HELLO, NULL);
}

enum mla_status mla_client_open(struct mla_client *client, uint64_t step,
                                const struct mla_open_entry *entries, uint32_t count,
                                struct mla_open_reply *reply)
{
    set_open(client, SYNC, step, entries, count);
    enum mla_status status = mla_exchange_call(client, MLA_OPEN, NULL);
    if (status == MLA_OK && reply)
        *reply = client->slots[SYNC].completion.u.open;
    return status;
}

enum mla_status mla_client_run(struct mla_client *client, const struct mla_client_run *run,
                               struct mla_run_times *times)
{
    mla_exchange_set_run(client, run, true);
    enum mla_status status = mla_exchange_call(client, MLA_RUN, run);
    if (status == MLA_OK && times)
        *times = client->slots[SYNC].completion.u.run;
    return status;
}

enum mla_status mla_client_close(struct mla_client *client, uint64_t step,
                                 enum mla_close_action action)
{
    set_close(client, SYNC, step, action);
    return mla_exchange_call(client, MLA_CLOSE, NULL);
}

enum mla_status mla_client_fork(struct mla_client *client, const struct mla_fork_entry *entries,
                                uint32_t count)
{
    SET_ENTRIES(client, fork, entries, entries, count);
    return mla_exchange_call(client, MLA_FORK, NULL);
}

enum mla_status mla_client_truncate(struct mla_client *client,
                                    const struct mla_truncate_entry *entries, uint32_t count)
{
    SET_ENTRIES(client, truncate, entries, entries, count);
    return mla_exchange_call(client, MLA_TRUNCATE, NULL);
}

enum mla_status mla_client_free(struct mla_client *client, const uint64_t *sequences,
                                uint32_t count)
{
    SET_ENTRIES(client, free, sequences, sequences, count);
    return mla_exchange_call(client, MLA_FREE, NULL);
}

enum mla_status mla_client_stats(struct mla_client *client, struct mla_stats *out)
{
    enum mla_status status = mla_exchange_call(client, MLA_STATS, NULL);
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
        return mla_exchange_fail_closed(client);
    if (client->async_count >= (most < ASYNC_MAX ? most : ASYNC_MAX))
        return mla_exchange_fail(client, MLA_AGAIN, "too many requests are in flight");
    while (client->slots[client->async_next].state != SLOT_FREE)
        client->async_next = (client->async_next + 1) % ASYNC_MAX;
    *index = client->async_next;
    return MLA_OK;
}

static enum mla_status submit_async(struct mla_client *client, uint32_t index, uint16_t type,
                                    const struct mla_client_run *run, uint64_t *request)
{
    enum mla_status status = mla_exchange_submit(client, index, type, run);
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
    mla_exchange_set_run(client, run, true);
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
        return mla_exchange_fail_closed(client);
    enum mla_status status = mla_exchange_receive_until(client, false, timeout_ms);
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

const struct mla_hello_reply *mla_client_info(const struct mla_client *client)
{
    return &client->info;
}

const struct mla_client_error *mla_client_error(const struct mla_client *client)
{
    return &client->error;
}
