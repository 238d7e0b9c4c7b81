/* The context, and the end of a channel. */
#include "comm/channel_state.h"
#include "comm/connections.h"
#include "comm/guard.h"

#include <errno.h>
#include <stdlib.h>

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
