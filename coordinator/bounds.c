#include "coordinator/bounds.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

/* Connections are found by their descriptor, in a table of so many. */
enum { FILES_MAX = 65536 };

enum mla_status mla_bounds_files(uint64_t least)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0)
        return MLA_SYSTEM;
    limit.rlim_cur = limit.rlim_max < FILES_MAX ? limit.rlim_max : FILES_MAX;
    if (limit.rlim_cur < least) {
        fprintf(stderr,
                "%llu descriptors are allowed (ulimit -Hn), clients and workers take %llu\n",
                (unsigned long long)limit.rlim_cur, (unsigned long long)least);
        return MLA_OPTION;
    }
    return setrlimit(RLIMIT_NOFILE, &limit) == 0 ? MLA_OK : MLA_SYSTEM;
}

uint64_t mla_bounds_used(void)
{
    char text[64] = "";
    int fd = open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    ssize_t bytes = read(fd, text, sizeof text - 1);
    close(fd);
    if (bytes <= 0)
        return 0;
    return strtoull(text, NULL, 10) * (uint64_t)sysconf(_SC_PAGESIZE);
}

enum mla_status mla_bounds_memory(struct mla_bounds *bounds, uint64_t max_bytes,
                                  uint64_t more_bytes)
{
    uint64_t used = mla_bounds_used();
    if (max_bytes == 0)
        max_bytes = used + more_bytes;
    if (max_bytes < used || max_bytes - used < more_bytes) {
        uint64_t least = used + more_bytes;
        fprintf(stderr, "--memory-max is too little: this takes %llu bytes\n",
                (unsigned long long)least);
        return MLA_OPTION;
    }
    const struct rlimit limit = {max_bytes, max_bytes};
    if (setrlimit(RLIMIT_AS, &limit) != 0) {
        fprintf(stderr, "--memory-max: %s\n", strerror(errno));
        return MLA_OPTION;
    }
    *bounds = (struct mla_bounds){.base_bytes = used, .max_bytes = max_bytes};
    return MLA_OK;
}

uint32_t mla_bounds_percent(const struct mla_bounds *bounds)
{
    uint64_t used = mla_bounds_used();
    if (used <= bounds->base_bytes)
        return 0;
    return (uint32_t)((used - bounds->base_bytes) * 100 / (bounds->max_bytes - bounds->base_bytes));
}
