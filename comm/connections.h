/* Which connection of a server's channel a message came from, and which have ended. ZeroMQ tells
 * messages and ends of connections by two ways that don't wait for each other, and names both by
 * file descriptors, which are used again at once. Here every connection has a number of its own.
 * No sockets: told what was accepted, what was closed and whose message is there. */
#ifndef MLA_COMM_CONNECTIONS_H
#define MLA_COMM_CONNECTIONS_H

#include "comm/channel.h"

#define MLA_CONNECTION_FDS_MAX 65536u

struct mla_connections;

/* MLA_MEMORY. */
enum mla_status mla_connections_create(struct mla_connections **out);
void mla_connections_destroy(struct mla_connections **connections);

/* Room for what the next accepted or closed may leave to be told. MLA_MEMORY. */
enum mla_status mla_connections_reserve(struct mla_connections *connections);
/* In the order in which they happened. */
void mla_connections_accepted(struct mla_connections *connections, int fd);
void mla_connections_closed(struct mla_connections *connections, int fd);

/* Whether the sender of a message is known without looking for news of its descriptor. */
bool mla_connections_is_known(const struct mla_connections *connections,
                              const struct mla_peer *peer);
/* Sets peer->number, after everything that happened before the message came was told. False: the
 * message is from a connection that has ended. */
bool mla_connections_number(struct mla_connections *connections, struct mla_peer *peer);

/* The next connection that has ended and was not told yet. */
bool mla_connections_has_ended(const struct mla_connections *connections);
bool mla_connections_next_ended(struct mla_connections *connections, int *fd, uint64_t *number);

#endif
