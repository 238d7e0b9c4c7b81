#include "comm/spin.h"

#include "proto/clock.h"

#include <pthread.h>
#include <sched.h>
#include <stdbool.h>
#include <string.h>
#include <sys/epoll.h>

enum { NAME_BYTES = 16 }; /* the kernel's */

static bool has_spinning_name(void)
{
    char name[NAME_BYTES] = "";
    return pthread_getname_np(pthread_self(), name, sizeof name) == 0 &&
           strncmp(name, MLA_SPIN_THREADS, strlen(MLA_SPIN_THREADS)) == 0;
}

/* libzmq names a thread before it waits for the first time. */
static bool spins(void)
{
    static _Thread_local enum { UNKNOWN, SLEEPS, SPINS } kind;
    if (kind == UNKNOWN)
        kind = has_spinning_name() ? SPINS : SLEEPS;
    return kind == SPINS;
}

/* libc's. epoll_pwait without a mask of signals is the same call, and not the one replaced here.
 * Others may need the core meanwhile: it is given away between looks. */
int epoll_wait(int epoll, struct epoll_event *events, int most, int timeout_ms)
{
    if (timeout_ms == 0 || !spins())
        return epoll_pwait(epoll, events, most, timeout_ms, NULL);
    uint64_t end_ns = timeout_ms < 0 ? UINT64_MAX : mla_now_ns() + (uint64_t)timeout_ms * 1000000u;
    int ready = 0;
    while ((ready = epoll_pwait(epoll, events, most, 0, NULL)) == 0 && mla_now_ns() < end_ns)
        sched_yield();
    return ready;
}
