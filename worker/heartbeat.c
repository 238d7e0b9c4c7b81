#include "worker/heartbeat.h"

#include "comm/channel.h"
#include "proto/worker_message.h"

#include <pthread.h>
#include <stdlib.h>
#include <time.h>

struct mla_heartbeat_thread {
    struct mla_heartbeat_options options;
    struct mla_channel_context *context;
    struct mla_channel *channel;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    bool stopped;
};

static void beat(struct mla_heartbeat_thread *self)
{
    const struct mla_heartbeat_options *options = &self->options;
    struct mla_worker_message message = {
        .header = {.type = MLA_HEARTBEAT, .epoch = options->epoch}};
    message.u.heartbeat = (struct mla_heartbeat){
        .group = options->group,
        .rank = options->rank,
        .progress = atomic_load_explicit(options->progress, memory_order_relaxed)};
    uint8_t frame[MLA_WORKER_MESSAGE_BYTES_MAX];
    size_t bytes = 0;
    if (mla_worker_message_encode(&message, frame, sizeof frame, &bytes) == MLA_OK)
        (void)mla_channel_send(self->channel, NULL, frame, bytes, NULL, 0, 0); /* or the next */
}

static void *run(void *argument)
{
    struct mla_heartbeat_thread *self = argument;
    pthread_mutex_lock(&self->lock);
    while (!self->stopped) {
        pthread_mutex_unlock(&self->lock);
        beat(self);
        pthread_mutex_lock(&self->lock);
        struct timespec until;
        clock_gettime(CLOCK_MONOTONIC, &until);
        uint64_t ns = (uint64_t)until.tv_nsec + self->options.interval_ms * 1000000ull;
        until.tv_sec += (time_t)(ns / 1000000000u);
        until.tv_nsec = (long)(ns % 1000000000u);
        if (!self->stopped)
            pthread_cond_timedwait(&self->wake, &self->lock, &until);
    }
    pthread_mutex_unlock(&self->lock);
    return NULL;
}

enum mla_status mla_heartbeat_start(const struct mla_heartbeat_options *options,
                                    struct mla_heartbeat_thread **out)
{
    struct mla_heartbeat_thread *self = calloc(1, sizeof *self);
    if (!self)
        return MLA_MEMORY;
    struct mla_channel_options limits = {.queue_max = 4, .frame_bytes_max = 4096};
    self->options = *options;
    enum mla_status status = mla_channel_context_create(&self->context);
    if (status == MLA_OK)
        status = mla_channel_connect(self->context, options->coordinator, &limits, &self->channel);
    if (status != MLA_OK)
        goto fail;
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&self->wake, &attributes);
    pthread_condattr_destroy(&attributes);
    pthread_mutex_init(&self->lock, NULL);
    if (pthread_create(&self->thread, NULL, run, self) != 0) {
        status = MLA_SYSTEM;
        goto fail;
    }
    *out = self;
    return MLA_OK;
fail:
    mla_channel_destroy(&self->channel);
    mla_channel_context_destroy(&self->context);
    free(self);
    return status;
}

void mla_heartbeat_stop(struct mla_heartbeat_thread **thread)
{
    struct mla_heartbeat_thread *self = *thread;
    if (!self)
        return;
    pthread_mutex_lock(&self->lock);
    self->stopped = true;
    pthread_cond_signal(&self->wake);
    pthread_mutex_unlock(&self->lock);
    pthread_join(self->thread, NULL);
    pthread_cond_destroy(&self->wake);
    pthread_mutex_destroy(&self->lock);
    mla_channel_destroy(&self->channel);
    mla_channel_context_destroy(&self->context);
    free(self);
    *thread = NULL;
}
