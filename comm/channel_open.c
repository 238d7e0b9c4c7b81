/* A channel that begins: its endpoint, options, keys, limits and monitor. */
#include "comm/channel_state.h"
#include "comm/connections.h"
#include "comm/guard.h"
#include "comm/spin.h"
#include "proto/parse.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { HANDSHAKE_MS = 2000 };

/* libzmq has it in every build, and its header only in those with draft functions. Without it a
 * socket whose guard is not there lets everybody in. */
#ifndef ZMQ_ZAP_ENFORCE_DOMAIN
#define ZMQ_ZAP_ENFORCE_DOMAIN 93
#endif

static bool set_int(void *socket, int option, int value)
{
    return zmq_setsockopt(socket, option, &value, sizeof value) == 0;
}

/* Set before bind or connect: ZeroMQ ignores most of them later. */
static bool set_options(struct mla_channel *channel, const struct mla_channel_options *options)
{
    int64_t frame_bytes_max = (int64_t)options->frame_bytes_max;
    bool ok = set_int(channel->socket, ZMQ_LINGER, options->linger_ms) &&
              set_int(channel->socket, ZMQ_SNDHWM, options->queue_max) &&
              set_int(channel->socket, ZMQ_RCVHWM, options->queue_max) &&
              set_int(channel->socket, ZMQ_HANDSHAKE_IVL, HANDSHAKE_MS) &&
              zmq_setsockopt(channel->socket, ZMQ_MAXMSGSIZE, &frame_bytes_max,
                             sizeof frame_bytes_max) == 0;
    if (channel->server) /* a lost peer is an error, and nobody takes over a routing id */
        return ok && set_int(channel->socket, ZMQ_ROUTER_MANDATORY, 1) &&
               set_int(channel->socket, ZMQ_BACKLOG, 256);
    /* Nothing is queued for a peer that is not there. The end of a connection then also drops what
     * came over it and was not read yet: who has a last word to say must wait until it is heard.
     * No ZeroMQ heartbeats on this side: with a full pipe they abort the process (libzmq 3937). */
    return ok && set_int(channel->socket, ZMQ_IMMEDIATE, 1) &&
           set_int(channel->socket, ZMQ_RECONNECT_IVL, 50) &&
           set_int(channel->socket, ZMQ_RECONNECT_IVL_MAX, 1000);
}

/* Who connects proves a key: to a server one of those it allows, which the guard looks up. */
static enum mla_status set_keys(struct mla_channel *channel,
                                const struct mla_channel_options *options)
{
    struct mla_channel_context *context = channel->context;
    const struct mla_keys *keys = options->keys;
    bool ok =
        zmq_setsockopt(channel->socket, ZMQ_CURVE_SECRETKEY, keys->secret, MLA_KEY_BYTES) == 0;
    if (!channel->server)
        return ok &&
                       zmq_setsockopt(channel->socket, ZMQ_CURVE_PUBLICKEY, keys->public,
                                      MLA_KEY_BYTES) == 0 &&
                       zmq_setsockopt(channel->socket, ZMQ_CURVE_SERVERKEY, keys->server,
                                      MLA_KEY_BYTES) == 0
                   ? MLA_OK
                   : MLA_SYSTEM;
    char domain[MLA_GUARD_DOMAIN_BYTES];
    enum mla_status status = mla_guard_allow(context->guard, options->allowed, domain);
    if (status != MLA_OK)
        return status;
    channel->names = true;
    return ok && set_int(channel->socket, ZMQ_CURVE_SERVER, 1) &&
                   zmq_setsockopt(channel->socket, ZMQ_ZAP_DOMAIN, domain, strlen(domain)) == 0
               ? MLA_OK
               : MLA_SYSTEM;
}

/* Also where there are no keys: a socket that asks a guard speaks ZMTP 3 alone. Else ZeroMQ takes
 * any bytes for those of a peer of ZMTP 1, and waits for more. */
static enum mla_status set_guard(struct mla_channel *channel)
{
    struct mla_channel_context *context = channel->context;
    const char *domain = mla_guard_open_domain();
    enum mla_status status = MLA_OK;
    if (!context->guard)
        status = mla_guard_start(context->zmq, &context->guard);
    if (status == MLA_OK &&
        (!set_int(channel->socket, ZMQ_ZAP_ENFORCE_DOMAIN, 1) ||
         zmq_setsockopt(channel->socket, ZMQ_ZAP_DOMAIN, domain, strlen(domain)) != 0))
        status = MLA_SYSTEM;
    return status;
}

static enum mla_status watch_peers(struct mla_channel *channel,
                                   const struct mla_crowd_limits *limits)
{
    struct mla_channel_context *context = channel->context;
    if (limits->connections_max == 0 && limits->silent_ms == 0 && limits->unread_ms == 0 &&
        limits->first_bytes_max == 0)
        return MLA_OK;
    if (context->crowd_count == CHANNELS_MAX)
        return MLA_LIMIT;
    enum mla_status status = mla_crowd_create(limits, &channel->crowd);
    if (status == MLA_OK)
        context->crowds[context->crowd_count++] = channel->crowd;
    return status;
}

/* ZeroMQ may know the name of a monitor for a while after its end, so none is used again. */
static enum mla_status open_monitor(struct mla_channel *channel)
{
    char name[64];
    snprintf(name, sizeof name, "inproc://monitor-%u",
             atomic_fetch_add(&channel->context->monitors, 1));
    int events = ZMQ_EVENT_DISCONNECTED | ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL |
                 ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL | ZMQ_EVENT_HANDSHAKE_FAILED_AUTH;
    if (channel->server)
        events |= ZMQ_EVENT_ACCEPTED;
    if (zmq_socket_monitor(channel->socket, name, events) != 0)
        return MLA_SYSTEM;
    channel->monitor = zmq_socket(channel->context->zmq, ZMQ_PAIR);
    if (!channel->monitor || !set_int(channel->monitor, ZMQ_LINGER, 0) ||
        zmq_connect(channel->monitor, name) != 0)
        return MLA_SYSTEM;
    return MLA_OK;
}

/* "address:port"; ZeroMQ would cut a port to 16 bits. */
static bool is_tcp(const char *rest, bool server)
{
    const char *colon = strrchr(rest, ':');
    uint64_t port = 0;
    return colon && colon > rest &&
           ((server && strcmp(colon + 1, "*") == 0) ||
            mla_parse_number(colon + 1, server ? 0 : 1, UINT16_MAX, &port));
}

/* ZeroMQ would remove the socket of a server that runs. One that nobody answers at was left
 * behind. */
static bool is_served(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    memcpy(address.sun_path, path, strlen(path));
    bool served = fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof address) == 0;
    if (fd >= 0)
        close(fd);
    return served;
}

/* Why an endpoint that ZeroMQ may take is not one for us, or NULL. */
static const char *endpoint_problem(const char *endpoint, bool server)
{
    static const char tcp[] = "tcp://";
    static const char ipc[] = "ipc://";
    if (strncmp(endpoint, tcp, strlen(tcp)) == 0)
        return is_tcp(endpoint + strlen(tcp), server) ? NULL : "not tcp://address:port";
    if (strncmp(endpoint, ipc, strlen(ipc)) != 0)
        return "neither tcp:// nor ipc://";
    const char *path = endpoint + strlen(ipc);
    if (*path != '/' || strlen(path) >= sizeof((struct sockaddr_un *)NULL)->sun_path)
        return "not an absolute path that a socket can have";
    return server && is_served(path) ? strerror(EADDRINUSE) : NULL;
}

static enum mla_status open_channel(struct mla_channel_context *context, const char *endpoint,
                                    const struct mla_channel_options *options, bool server,
                                    struct mla_channel **out)
{
    enum mla_status status = MLA_MEMORY;
    const char *problem = endpoint_problem(endpoint, server);
    if (problem) {
        fprintf(stderr, "%s: %s\n", endpoint, problem);
        return MLA_ENDPOINT;
    }
    struct mla_channel *channel = calloc(1, sizeof *channel);
    if (!channel)
        return status;
    channel->context = context;
    channel->server = server;
    channel->spin = options->spin;
    if (channel->spin) /* heeded by the context's first socket, which starts its threads */
        (void)zmq_ctx_set(context->zmq, ZMQ_THREAD_NAME_PREFIX, MLA_SPIN_PREFIX);
    channel->socket = zmq_socket(context->zmq, server ? ZMQ_ROUTER : ZMQ_DEALER);
    if (!channel->socket)
        goto fail;
    if (!set_options(channel, options)) {
        status = MLA_SYSTEM;
        goto fail;
    }
    if (server && (status = set_guard(channel)) != MLA_OK)
        goto fail;
    if (options->keys && (status = set_keys(channel, options)) != MLA_OK)
        goto fail;
    if ((status = watch_peers(channel, &options->limits)) != MLA_OK ||
        (status = open_monitor(channel)) != MLA_OK ||
        (server && (status = mla_connections_create(&channel->connections)) != MLA_OK))
        goto fail;

    int rc = server ? zmq_bind(channel->socket, endpoint) : zmq_connect(channel->socket, endpoint);
    if (rc != 0) {
        fprintf(stderr, "%s: %s\n", endpoint, zmq_strerror(zmq_errno()));
        status = MLA_ENDPOINT;
        goto fail;
    }
    size_t bytes = sizeof channel->endpoint;
    if (zmq_getsockopt(channel->socket, ZMQ_LAST_ENDPOINT, channel->endpoint, &bytes) != 0) {
        status = MLA_ENDPOINT;
        goto fail;
    }
    *out = channel;
    return MLA_OK;
fail:
    mla_channel_destroy(&channel);
    return status;
}

enum mla_status mla_channel_bind(struct mla_channel_context *context, const char *endpoint,
                                 const struct mla_channel_options *options,
                                 struct mla_channel **out)
{
    return open_channel(context, endpoint, options, true, out);
}

enum mla_status mla_channel_connect(struct mla_channel_context *context, const char *endpoint,
                                    const struct mla_channel_options *options,
                                    struct mla_channel **out)
{
    return open_channel(context, endpoint, options, false, out);
}
