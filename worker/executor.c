#include "worker/executor.h"

#include "comm/channel.h"
#include "proto/clock.h"
#include "proto/worker_message.h"
#include "worker/flights.h"
#include "worker/heartbeat.h"
#include "worker/trace.h"

#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { WAIT_MS = 200, QUEUE_MAX = 8192 };

struct executor {
    const struct mla_executor_options *options;
    struct mla_backend *backend;
    struct mla_collective *collective;
    struct mla_shard *shard;
    struct mla_channel_context *context;
    struct mla_channel *channel;
    struct mla_adopt adopt;
    bool adopted;
    struct mla_kvcache cache;
    struct mla_layer layer;
    struct mla_step *steps; /* [adopt.steps] */
    struct mla_payload payload;
    struct mla_flights flights;
    struct mla_graphs graphs;
    struct mla_trace *trace; /* or NULL */
    uint64_t poll_until_ns;  /* when to sleep if nothing came */
    atomic_ullong progress;
    struct mla_heartbeat_thread *heartbeat;
    struct mla_worker_message incoming, outgoing;
};

static volatile sig_atomic_t stopped;

static void stop(int signal_number)
{
    (void)signal_number;
    stopped = 1;
}

static enum mla_status send(struct executor *executor, struct mla_blob *payload)
{
    uint8_t frame[MLA_WORKER_MESSAGE_BYTES_MAX];
    size_t bytes = 0;
    executor->outgoing.header.payload_bytes = payload ? payload->bytes : 0;
    enum mla_status status =
        mla_worker_message_encode(&executor->outgoing, frame, sizeof frame, &bytes);
    if (status != MLA_OK)
        return status;
    return mla_channel_send(executor->channel, NULL, frame, bytes, payload, 0,
                            payload ? payload->bytes : 0);
}

static void outgoing(struct executor *executor, enum mla_worker_message_type type)
{
    executor->outgoing = (struct mla_worker_message){
        .header = {.type = (uint16_t)type, .epoch = executor->adopt.epoch}};
}

static enum mla_status join(struct executor *executor)
{
    const struct mla_executor_options *options = executor->options;
    const struct mla_shard *shard = executor->shard;
    const struct mla_config *c = &shard->config;
    uint64_t block_bytes = mla_kvcache_block_bytes(c, options->kv_dtype) * shard->layer_count;
    uint64_t blocks = options->kv_memory_bytes / block_bytes;
    if (blocks == 0) {
        fprintf(stderr, "a KV cache of %llu bytes holds no block (%llu bytes)\n",
                (unsigned long long)options->kv_memory_bytes, (unsigned long long)block_bytes);
        return MLA_MEMORY;
    }
    outgoing(executor, MLA_JOIN);
    struct mla_join *message = &executor->outgoing.u.join;
    *message = (struct mla_join){
        .job = options->job,
        .group = options->group,
        .rank = shard->rank,
        .ranks = shard->ranks,
        .flags = executor->backend->graphs ? MLA_WORKER_GRAPHS : 0,
        .dims = {.hidden = c->hidden,
                 .heads = c->heads,
                 .q_lora = c->q_lora,
                 .latent = c->latent,
                 .nope = c->nope,
                 .rope = c->rope,
                 .v = c->v},
        .context_max = c->context_max,
        .kv_blocks_max = blocks < MLA_BLOCKS_MAX ? (uint32_t)blocks : MLA_BLOCKS_MAX,
        .kv_block_bytes = block_bytes,
        .layer_count = shard->layer_count,
    };
    memcpy(message->layers, shard->layers, sizeof message->layers);
    uint64_t deadline_ns = mla_now_ns() + options->connect_timeout_ms * 1000000ull;
    for (;;) { /* nothing is queued before the connection stands */
        enum mla_status status = send(executor, NULL);
        if (status != MLA_AGAIN)
            return status;
        if (stopped)
            return MLA_CLOSED;
        if (mla_now_ns() > deadline_ns) {
            fprintf(stderr, "no coordinator at %s\n", options->coordinator);
            return MLA_TIMEOUT;
        }
        nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
    }
}

static uint32_t to_multiple(uint32_t rows, uint32_t ranks)
{
    return (rows + ranks - 1) / ranks * ranks;
}

/* The buckets as they are padded for the ranks. */
static uint32_t padded_buckets(const struct mla_adopt *adopt, uint32_t ranks, uint32_t *padded)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < adopt->bucket_count; i++) {
        uint32_t rows = to_multiple(adopt->buckets[i], ranks);
        if (count == 0 || padded[count - 1] != rows)
            padded[count++] = rows;
    }
    return count;
}

/* Everything that lasts is allocated here, from the coordinator's sizes. */
static enum mla_status allocate(struct executor *executor)
{
    const struct mla_adopt *adopt = &executor->adopt;
    struct mla_backend *backend = executor->backend;
    struct mla_shard *shard = executor->shard;
    uint32_t buckets[MLA_DECODE_BUCKETS_MAX];
    uint32_t bucket_count = padded_buckets(adopt, shard->ranks, buckets);
    uint32_t decode_rows = bucket_count > 0 ? buckets[bucket_count - 1] : 0;
    uint32_t rows = adopt->prefill_tokens_max < adopt->step_tokens_max ? adopt->prefill_tokens_max
                                                                       : adopt->step_tokens_max;
    rows = to_multiple(rows, shard->ranks);
    if (rows < decode_rows)
        rows = decode_rows;

    enum mla_status status = mla_kvcache_init(
        &executor->cache, backend, &shard->config, executor->options->kv_dtype, shard->layer_count,
        adopt->kv_blocks, adopt->sequences, adopt->context_max);
    if (status == MLA_OK)
        status = mla_shard_make_rope_table(shard, backend, adopt->context_max);
    if (status == MLA_OK)
        status = mla_layer_init(&executor->layer, mla_trace_backend(executor->trace, backend),
                                mla_trace_collective(executor->trace, executor->collective), shard,
                                &executor->cache, rows, decode_rows, executor->options->chunk_rows);
    if (status == MLA_OK)
        status = mla_flights_init(&executor->flights, backend, rows / shard->ranks,
                                  shard->config.hidden, adopt->credits + 2);
    if (status == MLA_OK)
        status = mla_graphs_init(&executor->graphs, &executor->layer, executor->flights.x,
                                 executor->options->graphs, buckets, bucket_count);
    if (status == MLA_OK)
        status = mla_payload_init(&executor->payload, shard->rank, shard->ranks,
                                  shard->config.hidden, adopt->steps, rows / shard->ranks);
    executor->steps = calloc(adopt->steps, sizeof *executor->steps);
    if (status == MLA_OK && !executor->steps)
        status = MLA_MEMORY;
    return status;
}

static enum mla_status on_adopt(struct executor *executor)
{
    if (executor->adopted)
        return MLA_MALFORMED;
    executor->adopt = executor->incoming.u.adopt;
    enum mla_status status = allocate(executor);
    if (status != MLA_OK) {
        fprintf(stderr, "rank %u: no memory for %u KV blocks and the workspaces\n",
                executor->shard->rank, executor->adopt.kv_blocks);
        return status;
    }
    executor->adopted = true;
    struct mla_heartbeat_options beat = {.coordinator = executor->options->coordinator,
                                         .epoch = executor->adopt.epoch,
                                         .group = executor->options->group,
                                         .rank = executor->shard->rank,
                                         .interval_ms = executor->adopt.heartbeat_ms,
                                         .progress = &executor->progress};
    status = mla_heartbeat_start(&beat, &executor->heartbeat);
    if (status != MLA_OK)
        return status;
    outgoing(executor, MLA_READY);
    executor->outgoing.u.ready =
        (struct mla_ready){.group = executor->options->group, .rank = executor->shard->rank};
    return send(executor, NULL);
}

static enum mla_status on_plan(struct executor *executor)
{
    const struct mla_plan_message *plan = &executor->incoming.u.plan;
    if (!executor->adopted || plan->slot >= executor->adopt.steps)
        return MLA_MALFORMED;
    for (uint32_t i = 0; i < plan->microbatch_count; i++) {
        struct mla_plan_microbatch mb = mla_plan_microbatch_at(plan, i);
        int64_t most =
            mb.kind == MLA_DECODE ? executor->layer.decode_rows_max : executor->layer.rows_max;
        if (mb.padded > most || mb.padded % executor->shard->ranks != 0)
            return MLA_MALFORMED;
    }
    struct mla_backend *backend = executor->backend;
    uint64_t begin_ns = mla_now_ns();
    backend->ops->range_begin(backend, "plan");
    enum mla_status status = mla_kvcache_apply(&executor->cache, plan);
    if (status == MLA_OK)
        status = mla_step_build(&executor->steps[plan->slot], &executor->cache, plan,
                                executor->options->chunk_rows, executor->shard->heads);
    if (status == MLA_OK)
        status = mla_payload_plan(&executor->payload, plan);
    backend->ops->range_end(backend);
    mla_trace_host(executor->trace, "plan", plan->step, begin_ns, mla_now_ns());
    return status;
}

static uint32_t layer_index(const struct mla_shard *shard, uint32_t layer)
{
    uint32_t i = 0;
    while (i < shard->layer_count && shard->layers[i] != layer)
        i++;
    return i;
}

static bool work_fits(const struct executor *executor, const struct mla_work *work)
{
    if (!executor->adopted || work->slot >= executor->adopt.steps ||
        layer_index(executor->shard, work->layer) == executor->shard->layer_count)
        return false;
    const struct mla_step *step = &executor->steps[work->slot];
    return step->number == work->step && work->microbatch < step->microbatch_count;
}

static uint32_t clamp_ns(uint64_t ns)
{
    return ns < UINT32_MAX ? (uint32_t)ns : UINT32_MAX;
}

/* The oldest flight's reply, if it has landed. */
static enum mla_status answer(struct executor *executor)
{
    bool landed = false;
    struct mla_flight flight;
    uint64_t compute_ns = 0;
    enum mla_status status = mla_flights_landed(&executor->flights, &landed);
    if (status == MLA_OK && !landed)
        return MLA_AGAIN;
    if (status == MLA_OK)
        status = mla_trace_flight(executor->trace, mla_flights_oldest(&executor->flights));
    if (status == MLA_OK)
        status = mla_flights_take(&executor->flights, &flight, &compute_ns);
    if (status != MLA_OK)
        return status;
    outgoing(executor, MLA_DONE);
    executor->outgoing.u.done =
        (struct mla_done){.step = flight.work.step,
                          .work = flight.work.work,
                          .rank = executor->shard->rank,
                          .rows = flight.work.rows,
                          .dtype = flight.work.reply_dtype,
                          .compute_ns = clamp_ns(compute_ns - flight.collective_ns),
                          .collective_ns = clamp_ns(flight.collective_ns)};
    status = send(executor, flight.reply);
    mla_blob_drop(flight.reply);
    atomic_fetch_add_explicit(&executor->progress, 1, memory_order_relaxed);
    executor->poll_until_ns = mla_now_ns() + executor->options->poll_us * 1000ull;
    return status;
}

/* Waits until at most `most` are in flight. */
static enum mla_status land(struct executor *executor, uint32_t most)
{
    enum mla_status status = MLA_OK;
    while (status == MLA_OK && executor->flights.count > most) {
        status = answer(executor);
        if (status == MLA_AGAIN) {
            sched_yield();
            status = MLA_OK;
        }
    }
    return status;
}

static enum mla_status run_layer(struct executor *executor, const struct mla_work *work,
                                 const struct mla_step *step, void **rows)
{
    struct mla_backend *backend = executor->backend;
    char name[64];
    snprintf(name, sizeof name, "layer %u of step %llu, microbatch %u", work->layer,
             (unsigned long long)work->step, work->microbatch);
    backend->ops->range_begin(backend, name);
    enum mla_status status = mla_graphs_run(
        &executor->graphs, layer_index(executor->shard, work->layer), step, work->microbatch, rows);
    backend->ops->range_end(backend);
    return status;
}

static enum mla_status on_work(struct executor *executor, const struct mla_blob *payload)
{
    const struct mla_work work = executor->incoming.u.work;
    const struct mla_pieces *pieces = NULL;
    if (!work_fits(executor, &work))
        return MLA_MALFORMED;
    enum mla_status status = mla_payload_resolve(&executor->payload, &work, payload, &pieces);
    if (status != MLA_OK)
        return status;
    const struct mla_step *step = &executor->steps[work.slot];
    int64_t padded = step->microbatches[work.microbatch].padded / executor->shard->ranks;
    uint64_t collective_ns = executor->collective->ns;
    struct mla_flight *flight = NULL;
    void *rows = NULL;
    status = land(executor, mla_trace_unsettled(executor->trace) ? 0 : MLA_FLIGHTS_MAX - 1);
    if (status == MLA_OK && mla_trace_unsettled(executor->trace))
        status = mla_trace_settle(executor->trace);
    if (status == MLA_OK)
        status = mla_flights_begin(&executor->flights, &work, pieces, padded, &flight);
    if (status != MLA_OK)
        return status;
    mla_trace_begin(executor->trace, flight);
    status = run_layer(executor, &work, step, &rows);
    if (status != MLA_OK)
        return status;
    flight->collective_ns = executor->collective->ns - collective_ns;
    return mla_flights_end(&executor->flights, flight, pieces, rows);
}

/* Whether this rank can map the region is for the coordinator to know, and no failure. */
static enum mla_status on_attach(struct executor *executor)
{
    const struct mla_grant grant = executor->incoming.u.attach;
    if (!executor->adopted)
        return MLA_MALFORMED;
    struct mla_backend *backend = executor->backend;
    enum mla_status status = mla_payload_attach(&executor->payload, &grant);
    if (status == MLA_OK) {
        const struct mla_region *region = mla_payload_region(&executor->payload, grant.region);
        status = backend->ops->host_register(backend, region->data, region->bytes);
        if (status != MLA_OK)
            mla_payload_detach(&executor->payload, grant.region);
    }
    outgoing(executor, MLA_ATTACHED);
    executor->outgoing.u.attached = (struct mla_attached){.region = grant.region, .status = status};
    return send(executor, NULL);
}

/* All RUNs that named it were answered. */
static void detach(struct executor *executor, uint64_t number)
{
    const struct mla_region *region = mla_payload_region(&executor->payload, number);
    if (!region)
        return;
    executor->backend->ops->host_unregister(executor->backend, region->data);
    mla_payload_detach(&executor->payload, number);
}

/* One message. *end is set by SHUTDOWN. */
static enum mla_status handle(struct executor *executor, const struct mla_incoming *incoming,
                              bool *end)
{
    enum mla_status status =
        mla_worker_message_decode(incoming->head, incoming->head_bytes, &executor->incoming);
    if (status != MLA_OK)
        return status;
    const struct mla_header *header = &executor->incoming.header;
    if (executor->adopted && header->epoch != executor->adopt.epoch && header->epoch != 0)
        return MLA_OK; /* of a group that was */
    switch (header->type) {
    case MLA_ADOPT:
        return on_adopt(executor);
    case MLA_PLAN:
        return on_plan(executor);
    case MLA_WORK:
        return on_work(executor, incoming->payload);
    case MLA_ATTACH:
        return on_attach(executor);
    case MLA_DETACH:
        detach(executor, executor->incoming.u.detach.region);
        return MLA_OK;
    case MLA_SHUTDOWN:
        *end = true;
        return MLA_OK;
    default:
        return MLA_MALFORMED;
    }
}

/* No message is there. A layer's successor mostly comes within a fraction of a millisecond, and
 * waking a core that sleeps takes a good part of that: look for it a while, and let others run
 * meanwhile, before going to sleep. */
static enum mla_status idle(struct executor *executor)
{
    int fd = -1;
    uint64_t number = 0;
    if (executor->flights.count > 0 || mla_now_ns() < executor->poll_until_ns) {
        sched_yield();
        return MLA_OK;
    }
    if (mla_channel_gone(executor->channel, &fd, &number) == MLA_OK) {
        fprintf(stderr, "rank %u: the coordinator is gone\n", executor->shard->rank);
        return MLA_CLOSED;
    }
    (void)mla_channel_wait(&executor->channel, 1, WAIT_MS);
    return MLA_OK;
}

static enum mla_status fail(struct executor *executor, const char *what, enum mla_status status)
{
    fprintf(stderr, "rank %u: %s: %s\n", executor->shard->rank, what, mla_status_name(status));
    outgoing(executor, MLA_FAILED);
    executor->outgoing.u.failed = (struct mla_failed){
        .group = executor->options->group, .rank = executor->shard->rank, .status = status};
    (void)send(executor, NULL); /* the end of the connection tells as much */
    return status;
}

static enum mla_status work(struct executor *executor)
{
    bool end = false;
    while (!end && !stopped) {
        struct mla_incoming incoming;
        enum mla_status status = executor->flights.count > 0 ? answer(executor) : MLA_OK;
        if (status != MLA_OK && status != MLA_AGAIN)
            return fail(executor, "a microbatch", status);
        status = mla_channel_receive(executor->channel, &incoming);
        if (status == MLA_AGAIN && (status = idle(executor)) == MLA_OK)
            continue;
        if (status != MLA_OK)
            return status;
        status = handle(executor, &incoming, &end);
        mla_blob_drop(incoming.payload);
        if (status != MLA_OK) {
            char what[32];
            snprintf(what, sizeof what, "message of type %u", executor->incoming.header.type);
            return fail(executor, what, status);
        }
    }
    return MLA_OK;
}

static void fini(struct executor *executor)
{
    mla_heartbeat_stop(&executor->heartbeat);
    for (uint32_t i = 0; executor->steps && i < executor->adopt.steps; i++)
        mla_step_fini(&executor->steps[i], executor->backend);
    free(executor->steps);
    mla_graphs_fini(&executor->graphs);
    if (executor->layer.backend)
        mla_layer_fini(&executor->layer);
    if (executor->cache.backend)
        mla_kvcache_fini(&executor->cache);
    mla_channel_destroy(&executor->channel);
    mla_channel_context_destroy(&executor->context);
    mla_flights_fini(&executor->flights);
    while (executor->payload.region_count > 0)
        detach(executor, executor->payload.regions[0].number);
    mla_payload_fini(&executor->payload);
    mla_trace_close(&executor->trace);
    free(executor);
}

enum mla_status mla_executor_run(const struct mla_executor_options *options,
                                 struct mla_backend *backend, struct mla_collective *collective,
                                 struct mla_shard *shard)
{
    struct executor *executor = calloc(1, sizeof *executor);
    if (!executor)
        return MLA_MEMORY;
    executor->options = options;
    executor->backend = backend;
    executor->collective = collective;
    executor->shard = shard;
    struct sigaction action = {.sa_handler = stop};
    sigemptyset(&action.sa_mask);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);

    struct mla_channel_options limits = {.queue_max = QUEUE_MAX,
                                         .frame_bytes_max = MLA_PAYLOAD_BYTES_MAX};
    enum mla_status status = mla_channel_context_create(&executor->context);
    if (status == MLA_OK)
        status = mla_channel_connect(executor->context, options->coordinator, &limits,
                                     &executor->channel);
    if (status == MLA_OK && options->trace)
        status = mla_trace_open(options->trace, shard->rank, shard->ranks, backend, collective,
                                &executor->trace);
    if (status == MLA_OK)
        status = join(executor);
    if (status == MLA_OK)
        status = work(executor);
    fini(executor);
    return status;
}
