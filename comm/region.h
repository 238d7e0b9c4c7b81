/* Regions of shared memory: made by one process, mapped by others of the same user on the same
 * host.
 *
 * A region is a memfd of fixed size: its seals keep everybody from shrinking or growing it, so no
 * access to a mapping of it can fault. It lives as long as somebody has it mapped, whoever dies.
 * Descriptors travel over a unix socket that only this user can connect to, to whom shows the
 * region's random token; both ends check who the other one is. */
#ifndef MLA_COMM_REGION_H
#define MLA_COMM_REGION_H

#include "proto/grant.h"
#include "proto/status.h"

#include <stddef.h>
#include <stdint.h>

/* A mapped region: bytes that other processes read and write at any time. */
struct mla_region {
    uint64_t number;
    uint8_t *data;
    size_t bytes;
};

/* Gets the region and maps it. MLA_UNSUPPORTED when nobody gives it out to us here (another host,
 * another user, a wrong token, or what comes is not sealed), MLA_TIMEOUT, MLA_MEMORY. */
enum mla_status mla_region_map(const struct mla_grant *grant, int timeout_ms,
                               struct mla_region *out);
/* Safe on a zeroed one. */
void mla_region_unmap(struct mla_region *region);

struct mla_region_server;

/* Listens in a new folder under $TMPDIR (/tmp) that only this user can enter, and gives out at
 * most regions_max regions. MLA_SYSTEM, MLA_MEMORY, logged. */
enum mla_status mla_region_server_create(uint32_t regions_max, struct mla_region_server **out);
/* All descriptors are closed; mappings stay where they are. */
void mla_region_server_destroy(struct mla_region_server **server);

/* Readable when mla_region_server_turn has something to do. */
int mla_region_server_fd(const struct mla_region_server *server);
/* Serves whoever waits, without waiting itself. */
void mla_region_server_turn(struct mla_region_server *server);

/* A new region, all zeros, of the given number. MLA_AGAIN: there are regions_max; MLA_SYSTEM. */
enum mla_status mla_region_server_add(struct mla_region_server *server, uint64_t number,
                                      uint64_t bytes, struct mla_grant *out);
/* Nobody can get it any more. */
void mla_region_server_remove(struct mla_region_server *server, uint64_t number);

#endif
