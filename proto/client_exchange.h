/* Inside the client library: the requests that are under way and their completions. The calls of
 * proto/client.h stand on it. */
#ifndef MLA_PROTO_CLIENT_EXCHANGE_H
#define MLA_PROTO_CLIENT_EXCHANGE_H

#include "comm/channel.h"
#include "comm/region.h"
#include "proto/client.h"

#include <semaphore.h>
#include <stdbool.h>

enum {
    ASYNC_MAX = MLA_RUNS_QUEUED_MAX,
    SYNC = ASYNC_MAX, /* the slot of synchronous calls */
    SLOTS,
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

int64_t mla_exchange_now_ms(void);

/* Sets what mla_client_error() returns. Returns `status`. */
enum mla_status mla_exchange_fail(struct mla_client *client, enum mla_status status,
                                  const char *sentence);
/* MLA_CLOSED. */
enum mla_status mla_exchange_fail_closed(struct mla_client *client);
/* The connection can't be relied on after this: it is closed. */
enum mla_status mla_exchange_fail_for_good(struct mla_client *client, enum mla_status status,
                                           const char *sentence);
/* Also when nothing is connected. Afterwards no caller's memory is referred to. */
void mla_exchange_disconnect(struct mla_client *client);

void mla_exchange_slots_create(struct mla_client *client);
void mla_exchange_slots_destroy(struct mla_client *client);

/* Makes client->request a RUN, in the region where x and y are there and `may_share`. */
void mla_exchange_set_run(struct mla_client *client, const struct mla_client_run *run,
                          bool may_share);
/* Sends client->request in this slot, under a new id. `run`: the payload's, or NULL. */
enum mla_status mla_exchange_submit(struct mla_client *client, uint32_t index, uint16_t type,
                                    const struct mla_client_run *run);
/* Until the synchronous request (`sync`), or any other, has its completion; MLA_AGAIN: not in
 * time. A negative timeout waits for ever. */
enum mla_status mla_exchange_receive_until(struct mla_client *client, bool sync, int timeout_ms);
/* Waits for the completion in the slot SYNC. Too late is the end of the connection. */
enum mla_status mla_exchange_finish(struct mla_client *client, int timeout_ms);
/* Sends client->request and waits for its completion in the slot SYNC. */
enum mla_status mla_exchange_call(struct mla_client *client, uint16_t type,
                                  const struct mla_client_run *run);

#endif
