#include "coordinator/server.h"

#include "comm/region.h"
#include "proto/clock.h"

#include <signal.h>
#include <stdio.h>
#include <sys/stat.h>
#include <time.h>

/* The last messages tell workers to end: they should arrive. */
enum { QUEUE_MAX = 4096, EVENTS_A_TURN = 64, LINGER_MS = 500 };

struct server {
    struct mla_channel_context *context;
    struct mla_channel *clients, *workers;
    struct mla_core *core;
    struct mla_region_server *regions; /* NULL: payloads travel inline */
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
    return mla_channel_send(server->clients, peer, head, head_bytes, payload, offset, bytes);
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

static void serve(struct server *server, const struct mla_core_options *options)
{
    uint64_t tick_ns = (uint64_t)options->heartbeat_ms * 1000000u;
    uint64_t next_tick_ns = mla_now_ns() + tick_ns;
    struct mla_channel *const channels[] = {server->workers, server->clients};
    int regions_fd = server->regions ? mla_region_server_fd(server->regions) : -1;
    while (!stopped) {
        bool regions_asked = false;
        if (mla_channel_wait_fd(channels, 2, regions_fd, (int)options->heartbeat_ms,
                                &regions_asked) != MLA_OK)
            break;
        turn(server);
        if (regions_asked)
            mla_region_server_turn(server->regions);
        if (mla_now_ns() >= next_tick_ns) {
            mla_core_tick(server->core);
            next_tick_ns = mla_now_ns() + tick_ns;
        }
        if (!server->announced && mla_core_groups_ready(server->core) == options->groups) {
            server->announced = true;
            printf("ready %s\n", mla_channel_endpoint(server->clients));
            fflush(stdout);
        }
    }
}

static void catch_signals(void)
{
    struct sigaction action = {.sa_handler = stop};
    sigemptyset(&action.sa_mask);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
}

enum mla_status mla_server_run(const struct mla_server_options *options)
{
    struct server server = {0};
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
    struct mla_channel_options limits = {.queue_max = QUEUE_MAX,
                                         .frame_bytes_max = options->core.payload_bytes_max / 2,
                                         .linger_ms = LINGER_MS,
                                         .spin = options->spin};
    catch_signals();
    umask(0077); /* ipc endpoints are for this user alone */
    /* Without shared memory the service is slower and complete. */
    if (core.region_bytes_max > 0 &&
        mla_region_server_create(MLA_CLIENTS_MAX, &server.regions) != MLA_OK)
        core.region_bytes_max = 0;
    enum mla_status status = mla_core_create(&core, &effects, &server.core);
    if (status == MLA_OK)
        status = mla_channel_context_create(&server.context);
    if (status == MLA_OK)
        status = mla_channel_bind(server.context, options->workers, &limits, &server.workers);
    if (status == MLA_OK)
        status = mla_channel_bind(server.context, options->endpoint, &limits, &server.clients);
    if (status == MLA_OK) {
        printf("bound %s %s\n", mla_channel_endpoint(server.workers),
               mla_channel_endpoint(server.clients));
        fflush(stdout);
        serve(&server, &core);
        mla_core_shutdown(server.core);
    }
    /* The core lets go of received frames before their sockets end. */
    mla_core_destroy(&server.core);
    mla_channel_destroy(&server.clients);
    mla_channel_destroy(&server.workers);
    mla_channel_context_destroy(&server.context);
    mla_region_server_destroy(&server.regions);
    return status;
}
