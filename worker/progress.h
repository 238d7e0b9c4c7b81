/* Long work at start-up, told on stderr: a bar on a terminal, now and then a line elsewhere. */
#ifndef MLA_WORKER_PROGRESS_H
#define MLA_WORKER_PROGRESS_H

#include <stdint.h>

/* "loaded" "layer" 3 of 27. Elsewhere than on a terminal every `stride`-th gets a line, and the
 * last. */
void mla_progress_show(const char *did, const char *what, uint32_t done, uint32_t total,
                       uint32_t stride);

#endif
