/* Who can reach the coordinator: what is checked before it listens. */
#ifndef MLA_COORDINATOR_ACCESS_H
#define MLA_COORDINATOR_ACCESS_H

#include "comm/keys.h"

struct mla_access {
    bool insecure; /* nothing is refused for want of keys or of a private folder */
    bool has_keys; /* on tcp; an ipc endpoint is guarded by its folder */
    struct mla_keys keys;
    struct mla_key_list clients, workers;
};

/* folder: --curve-keys or NULL. MLA_OPTION with a sentence on stderr. */
enum mla_status mla_access_init(struct mla_access *access, const char *folder, bool insecure);
/* MLA_OPTION with a sentence on stderr for a tcp endpoint that other hosts can reach and that has
 * no keys, and for an ipc endpoint that others of this host can reach. */
enum mla_status mla_access_check(const struct mla_access *access, const char *endpoint);
/* The keys for this endpoint, or NULL. */
const struct mla_keys *mla_access_keys(const struct mla_access *access, const char *endpoint);

#endif
