#include "coordinator/server.h"

#include "comm/region.h"
#include "coordinator/access.h"
#include "coordinator/bounds.h"
#include "coordinator/metrics.h"
#include "coordinator/metrics_server.h"
#include "proto/clock.h"

#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <sys/stat.h>
#include <time.h>

/* The last messages tell workers to end: they should arrive, and be followed. */
enum { QUEUE_MAX = 4096, EVENTS_A_TURN = 64, LINGER_MS = 500, LEAVE_MS = 1500, LEAVE_LOOK_MS = 50 };
/* Connections of clients beyond --clients-max are for those that come and go. A peer has so long
 * to say something, and a client to read on when there is something to read. */
enum { CONNECTIONS_MORE = 64, SILENT_MS = 5000, UNREAD_MS = 3500, TEND_MS = 200 };
/* Handshake and HELLO or JOIN are a few KiB. */
#define FIRST_BYTES (64ull << 10)
/* Descriptors of workers, sockets, logs. Memory besides payloads: the default, and the least. */
#define FILES_OWN    192u
#define MEMORY_MORE  (16ull << 30)
#define MEMORY_LEAST (256ull << 20)
/* Of the room for memory: from here on connections that send are cut off, and then all. */
enum { RELIEVE_PERCENT = 75, RELIEVE_ALL_PERCENT = 88 };

struct server {
    struct mla_channel_context *context;
    struct mla_channel *clients, *workers;
    struct mla_core *core;
    struct mla_region_server *regions; /* NULL: payloads travel inline */
    struct mla_access access;
    struct mla_bounds bounds;
    struct mla_metrics_server *metrics; /* or NULL */
    uint64_t next_tend_ns;
    bool announced;
};

static volatile sig_atomic_t stopped;

static void stop(int signal_number)
{
    (void)signal_number;
    stopped = 1;
}

static enum mla_status send_client(void *context, const struct mla_peer *peer, const void *head,
                                   size_t head_bytes, struct mla_blob *payload, size_t offset,
                                   size_t bytes)
{
    const struct server *server = context;
    enum mla_status status =
        mla_channel_send(server->clients, peer, head, head_bytes, payload, offset, bytes);
    if (status == MLA_AGAIN) /* a whole queue is unread */
        mla_channel_cut(server->clients, peer);
    return status;
}

static enum mla_status send_worker(void *context, const struct mla_peer *peer, const void *head,
                                   size_t head_bytes, struct mla_blob *payload, size_t offset,
                                   size_t bytes)
{
    const struct server *server = context;
    return mla_channel_send(server->workers, peer, head, head_bytes, payload, offset, bytes);
}

static uint64_t now_ns(void *context)
{
    (void)context;
    return mla_now_ns();
}

static enum mla_status region_add(void *context, uint64_t number, uint64_t bytes,
                                  struct mla_grant *out)
{
    const struct server *server = context;
    return mla_region_server_add(server->regions, number, bytes, out);
}

static void region_remove(void *context, uint64_t number)
{
    const struct server *server = context;
    mla_region_server_remove(server->regions, number);
}

/* For whoever supervises the workers' processes. */
static void group_joined(void *context, uint32_t group)
{
    (void)context;
    printf("joined %u\n", group);
    fflush(stdout);
}

static void group_lost(void *context, uint32_t group, bool hung)
{
    (void)context;
    printf("lost %u %s\n", group, hung ? "hung" : "gone");
    fflush(stdout);
}

/* Epochs grow also over a restart of the coordinator: its workers and clients may remember one. */
static uint64_t first_epoch(void)
{
    struct timespec now = {0};
    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * 1000u + (uint64_t)now.tv_nsec / 1000000u;
}

/* Messages before ends: what a peer sent before it went still counts. */
static void turn(struct server *server)
{
    struct mla_incoming incoming;
    int fd = -1;
    uint64_t number = 0;
    for (int i = 0; i < EVENTS_A_TURN && mla_channel_receive(server->workers, &incoming) == MLA_OK;
         i++)
        mla_core_worker_message(server->core, &incoming);
    while (mla_channel_gone(server->workers, &fd, &number) == MLA_OK)
        mla_core_worker_gone(server->core, fd, number);
    for (int i = 0; i < EVENTS_A_TURN && mla_channel_receive(server->clients, &incoming) == MLA_OK;
         i++)
        mla_core_client_message(server->core, &incoming);
    while (mla_channel_gone(server->clients, &fd, &number) == MLA_OK)
        mla_core_client_gone(server->core, fd, number);
}

/* What clients must not do is looked for now and then. */
static void tend(struct server *server, uint64_t now)
{
    if (now < server->next_tend_ns)
        return;
    server->next_tend_ns = now + TEND_MS * 1000000ull;
    struct mla_stats stats;
    mla_core_stats(server->core, &stats);
    mla_channel_tend(server->workers, stats.heap_bytes);
    mla_channel_tend(server->clients, stats.heap_bytes);
    uint32_t percent = mla_bounds_percent(&server->bounds);
    if (percent < RELIEVE_PERCENT)
        return;
    fprintf(stderr, "%u %% of --memory-max is taken: connections are cut off\n", percent);
    mla_channel_relieve(server->clients, percent >= RELIEVE_ALL_PERCENT);
    malloc_trim(0);
}

static void publish(struct server *server, uint32_t groups)
{
    if (!server->metrics)
        return;
    struct mla_metrics_endpoint endpoints[] = {{.name = "clients"}, {.name = "workers"}};
    mla_channel_counts(server->clients, &endpoints[0].counts);
    mla_channel_counts(server->workers, &endpoints[1].counts);
    if (!mla_metrics_page(server->core, endpoints, 2, mla_metrics_server_draft(server->metrics),
                          MLA_METRICS_PAGE_BYTES))
        return; /* and soon /healthz tells */
    char sentence[64];
    uint32_t ready = mla_core_groups_ready(server->core);
    snprintf(sentence, sizeof sentence, "%u of %u groups are ready", ready, groups);
    mla_metrics_server_publish(server->metrics, ready == groups, sentence);
}

static void serve(struct server *server, const struct mla_core_options *options)
{
    uint64_t tick_ns = (uint64_t)options->heartbeat_ms * 1000000u;
    uint64_t next_tick_ns = mla_now_ns() + tick_ns;
    publish(server, options->groups);
    struct mla_channel *const channels[] = {server->workers, server->clients};
    int wait_ms = options->heartbeat_ms < TEND_MS ? (int)options->heartbeat_ms : TEND_MS;
    int regions_fd = server->regions ? mla_region_server_fd(server->regions) : -1;
    while (!stopped) {
        bool regions_asked = false;
        if (mla_channel_wait_fd(channels, 2, regions_fd, wait_ms, &regions_asked) != MLA_OK)
            break;
        turn(server);
        if (regions_asked)
            mla_region_server_turn(server->regions);
        tend(server, mla_now_ns());
        if (mla_now_ns() >= next_tick_ns) {
            mla_core_tick(server->core);
            next_tick_ns = mla_now_ns() + tick_ns;
            publish(server, options->groups);
        }
        if (!server->announced && mla_core_groups_ready(server->core) == options->groups) {
            server->announced = true;
            printf("ready %s\n", mla_channel_endpoint(server->clients));
            fflush(stdout);
        }
    }
}

/* Workers end when they are told so, and their connections with them. Ours must not end first: that
 * would take the order along where it has not been read yet (comm/channel_open.c). */
static void dismiss_workers(struct server *server)
{
    uint32_t left = mla_core_shutdown(server->core);
    uint64_t end_ns = mla_now_ns() + LEAVE_MS * 1000000ull;
    struct mla_incoming incoming;
    int fd = -1;
    uint64_t number = 0;
    while (left > 0 && mla_now_ns() < end_ns) {
        if (mla_channel_wait(&server->workers, 1, LEAVE_LOOK_MS) != MLA_OK)
            return;
        while (mla_channel_receive(server->workers, &incoming) == MLA_OK)
            mla_blob_drop(incoming.payload);
        while (mla_channel_gone(server->workers, &fd, &number) == MLA_OK)
            left -= left > 0;
    }
}

static void catch_signals(void)
{
    struct sigaction action = {.sa_handler = stop};
    sigemptyset(&action.sa_mask);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
}

/* Both endpoints, when nothing speaks against them. */
static enum mla_status listen(struct server *server, const struct mla_server_options *options)
{
    const struct mla_core_options *core = &options->core;
    uint64_t largest = core->payload_bytes_max / 2;
    uint64_t frame = options->frame_bytes_max;
    if (frame == 0)
        frame = core->step_tokens_max * 8192ull * sizeof(float);
    struct mla_channel_options workers = {
        .queue_max = QUEUE_MAX,
        .frame_bytes_max = frame < largest ? frame : largest,
        .linger_ms = LINGER_MS,
        .spin = options->spin,
        .keys = mla_access_keys(&server->access, options->workers),
        .allowed = &server->access.workers,
        .limits = {.silent_ms = SILENT_MS, .first_bytes_max = FIRST_BYTES}};
    struct mla_channel_options clients = workers;
    clients.keys = mla_access_keys(&server->access, options->endpoint);
    clients.allowed = &server->access.clients;
    clients.limits =
        (struct mla_crowd_limits){.connections_max = core->clients_max + CONNECTIONS_MORE,
                                  .silent_ms = SILENT_MS,
                                  .unread_ms = UNREAD_MS,
                                  .first_bytes_max = FIRST_BYTES};
    enum mla_status status = mla_channel_context_create(&server->context);
    if (status == MLA_OK)
        status = mla_channel_bind(server->context, options->workers, &workers, &server->workers);
    if (status == MLA_OK)
        status = mla_channel_bind(server->context, options->endpoint, &clients, &server->clients);
    if (status == MLA_OK && options->metrics)
        status = mla_metrics_server_create(options->metrics, &server->metrics);
    return status;
}

/* All that can be refused is, before anything listens. */
static enum mla_status check(struct server *server, const struct mla_server_options *options)
{
    const struct mla_core_options *core = &options->core;
    enum mla_status status =
        mla_access_init(&server->access, options->curve_keys, options->insecure);
    if (status == MLA_OK)
        status = mla_access_check(&server->access, options->workers);
    if (status == MLA_OK)
        status = mla_access_check(&server->access, options->endpoint);
    if (status == MLA_OK) /* a rank has two connections; others come and go */
        status = mla_bounds_files(FILES_OWN + 2 * (core->clients_max + CONNECTIONS_MORE));
    return status;
}

enum mla_status mla_server_run(const struct mla_server_options *options)
{
    static struct server server; /* large, and one process serves once */
    struct mla_core_effects effects = {.context = &server,
                                       .send_client = send_client,
                                       .send_worker = send_worker,
                                       .now_ns = now_ns,
                                       .region_add = region_add,
                                       .region_remove = region_remove,
                                       .group_joined = group_joined,
                                       .group_lost = group_lost};
    struct mla_core_options core = options->core;
    core.epoch = first_epoch();
    catch_signals();
    umask(0077); /* ipc endpoints are for this user alone */
    enum mla_status status = check(&server, options);
    if (status != MLA_OK)
        return status;
    /* Without shared memory the service is slower and complete. */
    if (core.region_bytes_max > 0 &&
        mla_region_server_create(MLA_CLIENTS_MAX, &server.regions) != MLA_OK)
        core.region_bytes_max = 0;
    status = mla_core_create(&core, &effects, &server.core);
    if (status == MLA_OK)
        status = listen(&server, options);
    uint64_t tables = (uint64_t)core.groups * core.sequences_max *
                      (MLA_CONTEXT_MAX / MLA_BLOCK_TOKENS * sizeof(uint32_t));
    if (status == MLA_OK)
        status = mla_bounds_memory(&server.bounds, options->memory_bytes_max,
                                   tables + core.payload_bytes_max +
                                       (options->memory_bytes_max ? MEMORY_LEAST : MEMORY_MORE));
    if (status == MLA_OK) {
        printf("bound %s %s\n", mla_channel_endpoint(server.workers),
               mla_channel_endpoint(server.clients));
        fflush(stdout);
        serve(&server, &core);
        if (!options->keep_workers)
            dismiss_workers(&server);
    }
    mla_metrics_server_destroy(&server.metrics);
    /* The core lets go of received frames before their sockets end. */
    mla_core_destroy(&server.core);
    mla_channel_destroy(&server.clients);
    mla_channel_destroy(&server.workers);
    mla_channel_context_destroy(&server.context);
    mla_region_server_destroy(&server.regions);
    return status;
}
