#include "tests/lib/zmtp.h"

#include "proto/parse.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { PATIENCE_MS = 10000, GREETING_BYTES = 64, MORE = 1, LONG = 2, COMMAND = 4 };

static int dial(const struct sockaddr *address, socklen_t bytes)
{
    int fd = socket(address->sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd >= 0 && connect(fd, address, bytes) == 0)
        return fd;
    if (fd >= 0)
        close(fd);
    return -1;
}

int mla_zmtp_dial(const char *endpoint)
{
    if (strncmp(endpoint, "ipc://", 6) == 0) {
        struct sockaddr_un address = {.sun_family = AF_UNIX};
        snprintf(address.sun_path, sizeof address.sun_path, "%s", endpoint + 6);
        return dial((const struct sockaddr *)&address, sizeof address);
    }
    char host[64] = "";
    uint64_t port = 0;
    const char *colon = strrchr(endpoint, ':');
    struct sockaddr_in address = {.sin_family = AF_INET};
    if (strncmp(endpoint, "tcp://", 6) != 0 || colon < endpoint + 6 ||
        colon - endpoint - 6 >= (ptrdiff_t)sizeof host ||
        !mla_parse_number(colon + 1, 1, UINT16_MAX, &port))
        return -1;
    memcpy(host, endpoint + 6, (size_t)(colon - endpoint - 6));
    if (inet_pton(AF_INET, host, &address.sin_addr) != 1)
        return -1;
    address.sin_port = htons((uint16_t)port);
    return dial((const struct sockaddr *)&address, sizeof address);
}

bool mla_zmtp_send_bytes(int fd, const void *bytes, size_t count)
{
    const char *at = bytes;
    while (count > 0) {
        ssize_t sent = send(fd, at, count, MSG_NOSIGNAL);
        if (sent <= 0)
            return false;
        at += sent;
        count -= (size_t)sent;
    }
    return true;
}

static bool readable(int fd)
{
    struct pollfd item = {.fd = fd, .events = POLLIN};
    return poll(&item, 1, PATIENCE_MS) == 1;
}

static bool receive_bytes(int fd, void *bytes, size_t count)
{
    char *at = bytes;
    while (count > 0) {
        ssize_t got = readable(fd) ? recv(fd, at, count, 0) : 0;
        if (got <= 0)
            return false;
        at += got;
        count -= (size_t)got;
    }
    return true;
}

int mla_zmtp_connect(const char *endpoint)
{
    static const uint8_t greeting[GREETING_BYTES] = {0xff, [9] = 0x7f, 3, 0, 'N', 'U', 'L', 'L'};
    static const char ready[] = "\x04\x1c\x05READY\x0bSocket-Type\0\0\0\x06"
                                "DEALER";
    uint8_t answer[256];
    size_t count = 0;
    bool more = false;
    int fd = mla_zmtp_dial(endpoint);
    if (fd < 0)
        return -1;
    if (mla_zmtp_send_bytes(fd, greeting, sizeof greeting) &&
        mla_zmtp_send_bytes(fd, ready, sizeof ready - 1) &&
        receive_bytes(fd, answer, sizeof greeting) &&
        mla_zmtp_receive(fd, answer, sizeof answer, &count, &more))
        return fd;
    close(fd);
    return -1;
}

bool mla_zmtp_send_head(int fd, uint64_t count, bool more)
{
    uint8_t head[9] = {LONG | (more ? MORE : 0)};
    for (int i = 0; i < 8; i++)
        head[1 + i] = (uint8_t)(count >> (8 * (7 - i)));
    return mla_zmtp_send_bytes(fd, head, sizeof head);
}

bool mla_zmtp_send(int fd, const void *bytes, size_t count, bool more)
{
    return mla_zmtp_send_head(fd, count, more) && mla_zmtp_send_bytes(fd, bytes, count);
}

bool mla_zmtp_receive(int fd, void *bytes, size_t capacity, size_t *count, bool *more)
{
    uint8_t flags = 0;
    uint8_t length[8] = {0};
    uint64_t value = 0;
    if (!receive_bytes(fd, &flags, 1) || !receive_bytes(fd, length, flags & LONG ? 8 : 1))
        return false;
    for (int i = 0; i < (flags & LONG ? 8 : 1); i++)
        value = value << 8 | length[i];
    if (value > capacity || !receive_bytes(fd, bytes, value))
        return false;
    *count = value;
    *more = flags & MORE;
    return true;
}

bool mla_zmtp_closed(int fd)
{
    char thrown_away[4096];
    ssize_t got = 1;
    while (got > 0 && readable(fd))
        got = recv(fd, thrown_away, sizeof thrown_away, 0);
    return got <= 0;
}
