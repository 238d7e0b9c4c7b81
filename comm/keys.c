#include "comm/keys.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zmq.h>

enum { LINE_BYTES = 256 };

static enum mla_status path_of(const char *folder, const char *name, const char *suffix, char *out)
{
    if (snprintf(out, PATH_MAX, "%s/%s%s", folder, name, suffix) < PATH_MAX)
        return MLA_OK;
    fprintf(stderr, "%s: the name is too long\n", folder);
    return MLA_OPTION;
}

static enum mla_status complain(const char *path, const char *why, enum mla_status status)
{
    fprintf(stderr, "%s: %s\n", path, why);
    return status;
}

bool mla_key_name_is_valid(const char *name)
{
    size_t length = strlen(name);
    for (size_t i = 0; i < length; i++)
        if (!isalnum((unsigned char)name[i]) && name[i] != '-' && name[i] != '_')
            return false;
    return length > 0 && length < MLA_USER_BYTES_MAX;
}

static bool decode(const char *text, uint8_t *key)
{
    return strlen(text) == MLA_KEY_BYTES - 1 && zmq_z85_decode(key, text);
}

/* A file of one key. */
static enum mla_status read_key(const char *folder, const char *name, const char *suffix,
                                bool secret, char *out)
{
    char path[PATH_MAX];
    char line[LINE_BYTES] = "";
    uint8_t key[MLA_KEY_RAW_BYTES];
    struct stat info;
    if (path_of(folder, name, suffix, path) != MLA_OK)
        return MLA_OPTION;
    FILE *file = fopen(path, "re");
    if (!file)
        return complain(path, strerror(errno), MLA_OPTION);
    bool read = fgets(line, sizeof line, file) && fstat(fileno(file), &info) == 0;
    fclose(file);
    line[strcspn(line, "\n")] = '\0';
    if (!read || !decode(line, key))
        return complain(path, "this is no key", MLA_OPTION);
    /* A secret that root hands to a service (a volume of Kubernetes, a credential of systemd) is
     * root's, and readable by the service's group. */
    mode_t others = info.st_uid == 0 && geteuid() != 0 ? 037 : 077;
    if (secret && (info.st_mode & others))
        return complain(path, "others can read this secret; chmod 600", MLA_OPTION);
    memcpy(out, line, MLA_KEY_BYTES);
    return MLA_OK;
}

enum mla_status mla_keys_read(const char *folder, const char *role, struct mla_keys *out)
{
    struct mla_keys keys = {0};
    if (!zmq_has("curve"))
        return complain(folder, "this libzmq was built without CURVE", MLA_OPTION);
    enum mla_status status = read_key(folder, role, ".key", true, keys.secret);
    if (status == MLA_OK && zmq_curve_public(keys.public, keys.secret) != 0)
        status = complain(folder, zmq_strerror(zmq_errno()), MLA_OPTION);
    if (status == MLA_OK && strcmp(role, "server") != 0)
        status = read_key(folder, "server", ".pub", false, keys.server);
    if (status == MLA_OK)
        *out = keys;
    return status;
}

enum mla_status mla_keys_for(const char *endpoint, const char *folder, const char *role,
                             struct mla_keys *keys, const struct mla_keys **out)
{
    *out = NULL;
    if (!folder || strncmp(endpoint, "tcp://", 6) != 0)
        return MLA_OK;
    enum mla_status status = mla_keys_read(folder, role, keys);
    if (status == MLA_OK)
        *out = keys;
    return status;
}

static bool add_owner(const char *line, struct mla_key_list *list)
{
    char name[LINE_BYTES];
    char key[LINE_BYTES];
    char rest[2];
    struct mla_key_owner *owner = &list->owners[list->count];
    if (sscanf(line, "%255s %255s %1s", name, key, rest) != 2 || !mla_key_name_is_valid(name) ||
        !decode(key, owner->key))
        return false;
    memcpy(owner->name, name, strlen(name) + 1);
    list->count++;
    return true;
}

enum mla_status mla_key_list_read(const char *folder, const char *what, struct mla_key_list *out)
{
    char path[PATH_MAX];
    char line[LINE_BYTES];
    enum mla_status status = path_of(folder, what, ".allow", path);
    if (status != MLA_OK)
        return status;
    FILE *file = fopen(path, "re");
    if (!file)
        return complain(path, strerror(errno), MLA_OPTION);
    out->count = 0;
    while (status == MLA_OK && fgets(line, sizeof line, file)) {
        if (line[strspn(line, " \t\n")] == '\0' || line[0] == '#')
            continue;
        if (out->count == MLA_KEYS_MAX)
            status = complain(path, "too many keys", MLA_OPTION);
        else if (!add_owner(line, out))
            status = complain(path, "a line is not a name and a key", MLA_OPTION);
    }
    fclose(file);
    return status;
}

/* Writes a line to a file that must be new, or to the end of one that must be there. */
static enum mla_status write_line(const char *path, int flags, mode_t mode, const char *line)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC | O_NOFOLLOW | flags, mode);
    if (fd < 0)
        return complain(path, strerror(errno), errno == EEXIST ? MLA_OPTION : MLA_SYSTEM);
    ssize_t bytes = (ssize_t)strlen(line);
    bool written = write(fd, line, (size_t)bytes) == bytes;
    return close(fd) == 0 && written ? MLA_OK : complain(path, strerror(errno), MLA_SYSTEM);
}

static enum mla_status write_key(const char *folder, const char *name, const char *suffix,
                                 const char *key)
{
    char path[PATH_MAX];
    char line[LINE_BYTES];
    snprintf(line, sizeof line, "%s\n", key);
    enum mla_status status = path_of(folder, name, suffix, path);
    return status == MLA_OK
               ? write_line(path, O_CREAT | O_EXCL, strcmp(suffix, ".key") == 0 ? 0600 : 0644, line)
               : status;
}

static enum mla_status allow(const char *folder, const char *what, int flags, const char *name,
                             const char *key)
{
    char path[PATH_MAX];
    char line[LINE_BYTES];
    snprintf(line, sizeof line, "%s %s\n", name, key);
    enum mla_status status = path_of(folder, what, ".allow", path);
    return status == MLA_OK ? write_line(path, flags, 0600, line) : status;
}

static enum mla_status make_pair(char *public, char *secret)
{
    if (zmq_curve_keypair(public, secret) == 0)
        return MLA_OK;
    fprintf(stderr, "no keys: %s\n", zmq_strerror(zmq_errno()));
    return MLA_SYSTEM;
}

static enum mla_status make_folder(const char *folder)
{
    struct stat info;
    if (mkdir(folder, 0700) != 0 && errno != EEXIST)
        return complain(folder, strerror(errno), MLA_SYSTEM);
    if (stat(folder, &info) != 0 || !S_ISDIR(info.st_mode) || info.st_uid != geteuid() ||
        (info.st_mode & 077))
        return complain(folder, "not a folder that only this user can enter", MLA_OPTION);
    return MLA_OK;
}

enum mla_status mla_keys_make(const char *folder)
{
    static const char *const roles[] = {"server", "worker", "client"};
    static const char *const lists[] = {NULL, "workers", "clients"};
    enum mla_status status = make_folder(folder);
    for (int i = 0; i < 3 && status == MLA_OK; i++) {
        char public[MLA_KEY_BYTES];
        char secret[MLA_KEY_BYTES];
        status = make_pair(public, secret);
        if (status == MLA_OK)
            status = write_key(folder, roles[i], ".key", secret);
        if (status == MLA_OK)
            status = lists[i] ? allow(folder, lists[i], O_CREAT | O_EXCL, roles[i], public)
                              : write_key(folder, roles[i], ".pub", public);
    }
    return status;
}

enum mla_status mla_keys_add_client(const char *folder, const char *name)
{
    struct mla_key_list list;
    char path[PATH_MAX];
    char server[MLA_KEY_BYTES];
    char public[MLA_KEY_BYTES];
    char secret[MLA_KEY_BYTES];
    if (!mla_key_name_is_valid(name))
        return complain(name, "a name has letters, digits, - and _, at most 31", MLA_OPTION);
    enum mla_status status = read_key(folder, "server", ".pub", false, server);
    if (status == MLA_OK)
        status = mla_key_list_read(folder, "clients", &list);
    for (uint32_t i = 0; status == MLA_OK && i < list.count; i++)
        if (strcmp(list.owners[i].name, name) == 0)
            status = complain(name, "this client has a key", MLA_OPTION);
    if (status == MLA_OK && list.count == MLA_KEYS_MAX)
        status = complain(folder, "too many keys", MLA_OPTION);
    if (status == MLA_OK)
        status = path_of(folder, name, "", path);
    if (status == MLA_OK)
        status = make_pair(public, secret);
    if (status == MLA_OK)
        status = make_folder(path);
    if (status == MLA_OK)
        status = write_key(path, "client", ".key", secret);
    if (status == MLA_OK)
        status = write_key(path, "server", ".pub", server);
    return status == MLA_OK ? allow(folder, "clients", O_APPEND, name, public) : status;
}
