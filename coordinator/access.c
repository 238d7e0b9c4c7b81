#include "coordinator/access.h"

#include <arpa/inet.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char tcp[] = "tcp://";
static const char ipc[] = "ipc://";

static bool begins(const char *text, const char *with)
{
    return strncmp(text, with, strlen(with)) == 0;
}

enum mla_status mla_access_init(struct mla_access *access, const char *folder, bool insecure)
{
    *access = (struct mla_access){.insecure = insecure, .has_keys = folder != NULL};
    if (!folder)
        return MLA_OK;
    enum mla_status status = mla_keys_read(folder, "server", &access->keys);
    if (status == MLA_OK)
        status = mla_key_list_read(folder, "clients", &access->clients);
    if (status == MLA_OK)
        status = mla_key_list_read(folder, "workers", &access->workers);
    return status;
}

/* Whether other hosts can't reach this "host:port". A name or an interface may be anything. */
static bool is_loopback(const char *address)
{
    char host[64] = "";
    struct in_addr four;
    const char *colon = strrchr(address, ':');
    size_t length = colon ? (size_t)(colon - address) : sizeof host;
    if (length >= sizeof host)
        return false;
    memcpy(host, address, length);
    if (inet_pton(AF_INET, host, &four) == 1)
        return ntohl(four.s_addr) >> 24 == 127;
    return strcmp(host, "[::1]") == 0;
}

/* Whether a folder on the way to this socket lets nobody else through. */
static bool is_private(const char *path)
{
    char parent[PATH_MAX];
    char real[PATH_MAX];
    struct stat info;
    snprintf(parent, sizeof parent, "%s", path);
    char *slash = strrchr(parent, '/');
    if (!slash)
        return false;
    *slash = '\0';
    if (!realpath(parent, real))
        return true; /* then nobody can listen there: binding says it better */
    while ((slash = strrchr(real, '/')) && slash > real) {
        if (stat(real, &info) == 0 && info.st_uid == geteuid() && !(info.st_mode & 077))
            return true;
        *slash = '\0';
    }
    return false;
}

enum mla_status mla_access_check(const struct mla_access *access, const char *endpoint)
{
    const char *problem = NULL;
    if (begins(endpoint, tcp) && !access->has_keys && !is_loopback(endpoint + strlen(tcp)))
        problem = "other hosts can reach it, and --curve-keys is not given";
    else if (begins(endpoint, ipc) && !is_private(endpoint + strlen(ipc)))
        problem = "it is not in a folder that only this user can enter (chmod 700)";
    if (!problem || access->insecure)
        return MLA_OK;
    fprintf(stderr, "%s: %s; --insecure allows it\n", endpoint, problem);
    return MLA_OPTION;
}

const struct mla_keys *mla_access_keys(const struct mla_access *access, const char *endpoint)
{
    return access->has_keys && begins(endpoint, tcp) ? &access->keys : NULL;
}
