#include "worker/input.h"

#include "proto/limits.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum mla_status mla_refuse(enum mla_status status, char *why, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(why, MLA_SENTENCE_BYTES_MAX, format, arguments);
    va_end(arguments);
    for (char *c = why; *c; c++) {
        if ((unsigned char)*c < ' ' || *c == 0x7f)
            *c = '?';
    }
    return status;
}

/* Opens `path`, or `name` in it where it is a folder; -1 and errno. */
static int open_file(const char *path, const char *name, struct stat *status)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 || fstat(fd, status) < 0)
        goto fail;
    if (S_ISDIR(status->st_mode)) {
        int file = openat(fd, name, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
        int error = errno;
        close(fd);
        fd = file;
        errno = error;
        if (fd < 0 || fstat(fd, status) < 0)
            goto fail;
    }
    if (!S_ISREG(status->st_mode)) {
        errno = EINVAL;
        goto fail;
    }
    return fd;
fail:
    if (fd >= 0) {
        int error = errno;
        close(fd);
        errno = error;
    }
    return -1;
}

enum mla_status mla_file_read(const char *path, const char *name, size_t bytes_max, char **out,
                              size_t *bytes, char *why)
{
    enum mla_status result;
    char *buffer = NULL;
    size_t got = 0;
    struct stat status;
    int fd = open_file(path, name, &status);
    if (fd < 0)
        return mla_refuse(MLA_SYSTEM, why, "cannot read %s of %.150s: %s", name, path,
                          strerror(errno));
    size_t size = (size_t)status.st_size;
    if (size > bytes_max) {
        result = mla_refuse(MLA_LIMIT, why, "%s has %zu bytes, at most %zu are read", name, size,
                            bytes_max);
        goto fail;
    }
    buffer = malloc(size + 1);
    if (!buffer) {
        result = mla_refuse(MLA_MEMORY, why, "no memory for the %zu bytes of %s", size, name);
        goto fail;
    }
    while (got < size) {
        ssize_t n = read(fd, buffer + got, size - got);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            result = mla_refuse(MLA_SYSTEM, why, "cannot read %s of %.150s: %s", name, path,
                                n < 0 ? strerror(errno) : "it became shorter");
            goto fail;
        }
        got += (size_t)n;
    }
    close(fd);
    *out = buffer;
    *bytes = size;
    return MLA_OK;
fail:
    free(buffer);
    close(fd);
    return result;
}

enum mla_status mla_json_parse(const char *json, size_t bytes, const char *what,
                               enum mla_status status, json_t **out, char *why)
{
    json_error_t error;
    json_t *root = json_loadb(json, bytes, JSON_REJECT_DUPLICATES, &error);
    if (!root)
        return mla_refuse(status, why, "%s, line %d: %s", what, error.line, error.text);
    if (!json_is_object(root)) {
        json_decref(root);
        return mla_refuse(status, why, "%s is not a JSON object", what);
    }
    *out = root;
    return MLA_OK;
}
