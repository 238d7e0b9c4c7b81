/* ZeroMQ's own threads, which sleep between messages also where ours spin: waking one takes longer
 * than all that it does. In a program that is linked with mla_spin, those of a context with a
 * channel that spins don't sleep either: each takes a core, all the time. Between two looks it
 * gives its core away, so that threads which spin on one core get on, only slower.
 *
 * libzmq offers no such thing. It waits in epoll_wait, and the definition that a program has goes
 * before that of libc: ours looks again and again. It tells ZeroMQ's threads by their names, which
 * begin with a number of our choice; for all others it is the kernel's epoll_wait. Only for
 * programs of our own: a library must not do that to the process that it is in. */
#ifndef MLA_COMM_SPIN_H
#define MLA_COMM_SPIN_H

/* ZMQ_THREAD_NAME_PREFIX of contexts whose threads spin. libzmq names them "NUMBER/ZMQbg/IO/N",
 * 15 characters at most. */
#define MLA_SPIN_PREFIX  5214
#define MLA_SPIN_THREADS "5214/ZMQbg/IO"

#endif
