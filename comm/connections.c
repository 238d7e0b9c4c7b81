#include "comm/connections.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* The newest connection at a descriptor. */
struct connection {
    uint64_t number; /* 0: it has ended */
    bool spoke;      /* a message of `id` came from it */
    uint8_t size;
    uint8_t id[MLA_PEER_BYTES_MAX];
};

struct ended {
    int fd;
    uint64_t number;
};

struct mla_connections {
    uint64_t numbers;
    struct connection *at; /* [MLA_CONNECTION_FDS_MAX]; only pages that are used become memory */
    struct ended *ended;   /* ring */
    uint32_t capacity, first, count;
};

enum mla_status mla_connections_create(struct mla_connections **out)
{
    struct mla_connections *connections = calloc(1, sizeof *connections);
    if (!connections)
        return MLA_MEMORY;
    connections->at = calloc(MLA_CONNECTION_FDS_MAX, sizeof *connections->at);
    if (!connections->at) {
        free(connections);
        return MLA_MEMORY;
    }
    *out = connections;
    return MLA_OK;
}

void mla_connections_destroy(struct mla_connections **connections)
{
    if (!*connections)
        return;
    free((*connections)->at);
    free((*connections)->ended);
    free(*connections);
    *connections = NULL;
}

enum mla_status mla_connections_reserve(struct mla_connections *connections)
{
    if (connections->count < connections->capacity)
        return MLA_OK;
    uint32_t capacity = connections->capacity ? 2 * connections->capacity : 64;
    struct ended *ended = calloc(capacity, sizeof *ended);
    if (!ended)
        return MLA_MEMORY;
    assert(connections->count == connections->capacity);
    for (uint32_t i = 0; i < connections->count; i++)
        ended[i] = connections->ended[(connections->first + i) % connections->capacity];
    free(connections->ended);
    connections->ended = ended;
    connections->capacity = capacity;
    connections->first = 0;
    return MLA_OK;
}

static bool is_fd(int fd)
{
    return fd >= 0 && fd < (int)MLA_CONNECTION_FDS_MAX;
}

static void end(struct mla_connections *connections, int fd)
{
    struct connection *connection = &connections->at[fd];
    if (connection->number == 0)
        return;
    assert(connections->count < connections->capacity);
    connections->ended[(connections->first + connections->count++) % connections->capacity] =
        (struct ended){fd, connection->number};
    connection->number = 0;
    connection->spoke = false;
}

void mla_connections_accepted(struct mla_connections *connections, int fd)
{
    if (!is_fd(fd))
        return;
    end(connections, fd);
    connections->at[fd].number = ++connections->numbers;
}

void mla_connections_closed(struct mla_connections *connections, int fd)
{
    if (is_fd(fd))
        end(connections, fd);
}

static bool is_same(const struct connection *connection, const struct mla_peer *peer)
{
    return connection->spoke && connection->size == peer->size &&
           memcmp(connection->id, peer->id, peer->size) == 0;
}

/* A ROUTER's own routing ids: a zero and a number that grows with every connection. */
static bool is_counted(const uint8_t *id, uint8_t size)
{
    return size == 5 && id[0] == 0;
}

static uint32_t count_of(const uint8_t *id)
{
    return (uint32_t)id[1] << 24 | (uint32_t)id[2] << 16 | (uint32_t)id[3] << 8 | id[4];
}

bool mla_connections_is_known(const struct mla_connections *connections,
                              const struct mla_peer *peer)
{
    /* An id that a peer chose itself may be its next connection's as well. */
    return is_fd(peer->fd) && connections->at[peer->fd].number != 0 &&
           is_same(&connections->at[peer->fd], peer) && is_counted(peer->id, peer->size);
}

bool mla_connections_number(struct mla_connections *connections, struct mla_peer *peer)
{
    struct connection *connection = is_fd(peer->fd) ? &connections->at[peer->fd] : NULL;
    if (!connection || connection->number == 0)
        return false;
    if (connection->spoke && !is_same(connection, peer)) {
        /* Two spoke through one descriptor, so one of them has ended: what is left of it was read
         * after the news that the other was accepted. */
        if (is_counted(peer->id, peer->size) && is_counted(connection->id, connection->size) &&
            (int32_t)(count_of(peer->id) - count_of(connection->id)) < 0)
            return false;
        if (mla_connections_reserve(connections) != MLA_OK)
            return false;
        mla_connections_accepted(connections, peer->fd);
    }
    connection->spoke = true;
    connection->size = peer->size;
    memcpy(connection->id, peer->id, peer->size);
    peer->number = connection->number;
    return true;
}

bool mla_connections_has_ended(const struct mla_connections *connections)
{
    return connections->count > 0;
}

bool mla_connections_next_ended(struct mla_connections *connections, int *fd, uint64_t *number)
{
    if (connections->count == 0)
        return false;
    *fd = connections->ended[connections->first].fd;
    *number = connections->ended[connections->first].number;
    connections->first = (connections->first + 1) % connections->capacity;
    connections->count--;
    return true;
}
