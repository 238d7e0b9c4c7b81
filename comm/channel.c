#include "comm/channel_state.h"
#include "comm/connections.h"
#include "comm/guard.h"
#include "proto/clock.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SPIN_MS = 10 };

enum mla_status mla_channel_context_create(struct mla_channel_context **out)
{
    struct mla_channel_context *context = calloc(1, sizeof *context);
    if (!context)
        return MLA_MEMORY;
    context->zmq = zmq_ctx_new();
    if (!context->zmq) {
        free(context);
        return MLA_MEMORY;
    }
    pthread_mutex_init(&context->lock, NULL);
    *out = context;
    return MLA_OK;
}

void mla_channel_context_destroy(struct mla_channel_context **context_at)
{
    struct mla_channel_context *context = *context_at;
    if (!context)
        return;
    while (zmq_ctx_term(context->zmq) != 0 && zmq_errno() == EINTR) {}
    mla_guard_join(&context->guard);
    while (context->kept) {
        struct received *next = context->kept->next;
        free(context->kept);
        context->kept = next;
    }
    while (context->sendings) {
        struct sending *next = context->sendings->next;
        free(context->sendings);
        context->sendings = next;
    }
    while (context->crowd_count > 0)
        mla_crowd_destroy(&context->crowds[--context->crowd_count]);
    pthread_mutex_destroy(&context->lock);
    free(context);
    *context_at = NULL;
}

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

enum mla_status mla_channel_bind(struct mla_channel_context *context, const char *endpoint,
                                 const struct mla_channel_options *options,
                                 struct mla_channel **out)
{
    return mla_channel_open(context, endpoint, options, true, out);
}

enum mla_status mla_channel_connect(struct mla_channel_context *context, const char *endpoint,
                                    const struct mla_channel_options *options,
                                    struct mla_channel **out)
{
    return mla_channel_open(context, endpoint, options, false, out);
}

void mla_channel_destroy(struct mla_channel **channel_at)
{
    struct mla_channel *channel = *channel_at;
    if (!channel)
        return;
    if (channel->head_held)
        zmq_msg_close(&channel->head);
    if (channel->monitor) {
        zmq_socket_monitor(channel->socket, NULL, 0);
        zmq_close(channel->monitor);
    }
    if (channel->socket)
        zmq_close(channel->socket);
    mla_connections_destroy(&channel->connections);
    free(channel);
    *channel_at = NULL;
}

const char *mla_channel_endpoint(const struct mla_channel *channel)
{
    return channel->endpoint;
}

static void payload_sent(void *data, void *blob)
{
    (void)data;
    mla_blob_drop(blob);
}

static void watched_payload_sent(void *data, void *hint)
{
    struct sending *sending = hint;
    struct mla_channel_context *context = sending->context;
    (void)data;
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

/* MLA_OK and a message that the caller closes, or MLA_AGAIN, MLA_CLOSED. */
static enum mla_status receive_frame(void *socket, zmq_msg_t *message)
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

static void drain(struct mla_channel *channel)
{
    zmq_msg_t message;
    bool more = true;
    while (more && receive_frame(channel->socket, &message) == MLA_OK) {
        more = zmq_msg_more(&message);
        zmq_msg_close(&message);
    }
}

static enum mla_status receive_peer(struct mla_channel *channel, struct mla_peer *peer)
{
    zmq_msg_t message;
    enum mla_status status = receive_frame(channel->socket, &message);
    if (status != MLA_OK)
        return status;
    peer->size = (uint8_t)zmq_msg_size(&message);
    memcpy(peer->id, zmq_msg_data(&message), peer->size);
    bool more = zmq_msg_more(&message);
    zmq_msg_close(&message);
    /* A routing id alone is no message: leave nothing half-read, and look at the next one. */
    return more ? MLA_OK : receive_peer(channel, peer);
}

/* The next thing the monitor tells. MLA_AGAIN: nothing. */
static enum mla_status receive_event(struct mla_channel *channel, uint16_t *event, int *fd)
{
    zmq_msg_t message;
    enum mla_status status = receive_frame(channel->monitor, &message);
    channel->news.drained = status == MLA_AGAIN;
    if (status != MLA_OK)
        return status;
    uint32_t value = 0; /* after the event's number */
    memcpy(event, zmq_msg_data(&message), sizeof *event);
    memcpy(&value, (const char *)zmq_msg_data(&message) + sizeof *event, sizeof value);
    bool more = zmq_msg_more(&message);
    zmq_msg_close(&message);
    if (more && receive_frame(channel->monitor, &message) == MLA_OK) /* the endpoint's name */
        zmq_msg_close(&message);
    *fd = (int)value;
    return MLA_OK;
}

static void count_failure(struct mla_channel *channel, uint16_t event)
{
    channel->refused += event == ZMQ_EVENT_HANDSHAKE_FAILED_AUTH;
    channel->handshakes += event == ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL ||
                           event == ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL;
}

/* All news of a server's connections. A connection is told to be there before its first message,
 * and its end before the next one at its descriptor: one thread of ZeroMQ does all of it. */
static enum mla_status read_news(struct mla_channel *channel)
{
    uint16_t event = 0;
    int fd = -1;
    enum mla_status status;
    while ((status = mla_connections_reserve(channel->connections)) == MLA_OK &&
           (status = receive_event(channel, &event, &fd)) == MLA_OK) {
        count_failure(channel, event);
        if (event == ZMQ_EVENT_ACCEPTED) {
            mla_connections_accepted(channel->connections, fd);
            if (channel->crowd)
                mla_crowd_opened(channel->crowd, fd, mla_now_ns());
        } else if (event == ZMQ_EVENT_DISCONNECTED) {
            mla_connections_closed(channel->connections, fd);
            if (channel->crowd)
                mla_crowd_closed(channel->crowd, fd);
        }
    }
    return status == MLA_AGAIN ? MLA_OK : status;
}

/* Which connection a message is from; *from_nobody: one that has ended. */
static enum mla_status number_peer(struct mla_channel *channel, struct mla_peer *peer,
                                   bool *from_nobody)
{
    enum mla_status status = MLA_OK;
    if (!mla_connections_is_known(channel->connections, peer))
        status = read_news(channel);
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
    enum mla_status status = receive_frame(channel->socket, &channel->head);
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
    enum mla_status status = receive_frame(channel->socket, &message);
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

/* True once after a wait that saw nothing there. */
static bool is_nothing(struct look *look)
{
    bool nothing = look->nothing;
    look->nothing = false;
    return nothing;
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
    if (is_nothing(&channel->messages))
        return MLA_AGAIN;
    enum mla_status status = receive_any(channel, out);
    channel->messages.drained = status == MLA_AGAIN;
    return status;
}

/* Whose server dies may have reached its socket once more, in vain: what ends before its handshake
 * is no connection that was. That it failed is told first. */
static enum mla_status next_end(struct mla_channel *channel, int *fd)
{
    uint16_t event = 0;
    enum mla_status status;
    while ((status = receive_event(channel, &event, fd)) == MLA_OK) {
        bool was_vain = channel->vain;
        count_failure(channel, event);
        channel->vain = event != ZMQ_EVENT_DISCONNECTED;
        if (!channel->vain && !was_vain)
            break;
    }
    return status;
}

enum mla_status mla_channel_gone(struct mla_channel *channel, int *fd, uint64_t *number)
{
    bool nothing = is_nothing(&channel->news);
    *number = 0;
    if (!channel->server)
        return nothing ? MLA_AGAIN : next_end(channel, fd);
    enum mla_status status = nothing ? MLA_OK : read_news(channel);
    if (status != MLA_OK)
        return status;
    return mla_connections_next_ended(channel->connections, fd, number) ? MLA_OK : MLA_AGAIN;
}

void mla_channel_counts(const struct mla_channel *channel, struct mla_channel_counts *out)
{
    *out =
        (struct mla_channel_counts){.refused = channel->refused, .handshakes = channel->handshakes};
    if (channel->crowd)
        mla_crowd_count(channel->crowd, &out->connections);
}

void mla_channel_tend(struct mla_channel *channel, uint64_t held_bytes)
{
    if (channel->crowd)
        mla_crowd_tend(channel->crowd, mla_now_ns(), held_bytes);
}

void mla_channel_relieve(struct mla_channel *channel, bool all)
{
    if (channel->crowd)
        mla_crowd_relieve(channel->crowd, all);
}

void mla_channel_cut(struct mla_channel *channel, const struct mla_peer *peer)
{
    if (channel->crowd)
        mla_crowd_cut(channel->crowd, peer->fd, peer->number);
}

static bool has_input(void *socket)
{
    int events = 0;
    size_t bytes = sizeof events;
    return zmq_getsockopt(socket, ZMQ_EVENTS, &events, &bytes) != 0 || (events & ZMQ_POLLIN);
}

static int wake_fd(void *socket)
{
    int fd = -1;
    size_t bytes = sizeof fd;
    (void)zmq_getsockopt(socket, ZMQ_FD, &fd, &bytes);
    return fd;
}

/* Others may need the core, ZeroMQ's threads before all. */
static int poll_spinning(struct pollfd *fds, nfds_t count, int timeout_ms)
{
    int most_ms = timeout_ms < 0 || timeout_ms > SPIN_MS ? SPIN_MS : timeout_ms;
    uint64_t end_ns = mla_now_ns() + (uint64_t)most_ms * 1000000u;
    int ready = 0;
    while ((ready = poll(fds, count, 0)) == 0 && mla_now_ns() < end_ns)
        sched_yield();
    return ready;
}

/* zmq_poll does the same with several times as many system calls. */
enum mla_status mla_channel_wait_fd(struct mla_channel *const *channels, size_t count, int fd,
                                    int timeout_ms, bool *fd_ready)
{
    assert(count >= 1 && count <= CHANNELS_MAX);
    struct pollfd fds[2 * CHANNELS_MAX + 1];
    struct look *looks[2 * CHANNELS_MAX];
    nfds_t used = 0;
    bool ready = false;
    for (size_t i = 0; i < count; i++) {
        struct mla_channel *channel = channels[i];
        void *const sockets[] = {channel->socket, channel->monitor};
        looks[used] = &channel->messages;
        looks[used + 1] = &channel->news;
        ready = ready || (channel->server && mla_connections_has_ended(channel->connections));
        for (size_t k = 0; k < 2; k++, used++) {
            looks[used]->nothing = false;
            if (!ready && !looks[used]->drained) {
                ready = has_input(sockets[k]);
                looks[used]->drained = !ready;
            }
            fds[used] = (struct pollfd){.fd = wake_fd(sockets[k]), .events = POLLIN};
        }
    }
    fds[used] = (struct pollfd){.fd = fd, .events = POLLIN}; /* poll ignores -1 */
    if (ready)
        timeout_ms = 0;
    int told = channels[0]->spin ? poll_spinning(fds, used + 1, timeout_ms)
                                 : poll(fds, used + 1, timeout_ms);
    if (told < 0)
        return errno == EINTR ? MLA_OK : MLA_CLOSED;
    for (nfds_t i = 0; i < used; i++) {
        looks[i]->drained = looks[i]->drained && fds[i].revents == 0;
        looks[i]->nothing = looks[i]->drained;
    }
    for (nfds_t i = 0; i < used; i += 2) /* an end may have come with last messages */
        looks[i]->nothing = looks[i]->nothing && looks[i + 1]->nothing;
    if (fd_ready)
        *fd_ready = fds[used].revents != 0;
    return MLA_OK;
}

enum mla_status mla_channel_wait(struct mla_channel *const *channels, size_t count, int timeout_ms)
{
    return mla_channel_wait_fd(channels, count, -1, timeout_ms, NULL);
}
