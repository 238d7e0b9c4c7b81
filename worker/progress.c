#include "worker/progress.h"

#include <stdio.h>
#include <unistd.h>

void mla_progress_show(const char *did, const char *what, uint32_t done, uint32_t total,
                       uint32_t stride)
{
    enum { WIDTH = 40 };
    int filled = (int)((uint64_t)WIDTH * done / total);
    if (isatty(STDERR_FILENO))
        fprintf(stderr, "\r%s [%.*s%*s] %u/%u %ss%s", did, filled,
                "########################################", WIDTH - filled, "", done, total, what,
                done == total ? "\n" : "");
    else if (done % stride == 0 || done == total)
        fprintf(stderr, "%s %s %u of %u\n", did, what, done, total);
}
