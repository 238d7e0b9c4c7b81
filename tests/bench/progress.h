/* Progress on stderr: a bar on a terminal, a plain line now and then elsewhere. */
#ifndef MLA_TESTS_BENCH_PROGRESS_H
#define MLA_TESTS_BENCH_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

struct mla_progress {
    const char *what; /* "requests" */
    uint64_t total;
    bool terminal;
    double told_s;
};

void mla_progress_begin(struct mla_progress *progress, const char *what, uint64_t total,
                        double now_s);
/* `note` says more, in a few words. */
void mla_progress_update(struct mla_progress *progress, uint64_t done, double now_s,
                         const char *note);
void mla_progress_end(struct mla_progress *progress);

#endif
