/* Decides which CURVE keys may connect: ZeroMQ asks it (ZAP, rfc.zeromq.org/spec/27) before a
 * connection's first message is read. One in a context, in a thread of its own. */
#ifndef MLA_COMM_GUARD_H
#define MLA_COMM_GUARD_H

#include "comm/keys.h"

struct mla_guard;

enum { MLA_GUARD_DOMAINS_MAX = 8, MLA_GUARD_DOMAIN_BYTES = 16 };

/* Answers until the ZeroMQ context ends. MLA_MEMORY, MLA_SYSTEM. */
enum mla_status mla_guard_start(void *zmq, struct mla_guard **out);
/* From now on these keys may connect to sockets of a new domain, whose name is told. MLA_LIMIT. */
enum mla_status mla_guard_allow(struct mla_guard *guard, const struct mla_key_list *list,
                                char *domain);
/* Whose sockets everybody may connect to who has no key. */
const char *mla_guard_open_domain(void);
/* After the context's end. */
void mla_guard_join(struct mla_guard **guard);

#endif
