/* What the two ends of region.h share. */
#ifndef MLA_COMM_REGION_WIRE_H
#define MLA_COMM_REGION_WIRE_H

#include "proto/limits.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/un.h>

/* The one packet that is sent to the server. The answer is one packet of one byte with the
 * descriptor, or the end of the connection. */
struct mla_region_ask {
    uint64_t region;
    uint8_t token[MLA_REGION_TOKEN_BYTES];
};

/* The process at the other end is this user's. */
bool mla_region_same_user(int fd);
/* False for what is no absolute path of a socket. */
bool mla_region_address(const char *path, size_t bytes, struct sockaddr_un *out);
/* A sealed memfd, or -1 and errno. */
int mla_region_memfd(uint64_t bytes);

#endif
