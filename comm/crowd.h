/* The connections of a server's channel, by descriptor, and the bounds on each: those that break
 * one are cut off, by ending their socket's connection under ZeroMQ, which has no other way. */
#ifndef MLA_COMM_CROWD_H
#define MLA_COMM_CROWD_H

#include "proto/status.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct mla_crowd;

struct mla_crowd_limits {
    uint32_t connections_max; /* beyond, the oldest that has said nothing, else the newest, goes */
    int silent_ms;            /* without a first message */
    int unread_ms;            /* with payloads to read and not reading any */
    /* Sent before a first message, and without end between messages. A socket of this host doesn't
     * tell: there it is what goes on over two looks. */
    uint64_t first_bytes_max;
};

struct mla_crowd_counts {
    uint64_t open;
    /* All so far; from `crowded` on: cut off. */
    uint64_t accepted, crowded, silent, unread, endless, relieved;
};

/* `limits` of 0 are none. MLA_MEMORY. */
enum mla_status mla_crowd_create(const struct mla_crowd_limits *limits, struct mla_crowd **out);
/* No counter that mla_crowd_submit gave may be used any more. */
void mla_crowd_destroy(struct mla_crowd **crowd);

void mla_crowd_opened(struct mla_crowd *crowd, int fd, uint64_t now_ns);
void mla_crowd_closed(struct mla_crowd *crowd, int fd);
/* A message came, from the connection of this number. */
void mla_crowd_heard(struct mla_crowd *crowd, int fd, uint64_t number);
/* A payload was handed over: add 1 to this counter, from any thread, when it is sent. NULL for a
 * descriptor that is not watched. */
atomic_uint *mla_crowd_submit(struct mla_crowd *crowd, int fd, uint64_t now_ns);
/* Cuts off what broke a limit; five times a second. held_bytes: memory of messages that all have
 * come. */
void mla_crowd_tend(struct mla_crowd *crowd, uint64_t now_ns, uint64_t held_bytes);
/* Cuts off all that are sending something right now, or all. For when memory runs out: ZeroMQ
 * keeps a message that never ends, and doesn't tell whose it is. */
void mla_crowd_relieve(struct mla_crowd *crowd, bool all);
/* The connection of this number, which was heard; not another at its descriptor. */
void mla_crowd_cut(struct mla_crowd *crowd, int fd, uint64_t number);

void mla_crowd_count(const struct mla_crowd *crowd, struct mla_crowd_counts *out);

#endif
