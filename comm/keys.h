/* CURVE keys in a folder, as mla-keys makes it. Keys are in Z85, 40 characters:
 *
 *     server.key worker.key client.key    secrets, for their owner alone (0600)
 *     server.pub                          what workers and clients know the service by
 *     workers.allow clients.allow         who may connect: a line of name and public key each
 */
#ifndef MLA_COMM_KEYS_H
#define MLA_COMM_KEYS_H

#include "proto/limits.h"
#include "proto/status.h"

#include <stdbool.h>
#include <stdint.h>

#define MLA_KEY_BYTES     41u /* 40 characters and a zero */
#define MLA_KEY_RAW_BYTES 32u

/* One's own pair, and the server's public key where one connects to it. */
struct mla_keys {
    char secret[MLA_KEY_BYTES], public[MLA_KEY_BYTES], server[MLA_KEY_BYTES];
};

struct mla_key_owner {
    char name[MLA_USER_BYTES_MAX];
    uint8_t key[MLA_KEY_RAW_BYTES];
};

/* Who may connect. */
struct mla_key_list {
    uint32_t count;
    struct mla_key_owner owners[MLA_KEYS_MAX];
};

/* A name is 1 to MLA_USER_BYTES_MAX - 1 letters, digits and -_. */
bool mla_key_name_is_valid(const char *name);

/* The keys of a "server", "worker" or "client". MLA_OPTION with a sentence on stderr where a file
 * is missing, is no key, or may be read by others. */
enum mla_status mla_keys_read(const char *folder, const char *role, struct mla_keys *out);
/* The same where `endpoint` is of tcp and folder is not NULL: *out is `keys`. Else *out is NULL: an
 * ipc endpoint is guarded by its folder. */
enum mla_status mla_keys_for(const char *endpoint, const char *folder, const char *role,
                             struct mla_keys *keys, const struct mla_keys **out);
/* `what`: "workers" or "clients". MLA_OPTION with a sentence on stderr. */
enum mla_status mla_key_list_read(const char *folder, const char *what, struct mla_key_list *out);

/* New folder with keys for the server, one worker and one client, both allowed. Nothing is
 * overwritten: MLA_OPTION where one of the files exists, MLA_SYSTEM, with a sentence. */
enum mla_status mla_keys_make(const char *folder);
/* One more client: its folder `folder`/`name` is what it connects with, and it is allowed from the
 * coordinator's next start. MLA_OPTION, MLA_SYSTEM. */
enum mla_status mla_keys_add_client(const char *folder, const char *name);

#endif
