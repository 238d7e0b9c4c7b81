/* The connections of a channel: what its monitor tells of them, their ends, their limits. */
#include "comm/channel_state.h"
#include "comm/connections.h"
#include "proto/clock.h"

#include <string.h>

/* The next thing the monitor tells. MLA_AGAIN: nothing. */
static enum mla_status receive_event(struct mla_channel *channel, uint16_t *event, int *fd)
{
    zmq_msg_t message;
    enum mla_status status = mla_channel_frame(channel->monitor, &message);
    channel->news.drained = status == MLA_AGAIN;
    if (status != MLA_OK)
        return status;
    uint32_t value = 0; /* after the event's number */
    memcpy(event, zmq_msg_data(&message), sizeof *event);
    memcpy(&value, (const char *)zmq_msg_data(&message) + sizeof *event, sizeof value);
    bool more = zmq_msg_more(&message);
    zmq_msg_close(&message);
    if (more && mla_channel_frame(channel->monitor, &message) == MLA_OK) /* the endpoint's name */
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

enum mla_status mla_channel_read_news(struct mla_channel *channel)
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
    bool nothing = mla_channel_is_nothing(&channel->news);
    *number = 0;
    if (!channel->server)
        return nothing ? MLA_AGAIN : next_end(channel, fd);
    enum mla_status status = nothing ? MLA_OK : mla_channel_read_news(channel);
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
