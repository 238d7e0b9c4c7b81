#include "worker/state.h"

#include "proto/clock.h"
#include "worker/size.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { QUEUE_MAX = 8192, RETRY_NS = 10000000 };

void outgoing_begin(struct executor *executor, enum mla_worker_message_type type)
{
    executor->outgoing = (struct mla_worker_message){
        .header = {.type = (uint16_t)type, .epoch = executor->life.adopt.epoch}};
}

enum mla_status outgoing_send(struct executor *executor, struct mla_blob *payload)
{
    uint8_t frame[MLA_WORKER_MESSAGE_BYTES_MAX];
    size_t bytes = 0;
    executor->outgoing.header.payload_bytes = payload ? payload->bytes : 0;
    enum mla_status status =
        mla_worker_message_encode(&executor->outgoing, frame, sizeof frame, &bytes);
    if (status != MLA_OK)
        return status;
    return mla_channel_send(executor->life.channel, NULL, frame, bytes, payload, 0,
                            payload ? payload->bytes : 0);
}

/* One block id, all layers. */
static uint64_t block_bytes(const struct executor *executor)
{
    const struct mla_shard *shard = executor->shard;
    return mla_kvcache_block_bytes(&shard->config, executor->options->kv_dtype) *
           shard->layer_count;
}

/* How many blocks the pools may have now: before the workspaces are there, at most so many. */
static enum mla_status count_blocks(struct executor *executor, uint32_t *out)
{
    const struct mla_executor_options *options = executor->options;
    struct mla_backend *backend = executor->backend;
    uint64_t bytes = options->kv_memory_bytes;
    enum mla_status status = MLA_OK;
    if (bytes == 0) {
        uint64_t free_bytes = 0;
        status = backend->ops->memory_free(backend, &free_bytes);
        bytes = mla_size_kv_memory(free_bytes, options->kv_memory_fraction, backend->unified,
                                   options->local_ranks);
    }
    if (status != MLA_OK)
        return status;
    uint32_t blocks = mla_size_kv_blocks(bytes, block_bytes(executor));
    if (blocks == 0) {
        fprintf(stderr, "a KV cache of %llu bytes holds no block (%llu bytes)\n",
                (unsigned long long)bytes, (unsigned long long)block_bytes(executor));
        return MLA_MEMORY;
    }
    *out = blocks;
    return MLA_OK;
}

static enum mla_status join(struct executor *executor)
{
    const struct mla_executor_options *options = executor->options;
    const struct mla_shard *shard = executor->shard;
    const struct mla_config *c = &shard->config;
    uint32_t blocks = 0;
    enum mla_status counted = count_blocks(executor, &blocks);
    if (counted != MLA_OK)
        return counted;
    outgoing_begin(executor, MLA_JOIN);
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
        .kv_blocks_max = blocks,
        .kv_block_bytes = block_bytes(executor),
        .layer_count = shard->layer_count,
    };
    memcpy(message->layers, shard->layers, sizeof message->layers);
    uint64_t deadline_ns = mla_now_ns() + options->connect_timeout_ms * 1000000ull;
    for (;;) { /* nothing is queued before the connection stands */
        enum mla_status status = outgoing_send(executor, NULL);
        if (status != MLA_AGAIN)
            return status;
        if (executor_is_stopped())
            return MLA_CLOSED;
        if (mla_now_ns() > deadline_ns) {
            fprintf(stderr, "no coordinator at %s\n", options->coordinator);
            return MLA_TIMEOUT;
        }
        nanosleep(&(struct timespec){.tv_nsec = RETRY_NS}, NULL);
    }
}

enum mla_status life_begin(struct executor *executor)
{
    struct mla_channel_options limits = {.queue_max = QUEUE_MAX,
                                         .frame_bytes_max = MLA_PAYLOAD_BYTES_MAX,
                                         .spin = executor->options->spin,
                                         .keys = executor->options->keys};
    struct life *life = &executor->life;
    enum mla_status status = mla_channel_context_create(&life->context);
    if (status == MLA_OK)
        status = mla_channel_connect(life->context, executor->options->coordinator, &limits,
                                     &life->channel);
    struct mla_heartbeat_options beats = {.coordinator = executor->options->coordinator,
                                          .keys = executor->options->keys,
                                          .group = executor->options->group,
                                          .rank = executor->shard->rank,
                                          .watch = &executor->watch};
    if (status == MLA_OK)
        status = mla_heartbeat_start(&beats, &life->heartbeat);
    return status == MLA_OK ? join(executor) : status;
}

static uint32_t to_multiple(uint32_t rows, uint32_t ranks)
{
    return (rows + ranks - 1) / ranks * ranks;
}

uint32_t life_buckets(const struct mla_adopt *adopt, uint32_t ranks, uint32_t *padded)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < adopt->bucket_count; i++) {
        uint32_t rows = to_multiple(adopt->buckets[i], ranks);
        if (count == 0 || padded[count - 1] != rows)
            padded[count++] = rows;
    }
    return count;
}

enum mla_status life_allocate(struct executor *executor)
{
    struct life *life = &executor->life;
    const struct mla_adopt *adopt = &life->adopt;
    struct mla_backend *backend = executor->backend;
    struct mla_shard *shard = executor->shard;
    uint32_t buckets[MLA_DECODE_BUCKETS_MAX];
    uint32_t bucket_count = life_buckets(adopt, shard->ranks, buckets);
    uint32_t decode_rows = bucket_count > 0 ? buckets[bucket_count - 1] : 0;
    uint32_t rows = adopt->prefill_tokens_max < adopt->step_tokens_max ? adopt->prefill_tokens_max
                                                                       : adopt->step_tokens_max;
    rows = to_multiple(rows, shard->ranks);
    if (rows < decode_rows)
        rows = decode_rows;

    enum mla_status status =
        mla_kvcache_init(&life->cache, backend, &shard->config, executor->options->kv_dtype,
                         shard->layer_count, 1, adopt->sequences, adopt->context_max);
    life->cache.tokens_max = adopt->decode_tokens_max;
    if (status == MLA_OK)
        status = mla_shard_make_rope_table(shard, backend, adopt->context_max);
    if (status == MLA_OK)
        status = mla_layer_init(&life->layer, mla_trace_backend(executor->trace, backend),
                                mla_trace_collective(executor->trace, executor->collective), shard,
                                &life->cache, rows, decode_rows, executor->options->chunk_rows);
    if (status == MLA_OK)
        status = mla_flights_init(&life->flights, backend, rows / shard->ranks,
                                  shard->config.hidden, adopt->credits + 2);
    if (status == MLA_OK)
        status = mla_graphs_init(&life->graphs, &life->layer, life->flights.x,
                                 executor->options->graphs, buckets, bucket_count);
    if (status == MLA_OK)
        status = mla_payload_init(&life->payload, shard->rank, shard->ranks, shard->config.hidden,
                                  adopt->steps, rows / shard->ranks);
    life->steps = calloc(adopt->steps, sizeof *life->steps);
    if (status == MLA_OK && !life->steps)
        status = MLA_MEMORY;
    return status;
}

/* A layer once, for a prompt in the one block there is. What libraries make on first use is then
 * there before memory is measured, and not made under the first request. */
static enum mla_status rehearse(struct executor *executor)
{
    struct life *life = &executor->life;
    struct mla_backend *backend = executor->backend;
    struct mla_step step = {0};
    void *out = NULL;
    uint32_t rows = (uint32_t)life->layer.rows_max;
    uint32_t tokens = rows < MLA_BLOCK_TOKENS ? rows : MLA_BLOCK_TOKENS;
    if (tokens > life->cache.context_max)
        tokens = life->cache.context_max;
    struct mla_plan_entry entry = {.tokens = tokens};
    struct mla_plan_microbatch microbatch = {
        .kind = MLA_PREFILL, .rows = tokens, .padded = rows, .entry_count = 1};
    struct mla_plan_message plan = {.step = 1,
                                    .microbatch_count = 1,
                                    .microbatches = &microbatch,
                                    .entry_count = 1,
                                    .entries = &entry};
    enum mla_status status = mla_step_build(&step, &life->cache, &plan,
                                            executor->options->chunk_rows, executor->shard->heads);
    if (status == MLA_OK)
        status = mla_layer_run(&life->layer, 0, &step.microbatches[0], life->flights.x[0], 0, &out);
    if (status == MLA_OK)
        status = backend->ops->synchronize(backend);
    mla_step_fini(&step, backend);
    return status;
}

enum mla_status life_fill(struct executor *executor)
{
    struct life *life = &executor->life;
    uint32_t blocks = life->adopt.kv_blocks;
    enum mla_status status = executor->backend->unified ? MLA_OK : rehearse(executor);
    if (status == MLA_OK && blocks == 0)
        status = count_blocks(executor, &blocks);
    if (status == MLA_OK)
        status = mla_kvcache_resize(&life->cache, blocks);
    if (status == MLA_OK)
        status = mla_graphs_capture(&life->graphs);
    return status;
}

void life_detach(struct executor *executor, uint64_t number)
{
    struct mla_payload *payload = &executor->life.payload;
    const struct mla_region *region = mla_payload_region(payload, number);
    if (!region)
        return;
    executor->backend->ops->host_unregister(executor->backend, region->data);
    mla_payload_detach(payload, number);
}

bool life_is_over(struct executor *executor)
{
    struct life *life = &executor->life;
    uint64_t most_ns = life->adopt.silence_ms * 1000000ull;
    int fd = -1;
    uint64_t number = 0;
    if (mla_channel_gone(life->channel, &fd, &number) == MLA_OK ||
        (life->adopted && mla_heartbeat_silence_ns(life->heartbeat) > most_ns))
        life->over = true;
    return life->over;
}

void life_end(struct executor *executor)
{
    struct life *life = &executor->life;
    atomic_store(&executor->watch.begun_ns, 0);
    mla_gate_close(executor->gate);
    mla_heartbeat_stop(&life->heartbeat);
    for (uint32_t i = 0; life->steps && i < life->adopt.steps; i++)
        mla_step_fini(&life->steps[i], executor->backend);
    free(life->steps);
    mla_graphs_fini(&life->graphs);
    if (life->layer.backend)
        mla_layer_fini(&life->layer);
    if (life->cache.backend)
        mla_kvcache_fini(&life->cache);
    mla_channel_destroy(&life->channel);
    mla_channel_context_destroy(&life->context);
    mla_flights_fini(&life->flights);
    while (life->payload.region_count > 0)
        life_detach(executor, life->payload.regions[0].number);
    mla_payload_fini(&life->payload);
    *life = (struct life){0};
}
