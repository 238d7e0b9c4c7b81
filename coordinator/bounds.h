/* Bounds on the coordinator's process. */
#ifndef MLA_COORDINATOR_BOUNDS_H
#define MLA_COORDINATOR_BOUNDS_H

#include "proto/status.h"

#include <stdint.h>

/* As many descriptors as the system allows, at least `least`. MLA_OPTION with a sentence on
 * stderr. */
enum mla_status mla_bounds_files(uint64_t least);

struct mla_bounds {
    uint64_t base_bytes; /* address space when the bound was set */
    uint64_t max_bytes;
};

/* Bounds the address space (RLIMIT_AS): max_bytes, or `more_bytes` above what is in use where it
 * is 0. MLA_OPTION with a sentence on stderr where there is no room for more_bytes. */
enum mla_status mla_bounds_memory(struct mla_bounds *bounds, uint64_t max_bytes,
                                  uint64_t more_bytes);
/* Address space in use. */
uint64_t mla_bounds_used(void);
/* How much of the room there was is taken, in percent. */
uint32_t mla_bounds_percent(const struct mla_bounds *bounds);

#endif
