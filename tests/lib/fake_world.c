#include "tests/lib/fake_world.h"

#include <assert.h>
#include <stdlib.h>

struct world_work {
    struct world_work *next;
    struct mla_peer peer;
    size_t head_bytes, offset, bytes;
    struct mla_blob *payload;
    uint8_t head[];
};

static bool counting;
static struct world *current;

/* Linked with --wrap where a test asks for it. */
void *__real_malloc(size_t bytes) __attribute__((weak));
void *__real_calloc(size_t count, size_t bytes) __attribute__((weak));
void *__real_realloc(void *memory, size_t bytes) __attribute__((weak));
void *__real_aligned_alloc(size_t alignment, size_t bytes) __attribute__((weak));
void *__wrap_malloc(size_t bytes);
void *__wrap_calloc(size_t count, size_t bytes);
void *__wrap_realloc(void *memory, size_t bytes);
void *__wrap_aligned_alloc(size_t alignment, size_t bytes);

static void count(void)
{
    if (counting && current)
        current->counted_allocations++;
}

void *__wrap_malloc(size_t bytes)
{
    count();
    return __real_malloc(bytes);
}

void *__wrap_calloc(size_t n, size_t bytes)
{
    count();
    return __real_calloc(n, bytes);
}

void *__wrap_realloc(void *memory, size_t bytes)
{
    count();
    return __real_realloc(memory, bytes);
}

void *__wrap_aligned_alloc(size_t alignment, size_t bytes)
{
    count();
    return __real_aligned_alloc(alignment, bytes);
}

static struct mla_peer peer_of(uint32_t number)
{
    struct mla_peer peer = {.size = 5, .fd = (int)number + 10, .number = number + 1};
    memcpy(peer.id + 1, &number, sizeof number);
    return peer;
}

static struct mla_peer client_peer(int client, uint8_t generation)
{
    struct mla_peer peer = peer_of((uint32_t)client);
    peer.id[0] = generation;
    peer.number += (uint64_t)generation << 32;
    return peer;
}

static void blob_free(struct mla_blob *blob)
{
    free(blob->data);
    free(blob);
}

static struct mla_blob *blob_of(const void *data, size_t bytes)
{
    struct mla_blob *blob = calloc(1, sizeof *blob);
    blob->data = malloc(bytes ? bytes : 1);
    memcpy(blob->data, data, bytes);
    blob->bytes = bytes;
    blob->references = 1;
    blob->release = blob_free;
    return blob;
}

static enum mla_status send_client(void *context, const struct mla_peer *peer, const void *head,
                                   size_t head_bytes, struct mla_blob *payload, size_t offset,
                                   size_t bytes)
{
    struct world *world = context;
    bool was_counting = counting;
    counting = false;
    static struct mla_message message;
    struct world_reply *reply = &world->replies[world->reply_count % WORLD_REPLIES_MAX];
    enum mla_status status = mla_message_decode(head, head_bytes, &message);
    assert(status == MLA_OK);
    int client = peer->fd - 10;
    counting = was_counting;
    if (world->refuse_client[client])
        return MLA_AGAIN;
    *reply = (struct world_reply){.client = client, .header = message.header};
    if (message.header.status != MLA_OK)
        memcpy(reply->sentence, message.u.sentence, sizeof reply->sentence);
    if (payload) {
        reply->rows = (uint32_t)(bytes / (WORLD_HIDDEN * sizeof(float)));
        for (uint32_t i = 0; i < reply->rows; i++)
            memcpy(&reply->values[i], payload->data + offset + sizeof(float) * i * WORLD_HIDDEN,
                   sizeof(float));
    }
    world->reply_count++;
    (void)status;
    return MLA_OK;
}

static enum mla_status send_worker(void *context, const struct mla_peer *peer, const void *head,
                                   size_t head_bytes, struct mla_blob *payload, size_t offset,
                                   size_t bytes)
{
    struct world *world = context;
    bool was_counting = counting;
    counting = false;
    struct world_work *work = malloc(sizeof *work + head_bytes);
    *work = (struct world_work){.peer = *peer,
                                .head_bytes = head_bytes,
                                .offset = offset,
                                .bytes = bytes,
                                .payload = payload ? mla_blob_hold(payload) : NULL};
    memcpy(work->head, head, head_bytes);
    if (world->last)
        world->last->next = work;
    else
        world->first = work;
    world->last = work;
    counting = was_counting;
    return MLA_OK;
}

static enum mla_status region_add(void *context, uint64_t number, uint64_t bytes,
                                  struct mla_grant *out)
{
    struct world *world = context;
    bool was_counting = counting;
    if (world->refuse_region)
        return MLA_SYSTEM;
    counting = false;
    free(world->memory[number % 64]);
    world->memory[number % 64] = calloc(1, bytes < 1u << 20 ? bytes : 1);
    counting = was_counting;
    *out = (struct mla_grant){.region = number, .bytes = bytes, .path_bytes = 2, .path = "/x"};
    world->regions_made++;
    return MLA_OK;
}

static void region_remove(void *context, uint64_t number)
{
    struct world *world = context;
    assert(number <= world->regions_made);
    (void)number;
    world->regions_removed++;
}

static uint64_t now_ns(void *context)
{
    return ((struct world *)context)->now_ns;
}

static void group_joined(void *context, uint32_t group)
{
    (void)group;
    ((struct world *)context)->groups_joined++;
}

static void group_lost(void *context, uint32_t group, bool hung)
{
    (void)group;
    ((struct world *)context)->groups_lost++;
    ((struct world *)context)->groups_hung += hung;
}

/* The connection of a rank; groups * ranks stay below 900. */
static uint32_t worker_number(uint32_t group, uint32_t rank)
{
    return 100 + group * 32 + rank;
}

static void worker_says(struct world *world, uint32_t number, struct mla_worker_message *message,
                        struct mla_blob *payload)
{
    uint8_t frame[MLA_WORKER_MESSAGE_BYTES_MAX];
    size_t bytes = 0;
    message->header.payload_bytes = payload ? payload->bytes : 0;
    enum mla_status status = mla_worker_message_encode(message, frame, sizeof frame, &bytes);
    assert(status == MLA_OK);
    (void)status;
    struct mla_incoming incoming = {.peer = peer_of(number),
                                    .frames = payload ? 2 : 1,
                                    .head = frame,
                                    .head_bytes = bytes,
                                    .payload = payload};
    counting = true;
    mla_core_worker_message(world->core, &incoming);
    counting = false;
}

void world_join(struct world *world, uint32_t group, uint64_t job)
{
    for (uint32_t rank = 0; rank < world->ranks - world->missing; rank++) {
        struct mla_worker_message message = {.header = {.type = MLA_JOIN}};
        message.u.join = (struct mla_join){
            .job = job,
            .group = group,
            .rank = rank,
            .ranks = world->ranks,
            .dims = {.hidden = WORLD_HIDDEN, .heads = 8, .latent = 4, .nope = 4, .rope = 2, .v = 4},
            .context_max = 4096,
            .kv_blocks_max = 64,
            .kv_block_bytes = 1024,
            .layer_count = WORLD_LAYERS,
            .layers = {3, 4},
        };
        worker_says(world, worker_number(group, rank), &message, NULL);
    }
    world_work(world, UINT32_MAX);
}

static void answer_work(struct world *world, const struct world_work *work,
                        const struct mla_worker_message *message)
{
    uint32_t number = (uint32_t)work->peer.fd - 10;
    uint32_t rank = (number - 100) % 32;
    struct mla_blob *payload = NULL;
    if (work->payload) {
        payload = blob_of(work->payload->data + work->offset, work->bytes);
        float *values = (float *)(void *)payload->data;
        for (size_t i = 0; i < work->bytes / sizeof(float); i++)
            values[i] = -values[i];
    }
    struct mla_worker_message done = {.header = {.type = MLA_DONE, .epoch = message->header.epoch}};
    done.u.done = (struct mla_done){.step = message->u.work.step,
                                    .work = message->u.work.work,
                                    .rank = rank,
                                    .rows = message->u.work.rows,
                                    .dtype = message->u.work.reply_dtype,
                                    .compute_ns = 1000 + rank,
                                    .collective_ns = 10};
    if (world->repeat_done)
        worker_says(world, number, &done, payload ? mla_blob_hold(payload) : NULL);
    worker_says(world, number, &done, payload);
}

/* The rows of a WORK in a region: where is told by the plan's runs, of which a fake worker keeps
 * the last plan's. */
static struct mla_plan_run runs[WORLD_ROWS_MAX];
static struct mla_plan_microbatch microbatches[WORLD_ROWS_MAX];

static void keep_plan(const struct mla_plan_message *plan)
{
    assert(plan->run_count <= WORLD_ROWS_MAX && plan->microbatch_count <= WORLD_ROWS_MAX);
    for (uint32_t i = 0; i < plan->run_count; i++)
        runs[i] = mla_plan_run_at(plan, i);
    for (uint32_t i = 0; i < plan->microbatch_count; i++)
        microbatches[i] = mla_plan_microbatch_at(plan, i);
}

static void negate_row(uint8_t *memory, const struct mla_work *work, uint32_t client_row)
{
    size_t row = WORLD_HIDDEN * sizeof(float) * client_row;
    const float *in = (const float *)(const void *)(memory + work->input_at + row);
    float *out = (float *)(void *)(memory + work->output_at + row);
    for (int i = 0; i < WORLD_HIDDEN; i++)
        out[i] = -in[i];
}

static void work_in_region(struct world *world, const struct mla_work *work, uint32_t rank)
{
    const struct mla_plan_microbatch *microbatch = &microbatches[work->microbatch];
    assert(world->ranks > 0);
    uint32_t first = microbatch->padded / world->ranks * rank;
    uint32_t run = 0;
    for (uint32_t i = 0; i < work->microbatch; i++)
        for (uint32_t rows = 0; rows < microbatches[i].rows; run++)
            rows += runs[run].count;
    for (uint32_t rows = 0; rows < microbatch->rows; rows += runs[run++].count)
        for (uint32_t k = 0; k < runs[run].count; k++)
            if (rows + k >= first && rows + k < first + work->rows)
                negate_row(world->memory[work->region % 64], work, runs[run].client_row + k);
}

static void answer_attach(struct world *world, uint32_t number,
                          const struct mla_worker_message *message)
{
    uint64_t region = message->u.attach.region;
    struct mla_worker_message attached = {
        .header = {.type = MLA_ATTACHED, .epoch = message->header.epoch}};
    attached.u.attached = (struct mla_attached){
        .region = region,
        .status = world->refuse_attach[(number - 100) % 32] ? MLA_UNSUPPORTED : MLA_OK};
    world->attached[region % 64]++;
    worker_says(world, number, &attached, NULL);
}

static void work_one(struct world *world, const struct world_work *work)
{
    static struct mla_worker_message message;
    enum mla_status status = mla_worker_message_decode(work->head, work->head_bytes, &message);
    assert(status == MLA_OK);
    (void)status;
    uint32_t number = (uint32_t)work->peer.fd - 10;
    if (message.header.type == MLA_ADOPT && world->mute)
        return;
    if (message.header.type == MLA_ADOPT) {
        struct mla_worker_message ready = {
            .header = {.type = MLA_READY, .epoch = message.header.epoch}};
        uint32_t rank = (number - 100) % 32;
        uint32_t asked = message.u.adopt.kv_blocks;
        ready.u.ready = (struct mla_ready){
            .group = (number - 100) / 32, .rank = rank, .kv_blocks = asked > 0 ? asked : 64};
        if (world->pool_blocks[rank] > 0)
            ready.u.ready.kv_blocks = world->pool_blocks[rank];
        worker_says(world, number, &ready, NULL);
    } else if (message.header.type == MLA_PLAN) {
        for (uint32_t i = 0; i < message.u.plan.microbatch_count; i++) {
            struct mla_plan_microbatch mb = mla_plan_microbatch_at(&message.u.plan, i);
            world->padded_rows_seen += mb.padded - mb.rows;
        }
        keep_plan(&message.u.plan);
    } else if (message.header.type == MLA_ATTACH) {
        answer_attach(world, number, &message);
    } else if (message.header.type == MLA_DETACH) {
        world->detached[message.u.detach.region % 64]++;
    } else if (message.header.type == MLA_DISMISS) {
        world->dismissals_seen++;
        world->dismissed_status = message.u.dismiss.status;
    } else if (message.header.type == MLA_ALIVE) {
        world->alive_seen++;
    } else if (message.header.type == MLA_SHUTDOWN) {
        world->shutdowns_seen++;
    } else if (message.header.type == MLA_WORK) {
        if ((number - 100) % 32 == 0) {
            world->microbatches_seen++;
            world->works_order[world->works_count++ % 4096] = message.u.work.layer;
        }
        if (message.u.work.region)
            work_in_region(world, &message.u.work, (number - 100) % 32);
        answer_work(world, work, &message);
    }
}

void world_work(struct world *world, uint32_t most)
{
    while (world->first && most-- > 0) {
        struct world_work *work = world->first;
        world->first = work->next;
        if (!world->first)
            world->last = NULL;
        work_one(world, work);
        mla_blob_drop(work->payload);
        free(work);
    }
}

void world_small_options(struct mla_core_options *options)
{
    mla_core_options_default(options);
    options->kv_blocks = 64;
    options->sequences_max = 32;
    options->steps_open_max = 4;
    options->step_tokens_max = 512;
    options->plan.prefill_tokens_max = 16;
    options->plan.buckets[0] = 4;
    options->plan.bucket_count = 1;
    options->runs_queued_max = 8;
    options->credits = 3;
}

void world_init(struct world *world, const struct mla_core_options *options, uint32_t ranks)
{
    struct mla_core_options small;
    world_small_options(&small);
    if (!options)
        options = &small;
    memset(world, 0, sizeof *world);
    current = world;
    world->ranks = ranks;
    world->now_ns = 1;
    struct mla_core_effects effects = {.context = world,
                                       .send_client = send_client,
                                       .send_worker = send_worker,
                                       .now_ns = now_ns,
                                       .region_add = region_add,
                                       .region_remove = region_remove,
                                       .group_joined = group_joined,
                                       .group_lost = group_lost};
    enum mla_status status = mla_core_create(options, &effects, &world->core);
    assert(status == MLA_OK);
    (void)status;
    for (uint32_t group = 0; group < options->groups; group++)
        world_join(world, group, 1000 + group);
}

void world_fini(struct world *world)
{
    mla_core_destroy(&world->core);
    while (world->first) {
        struct world_work *work = world->first;
        world->first = work->next;
        mla_blob_drop(work->payload);
        free(work);
    }
    assert(world->regions_made == world->regions_removed);
    for (int i = 0; i < 64; i++)
        free(world->memory[i]);
    current = NULL;
}

void world_send_frames(struct world *world, int client, const uint8_t *head, size_t head_bytes,
                       uint32_t frames, const void *payload, size_t payload_bytes)
{
    struct mla_peer peer = client_peer(client, world->generation[client]);
    struct mla_incoming incoming = {.peer = peer,
                                    .frames = frames,
                                    .head = head,
                                    .head_bytes = head_bytes,
                                    .payload = payload ? blob_of(payload, payload_bytes) : NULL};
    counting = true;
    mla_core_client_message(world->core, &incoming);
    counting = false;
}

const struct world_reply *world_last(const struct world *world)
{
    return world->reply_count ? &world->replies[(world->reply_count - 1) % WORLD_REPLIES_MAX]
                              : NULL;
}

const struct world_reply *world_send(struct world *world, int client, struct mla_message *request,
                                     const void *payload, size_t payload_bytes)
{
    static uint8_t frame[MLA_MESSAGE_BYTES_MAX];
    size_t bytes = 0;
    request->header.payload_bytes = payload ? payload_bytes : 0;
    enum mla_status status = mla_message_encode(request, frame, sizeof frame, &bytes);
    assert(status == MLA_OK);
    (void)status;
    uint32_t before = world->reply_count;
    world_send_frames(world, client, frame, bytes, payload ? 2 : 1, payload, payload_bytes);
    return world->reply_count > before ? world_last(world) : NULL;
}

void world_generation_gone(struct world *world, int client, uint8_t generation)
{
    struct mla_peer peer = client_peer(client, generation);
    mla_core_client_gone(world->core, peer.fd, peer.number);
}

void world_client_gone(struct world *world, int client)
{
    world_generation_gone(world, client, world->generation[client]);
}

void world_group_gone(struct world *world, uint32_t group)
{
    struct mla_peer peer = peer_of(worker_number(group, 0));
    mla_core_worker_gone(world->core, peer.fd, peer.number);
}

void world_beat(struct world *world, uint32_t group, uint32_t rank, uint64_t epoch)
{
    struct mla_worker_message message = {.header = {.type = MLA_HEARTBEAT, .epoch = epoch}};
    message.u.heartbeat = (struct mla_heartbeat){.group = group, .rank = rank};
    worker_says(world, worker_number(group, rank) + 400, &message, NULL);
}

static struct mla_message request;

static enum mla_status outcome(const struct world_reply *reply)
{
    return reply ? (enum mla_status)reply->header.status : MLA_AGAIN;
}

enum mla_status world_hello(struct world *world, int client)
{
    request.header = (struct mla_header){.type = MLA_HELLO, .request_id = 1};
    request.u.hello = (struct mla_hello){.version_min = 1, .version_max = 1};
    return outcome(world_send(world, client, &request, NULL, 0));
}

enum mla_status world_open(struct world *world, int client, uint64_t step,
                           const struct mla_open_entry *entries, uint32_t entry_count)
{
    request.header = (struct mla_header){.type = MLA_OPEN, .request_id = ++world->opens};
    request.u.open.step = step;
    request.u.open.count = entry_count;
    memcpy(request.u.open.entries, entries, entry_count * sizeof *entries);
    return outcome(world_send(world, client, &request, NULL, 0));
}

enum mla_status world_run(struct world *world, int client, uint64_t step, uint32_t layer,
                          uint32_t rows, float base)
{
    static float x[WORLD_ROWS_MAX * WORLD_HIDDEN];
    for (uint32_t i = 0; i < rows * WORLD_HIDDEN; i++) {
        uint32_t row = i / WORLD_HIDDEN;
        x[i] = base + (float)row;
    }
    request.header = (struct mla_header){.type = MLA_RUN, .request_id = step * 100 + layer};
    request.u.run = (struct mla_run){.step = step,
                                     .layer = layer,
                                     .dtype = MLA_F32,
                                     .reply_dtype = MLA_F32,
                                     .rows = rows,
                                     .hidden = WORLD_HIDDEN};
    return outcome(world_send(world, client, &request, x, sizeof *x * rows * WORLD_HIDDEN));
}

enum mla_status world_share(struct world *world, int client, uint64_t bytes)
{
    request.header = (struct mla_header){.type = MLA_SHARE, .request_id = 5};
    request.u.share.bytes = bytes;
    return outcome(world_send(world, client, &request, NULL, 0));
}

const struct world_reply *world_run_at(struct world *world, int client, uint64_t step,
                                       uint32_t layer, uint32_t rows,
                                       const struct mla_run_place *place)
{
    request.header = (struct mla_header){.type = MLA_RUN, .request_id = step * 100 + layer};
    request.u.run = (struct mla_run){.step = step,
                                     .layer = layer,
                                     .dtype = MLA_F32,
                                     .reply_dtype = MLA_F32,
                                     .rows = rows,
                                     .hidden = WORLD_HIDDEN,
                                     .place_count = 1,
                                     .places = {*place}};
    return world_send(world, client, &request, NULL, 0);
}

enum mla_status world_close(struct world *world, int client, uint64_t step,
                            enum mla_close_action action)
{
    request.header = (struct mla_header){.type = MLA_CLOSE, .request_id = step};
    request.u.close = (struct mla_close){.step = step, .action = action};
    return outcome(world_send(world, client, &request, NULL, 0));
}

enum mla_status world_free(struct world *world, int client, const uint64_t *sequences,
                           uint32_t sequence_count)
{
    request.header = (struct mla_header){.type = MLA_FREE, .request_id = 7};
    request.u.free.count = sequence_count;
    memcpy(request.u.free.sequences, sequences, sequence_count * sizeof *sequences);
    return outcome(world_send(world, client, &request, NULL, 0));
}

void world_stats(struct world *world, struct mla_stats *out)
{
    mla_core_stats(world->core, out);
}
