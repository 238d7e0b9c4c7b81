#include "proto/client_exchange.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

enum {
    /* ZeroMQ learns in batches of up to half its queue's length what the peer has read. */
    QUEUE_MAX = 4 * SLOTS,
    CONNECT_RETRY_MS = 5,
    HELLO_RETRY_MS = 50,
    TIMEOUT_MS = 30000,
};

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
    int64_t deadline_ms = mla_exchange_now_ms() + client->timeout_ms;
    for (;;) {
        client->request.u.hello = (struct mla_hello){MLA_PROTOCOL_VERSION, MLA_PROTOCOL_VERSION};
        int retry_ms = CONNECT_RETRY_MS;
        enum mla_status status = mla_exchange_submit(client, SYNC, MLA_HELLO, NULL);
        if (status == MLA_OK) {
            int64_t left_ms = deadline_ms - mla_exchange_now_ms();
            retry_ms = HELLO_RETRY_MS;
            status = mla_exchange_finish(client, left_ms > 0 ? (int)left_ms : 0);
        }
        if (status != MLA_AGAIN && status != MLA_NOT_READY)
            return status;
        bool differs = false;
        if (status == MLA_AGAIN && is_refused(client, &differs))
            return mla_exchange_fail(client, MLA_CLOSED, "the service does not allow this key");
        int64_t left_ms = deadline_ms - mla_exchange_now_ms();
        if (left_ms <= retry_ms && differs)
            return mla_exchange_fail(client, MLA_TIMEOUT,
                                     "the service there has other keys, or none");
        if (left_ms <= retry_ms)
            return mla_exchange_fail(client, MLA_TIMEOUT,
                                     status == MLA_AGAIN ? "nobody is there"
                                                         : mla_status_sentence(status));
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
    mla_exchange_slots_create(client);
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
    mla_exchange_disconnect(client);
    mla_exchange_slots_destroy(client);
    if (client->region.number)
        mla_region_unmap(&client->region);
    else if (client->memory)
        munmap(client->memory, client->memory_bytes);
    free(client);
    *client_at = NULL;
}
