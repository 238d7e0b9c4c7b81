#include "comm/region.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "comm/region_wire.h"

enum { SEALS = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL };

bool mla_region_same_user(int fd)
{
    struct ucred peer;
    socklen_t bytes = sizeof peer;
    return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &bytes) == 0 && peer.uid == geteuid();
}

bool mla_region_address(const char *path, size_t bytes, struct sockaddr_un *out)
{
    *out = (struct sockaddr_un){.sun_family = AF_UNIX};
    if (bytes == 0 || bytes >= sizeof out->sun_path || path[0] != '/' || memchr(path, 0, bytes))
        return false;
    memcpy(out->sun_path, path, bytes);
    return true;
}

/* One answer: a descriptor, or the end of the connection. */
static enum mla_status receive_fd(int socket, int *out)
{
    char byte = 0;
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int))];
    } control;
    struct iovec data = {.iov_base = &byte, .iov_len = sizeof byte};
    struct msghdr message = {.msg_iov = &data,
                             .msg_iovlen = 1,
                             .msg_control = control.space,
                             .msg_controllen = CMSG_LEN(sizeof(int))}; /* room for one */
    ssize_t got;
    do
        got = recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
    while (got < 0 && errno == EINTR);
    if (got < 0)
        return errno == EAGAIN || errno == EWOULDBLOCK ? MLA_TIMEOUT : MLA_UNSUPPORTED;
    const struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    if (!header || header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS ||
        header->cmsg_len != CMSG_LEN(sizeof(int)))
        return MLA_UNSUPPORTED;
    memcpy(out, CMSG_DATA(header), sizeof *out);
    return MLA_OK;
}

static enum mla_status fetch(const struct mla_grant *grant, int timeout_ms, int *out)
{
    struct sockaddr_un address;
    struct timeval timeout = {.tv_sec = timeout_ms / 1000, .tv_usec = timeout_ms % 1000 * 1000L};
    struct mla_region_ask ask = {.region = grant->region};
    memcpy(ask.token, grant->token, sizeof ask.token);
    if (!mla_region_address(grant->path, grant->path_bytes, &address))
        return MLA_UNSUPPORTED;
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return MLA_UNSUPPORTED;
    enum mla_status status = MLA_UNSUPPORTED;
    if (setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout) == 0 &&
        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof timeout) == 0 &&
        connect(fd, (struct sockaddr *)&address, sizeof address) == 0 && mla_region_same_user(fd) &&
        send(fd, &ask, sizeof ask, MSG_NOSIGNAL) == sizeof ask)
        status = receive_fd(fd, out);
    close(fd);
    return status;
}

enum mla_status mla_region_map(const struct mla_grant *grant, int timeout_ms,
                               struct mla_region *out)
{
    int fd = -1;
    struct stat stat;
    if (grant->bytes == 0 || grant->bytes > MLA_REGION_BYTES_MAX)
        return MLA_UNSUPPORTED;
    enum mla_status status = fetch(grant, timeout_ms, &fd);
    if (status != MLA_OK)
        return status;
    /* Whoever gave it must not be able to take pages away. */
    if ((fcntl(fd, F_GET_SEALS) & SEALS) != SEALS || fstat(fd, &stat) != 0 ||
        (uint64_t)stat.st_size != grant->bytes) {
        close(fd);
        return MLA_UNSUPPORTED;
    }
    void *data = mmap(NULL, grant->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (data == MAP_FAILED)
        return MLA_MEMORY;
    *out = (struct mla_region){.number = grant->region, .data = data, .bytes = grant->bytes};
    return MLA_OK;
}

void mla_region_unmap(struct mla_region *region)
{
    if (region->data)
        munmap(region->data, region->bytes);
    *region = (struct mla_region){0};
}

int mla_region_memfd(uint64_t bytes)
{
    int fd = memfd_create("mla-region", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0)
        return -1;
    if (ftruncate(fd, (off_t)bytes) == 0 && fcntl(fd, F_ADD_SEALS, SEALS) == 0)
        return fd;
    int error = errno;
    close(fd);
    errno = error;
    return -1;
}
