/* A peer that speaks ZMTP 3.0 over a bare socket (rfc.zeromq.org/spec/23), to send what no ZeroMQ
 * library would: messages that break off, frames that lie about their length. */
#ifndef MLA_TESTS_LIB_ZMTP_H
#define MLA_TESTS_LIB_ZMTP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A socket to "tcp://a.b.c.d:port" or "ipc:///path", nothing said yet; -1 where nobody listens. */
int mla_zmtp_dial(const char *endpoint);
/* The same after both sides have said that they are ready: this one is a DEALER. */
int mla_zmtp_connect(const char *endpoint);

/* False when the other end has closed. */
bool mla_zmtp_send_bytes(int fd, const void *bytes, size_t count);
/* The head of a frame that announces `count` bytes. */
bool mla_zmtp_send_head(int fd, uint64_t count, bool more);
bool mla_zmtp_send(int fd, const void *bytes, size_t count, bool more);

/* One whole frame, at most `capacity` bytes. False when the other end has closed, or after 10 s. */
bool mla_zmtp_receive(int fd, void *bytes, size_t capacity, size_t *count, bool *more);
/* Waits until the other end closes, throws away what it still sends. False after 10 s. */
bool mla_zmtp_closed(int fd);

#endif
