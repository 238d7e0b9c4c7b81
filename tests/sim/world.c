/* The core's surroundings, and what must hold after everything that happens. */
#include "coordinator/state.h"
#include "tests/sim/sim.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct mla_message reply;

static uint64_t now_ms_of(const struct sim *sim)
{
    return sim->now_ns / SIM_MS;
}

void sim_trace(struct sim *sim, const char *format, ...)
{
    if (!sim->options.trace)
        return;
    printf("%6llu.%03llu ms  ", (unsigned long long)now_ms_of(sim),
           (unsigned long long)(sim->now_ns / 1000 % 1000));
    va_list arguments;
    va_start(arguments, format);
    vprintf(format, arguments);
    va_end(arguments);
    printf("\n");
}

_Noreturn void sim_fail(struct sim *sim, const char *format, ...)
{
    printf("seed %llu, %llu ms, event %llu: ", (unsigned long long)sim->options.seed,
           (unsigned long long)now_ms_of(sim), (unsigned long long)sim->events_done);
    va_list arguments;
    va_start(arguments, format);
    vprintf(format, arguments);
    va_end(arguments);
    printf("\nagain: mla-sim --seed %llu --trace\n", (unsigned long long)sim->options.seed);
    exit(1);
}

bool sim_epoch_is_lost(const struct sim *sim, uint64_t epoch)
{
    return sim->epochs_lost[epoch / 64 % 4] >> epoch % 64 & 1;
}

/* ---- Effects */

/* No row of an epoch that is over may leave. */
static void check_reply(struct sim *sim, const struct mla_blob *payload, size_t offset,
                        size_t bytes)
{
    const struct mla_run_reply *run = &reply.u.run_reply;
    if (bytes != (size_t)run->rows * SIM_HIDDEN * mla_dtype_bytes((enum mla_dtype)run->dtype))
        sim_fail(sim, "a RUN of %u rows is answered with %zu bytes", run->rows, bytes);
    for (uint32_t i = 0; run->dtype == MLA_F32 && i < run->rows; i++) {
        uint64_t epoch = 0;
        memcpy(&epoch, payload->data + offset + 16ull * i + 8, sizeof epoch);
        if (epoch == 0 || epoch > reply.header.epoch || sim_epoch_is_lost(sim, epoch))
            sim_fail(sim, "row %u of a reply is of epoch %llu, which is over", i,
                     (unsigned long long)epoch);
    }
}

static enum mla_status send_client(void *context, const struct mla_peer *peer, const void *head,
                                   size_t head_bytes, struct mla_blob *payload, size_t offset,
                                   size_t bytes)
{
    struct sim *sim = context;
    if (mla_message_decode(head, head_bytes, &reply) != MLA_OK)
        sim_fail(sim, "a reply can't be decoded");
    if (payload)
        check_reply(sim, payload, offset, bytes);
    sim->replies++;
    sim->failures += reply.header.status != MLA_OK;
    return link_send_down(sim, peer, head, head_bytes, payload, offset, bytes);
}

/* DISMISS of an epoch: the core has given it up. */
static enum mla_status send_worker(void *context, const struct mla_peer *peer, const void *head,
                                   size_t head_bytes, struct mla_blob *payload, size_t offset,
                                   size_t bytes)
{
    static struct mla_worker_message said;
    struct sim *sim = context;
    if (mla_worker_message_decode(head, head_bytes, &said) != MLA_OK)
        sim_fail(sim, "a message to a worker can't be decoded");
    uint64_t epoch = said.header.epoch;
    if (said.header.type == MLA_DISMISS && epoch != 0) {
        sim->losses += !sim_epoch_is_lost(sim, epoch);
        if (!sim->leaving)
            job_lost(sim, epoch);
        sim->epochs_lost[epoch / 64 % 4] |= 1ull << epoch % 64;
    } else if (epoch != 0 && !sim->leaving && sim_epoch_is_lost(sim, epoch)) {
        sim_fail(sim, "type %u is sent in epoch %llu, which is over", said.header.type,
                 (unsigned long long)epoch);
    }
    return link_send_down(sim, peer, head, head_bytes, payload, offset, bytes);
}

static void group_joined(void *context, uint32_t group)
{
    job_supervise(context, group, false, false);
}

static void group_lost(void *context, uint32_t group, bool hung)
{
    job_supervise(context, group, true, hung);
}

static uint64_t now_ns(void *context)
{
    return ((struct sim *)context)->now_ns;
}

static enum mla_status region_add(void *context, uint64_t number, uint64_t bytes,
                                  struct mla_grant *out)
{
    return region_make(context, number, bytes, out);
}

static void region_remove(void *context, uint64_t number)
{
    region_end(context, number);
}

/* ---- Into the core, as comm/channel_receive.c, channel_peers.c and server.c do it */

void sim_news(struct sim *sim, const struct link *link, bool accepted)
{
    struct sim_channel *channel =
        &sim->channels[link->kind == LINK_WORK || link->kind == LINK_BEAT];
    if (channel->news_count == sizeof channel->news / sizeof *channel->news)
        sim_fail(sim, "the simulation has too little room for news");
    channel->news[channel->news_count].fd = link->fd;
    channel->news[channel->news_count++].accepted = accepted;
}

static void read_news(struct sim *sim, struct sim_channel *channel)
{
    for (uint32_t i = 0; i < channel->news_count; i++) {
        if (mla_connections_reserve(channel->connections) != MLA_OK)
            sim_fail(sim, "no memory for news");
        if (channel->news[i].accepted)
            mla_connections_accepted(channel->connections, channel->news[i].fd);
        else
            mla_connections_closed(channel->connections, channel->news[i].fd);
    }
    channel->news_count = 0;
}

void sim_tell_ends(struct sim *sim, uint64_t unused, uint64_t unused_too)
{
    int fd = -1;
    uint64_t number = unused + unused_too;
    for (int i = 0; i < 2; i++) {
        read_news(sim, &sim->channels[i]);
        while (mla_connections_next_ended(sim->channels[i].connections, &fd, &number))
            (i == 0 ? mla_core_client_gone : mla_core_worker_gone)(sim->core, fd, number);
    }
}

/* Routing ids count connections, as a ROUTER's own do. */
uint64_t sim_route_of(const struct mla_peer *peer)
{
    return (uint64_t)peer->id[1] << 24 | (uint64_t)peer->id[2] << 16 | (uint64_t)peer->id[3] << 8 |
           peer->id[4];
}

static struct mla_peer peer_of(const struct link *link)
{
    struct mla_peer peer = {.size = 5, .fd = link->fd};
    if (link->kind == LINK_CLIENT)
        snprintf(peer.user, sizeof peer.user, "user-%u", link->owner / 2);
    for (int i = 0; i < 4; i++)
        peer.id[1 + i] = (uint8_t)(link->number >> (24 - 8 * i));
    return peer;
}

/* KV_FULL, BUSY and every other refusal change nothing. */
static void deliver_to_clients(struct sim *sim, const struct link *link,
                               const struct mla_incoming *incoming)
{
    struct mla_stats before;
    struct mla_stats after;
    uint32_t session = sim->core->client_fds[link->fd];
    bool displaces =
        session != NONE && sim->core->sessions[session].peer.number != incoming->peer.number;
    mla_core_stats(sim->core, &before);
    sim->replies = sim->failures = sim->losses = 0;
    mla_core_client_message(sim->core, incoming);
    mla_core_stats(sim->core, &after);
    if (sim->replies != 1 || sim->failures != 1 || sim->losses > 0 || link->dropped ||
        link->fd_free || displaces || before.clients != after.clients)
        return;
    if (before.blocks_used != after.blocks_used || before.sequences != after.sequences ||
        before.steps_open != after.steps_open || before.runs_in_flight != after.runs_in_flight)
        sim_fail(sim, "a request was refused and changed something");
}

void sim_deliver(struct sim *sim, const struct link *link, const struct packet *packet)
{
    bool is_client = link->kind == LINK_CLIENT;
    struct sim_channel *channel = &sim->channels[!is_client];
    struct mla_incoming incoming = {.peer = peer_of(link),
                                    .frames = packet->payload ? 2 : 1,
                                    .head = packet->head,
                                    .head_bytes = packet->head_bytes,
                                    .payload = packet->payload};
    if (!mla_connections_is_known(channel->connections, &incoming.peer)) {
        read_news(sim, channel);
        sim_at(sim, random_within(&sim->random, 0, 500000), sim_tell_ends, 0, 0);
    }
    if (!mla_connections_number(channel->connections, &incoming.peer)) {
        mla_blob_drop(packet->payload); /* of a connection that has ended */
        return;
    }
    if (link->fd_free)
        sim->ghosts++;
    if (is_client)
        deliver_to_clients(sim, link, &incoming);
    else
        mla_core_worker_message(sim->core, &incoming);
}

/* ---- A life */

static void core_start(struct sim *sim)
{
    struct mla_core_effects effects = {.context = sim,
                                       .send_client = send_client,
                                       .send_worker = send_worker,
                                       .now_ns = now_ns,
                                       .region_add = region_add,
                                       .region_remove = region_remove,
                                       .group_joined = group_joined,
                                       .group_lost = group_lost};
    if (mla_core_create(&sim->core_options, &effects, &sim->core) != MLA_OK)
        sim_fail(sim, "no core");
    for (int i = 0; i < 2; i++) {
        mla_connections_destroy(&sim->channels[i].connections);
        if (mla_connections_create(&sim->channels[i].connections) != MLA_OK)
            sim_fail(sim, "no memory for connections");
        sim->channels[i].news_count = 0;
    }
}

static void core_restart(struct sim *sim)
{
    sim_trace(sim, "fault: the coordinator is started again");
    sim->leaving = true;
    if (random_chance(&sim->random, 500))
        (void)mla_core_shutdown(sim->core);
    sim->core_options.epoch = sim->core->epoch;
    mla_core_destroy(&sim->core);
    sim->leaving = false;
    jobs_cut_all(sim);
    core_start(sim);
}

static void fault(struct sim *sim, uint64_t a, uint64_t b)
{
    if (sim->now_ns >= sim->quiet_ns)
        return;
    uint32_t dice = random_within(&sim->random, 0, 99);
    sim->faults_made++;
    if (dice < 55)
        jobs_fault(sim);
    else if (dice < 97)
        clients_fault(sim);
    else
        core_restart(sim);
    sim_at(sim, random_within(&sim->random, 1, 2 * sim->fault_ms) * SIM_MS, fault, a, b);
}

static void tick(struct sim *sim, uint64_t a, uint64_t b)
{
    uint32_t late = sim->faults ? random_within(&sim->random, 0, 20) : 0;
    mla_core_tick(sim->core);
    sim->faults = sim->now_ns < sim->quiet_ns;
    jobs_check(sim);
    clients_check(sim);
    sim_at(sim, (sim->core_options.heartbeat_ms + late) * SIM_MS, tick, a, b);
}

static void choose_options(struct sim *sim)
{
    struct mla_core_options *options = &sim->core_options;
    uint64_t *random = &sim->random;
    mla_core_options_default(options);
    sim->group_count = options->groups = random_within(random, 1, SIM_GROUPS_MAX);
    sim->ranks = random_within(random, 1, SIM_RANKS_MAX);
    sim->client_count = random_within(random, 1, SIM_CLIENTS_MAX);
    options->kv_blocks = random_chance(random, 500) ? 0 : random_within(random, 4, SIM_BLOCKS_MAX);
    if (random_chance(random, 150))
        options->clients_max = random_within(random, 1, sim->client_count);
    sim->slow = random_chance(random, 100) ? random_within(random, 20, 80) : 1;
    options->context_max = SIM_CONTEXT_MAX;
    options->sequences_max = random_within(random, 2, SIM_SEQUENCES_MAX);
    options->steps_open_max = random_within(random, 1, 4);
    options->step_tokens_max = random_within(random, 64, SIM_ROWS_MAX);
    options->runs_queued_max = random_within(random, 1, 6);
    options->credits = random_within(random, 1, 4);
    options->payload_bytes_max = 1u << 20;
    options->region_bytes_max = random_chance(random, 300) ? 0 : 1u << 18;
    options->heartbeat_ms = 50;
    options->heartbeat_timeout_ms = 400;
    options->run_timeout_ms = random_within(random, 500, 1500);
    options->pad_to_bucket = random_chance(random, 500);
    options->plan.prefill_tokens_max = random_within(random, 1, 4) * random_within(random, 4, 40);
    options->plan.bucket_count = 2;
    options->plan.buckets[0] = random_within(random, 1, 4);
    options->plan.buckets[1] = random_within(random, 5, 12);
    options->plan.decode_tokens_max = random_within(random, 1, 4);
    sim->quiet_ns = random_within(random, 200, 2500) * SIM_MS;
    sim->fault_ms = random_chance(random, 150) ? 1000000 : random_within(random, 20, 400);
}

/* A client that does not read is nobody any more. */
static void check_dropped(struct sim *sim)
{
    for (uint32_t i = 0; i < SIM_LINKS_MAX; i++) {
        const struct link *link = &sim->links[i];
        if (link->number == 0 || link->kind != LINK_CLIENT || !link->dropped)
            continue;
        for (uint32_t k = 0; k < sim->core->session_bound; k++) {
            const struct session *session = &sim->core->sessions[k];
            if (session->used && !session->closing && sim_route_of(&session->peer) == link->number)
                sim_fail(sim, "client %u does not read and is kept", link->owner);
        }
    }
    sim->dropping = false;
}

static void check(struct sim *sim)
{
    struct mla_stats stats;
    if (sim->dropping)
        check_dropped(sim);
    if (!mla_core_check(sim->core))
        sim_fail(sim, "an invariant of the core is broken");
    mla_core_stats(sim->core, &stats);
    if (stats.blocks_free + stats.blocks_used != stats.blocks_total)
        sim_fail(sim, "free and used blocks are not all there are");
    if (stats.heap_bytes > sim->core_options.payload_bytes_max)
        sim_fail(sim, "%llu bytes are held", (unsigned long long)stats.heap_bytes);
    if (sim->now_ns > sim->quiet_ns + 30 * SIM_S)
        sim_fail(sim,
                 "30 s after the last fault %u of %u clients are done; %llu steps are open, %llu "
                 "RUNs in flight, %llu of %llu blocks free",
                 sim->clients_done, sim->client_count, (unsigned long long)stats.steps_open,
                 (unsigned long long)stats.runs_in_flight, (unsigned long long)stats.blocks_free,
                 (unsigned long long)stats.blocks_total);
}

/* Everybody has left: nothing may be left of them. */
static void check_end(struct sim *sim)
{
    struct mla_stats stats;
    mla_core_stats(sim->core, &stats);
    if (stats.clients || stats.steps_open || stats.runs_in_flight || stats.sequences ||
        stats.blocks_used)
        sim_fail(sim,
                 "all clients have left; %llu clients, %llu steps, %llu RUNs, %llu sequences, %llu "
                 "blocks are left",
                 (unsigned long long)stats.clients, (unsigned long long)stats.steps_open,
                 (unsigned long long)stats.runs_in_flight, (unsigned long long)stats.sequences,
                 (unsigned long long)stats.blocks_used);
    jobs_check_end(sim);
    sim->leaving = true;
    (void)mla_core_shutdown(sim->core);
    mla_core_destroy(&sim->core);
    jobs_free(sim);
    for (uint32_t i = 0; i < SIM_LINKS_MAX; i++)
        link_drop_all(&sim->links[i]);
    if (sim->blobs != 0)
        sim_fail(sim, "%lld payloads are still held", (long long)sim->blobs);
    for (int i = 0; i < 2; i++)
        mla_connections_destroy(&sim->channels[i].connections);
    clients_free(sim);
    regions_free(sim);
    free(sim->jobs);
    free(sim->heap);
}

void sim_run(struct sim *sim, const struct sim_options *options)
{
    memset(sim, 0, sizeof *sim);
    sim->options = *options;
    sim->random = mix(options->seed, 4711);
    sim->faults = true;
    choose_options(sim);
    sim->jobs = calloc(SIM_JOBS_MAX, sizeof *sim->jobs);
    clients_make(sim);
    if (!sim->jobs)
        sim_fail(sim, "no memory");
    core_start(sim);
    jobs_start(sim);
    clients_start(sim);
    tick(sim, 0, 0);
    sim_at(sim, random_within(&sim->random, 1, 2 * sim->fault_ms) * SIM_MS, fault, 0, 0);
    while (sim->clients_done < sim->client_count && sim_step(sim))
        check(sim);
    uint64_t end_ns = sim->now_ns + 2 * SIM_S; /* ends of connections are yet to be told */
    while (sim->now_ns < end_ns && sim_step(sim))
        check(sim);
    check_end(sim);
}
