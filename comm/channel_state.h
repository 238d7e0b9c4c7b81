/* What the files of the channel share. Of each other channel_open.c calls channel.c, to undo what
 * failed, and channel_receive.c calls channel_peers.c. */
#ifndef MLA_COMM_CHANNEL_STATE_H
#define MLA_COMM_CHANNEL_STATE_H

#include "comm/channel.h"

#include <errno.h>
#include <pthread.h>
#include <zmq.h>

enum { CHANNELS_MAX = 8, ENDPOINT_BYTES = 512 };

/* A received payload frame. They are kept for reuse, in the context, because the last reference
 * may go in one of ZeroMQ's threads. */
struct received {
    struct mla_blob blob;
    zmq_msg_t message;
    struct mla_channel_context *context;
    struct received *next;
};

/* A payload on its way to a peer whose reading is watched. Kept for reuse as well. */
struct sending {
    struct mla_blob *blob;
    atomic_uint *sent;
    struct mla_channel_context *context;
    struct sending *next;
};

struct mla_channel_context {
    void *zmq;
    struct mla_guard *guard; /* from the first channel with keys on */
    atomic_uint monitors;    /* so far; the next one's name */
    pthread_mutex_t lock;
    struct received *kept;
    struct sending *sendings;
    uint32_t crowd_count; /* here, because payloads outlive their channel */
    struct mla_crowd *crowds[CHANNELS_MAX];
};

/* To look into a socket of ZeroMQ costs it some system calls, so what is known is kept. */
struct look {
    bool drained; /* it had nothing, so its descriptor tells when that changes */
    bool nothing; /* the last wait saw that it still has nothing: holds for one look */
};

struct mla_channel {
    struct mla_channel_context *context;
    void *socket;
    void *monitor;                       /* tells connections that begin and end */
    struct mla_connections *connections; /* of a server's end */
    struct look messages, news;          /* of the one and of the other */
    bool server, spin;
    bool vain;  /* of a client's end: the connection that ends next had no handshake */
    bool names; /* peers have keys, and keys have owners */
    bool head_held;
    zmq_msg_t head;
    struct mla_crowd *crowd; /* the context's, or NULL */
    uint64_t refused, handshakes;
    char endpoint[ENDPOINT_BYTES];
};

/* The next frame. MLA_OK and a message that the caller closes, or MLA_AGAIN, MLA_CLOSED. */
static inline enum mla_status mla_channel_frame(void *socket, zmq_msg_t *message)
{
    zmq_msg_init(message);
    while (zmq_msg_recv(message, socket, ZMQ_DONTWAIT) < 0) {
        int error = zmq_errno();
        if (error == EINTR)
            continue;
        zmq_msg_close(message);
        return error == EAGAIN ? MLA_AGAIN : MLA_CLOSED;
    }
    return MLA_OK;
}

/* True once after a wait that saw nothing there. */
static inline bool mla_channel_is_nothing(struct look *look)
{
    bool nothing = look->nothing;
    look->nothing = false;
    return nothing;
}

/* Reads all news of a server's connections. A connection is told to be there before its first
 * message, and its end before the next one at its descriptor: one thread of ZeroMQ does all of
 * it. */
enum mla_status mla_channel_read_news(struct mla_channel *channel);

#endif
