#include "tests/bench/progress.h"

#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>

enum { BAR_CHARACTERS = 40 };

static const double bar_s = 0.2, line_s = 5;

void mla_progress_begin(struct mla_progress *progress, const char *what, uint64_t total,
                        double now_s)
{
    *progress = (struct mla_progress){
        .what = what,
        .total = total,
        .terminal = isatty(STDERR_FILENO) == 1,
        .told_s = now_s,
    };
}

void mla_progress_update(struct mla_progress *progress, uint64_t done, double now_s,
                         const char *note)
{
    if (now_s - progress->told_s < (progress->terminal ? bar_s : line_s))
        return;
    progress->told_s = now_s;
    if (!progress->terminal) {
        fprintf(stderr, "%" PRIu64 " of %" PRIu64 " %s, %s\n", done, progress->total,
                progress->what, note);
        return;
    }
    int filled = (int)(done * BAR_CHARACTERS / progress->total);
    fprintf(stderr, "\r\033[K[%.*s%*s] %" PRIu64 " of %" PRIu64 " %s, %s", filled,
            "########################################", BAR_CHARACTERS - filled, "", done,
            progress->total, progress->what, note);
}

void mla_progress_end(struct mla_progress *progress)
{
    if (progress->terminal)
        fputs("\r\033[K", stderr);
}
