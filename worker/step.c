#include "worker/step.h"

#include <stdlib.h>
#include <string.h>

/* The arrays of all microbatches stand in one piece of memory. The first pass, without memory,
 * measures; the second fills. */
struct arena {
    uint8_t *host, *device;
    size_t used;
    uint32_t heads;
};

static void *take(struct arena *arena, size_t bytes, const void **device)
{
    size_t at = arena->used;
    arena->used = (at + bytes + 63) / 64 * 64;
    if (!arena->host)
        return NULL;
    *device = arena->device + at;
    return arena->host + at;
}

static bool entries_fit(const struct mla_kvcache *cache, const struct mla_plan_message *plan)
{
    for (uint32_t i = 0; i < plan->entry_count; i++) {
        struct mla_plan_entry entry = mla_plan_entry_at(plan, i);
        uint64_t length = (uint64_t)entry.start + entry.tokens;
        if (entry.table >= cache->sequences || length > cache->context_max)
            return false;
    }
    return true;
}

/* Rows and sequences. Padding rows belong to no sequence: attention skips them, and their slot
 * says that their KV is not written. */
static void fill_rows(const struct mla_kvcache *cache, const struct mla_plan_message *plan,
                      const struct mla_plan_microbatch *from, const struct mla_microbatch *to,
                      int32_t *positions, int64_t *slots, int32_t *table, int32_t *row_first,
                      int32_t *kv_length)
{
    int32_t row = 0;
    for (uint32_t i = 0; i < from->entry_count; i++) {
        struct mla_plan_entry entry = mla_plan_entry_at(plan, from->entry_first + i);
        const int32_t *blocks = cache->host_tables + (size_t)entry.table * cache->table_stride;
        table[i] = (int32_t)entry.table;
        row_first[i] = row;
        kv_length[i] = (int32_t)(entry.start + entry.tokens);
        for (uint32_t k = 0; k < entry.tokens; k++, row++) {
            uint32_t position = entry.start + k;
            positions[row] = (int32_t)position;
            slots[row] = (int64_t)blocks[position / MLA_BLOCK_TOKENS] * MLA_BLOCK_TOKENS +
                         position % MLA_BLOCK_TOKENS;
        }
    }
    for (int64_t i = from->entry_count; i < to->sequences; i++) {
        table[i] = 0;
        row_first[i] = row;
        kv_length[i] = 0;
    }
    row_first[to->sequences] = row;
    for (; row < (int32_t)from->padded; row++) {
        positions[row] = 0;
        slots[row] = MLA_SLOT_NONE;
    }
}

static void build_rows(struct arena *arena, const struct mla_kvcache *cache,
                       const struct mla_plan_message *plan, const struct mla_plan_microbatch *from,
                       struct mla_microbatch *to)
{
    const void *device[6] = {0};
    bool decode = from->kind == MLA_DECODE;
    size_t count = decode ? from->padded : from->entry_count;
    size_t schedule_bytes =
        decode
            ? cache->backend->ops->decode_schedule_bytes(cache->backend, from->padded, arena->heads)
            : 0;
    size_t begin = arena->used;
    int32_t *positions = take(arena, from->padded * sizeof *positions, &device[0]);
    int64_t *slots = take(arena, from->padded * sizeof *slots, &device[1]);
    int32_t *table = take(arena, count * sizeof *table, &device[2]);
    int32_t *row_first = take(arena, (count + 1) * sizeof *row_first, &device[3]);
    int32_t *kv_length = take(arena, count * sizeof *kv_length, &device[4]);
    size_t schedule_at = arena->used;
    void *schedule = take(arena, schedule_bytes, &device[5]);
    if (!positions)
        return;
    memset(schedule, 0, schedule_bytes);
    uint32_t rows_max = 0;
    for (uint32_t i = 0; i < from->entry_count; i++) {
        uint32_t tokens = mla_plan_entry_at(plan, from->entry_first + i).tokens;
        rows_max = tokens > rows_max ? tokens : rows_max;
    }
    *to = (struct mla_microbatch){.kind = (enum mla_microbatch_kind)from->kind,
                                  .rows = from->rows,
                                  .padded = from->padded,
                                  .sequences = (int64_t)count,
                                  .rows_max = rows_max,
                                  .positions = device[0],
                                  .slots = device[1],
                                  .table = device[2],
                                  .row_first = device[3],
                                  .kv_length = device[4],
                                  .schedule = arena->device + schedule_at,
                                  .block = arena->device + begin,
                                  .block_bytes = arena->used - begin};
    fill_rows(cache, plan, from, to, positions, slots, table, row_first, kv_length);
}

static uint64_t context_rows(const struct mla_plan_message *plan,
                             const struct mla_plan_microbatch *from)
{
    uint64_t rows = 0;
    for (uint32_t i = 0; from->kind == MLA_PREFILL && i < from->entry_count; i++)
        rows += mla_plan_entry_at(plan, from->entry_first + i).start;
    return rows;
}

/* Cuts the context rows, sequence after sequence, into chunks of chunk_rows. */
static void build_chunks(struct arena *arena, const struct mla_plan_message *plan,
                         const struct mla_plan_microbatch *from, uint32_t chunk_rows,
                         struct mla_microbatch *to)
{
    uint64_t total = context_rows(plan, from);
    uint32_t count = (uint32_t)((total + chunk_rows - 1) / chunk_rows);
    uint32_t entry = 0;
    uint32_t done = 0; /* rows of that entry in earlier chunks */
    to->chunk_count = arena->host ? count : 0;
    for (uint32_t c = 0; c < count; c++) {
        const void *device[2] = {0};
        int32_t *begin = take(arena, from->entry_count * sizeof *begin, &device[0]);
        int32_t *first = take(arena, (from->entry_count + 1) * sizeof *first, &device[1]);
        if (!begin)
            continue;
        struct mla_context_chunk chunk = {.begin = device[0], .first = device[1]};
        first[0] = 0;
        for (uint32_t i = 0; i < from->entry_count; i++) {
            uint32_t start = mla_plan_entry_at(plan, from->entry_first + i).start;
            uint32_t rows = 0;
            begin[i] = 0;
            if (i == entry) {
                uint32_t room = chunk_rows - (uint32_t)chunk.rows;
                rows = start - done < room ? start - done : room;
                begin[i] = (int32_t)done;
                done += rows;
                if (done == start) {
                    entry++;
                    done = 0;
                }
            }
            chunk.rows += rows;
            chunk.rows_max = rows > chunk.rows_max ? rows : chunk.rows_max;
            first[i + 1] = (int32_t)chunk.rows;
        }
        to->chunks[c] = chunk;
    }
}

static uint32_t build_all(struct mla_step *step, struct arena *arena,
                          const struct mla_kvcache *cache, const struct mla_plan_message *plan,
                          uint32_t chunk_rows)
{
    uint32_t chunks = 0;
    for (uint32_t i = 0; i < plan->microbatch_count; i++) {
        struct mla_plan_microbatch from = mla_plan_microbatch_at(plan, i);
        struct mla_microbatch none = {0};
        struct mla_microbatch *to = arena->host ? &step->microbatches[i] : &none;
        build_rows(arena, cache, plan, &from, to);
        to->chunks = arena->host ? step->chunks + chunks : NULL;
        build_chunks(arena, plan, &from, chunk_rows, to);
        chunks += (uint32_t)((context_rows(plan, &from) + chunk_rows - 1) / chunk_rows);
    }
    return chunks;
}

static bool grow(void **memory, uint32_t *capacity, uint32_t needed, size_t element)
{
    if (needed <= *capacity)
        return true;
    void *grown = realloc(*memory, needed * element);
    if (!grown)
        return false;
    *memory = grown;
    *capacity = needed;
    return true;
}

static enum mla_status make_room(struct mla_step *step, struct mla_backend *backend,
                                 uint32_t microbatches, uint32_t chunks, size_t bytes)
{
    void *m = step->microbatches;
    void *c = step->chunks;
    bool ok = grow(&m, &step->microbatch_capacity, microbatches, sizeof *step->microbatches) &&
              grow(&c, &step->chunk_capacity, chunks, sizeof *step->chunks);
    step->microbatches = m;
    step->chunks = c;
    if (!ok)
        return MLA_MEMORY;
    if (bytes <= step->bytes)
        return MLA_OK;
    bytes *= 2;
    backend->ops->free(backend, step->device);
    backend->ops->host_free(backend, step->host);
    step->bytes = 0;
    step->device = NULL;
    step->host = NULL;
    void *host = NULL;
    void *device = NULL;
    enum mla_status status = backend->ops->host_alloc(backend, bytes, &host);
    if (status == MLA_OK)
        status = backend->ops->alloc(backend, bytes, &device);
    step->host = host;
    step->device = device;
    if (status == MLA_OK)
        step->bytes = bytes;
    return status;
}

struct mla_kv_view mla_step_view(const struct mla_kvcache *cache, uint32_t index,
                                 const struct mla_microbatch *mb)
{
    return (struct mla_kv_view){.pool = mla_kvcache_pool(cache, index),
                                .tables = cache->tables,
                                .table_stride = cache->table_stride,
                                .sequences = mb->sequences,
                                .tokens_max = cache->tokens_max,
                                .table = mb->table,
                                .row_first = mb->row_first,
                                .kv_length = mb->kv_length};
}

/* All layers share one schedule: their pools have the same shape and the same lengths. */
static enum mla_status schedule(const struct mla_step *step, const struct mla_kvcache *cache,
                                uint32_t heads)
{
    struct mla_backend *backend = cache->backend;
    enum mla_status status = MLA_OK;
    for (uint32_t i = 0; status == MLA_OK && i < step->microbatch_count; i++) {
        const struct mla_microbatch *mb = &step->microbatches[i];
        if (mb->kind != MLA_DECODE)
            continue;
        struct mla_attend_decode attend = {
            .kv = mla_step_view(cache, 0, mb), .rows_max = mb->padded, .heads = heads};
        status = backend->ops->schedule_decode(backend, &attend, mb->schedule);
    }
    return status;
}

enum mla_status mla_step_build(struct mla_step *step, const struct mla_kvcache *cache,
                               const struct mla_plan_message *plan, uint32_t chunk_rows,
                               uint32_t heads)
{
    struct mla_backend *backend = cache->backend;
    step->number = 0;
    if (!entries_fit(cache, plan))
        return MLA_MALFORMED;
    struct arena arena = {.heads = heads};
    uint32_t chunks = build_all(step, &arena, cache, plan, chunk_rows);
    enum mla_status status = MLA_OK;
    if (!step->uploaded)
        status = backend->ops->fence_create(backend, &step->uploaded);
    if (status == MLA_OK) /* a step may be opened and closed without a RUN */
        status = backend->ops->fence_await(backend, step->uploaded);
    if (status == MLA_OK)
        status = make_room(step, backend, plan->microbatch_count, chunks, arena.used + 64);
    if (status != MLA_OK)
        return status;
    arena = (struct arena){.host = step->host, .device = step->device, .heads = heads};
    (void)build_all(step, &arena, cache, plan, chunk_rows);
    status = backend->ops->upload(backend, step->device, step->host, arena.used);
    if (status == MLA_OK)
        status = backend->ops->fence_record(backend, MLA_QUEUE_COMPUTE, step->uploaded);
    step->microbatch_count = plan->microbatch_count;
    if (status == MLA_OK)
        status = schedule(step, cache, heads);
    if (status != MLA_OK)
        return status;
    step->number = plan->step;
    return MLA_OK;
}

void mla_step_fini(struct mla_step *step, struct mla_backend *backend)
{
    backend->ops->free(backend, step->device);
    backend->ops->host_free(backend, step->host);
    backend->ops->fence_destroy(backend, step->uploaded);
    free(step->microbatches);
    free(step->chunks);
    *step = (struct mla_step){0};
}
