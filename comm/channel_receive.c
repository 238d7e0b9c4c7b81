/* Messages that come in: who each is from, and the payload as a blob. */
#include "comm/channel_state.h"
#include "comm/connections.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void received_release(struct mla_blob *blob)
{
    struct received *received = (struct received *)blob;
    struct mla_channel_context *context = received->context;
    zmq_msg_close(&received->message);
    pthread_mutex_lock(&context->lock);
    received->next = context->kept;
    context->kept = received;
    pthread_mutex_unlock(&context->lock);
}

/* Takes over the content of `message`. */
static enum mla_status received_create(struct mla_channel_context *context, zmq_msg_t *message,
                                       struct mla_blob **out)
{
    pthread_mutex_lock(&context->lock);
    struct received *received = context->kept;
    if (received)
        context->kept = received->next;
    pthread_mutex_unlock(&context->lock);
    if (!received)
        received = malloc(sizeof *received);
    if (!received)
        return MLA_MEMORY;
    received->context = context;
    zmq_msg_init(&received->message);
    zmq_msg_move(&received->message, message);
    received->blob.data = zmq_msg_data(&received->message);
    received->blob.bytes = zmq_msg_size(&received->message);
    received->blob.release = received_release;
    atomic_store_explicit(&received->blob.references, 1, memory_order_relaxed);
    *out = &received->blob;
    return MLA_OK;
}

static void drain(struct mla_channel *channel)
{
    zmq_msg_t message;
    bool more = true;
    while (more && mla_channel_frame(channel->socket, &message) == MLA_OK) {
        more = zmq_msg_more(&message);
        zmq_msg_close(&message);
    }
}

static enum mla_status receive_peer(struct mla_channel *channel, struct mla_peer *peer)
{
    zmq_msg_t message;
    enum mla_status status = mla_channel_frame(channel->socket, &message);
    if (status != MLA_OK)
        return status;
    peer->size = (uint8_t)zmq_msg_size(&message);
    memcpy(peer->id, zmq_msg_data(&message), peer->size);
    bool more = zmq_msg_more(&message);
    zmq_msg_close(&message);
    /* A routing id alone is no message: leave nothing half-read, and look at the next one. */
    return more ? MLA_OK : receive_peer(channel, peer);
}

/* Which connection a message is from; *from_nobody: one that has ended. */
static enum mla_status number_peer(struct mla_channel *channel, struct mla_peer *peer,
                                   bool *from_nobody)
{
    enum mla_status status = MLA_OK;
    if (!mla_connections_is_known(channel->connections, peer))
        status = mla_channel_read_news(channel);
    *from_nobody = !mla_connections_number(channel->connections, peer);
    if (channel->crowd && !*from_nobody)
        mla_crowd_heard(channel->crowd, peer->fd, peer->number);
    return status;
}

/* What ZeroMQ knows of the connection that channel->head came over. */
static void identify(struct mla_channel *channel, struct mla_peer *peer)
{
    peer->fd = zmq_msg_get(&channel->head, ZMQ_SRCFD);
    const char *user = channel->names ? zmq_msg_gets(&channel->head, "User-Id") : NULL;
    if (user)
        snprintf(peer->user, sizeof peer->user, "%s", user);
}

static enum mla_status receive_head(struct mla_channel *channel, struct mla_incoming *incoming)
{
    if (channel->head_held)
        zmq_msg_close(&channel->head);
    channel->head_held = false;
    enum mla_status status = mla_channel_frame(channel->socket, &channel->head);
    if (status != MLA_OK)
        return status;
    channel->head_held = true;
    incoming->head = zmq_msg_data(&channel->head);
    incoming->head_bytes = zmq_msg_size(&channel->head);
    if (channel->server)
        identify(channel, &incoming->peer);
    return MLA_OK;
}

static enum mla_status receive_payload(struct mla_channel *channel, struct mla_incoming *incoming)
{
    zmq_msg_t message;
    enum mla_status status = mla_channel_frame(channel->socket, &message);
    if (status != MLA_OK)
        return status;
    bool more = zmq_msg_more(&message);
    incoming->frames = more ? 3 : 2;
    if (more)
        drain(channel);
    else
        status = received_create(channel->context, &message, &incoming->payload);
    zmq_msg_close(&message);
    return status;
}

static enum mla_status receive_any(struct mla_channel *channel, struct mla_incoming *out)
{
    bool from_nobody = true;
    while (from_nobody) {
        struct mla_incoming incoming = {.peer.fd = -1, .frames = 1};
        enum mla_status status = MLA_OK;
        if (channel->server && (status = receive_peer(channel, &incoming.peer)) != MLA_OK)
            return status;
        if ((status = receive_head(channel, &incoming)) == MLA_OK && zmq_msg_more(&channel->head))
            status = receive_payload(channel, &incoming);
        if (status != MLA_OK)
            return status;
        from_nobody = false;
        if (channel->server)
            status = number_peer(channel, &incoming.peer, &from_nobody);
        if (status != MLA_OK || from_nobody)
            mla_blob_drop(incoming.payload);
        if (status != MLA_OK)
            return status;
        *out = incoming;
    }
    return MLA_OK;
}

enum mla_status mla_channel_receive(struct mla_channel *channel, struct mla_incoming *out)
{
    if (mla_channel_is_nothing(&channel->messages))
        return MLA_AGAIN;
    enum mla_status status = receive_any(channel, out);
    channel->messages.drained = status == MLA_AGAIN;
    return status;
}
