/* How many cores processes of this host keep busy. */
#ifndef MLA_TESTS_BENCH_CPU_USE_H
#define MLA_TESTS_BENCH_CPU_USE_H

#include <stdbool.h>
#include <stdint.h>

enum mla_cpu_role { MLA_CPU_COORDINATOR, MLA_CPU_WORKERS, MLA_CPU_CLIENT, MLA_CPU_ROLES };

enum { MLA_CPU_PIDS_MAX = 256 };

/* Zeroed: nobody. */
struct mla_cpu_use {
    uint32_t count;
    struct {
        int pid;
        enum mla_cpu_role role;
    } processes[MLA_CPU_PIDS_MAX];
};

/* The processes of a service: `pids`, comma-separated, or, without it, what runs of mla-coordinator
 * and mla-worker on this host, if that is one service; and this process. False with a sentence in
 * `why` (of MLA_SENTENCE_BYTES_MAX) when they can't be told, or one of `pids` is neither. */
bool mla_cpu_use_find(const char *pids, struct mla_cpu_use *out, char *why);

/* User and system time of each role's processes up to now, in seconds. Those that have ended count
 * nothing. The kernel counts in steps of 10 ms, mostly. */
void mla_cpu_use_read(const struct mla_cpu_use *use, double seconds[MLA_CPU_ROLES]);

#endif
