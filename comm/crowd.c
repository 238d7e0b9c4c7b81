#include "comm/crowd.h"

#include <linux/tcp.h>
#include <netinet/in.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#define FDS 65536u

/* `submitted` and `sent` go on over the connections that have this descriptor one after the
 * other: what one leaves is given back all the same, if later. */
struct connection {
    bool open, cut, heard;
    uint64_t number, opened_ns; /* number: once it was heard */
    uint32_t submitted;
    atomic_uint sent;
    uint32_t sent_seen;
    uint64_t acknowledged_seen, progress_ns;
};

struct mla_crowd {
    struct mla_crowd_limits limits;
    struct mla_crowd_counts counts;
    uint32_t bound; /* descriptors from here on were never used */
    struct connection of[FDS];
};

enum mla_status mla_crowd_create(const struct mla_crowd_limits *limits, struct mla_crowd **out)
{
    struct mla_crowd *crowd = calloc(1, sizeof *crowd);
    if (!crowd)
        return MLA_MEMORY;
    crowd->limits = *limits;
    *out = crowd;
    return MLA_OK;
}

void mla_crowd_destroy(struct mla_crowd **crowd)
{
    free(*crowd);
    *crowd = NULL;
}

static struct connection *at(struct mla_crowd *crowd, int fd)
{
    if (fd < 0 || fd >= (int)FDS)
        return NULL;
    if ((uint32_t)fd >= crowd->bound)
        crowd->bound = (uint32_t)fd + 1;
    return &crowd->of[fd];
}

static void cut(struct connection *connection, int fd, uint64_t *counter)
{
    if (!connection->open || connection->cut)
        return;
    connection->cut = true;
    (void)shutdown(fd, SHUT_RDWR); /* fails where the other end was faster */
    (*counter)++;
}

/* One too many has come, at `newest`. */
static void make_room(struct mla_crowd *crowd, int newest)
{
    int found = newest;
    for (uint32_t i = 0; i < crowd->bound; i++) {
        const struct connection *one = &crowd->of[i];
        if (one->open && !one->cut && !one->heard &&
            (crowd->of[found].heard || one->opened_ns < crowd->of[found].opened_ns))
            found = (int)i;
    }
    cut(&crowd->of[found], found, &crowd->counts.crowded);
}

void mla_crowd_opened(struct mla_crowd *crowd, int fd, uint64_t now_ns)
{
    struct connection *connection = at(crowd, fd);
    if (!connection)
        return;
    crowd->counts.open += !connection->open;
    crowd->counts.accepted++;
    connection->open = true;
    connection->cut = false;
    connection->heard = false;
    connection->number = 0;
    connection->opened_ns = now_ns;
    connection->progress_ns = now_ns;
    if (crowd->limits.connections_max > 0 && crowd->counts.open > crowd->limits.connections_max)
        make_room(crowd, fd);
}

void mla_crowd_closed(struct mla_crowd *crowd, int fd)
{
    struct connection *connection = at(crowd, fd);
    if (!connection || !connection->open)
        return;
    connection->open = false;
    crowd->counts.open--;
}

void mla_crowd_heard(struct mla_crowd *crowd, int fd, uint64_t number)
{
    struct connection *connection = at(crowd, fd);
    if (!connection)
        return;
    connection->heard = true;
    connection->number = number;
}

atomic_uint *mla_crowd_submit(struct mla_crowd *crowd, int fd, uint64_t now_ns)
{
    struct connection *connection = at(crowd, fd);
    if (!connection)
        return NULL;
    if (connection->submitted == atomic_load(&connection->sent))
        connection->progress_ns = now_ns; /* until now there was nothing to read */
    connection->submitted++;
    return &connection->sent;
}

/* What TCP has brought to the other end. A socket of this host has no such number: it takes one
 * payload after the other. */
static uint64_t acknowledged(int fd)
{
    struct tcp_info info = {0};
    socklen_t bytes = sizeof info;
    if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &bytes) != 0 ||
        bytes < offsetof(struct tcp_info, tcpi_bytes_acked) + sizeof info.tcpi_bytes_acked)
        return 0;
    return info.tcpi_bytes_acked;
}

static void tend_one(struct mla_crowd *crowd, int fd, uint64_t now_ns)
{
    const struct mla_crowd_limits *limits = &crowd->limits;
    struct connection *connection = &crowd->of[fd];
    if (limits->silent_ms > 0 && !connection->heard &&
        now_ns > connection->opened_ns + (uint64_t)limits->silent_ms * 1000000u)
        cut(connection, fd, &crowd->counts.silent);
    uint32_t sent = atomic_load(&connection->sent);
    if (limits->unread_ms == 0 || sent == connection->submitted)
        return;
    uint64_t reached = acknowledged(fd);
    if (sent != connection->sent_seen || reached != connection->acknowledged_seen)
        connection->progress_ns = now_ns;
    connection->sent_seen = sent;
    connection->acknowledged_seen = reached;
    if (now_ns > connection->progress_ns + (uint64_t)limits->unread_ms * 1000000u)
        cut(connection, fd, &crowd->counts.unread);
}

void mla_crowd_tend(struct mla_crowd *crowd, uint64_t now_ns)
{
    for (uint32_t i = 0; i < crowd->bound; i++)
        if (crowd->of[i].open)
            tend_one(crowd, (int)i, now_ns);
}

void mla_crowd_relieve(struct mla_crowd *crowd, bool all)
{
    for (uint32_t i = 0; i < crowd->bound; i++) {
        int waiting = 0;
        if (crowd->of[i].open && (all || (ioctl((int)i, FIONREAD, &waiting) == 0 && waiting > 0)))
            cut(&crowd->of[i], (int)i, &crowd->counts.relieved);
    }
}

void mla_crowd_cut(struct mla_crowd *crowd, int fd, uint64_t number)
{
    struct connection *connection = at(crowd, fd);
    if (connection && connection->number == number)
        cut(connection, fd, &crowd->counts.unread);
}

void mla_crowd_count(const struct mla_crowd *crowd, struct mla_crowd_counts *out)
{
    *out = crowd->counts;
}
