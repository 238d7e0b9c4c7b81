/* What one needs to get at a region of shared memory: sent to its client and to the workers. */
#ifndef MLA_PROTO_GRANT_H
#define MLA_PROTO_GRANT_H

#include "proto/limits.h"

#include <stdint.h>

struct mla_grant {
    uint64_t region; /* its number, never 0 and never used twice */
    uint64_t bytes;
    uint8_t token[MLA_REGION_TOKEN_BYTES]; /* who knows it may have the region */
    uint32_t path_bytes;
    char path[MLA_REGION_PATH_BYTES_MAX]; /* the unix socket that gives it out; no NUL at its end */
};

#endif
