/* Messages on their way out, and the payloads that they hold until they are sent. */
#include "comm/channel_state.h"
#include "proto/clock.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#ifdef __has_feature /* clang */
#define THREAD_SANITIZER __has_feature(thread_sanitizer)
#elif defined __SANITIZE_THREAD__ /* gcc */
#define THREAD_SANITIZER 1
#else
#define THREAD_SANITIZER 0
#endif
#if THREAD_SANITIZER
#include <sanitizer/tsan_interface.h>
#endif

/* ZeroMQ lets go of payloads in a thread of its own. How it hands them over is nothing that the
 * thread sanitizer sees, so it is told. */
static void hand_over(void *hint)
{
    (void)hint;
#if THREAD_SANITIZER
    __tsan_release(hint);
#endif
}

static void take_over(void *hint)
{
    (void)hint;
#if THREAD_SANITIZER
    __tsan_acquire(hint);
#endif
}

static void payload_sent(void *data, void *blob)
{
    (void)data;
    take_over(blob);
    mla_blob_drop(blob);
}

static void watched_payload_sent(void *data, void *hint)
{
    struct sending *sending = hint;
    (void)data;
    take_over(sending);
    struct mla_channel_context *context = sending->context;
    mla_blob_drop(sending->blob);
    if (sending->sent)
        atomic_fetch_add(sending->sent, 1);
    pthread_mutex_lock(&context->lock);
    sending->next = context->sendings;
    context->sendings = sending;
    pthread_mutex_unlock(&context->lock);
}

static struct sending *sending_create(struct mla_channel *channel, const struct mla_peer *peer,
                                      struct mla_blob *payload)
{
    struct mla_channel_context *context = channel->context;
    pthread_mutex_lock(&context->lock);
    struct sending *sending = context->sendings;
    if (sending)
        context->sendings = sending->next;
    pthread_mutex_unlock(&context->lock);
    if (!sending)
        sending = malloc(sizeof *sending);
    if (sending)
        *sending =
            (struct sending){.blob = payload,
                             .sent = mla_crowd_submit(channel->crowd, peer->fd, mla_now_ns()),
                             .context = context};
    return sending;
}

/* The payload's frame, which holds it until it is sent. */
static enum mla_status wrap(struct mla_channel *channel, const struct mla_peer *peer,
                            struct mla_blob *payload, size_t offset, size_t bytes,
                            zmq_msg_t *message)
{
    void *hint = payload;
    bool watched = channel->crowd && peer->fd >= 0;
    if (watched && !(hint = sending_create(channel, peer, payload)))
        return MLA_MEMORY;
    mla_blob_hold(payload);
    hand_over(hint);
    if (zmq_msg_init_data(message, payload->data + offset, bytes,
                          watched ? watched_payload_sent : payload_sent, hint) == 0)
        return MLA_OK;
    (watched ? watched_payload_sent : payload_sent)(NULL, hint);
    return MLA_MEMORY;
}

static enum mla_status send_failure(void)
{
    switch (zmq_errno()) {
    case EAGAIN:
        return MLA_AGAIN;
    case EHOSTUNREACH:
    case ETERM:
    case ENOTSOCK:
        return MLA_CLOSED;
    default:
        fprintf(stderr, "send: %s\n", zmq_strerror(zmq_errno()));
        return MLA_SYSTEM;
    }
}

/* Once the first frame is taken, ZeroMQ takes the rest of the message too. */
static enum mla_status send_frame(void *socket, const void *bytes, size_t count, bool more)
{
    int flags = ZMQ_DONTWAIT | (more ? ZMQ_SNDMORE : 0);
    while (zmq_send(socket, bytes, count, flags) < 0) {
        if (zmq_errno() != EINTR)
            return send_failure();
    }
    return MLA_OK;
}

enum mla_status mla_channel_send(struct mla_channel *channel, const struct mla_peer *peer,
                                 const void *head, size_t head_bytes, struct mla_blob *payload,
                                 size_t offset, size_t bytes)
{
    assert((peer != NULL) == channel->server);
    enum mla_status status = MLA_OK;
    channel->messages.drained = false; /* sending may take in what the descriptor told */
    if (peer && (status = send_frame(channel->socket, peer->id, peer->size, true)) != MLA_OK)
        return status;
    status = send_frame(channel->socket, head, head_bytes, payload != NULL);
    if (status != MLA_OK || !payload)
        return status;

    assert(offset <= payload->bytes && bytes <= payload->bytes - offset);
    zmq_msg_t message;
    if ((status = wrap(channel, peer, payload, offset, bytes, &message)) != MLA_OK)
        return status;
    while (zmq_msg_send(&message, channel->socket, ZMQ_DONTWAIT) < 0) {
        if (zmq_errno() != EINTR) {
            status = send_failure();
            zmq_msg_close(&message);
            return status;
        }
    }
    return MLA_OK;
}
