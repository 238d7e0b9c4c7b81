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

#include <sched.h>
#include <stdbool.h>

/* ZMQ_THREAD_NAME_PREFIX of contexts whose threads spin. libzmq names them "NUMBER/ZMQbg/IO/N",
 * 15 characters at most. */
#define MLA_SPIN_PREFIX  5214
#define MLA_SPIN_THREADS "5214/ZMQbg/IO"

/* Keeps the calling thread on a processor, and what threads it starts from now on. False: it may
 * not be there. */
static inline bool mla_stay_on(int processor)
{
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(processor, &one);
    return sched_setaffinity(0, sizeof one, &one) == 0;
}

/* Such threads stay on this processor from their first wait on; at first, on none. */
void mla_spin_on(int processor);

/* For a process that may use exactly two processors of more: one is for ZeroMQ's thread, as above,
 * the other is returned, for the thread that talks to it. Else -1, and nothing is done. */
int mla_spin_share(void);

#endif
