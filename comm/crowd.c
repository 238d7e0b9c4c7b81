#include "comm/crowd.h"

#include <linux/tcp.h>
#include <malloc.h>
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
    uint32_t messages, messages_seen;
    uint32_t sending; /* looks since the last message at which it was sending more */
    uint64_t received_seen;
};

struct mla_crowd {
    struct mla_crowd_limits limits;
    struct mla_crowd_counts counts;
    uint32_t bound;      /* descriptors from here on were never used */
    uint64_t heap_bytes; /* the least since one began to send without end; 0: none does */
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

/* What TCP has received is read after a shutdown too, and more comes as long as the other end
 * sends: a connection that is dissolved has nothing to read. Both fail where the other end was
 * faster. */
static void cut(struct connection *connection, int fd, uint64_t *counter)
{
    const struct sockaddr nobody = {.sa_family = AF_UNSPEC};
    if (!connection->open || connection->cut)
        return;
    connection->cut = true;
    if (connect(fd, &nobody, sizeof nobody) != 0)
        (void)shutdown(fd, SHUT_RDWR);
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
    connection->sending = 0;
    connection->received_seen = 0;
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
    connection->messages++;
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

/* So many bytes of frames that are no message yet are too many. */
#define ENDLESS_BYTES (32ull << 20)
enum { SENDING_LOOKS = 2 };
/* By then a first message is there if it is ever to come in one go. */
#define FIRST_NS 500000000ull

/* Bytes that have come over it so far. A socket of this host has no such number. */
static bool received(int fd, uint64_t *bytes_out)
{
    struct tcp_info info = {0};
    socklen_t bytes = sizeof info;
    if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &bytes) != 0 ||
        bytes < offsetof(struct tcp_info, tcpi_bytes_received) + sizeof info.tcpi_bytes_received)
        return false;
    *bytes_out = info.tcpi_bytes_received;
    return true;
}

/* Whether it sends a message that does not come. What waits to be read tells it where nothing else
 * does, and not at every look. */
static void look_at_sending(struct mla_crowd *crowd, int fd, uint64_t now_ns)
{
    struct connection *connection = &crowd->of[fd];
    uint64_t bytes = 0;
    int waiting = 0;
    bool counted = received(fd, &bytes);
    if (counted ? bytes > connection->received_seen
                : ioctl(fd, FIONREAD, &waiting) == 0 && waiting > 0)
        connection->sending++;
    connection->received_seen = bytes;
    if (connection->heard)
        return;
    uint32_t looks = now_ns > connection->opened_ns + FIRST_NS ? 1 : SENDING_LOOKS;
    if (counted ? bytes > crowd->limits.first_bytes_max : connection->sending >= looks)
        cut(connection, fd, &crowd->counts.endless);
}

/* ZeroMQ keeps the frames of a message that is not complete, and does not tell how many. A message
 * may take its time; memory that grows meanwhile, and is nobody's payload, is that of frames
 * without end. */
static void end_endless(struct mla_crowd *crowd, uint64_t held_bytes)
{
    uint32_t sending = 0;
    for (uint32_t i = 0; i < crowd->bound; i++)
        sending += crowd->of[i].open && crowd->of[i].sending >= SENDING_LOOKS - 1;
    if (sending == 0) {
        crowd->heap_bytes = 0;
        return;
    }
    uint64_t heap_bytes = mallinfo2().uordblks;
    heap_bytes = heap_bytes > held_bytes ? heap_bytes - held_bytes : 1;
    if (crowd->heap_bytes == 0 || heap_bytes < crowd->heap_bytes)
        crowd->heap_bytes = heap_bytes;
    if (heap_bytes < crowd->heap_bytes + ENDLESS_BYTES)
        return;
    for (uint32_t i = 0; i < crowd->bound; i++)
        if (crowd->of[i].open && crowd->of[i].sending >= SENDING_LOOKS)
            cut(&crowd->of[i], (int)i, &crowd->counts.endless);
}

static void tend_one(struct mla_crowd *crowd, int fd, uint64_t now_ns)
{
    const struct mla_crowd_limits *limits = &crowd->limits;
    struct connection *connection = &crowd->of[fd];
    if (limits->silent_ms > 0 && !connection->heard &&
        now_ns > connection->opened_ns + (uint64_t)limits->silent_ms * 1000000u)
        cut(connection, fd, &crowd->counts.silent);
    if (limits->first_bytes_max > 0 && connection->messages == connection->messages_seen)
        look_at_sending(crowd, fd, now_ns);
    else
        connection->sending = 0;
    connection->messages_seen = connection->messages;
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

void mla_crowd_tend(struct mla_crowd *crowd, uint64_t now_ns, uint64_t held_bytes)
{
    for (uint32_t i = 0; i < crowd->bound; i++)
        if (crowd->of[i].open)
            tend_one(crowd, (int)i, now_ns);
    if (crowd->limits.first_bytes_max > 0)
        end_endless(crowd, held_bytes);
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
