#include "comm/region.h"

#include "comm/region_wire.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

/* Connections that have said nothing yet. When there are more, the oldest one goes. */
enum { WAITING_MAX = 32, BACKLOG = 256, ACCEPTS_A_TURN = 64 };

struct given {
    uint64_t number;
    uint8_t token[MLA_REGION_TOKEN_BYTES];
    int fd;
};

struct mla_region_server {
    int epoll, listener;
    int spare; /* given up where there are no descriptors left to turn somebody away with */
    int waiting[WAITING_MAX]; /* ring, the oldest first */
    uint32_t waiting_count;
    uint32_t regions_max, region_count;
    struct given *regions;
    char folder[MLA_REGION_PATH_BYTES_MAX]; /* where the socket is */
    size_t path_bytes;
    struct sockaddr_un address;
};

static int open_spare(void)
{
    return open("/dev/null", O_RDONLY | O_CLOEXEC);
}

static int watch(int epoll, int fd)
{
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    return epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
}

/* A socket in a folder of its own: nobody else can connect, or listen in its place. */
static bool listen_in_private(struct mla_region_server *server)
{
    const char *parent = getenv("TMPDIR");
    char path[MLA_REGION_PATH_BYTES_MAX + 1];
    int length = snprintf(server->folder, sizeof server->folder, "%s/mla-regions.XXXXXX",
                          parent && *parent ? parent : "/tmp");
    if (length >= (int)sizeof server->folder || !mkdtemp(server->folder)) {
        server->folder[0] = 0;
        return false;
    }
    length = snprintf(path, sizeof path, "%s/socket", server->folder);
    if (length < 0 || !mla_region_address(path, (size_t)length, &server->address)) {
        errno = ENAMETOOLONG;
        return false;
    }
    server->path_bytes = (size_t)length;
    server->listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    return server->listener >= 0 &&
           bind(server->listener, (struct sockaddr *)&server->address, sizeof server->address) ==
               0 &&
           listen(server->listener, BACKLOG) == 0;
}

enum mla_status mla_region_server_create(uint32_t regions_max, struct mla_region_server **out)
{
    struct mla_region_server *server = calloc(1, sizeof *server);
    if (!server)
        return MLA_MEMORY;
    server->epoll = server->listener = server->spare = -1;
    server->regions_max = regions_max;
    server->regions = calloc(regions_max, sizeof *server->regions);
    enum mla_status status = MLA_MEMORY;
    if (!server->regions)
        goto fail;
    server->epoll = epoll_create1(EPOLL_CLOEXEC);
    server->spare = open_spare();
    if (server->epoll < 0 || server->spare < 0 || !listen_in_private(server) ||
        watch(server->epoll, server->listener) != 0) {
        fprintf(stderr, "no socket for shared memory in %s: %s\n",
                server->folder[0] ? server->folder : "$TMPDIR", strerror(errno));
        status = MLA_SYSTEM;
        goto fail;
    }
    *out = server;
    return MLA_OK;
fail:
    mla_region_server_destroy(&server);
    return status;
}

static void close_if(int fd)
{
    if (fd >= 0)
        close(fd);
}

void mla_region_server_destroy(struct mla_region_server **server_at)
{
    struct mla_region_server *server = *server_at;
    if (!server)
        return;
    for (uint32_t i = 0; i < server->region_count; i++)
        close(server->regions[i].fd);
    for (uint32_t i = 0; i < server->waiting_count; i++)
        close(server->waiting[i]);
    close_if(server->listener);
    close_if(server->epoll);
    close_if(server->spare);
    if (server->path_bytes)
        (void)unlink(server->address.sun_path);
    if (server->folder[0])
        (void)rmdir(server->folder);
    free(server->regions);
    free(server);
    *server_at = NULL;
}

int mla_region_server_fd(const struct mla_region_server *server)
{
    return server->epoll;
}

static struct given *find(struct mla_region_server *server, uint64_t number)
{
    for (uint32_t i = 0; i < server->region_count; i++)
        if (server->regions[i].number == number)
            return &server->regions[i];
    return NULL;
}

/* Takes as long for a wrong token as for a right one. */
static bool same_token(const uint8_t *a, const uint8_t *b)
{
    unsigned differing = 0;
    for (size_t i = 0; i < MLA_REGION_TOKEN_BYTES; i++)
        differing |= (unsigned)(a[i] ^ b[i]);
    return differing == 0;
}

static void give(int socket, int fd)
{
    char byte = 1;
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct iovec data = {.iov_base = &byte, .iov_len = sizeof byte};
    struct msghdr message = {.msg_iov = &data,
                             .msg_iovlen = 1,
                             .msg_control = control.space,
                             .msg_controllen = sizeof control.space};
    control.header.cmsg_level = SOL_SOCKET;
    control.header.cmsg_type = SCM_RIGHTS;
    control.header.cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(&control.header), &fd, sizeof fd);
    (void)sendmsg(socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL); /* or it learns by our close */
}

/* False: it has said nothing yet. Else it has had its answer. */
static bool answer(struct mla_region_server *server, int socket)
{
    struct mla_region_ask ask;
    ssize_t got = recv(socket, &ask, sizeof ask, MSG_DONTWAIT | MSG_TRUNC);
    if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR))
        return false;
    const struct given *region = got == sizeof ask ? find(server, ask.region) : NULL;
    if (region && same_token(region->token, ask.token))
        give(socket, region->fd);
    return true;
}

static void forget(struct mla_region_server *server, uint32_t index)
{
    close(server->waiting[index]);
    server->waiting_count--;
    memmove(&server->waiting[index], &server->waiting[index + 1],
            (server->waiting_count - index) * sizeof *server->waiting);
}

static void accept_one(struct mla_region_server *server, int fd)
{
    if (!mla_region_same_user(fd) || answer(server, fd)) {
        close(fd);
        return;
    }
    if (server->waiting_count == WAITING_MAX)
        forget(server, 0);
    if (watch(server->epoll, fd) != 0) {
        close(fd);
        return;
    }
    server->waiting[server->waiting_count++] = fd;
}

/* Without descriptors nobody can be accepted, and who waits would wake us for ever. */
static void turn_away(struct mla_region_server *server)
{
    close(server->spare);
    int fd = accept4(server->listener, NULL, NULL, SOCK_CLOEXEC);
    if (fd >= 0)
        close(fd);
    server->spare = open_spare();
}

void mla_region_server_turn(struct mla_region_server *server)
{
    for (uint32_t i = 0; i < server->waiting_count;) {
        if (answer(server, server->waiting[i]))
            forget(server, i);
        else
            i++;
    }
    for (int i = 0; i < ACCEPTS_A_TURN; i++) {
        int fd = accept4(server->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd < 0 && (errno == EMFILE || errno == ENFILE))
            turn_away(server);
        if (fd < 0)
            return;
        accept_one(server, fd);
    }
}

enum mla_status mla_region_server_add(struct mla_region_server *server, uint64_t number,
                                      uint64_t bytes, struct mla_grant *out)
{
    struct given region = {.number = number};
    if (server->region_count == server->regions_max)
        return MLA_AGAIN;
    if (getrandom(region.token, sizeof region.token, 0) != sizeof region.token)
        return MLA_SYSTEM;
    region.fd = mla_region_memfd(bytes);
    if (region.fd < 0) {
        fprintf(stderr, "a region of %llu bytes: %s\n", (unsigned long long)bytes, strerror(errno));
        return MLA_SYSTEM;
    }
    server->regions[server->region_count++] = region;
    *out = (struct mla_grant){
        .region = number, .bytes = bytes, .path_bytes = (uint32_t)server->path_bytes};
    memcpy(out->token, region.token, sizeof out->token);
    memcpy(out->path, server->address.sun_path, server->path_bytes);
    return MLA_OK;
}

void mla_region_server_remove(struct mla_region_server *server, uint64_t number)
{
    struct given *region = find(server, number);
    if (!region)
        return;
    close(region->fd);
    *region = server->regions[--server->region_count];
}
