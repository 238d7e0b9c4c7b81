#include "proto/client_exchange.h"

#include <sys/mman.h>

enum { MAP_TIMEOUT_MS = 2000 };

/* MLA_NOT_SHARED: it can't be had, and the connection is as good as before. */
static enum mla_status share(struct mla_client *client, size_t bytes)
{
    if (client->payload_inline || !(client->info.payload_modes & MLA_PAYLOAD_SHARED))
        return MLA_NOT_SHARED;
    client->request.u.share.bytes = bytes;
    enum mla_status status = mla_exchange_call(client, MLA_SHARE, NULL);
    if (status == MLA_OK &&
        mla_region_map(&client->grant, MAP_TIMEOUT_MS, &client->region) != MLA_OK) {
        /* The service is on another host, or another user's. */
        client->request.u.share.bytes = 0;
        status = mla_exchange_call(client, MLA_SHARE, NULL);
        if (status == MLA_OK)
            return MLA_NOT_SHARED;
    }
    return status == MLA_OK || !client->channel ? status : MLA_NOT_SHARED;
}

enum mla_status mla_client_memory(struct mla_client *client, size_t bytes, void **out)
{
    if (client->memory)
        return mla_exchange_fail(client, MLA_OPTION, "this connection has its memory");
    enum mla_status status = client->channel ? share(client, bytes) : MLA_NOT_SHARED;
    if (status != MLA_OK && status != MLA_NOT_SHARED)
        return status;
    void *memory = client->region.data;
    if (status == MLA_NOT_SHARED)
        memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return mla_exchange_fail(client, MLA_MEMORY, mla_status_sentence(MLA_MEMORY));
    client->memory = memory;
    client->memory_bytes = bytes;
    *out = memory;
    return MLA_OK;
}

bool mla_client_is_shared(const struct mla_client *client)
{
    return client->region.number != 0;
}
