#include "worker/watchdog.h"

#include "proto/clock.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

enum { LOOK_MS = 50 };
#define FOLLOW_NS 1000000000ull /* an order to end is followed within so long */

struct mla_watchdog {
    const struct mla_watch *watch;
    pthread_t thread;
    atomic_bool stopped;
};

static _Noreturn void end(const struct mla_watch *watch, const char *why)
{
    char line[128];
    int bytes = snprintf(line, sizeof line, "rank %u: %s\n", watch->rank, why);
    /* Not through stdio: whoever hangs may hold its lock. */
    if (bytes > 0)
        (void)!write(STDERR_FILENO, line, (size_t)bytes);
    _exit(mla_status_exit_code(MLA_DEADLINE));
}

static void *run(void *argument)
{
    const struct mla_watchdog *self = argument;
    const struct mla_watch *watch = self->watch;
    while (!atomic_load(&self->stopped)) {
        nanosleep(&(struct timespec){.tv_nsec = LOOK_MS * 1000000L}, NULL);
        uint64_t begun_ns = atomic_load(&watch->begun_ns);
        uint64_t stall_ns = atomic_load(&watch->stall_ns);
        uint64_t told_ns = atomic_load(&watch->told_ns);
        uint64_t now_ns = mla_now_ns();
        if (begun_ns && stall_ns && now_ns > begun_ns && now_ns - begun_ns > stall_ns)
            end(watch, "a microbatch does not end: giving up");
        if (told_ns && !atomic_load(&watch->following) && now_ns > told_ns &&
            now_ns - told_ns > FOLLOW_NS)
            end(watch, "told to end and busy: giving up");
    }
    return NULL;
}

enum mla_status mla_watchdog_start(struct mla_watch *watch, struct mla_watchdog **out)
{
    struct mla_watchdog *self = calloc(1, sizeof *self);
    if (!self)
        return MLA_MEMORY;
    self->watch = watch;
    if (pthread_create(&self->thread, NULL, run, self) != 0) {
        free(self);
        return MLA_SYSTEM;
    }
    *out = self;
    return MLA_OK;
}

void mla_watchdog_stop(struct mla_watchdog **watchdog)
{
    struct mla_watchdog *self = *watchdog;
    if (!self)
        return;
    atomic_store(&self->stopped, true);
    pthread_join(self->thread, NULL);
    free(self);
    *watchdog = NULL;
}
