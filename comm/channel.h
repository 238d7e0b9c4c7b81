/* Messages over ZeroMQ: one head frame and at most one payload frame. With guard and keys the only
 * place that knows ZeroMQ. A channel belongs to one thread. */
#ifndef MLA_COMM_CHANNEL_H
#define MLA_COMM_CHANNEL_H

#include "comm/blob.h"
#include "comm/crowd.h"
#include "comm/keys.h"
#include "proto/status.h"

#include <stdbool.h>

#define MLA_PEER_BYTES_MAX 255

/* Who is at the other end of a server's channel: the routing id, the connection, and the name of
 * the key that it proved to have ("": the channel has no keys). Descriptors are used again, numbers
 * are not. */
struct mla_peer {
    uint8_t size;
    uint8_t id[MLA_PEER_BYTES_MAX];
    char user[MLA_USER_BYTES_MAX];
    int fd;
    uint64_t number;
};

struct mla_channel_context;
struct mla_channel;

enum mla_status mla_channel_context_create(struct mla_channel_context **out);
/* All channels must be destroyed. Returns when the memory of every sent blob is free. */
void mla_channel_context_destroy(struct mla_channel_context **context);

struct mla_channel_options {
    int queue_max;            /* messages waiting in each direction, per peer */
    uint64_t frame_bytes_max; /* a larger frame ends the connection */
    int linger_ms;            /* how long the context's end waits for what is not sent yet */
    bool spin;                /* waiting looks again and again and takes a core, see below */
    /* CURVE: encrypted, and both ends prove their keys before any message. NULL: in the clear.
     * A server also says who may connect. Both are copied. */
    const struct mla_keys *keys;
    const struct mla_key_list *allowed;
    struct mla_crowd_limits limits; /* of a server's peers; all 0: none */
};

/* A server's end: binds "tcp://address:port" (port * picks one) or "ipc:///path". MLA_ENDPOINT
 * when that is invalid or in use. */
enum mla_status mla_channel_bind(struct mla_channel_context *context, const char *endpoint,
                                 const struct mla_channel_options *options,
                                 struct mla_channel **out);
/* A client's end. Connects in the background and again after a loss. MLA_ENDPOINT. */
enum mla_status mla_channel_connect(struct mla_channel_context *context, const char *endpoint,
                                    const struct mla_channel_options *options,
                                    struct mla_channel **out);
/* What is not sent within linger_ms is dropped. */
void mla_channel_destroy(struct mla_channel **channel);

/* The endpoint really bound (with the port that was picked). Valid as long as the channel. */
const char *mla_channel_endpoint(const struct mla_channel *channel);

/* Queues a message. peer: NULL on a client's end. The head is copied; of the payload
 * [offset, offset + bytes) travels without a copy and the blob is held until it is sent (NULL:
 * no payload frame). MLA_AGAIN when the queue is full, MLA_CLOSED when the peer is gone. */
enum mla_status mla_channel_send(struct mla_channel *channel, const struct mla_peer *peer,
                                 const void *head, size_t head_bytes, struct mla_blob *payload,
                                 size_t offset, size_t bytes);

struct mla_incoming {
    struct mla_peer peer;
    uint32_t frames;     /* 1 or 2; 3: more than there may be, the rest was thrown away */
    const uint8_t *head; /* valid until the next receive */
    size_t head_bytes;
    struct mla_blob *payload; /* the caller's to drop, or NULL */
};

/* The next message, without waiting. MLA_AGAIN: none. */
enum mla_status mla_channel_receive(struct mla_channel *channel, struct mla_incoming *out);

/* The next connection that has ended: its descriptor and (of a server's end) its number. On a
 * client's end: not those that ended before their handshake. MLA_AGAIN: none. */
enum mla_status mla_channel_gone(struct mla_channel *channel, int *fd, uint64_t *number);

/* What became of connections so far, as mla_channel_gone has seen it. */
struct mla_channel_counts {
    uint64_t refused;    /* for a key that is not allowed: the peer's, or on a client's end ours */
    uint64_t handshakes; /* broken off: no key, another server's, another protocol, too slow */
    struct mla_crowd_counts connections; /* only of a channel with limits */
};
void mla_channel_counts(const struct mla_channel *channel, struct mla_channel_counts *out);
/* On a server's channel with limits; five times a second, after mla_channel_gone had no more.
 * held_bytes: of payloads that were received and are still held. */
void mla_channel_tend(struct mla_channel *channel, uint64_t held_bytes);
/* As mla_crowd_relieve. */
void mla_channel_relieve(struct mla_channel *channel, bool all);
/* Ends a peer's connection; mla_channel_gone tells when it has ended. */
void mla_channel_cut(struct mla_channel *channel, const struct mla_peer *peer);

/* Waits until a channel has something to receive (or a connection ended) or timeout_ms passed
 * (-1: for ever). MLA_OK also on timeout and signals. At most 8 channels. What it saw to be empty
 * answers MLA_AGAIN once without another look. If the first channel spins, it does not sleep, which
 * saves the time of waking up, and may end before its time. */
enum mla_status mla_channel_wait(struct mla_channel *const *channels, size_t count, int timeout_ms);
/* The same, and also until `fd` is readable (-1: none): *fd_ready, which may be NULL; untouched
 * after a signal. */
enum mla_status mla_channel_wait_fd(struct mla_channel *const *channels, size_t count, int fd,
                                    int timeout_ms, bool *fd_ready);

#endif
