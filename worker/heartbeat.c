#include "worker/heartbeat.h"

#include "comm/channel.h"
#include "proto/clock.h"
#include "proto/worker_message.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

/* The first waits for the connection. */
enum { FIRST_INTERVAL_MS = 5, LOADING_INTERVAL_MS = 100, FIRST_WAIT_MS = 500 };

struct mla_heartbeat_thread {
    struct mla_heartbeat_options options;
    struct mla_channel_context *context;
    struct mla_channel *channel;
    pthread_t thread;
    int wake_fd; /* readable: something below has changed */
    atomic_bool stopped, begun;
    atomic_ullong epoch, heard_ns;
    atomic_uint interval_ms;
};

void mla_dismissed(uint32_t rank, uint32_t status)
{
    char line[128];
    int bytes = snprintf(line, sizeof line, "rank %u: dismissed: %s\n", rank,
                         mla_status_sentence((enum mla_status)status));
    if (bytes > 0)
        (void)!write(STDERR_FILENO, line, (size_t)bytes);
    int code = mla_status_exit_code((enum mla_status)status);
    _exit(code ? code : mla_status_exit_code(MLA_GROUP_LOST));
}

static void beat(struct mla_heartbeat_thread *self)
{
    const struct mla_heartbeat_options *options = &self->options;
    struct mla_worker_message message = {
        .header = {.type = MLA_HEARTBEAT, .epoch = atomic_load(&self->epoch)}};
    message.u.heartbeat = (struct mla_heartbeat){
        .group = options->group,
        .rank = options->rank,
        .progress = atomic_load_explicit(&options->watch->progress, memory_order_relaxed)};
    uint8_t frame[MLA_WORKER_MESSAGE_BYTES_MAX];
    size_t bytes = 0;
    if (mla_worker_message_encode(&message, frame, sizeof frame, &bytes) == MLA_OK &&
        mla_channel_send(self->channel, NULL, frame, bytes, NULL, 0, 0) == MLA_OK)
        atomic_store(&self->begun, true);
}

static void hear(struct mla_heartbeat_thread *self)
{
    const struct mla_heartbeat_options *options = &self->options;
    struct mla_worker_message message;
    struct mla_incoming incoming;
    int fd = -1;
    uint64_t number = 0;
    while (mla_channel_receive(self->channel, &incoming) == MLA_OK) {
        mla_blob_drop(incoming.payload);
        if (mla_worker_message_decode(incoming.head, incoming.head_bytes, &message) != MLA_OK ||
            message.header.epoch != atomic_load(&self->epoch))
            continue;
        if (message.header.type == MLA_ALIVE)
            atomic_store(&self->heard_ns, mla_now_ns());
        else if (message.header.type == MLA_SHUTDOWN)
            atomic_store(&options->watch->told_ns, mla_now_ns());
        else if (message.header.type == MLA_DISMISS)
            mla_dismissed(options->rank, message.u.dismiss.status);
    }
    /* It connects again by itself. */
    while (mla_channel_gone(self->channel, &fd, &number) == MLA_OK) {}
}

static void *run(void *argument)
{
    struct mla_heartbeat_thread *self = argument;
    uint64_t next_ns = mla_now_ns();
    while (!atomic_load(&self->stopped)) {
        uint64_t now_ns = mla_now_ns();
        eventfd_t changes = 0;
        if (eventfd_read(self->wake_fd, &changes) == 0)
            next_ns = now_ns;
        if (now_ns >= next_ns) {
            beat(self);
            uint32_t interval_ms =
                atomic_load(&self->begun) ? atomic_load(&self->interval_ms) : FIRST_INTERVAL_MS;
            next_ns = now_ns + interval_ms * 1000000ull;
        }
        int wait_ms = (int)((next_ns - now_ns) / 1000000u) + 1;
        if (mla_channel_wait_fd(&self->channel, 1, self->wake_fd, wait_ms, NULL) != MLA_OK)
            break;
        hear(self);
    }
    return NULL;
}

static void release(struct mla_heartbeat_thread *self)
{
    mla_channel_destroy(&self->channel);
    mla_channel_context_destroy(&self->context);
    if (self->wake_fd >= 0)
        close(self->wake_fd);
    free(self);
}

enum mla_status mla_heartbeat_start(const struct mla_heartbeat_options *options,
                                    struct mla_heartbeat_thread **out)
{
    struct mla_heartbeat_thread *self = calloc(1, sizeof *self);
    if (!self)
        return MLA_MEMORY;
    struct mla_channel_options limits = {
        .queue_max = 4, .frame_bytes_max = 4096, .keys = options->keys};
    self->options = *options;
    atomic_store(&self->interval_ms, LOADING_INTERVAL_MS);
    self->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    enum mla_status status = self->wake_fd < 0 ? MLA_SYSTEM : MLA_OK;
    if (status == MLA_OK)
        status = mla_channel_context_create(&self->context);
    if (status == MLA_OK)
        status = mla_channel_connect(self->context, options->coordinator, &limits, &self->channel);
    if (status == MLA_OK && pthread_create(&self->thread, NULL, run, self) != 0)
        status = MLA_SYSTEM;
    if (status != MLA_OK) {
        release(self);
        return status;
    }
    *out = self;
    return MLA_OK;
}

void mla_heartbeat_await(const struct mla_heartbeat_thread *self)
{
    uint64_t end_ns = mla_now_ns() + FIRST_WAIT_MS * 1000000ull;
    while (!atomic_load(&self->begun) && mla_now_ns() < end_ns)
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
}

void mla_heartbeat_adopted(struct mla_heartbeat_thread *self, uint64_t epoch, uint32_t interval_ms)
{
    atomic_store(&self->heard_ns, mla_now_ns());
    atomic_store(&self->interval_ms, interval_ms);
    atomic_store(&self->epoch, epoch);
    (void)eventfd_write(self->wake_fd, 1);
}

void mla_heartbeat_stop(struct mla_heartbeat_thread **thread)
{
    struct mla_heartbeat_thread *self = *thread;
    if (!self)
        return;
    atomic_store(&self->stopped, true);
    (void)eventfd_write(self->wake_fd, 1);
    pthread_join(self->thread, NULL);
    release(self);
    *thread = NULL;
}

uint64_t mla_heartbeat_silence_ns(const struct mla_heartbeat_thread *thread)
{
    uint64_t heard_ns = atomic_load(&thread->heard_ns);
    uint64_t now_ns = mla_now_ns();
    return now_ns > heard_ns ? now_ns - heard_ns : 0;
}
