/* Connections. Each direction keeps its order; between connections there is none. Descriptors are
 * given out again at once, the lowest first, as a kernel does. Messages and news of connections
 * wait until the coordinator looks at them, each for itself, as with ZeroMQ
 * (comm/channel_peers.c). */
#include "tests/sim/sim.h"

#include <stdlib.h>
#include <string.h>

/* A payload that the simulation made. */
struct counted {
    struct mla_blob blob;
    int64_t *alive;
};

static void counted_free(struct mla_blob *blob)
{
    struct counted *counted = (struct counted *)blob;
    (*counted->alive)--;
    free(blob->data);
    free(counted);
}

struct mla_blob *blob_make(struct sim *sim, size_t bytes)
{
    struct counted *counted = calloc(1, sizeof *counted);
    uint8_t *data = calloc(1, bytes);
    if (!counted || !data)
        sim_fail(sim, "no memory for a payload");
    counted->blob.data = data;
    counted->blob.bytes = bytes;
    counted->blob.references = 1;
    counted->blob.release = counted_free;
    counted->alive = &sim->blobs;
    sim->blobs++;
    return &counted->blob;
}

static struct packet *packet_make(struct sim *sim, const void *head, size_t head_bytes,
                                  struct mla_blob *payload, size_t offset, size_t bytes)
{
    struct packet *packet = malloc(sizeof *packet + head_bytes);
    if (!packet)
        sim_fail(sim, "no memory for a message");
    *packet = (struct packet){
        .head_bytes = head_bytes, .payload = payload, .offset = offset, .bytes = bytes};
    memcpy(packet->head, head, head_bytes);
    return packet;
}

void packet_free(struct packet *packet)
{
    mla_blob_drop(packet->payload);
    free(packet);
}

static void drop_all(struct packet **first, struct packet ***last)
{
    while (*first) {
        struct packet *next = (*first)->next;
        packet_free(*first);
        *first = next;
    }
    *last = first;
}

static void append(struct packet ***last, struct packet *packet)
{
    **last = packet;
    *last = &packet->next;
}

static struct packet *take(struct packet **first, struct packet ***last)
{
    struct packet *packet = *first;
    *first = packet->next;
    if (!*first)
        *last = first;
    packet->next = NULL;
    return packet;
}

struct link *link_find(struct sim *sim, uint64_t number)
{
    struct link *link = &sim->links[number % SIM_LINKS_MAX];
    return number != 0 && link->number == number ? link : NULL;
}

bool link_find_open(struct sim *sim, uint64_t number)
{
    const struct link *link = link_find(sim, number);
    return link && link->open;
}

static int free_fd(const struct sim *sim)
{
    for (int fd = 3;; fd++) {
        bool taken = false;
        for (uint32_t i = 0; i < SIM_LINKS_MAX && !taken; i++)
            taken = sim->links[i].number != 0 && !sim->links[i].fd_free && sim->links[i].fd == fd;
        if (!taken)
            return fd;
    }
}

/* A connection's number is its place and how often that was used. */
struct link *link_connect(struct sim *sim, enum link_kind kind, uint32_t owner)
{
    uint32_t at = 0;
    while (at < SIM_LINKS_MAX && sim->links[at].number != 0)
        at++;
    if (at == SIM_LINKS_MAX)
        sim_fail(sim, "the simulation has too few connections");
    struct link *link = &sim->links[at];
    *link = (struct link){.kind = kind, .open = true, .owner = owner, .slow = 1};
    link->fd = free_fd(sim);
    link->number = ++sim->links_made * SIM_LINKS_MAX + at;
    link->up_last = &link->up;
    link->down_last = &link->down;
    sim_news(sim, link, true);
    if (sim->faults && random_chance(&sim->random, 50))
        link->slow = random_within(&sim->random, 2, 40);
    return link;
}

static uint64_t arrival(struct sim *sim, const struct link *link, uint64_t last_ns)
{
    uint64_t at_ns =
        sim->now_ns + (uint64_t)random_within(&sim->random, 20000, 400000) * link->slow;
    return at_ns > last_ns ? at_ns : last_ns;
}

static void arrive_up(struct sim *sim, uint64_t number, uint64_t unused)
{
    (void)unused;
    struct link *link = link_find(sim, number);
    if (!link || !link->up)
        return;
    struct packet *packet = take(&link->up, &link->up_last);
    sim_deliver(sim, link, packet);
    free(packet); /* the payload is the core's */
}

void link_send(struct sim *sim, struct link *link, const void *head, size_t head_bytes,
               struct mla_blob *payload)
{
    append(&link->up_last,
           packet_make(sim, head, head_bytes, payload, 0, payload ? payload->bytes : 0));
    link->up_ns = arrival(sim, link, link->up_ns);
    uint64_t looked_at_ns = link->up_ns + random_within(&sim->random, 0, 300000);
    sim_at(sim, looked_at_ns - sim->now_ns, arrive_up, link->number, 0);
}

static void arrive_down(struct sim *sim, uint64_t number, uint64_t unused)
{
    (void)unused;
    struct link *link = link_find(sim, number);
    if (!link || !link->down || link->paused)
        return;
    struct packet *packet = take(&link->down, &link->down_last);
    link->queued--;
    if (!link->open)
        packet_free(packet);
    else if (link->kind == LINK_CLIENT)
        client_arrived(sim, link->owner, packet);
    else
        job_arrived(sim, link, packet);
}

enum mla_status link_send_down(struct sim *sim, const struct mla_peer *peer, const void *head,
                               size_t head_bytes, struct mla_blob *payload, size_t offset,
                               size_t bytes)
{
    struct link *link = link_find(sim, sim_route_of(peer));
    if (!link || link->fd_free)
        return MLA_CLOSED;
    if (link->refusing || (link->paused && link->queued >= SIM_QUEUE_MAX)) {
        link->refusing = false;
        link->dropped = true;
        sim->dropping = true;
        return MLA_AGAIN;
    }
    link->queued++;
    append(&link->down_last,
           packet_make(sim, head, head_bytes, payload ? mla_blob_hold(payload) : NULL, offset,
                       payload ? bytes : 0));
    link->down_ns = arrival(sim, link, link->down_ns);
    sim_at(sim, link->down_ns - sim->now_ns, arrive_down, link->number, 0);
    return MLA_OK;
}

void link_resume(struct sim *sim, struct link *link)
{
    link->paused = false;
    link->resumed_ns = sim->now_ns;
    for (uint32_t i = 0; i < link->queued; i++)
        sim_at(sim, 0, arrive_down, link->number, 0);
}

/* What it said last may still be looked at. */
static void forget(struct sim *sim, uint64_t number, uint64_t unused)
{
    (void)unused;
    struct link *link = link_find(sim, number);
    if (!link)
        return;
    link_drop_all(link);
    link->number = 0;
}

static void end_told(struct sim *sim, uint64_t number, uint64_t unused)
{
    sim_tell_ends(sim, 0, 0);
    sim_at(sim, SIM_MS, forget, number, unused);
}

/* The descriptor is free before the end is told. */
static void end_seen(struct sim *sim, uint64_t number, uint64_t unused)
{
    (void)unused;
    struct link *link = link_find(sim, number);
    if (!link)
        return;
    link->fd_free = true;
    sim_news(sim, link, false);
    sim_at(sim, random_within(&sim->random, 0, 3000000), end_told, number, 0);
}

void link_close(struct sim *sim, struct link *link, bool cut)
{
    if (!link->open)
        return;
    link->open = false;
    if (cut)
        drop_all(&link->up, &link->up_last);
    uint64_t seen_ns = arrival(sim, link, link->up_ns);
    sim_at(sim, seen_ns - sim->now_ns, end_seen, link->number, 0);
}

void link_drop_all(struct link *link)
{
    if (link->number == 0)
        return;
    drop_all(&link->up, &link->up_last);
    drop_all(&link->down, &link->down_last);
}

void links_cut_all(struct sim *sim)
{
    for (uint32_t i = 0; i < SIM_LINKS_MAX; i++) {
        struct link *link = &sim->links[i];
        if (link->number == 0)
            continue;
        struct link was = *link;
        link_drop_all(link);
        link->number = 0;
        if (!was.open)
            continue;
        if (was.kind == LINK_CLIENT)
            client_link_ended(sim, was.owner, was.number);
        else if (was.kind != LINK_SILENT)
            job_link_ended(sim, was.owner, was.kind);
    }
}
