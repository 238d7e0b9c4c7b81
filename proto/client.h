/* The C client. One client is one connection and belongs to one thread at a time.
 *
 * Every submit gets exactly one completion. Synchronous calls are submit + wait for that very
 * completion (others that arrive meanwhile are kept for poll). Failures of the service come back
 * as their enum mla_status with mla_client_error() telling the sentence and the entry. */
#ifndef MLA_PROTO_CLIENT_H
#define MLA_PROTO_CLIENT_H

#include "proto/message.h"

#include <stdbool.h>

struct mla_client;

struct mla_client_options {
    int timeout_ms;      /* of connecting and of each synchronous call; 0: 30000 */
    bool payload_inline; /* no shared memory, also where there could be */
    bool spin;           /* wait for replies without sleeping: takes a core while it waits */
    /* For a service on tcp with keys: a folder with client.key and server.pub, as mla-keys makes
     * it. NULL: none. */
    const char *curve_keys;
};

/* Connects to "tcp://host:port" or "ipc:///path" and says HELLO; waits until a group is ready or
 * timeout_ms has passed. options may be NULL. MLA_OPTION (keys), MLA_ENDPOINT, MLA_TIMEOUT,
 * MLA_CLOSED, MLA_MEMORY, MLA_VERSION. */
enum mla_status mla_client_connect(const char *endpoint, const struct mla_client_options *options,
                                   struct mla_client **out);
/* Open steps are aborted and sequences freed by the coordinator. */
void mla_client_close_connection(struct mla_client **client);

/* What HELLO answered (again with mla_client_hello). Valid as long as the client. */
const struct mla_hello_reply *mla_client_info(const struct mla_client *client);
enum mla_status mla_client_hello(struct mla_client *client);

struct mla_client_error {
    enum mla_status status;
    uint32_t index; /* offending entry or MLA_INDEX_NONE */
    char sentence[MLA_SENTENCE_BYTES_MAX];
};

/* Of the last call that failed. */
const struct mla_client_error *mla_client_error(const struct mla_client *client);

/* Memory for the payloads of RUNs, `bytes` of it, zeroed and page-aligned: once in a connection,
 * and valid until mla_client_close_connection, however the connection ends. Where the service and
 * all its workers are on this host it is shared with them, and a RUN whose x and y both lie in it,
 * at multiples of MLA_REGION_ALIGNMENT, sends no payload: the workers read x and write y there.
 * Else it is ordinary memory, and payloads travel inline. MLA_MEMORY, MLA_OPTION the second time,
 * MLA_TIMEOUT, MLA_CLOSED. */
enum mla_status mla_client_memory(struct mla_client *client, size_t bytes, void **out);
/* Whether it is shared. */
bool mla_client_is_shared(const struct mla_client *client);

/* A RUN. x [rows, hidden] of dtype and y [rows, hidden] of reply_dtype are the caller's; x is
 * read and y written until the completion (no copy is made of x). In shared memory they must not
 * overlap, and after MLA_GROUP_LOST or MLA_DEADLINE y may be written to until the workers that were
 * lost have ended: have the repetition write elsewhere. */
struct mla_client_run {
    uint64_t step;
    uint32_t layer;
    enum mla_dtype dtype, reply_dtype;
    uint32_t rows;
    const void *x;
    void *y;
};

/* Synchronous calls. After MLA_TIMEOUT the connection is closed (the buffers are free again) and
 * all later calls return MLA_CLOSED. `reply` may be NULL. */
enum mla_status mla_client_open(struct mla_client *client, uint64_t step,
                                const struct mla_open_entry *entries, uint32_t count,
                                struct mla_open_reply *reply);
enum mla_status mla_client_run(struct mla_client *client, const struct mla_client_run *run,
                               struct mla_run_times *times);
enum mla_status mla_client_close(struct mla_client *client, uint64_t step,
                                 enum mla_close_action action);
enum mla_status mla_client_fork(struct mla_client *client, const struct mla_fork_entry *entries,
                                uint32_t count);
enum mla_status mla_client_truncate(struct mla_client *client,
                                    const struct mla_truncate_entry *entries, uint32_t count);
enum mla_status mla_client_free(struct mla_client *client, const uint64_t *sequences,
                                uint32_t count);
enum mla_status mla_client_stats(struct mla_client *client, struct mla_stats *out);

/* One layer, for people who don't need steps: OPEN, RUN, CLOSE with commit (abort on failure).
 * The sequences then hold KV of this layer alone. */
enum mla_status mla_client_run_layer(struct mla_client *client,
                                     const struct mla_open_entry *entries, uint32_t count,
                                     struct mla_client_run *run);

/* Asynchronous calls: return as soon as the request is handed over and tell its id. MLA_AGAIN
 * when runs_queued_max requests are already in flight, MLA_CLOSED. */
enum mla_status mla_client_submit_open(struct mla_client *client, uint64_t step,
                                       const struct mla_open_entry *entries, uint32_t count,
                                       uint64_t *request);
enum mla_status mla_client_submit_run(struct mla_client *client, const struct mla_client_run *run,
                                      uint64_t *request);
enum mla_status mla_client_submit_close(struct mla_client *client, uint64_t step,
                                        enum mla_close_action action, uint64_t *request);

struct mla_completion {
    uint64_t request;
    uint16_t type;                 /* enum mla_message_type of the request */
    struct mla_client_error error; /* error.status MLA_OK: it succeeded */
    union {
        struct mla_open_reply open;
        struct mla_run_times run;
        struct mla_close_reply close;
    } u;
};

/* The next completion, waiting at most timeout_ms (0: not at all, -1: for ever). MLA_AGAIN when
 * none came, MLA_CLOSED. A completion that carries an error is MLA_OK here. */
enum mla_status mla_client_poll(struct mla_client *client, int timeout_ms,
                                struct mla_completion *out);

#endif
