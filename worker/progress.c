#include "worker/progress.h"

#include <stdio.h>
#include <unistd.h>

void mla_progress_show(const char *doing, uint32_t done, uint32_t total, const char *what,
                       uint32_t stride)
{
    enum { WIDTH = 40 };
    int filled = (int)((uint64_t)WIDTH * done / total);
    if (isatty(STDERR_FILENO))
        fprintf(stderr, "\r%s [%.*s%*s] %u/%u %s%s", doing, filled,
                "########################################", WIDTH - filled, "", done, total, what,
                done == total ? "\n" : "");
    else if (done % stride == 0 || done == total)
        fprintf(stderr, "%s: %u of %u %s\n", doing, done, total, what);
}
