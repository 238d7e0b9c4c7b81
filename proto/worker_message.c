#include "proto/worker_message.h"

#include "proto/wire.h"

#include <assert.h>
#include <string.h>

#define SPAN    MLA_WIRE_SPAN
#define ENTRIES MLA_WIRE_ENTRIES

/* Types that are not named have no body: SHUTDOWN, ALIVE. */
static const struct mla_wire_shape shapes[MLA_DISMISS + 1] = {
    [MLA_JOIN] = {.spans = {SPAN(mla_join, job, kv_blocks_max),
                            SPAN(mla_join, kv_block_bytes, kv_block_bytes)},
                  ENTRIES(mla_join, layer_count, layers, 4)},
    [MLA_ADOPT] = {.spans = {SPAN(mla_adopt, epoch, stall_ms)},
                   ENTRIES(mla_adopt, bucket_count, buckets, 4)},
    [MLA_READY] = {.spans = {SPAN(mla_ready, group, kv_blocks)}},
    [MLA_PLAN] = {.spans = {SPAN(mla_plan_message, step, rows)}},
    [MLA_WORK] = {.spans = {SPAN(mla_work, step, output_at)}, .payload = true},
    [MLA_DONE] = {.spans = {SPAN(mla_done, step, collective_ns)}, .payload = true},
    [MLA_HEARTBEAT] = {.spans = {SPAN(mla_heartbeat, group, progress)}},
    [MLA_FAILED] = {.spans = {SPAN(mla_failed, group, status)}},
    [MLA_ATTACH] = {.spans = {SPAN(mla_grant, region, token)},
                    ENTRIES(mla_grant, path_bytes, path, 1)},
    [MLA_ATTACHED] = {.spans = {SPAN(mla_attached, region, status)}},
    [MLA_DETACH] = {.spans = {SPAN(mla_detach, region, region)}},
    [MLA_DISMISS] = {.spans = {SPAN(mla_dismiss, status, status)}},
};

/* NULL for a type that is none. */
static const struct mla_wire_shape *shape_of(uint16_t type)
{
    return type >= MLA_JOIN && type <= MLA_DISMISS ? &shapes[type] : NULL;
}

/* The arrays of a PLAN in the order of the wire. */
struct plan_array {
    const void **at;
    uint32_t count, count_max;
    size_t entry_bytes;
};

/* Every microbatch cuts at most one prompt, and an entry begins at most one run. */
enum { PLAN_ARRAYS = 6, PLAN_ENTRIES_MAX = MLA_STEP_SEQUENCES_MAX + MLA_STEP_MICROBATCHES_MAX };

static void plan_arrays(struct mla_plan_message *plan, struct plan_array arrays[PLAN_ARRAYS])
{
    arrays[0] = (struct plan_array){&plan->microbatches, plan->microbatch_count,
                                    MLA_STEP_MICROBATCHES_MAX, sizeof(struct mla_plan_microbatch)};
    arrays[1] = (struct plan_array){&plan->entries, plan->entry_count, PLAN_ENTRIES_MAX,
                                    sizeof(struct mla_plan_entry)};
    arrays[2] = (struct plan_array){&plan->tables, plan->table_count, MLA_STEP_SEQUENCES_MAX,
                                    sizeof(struct mla_plan_table)};
    arrays[3] = (struct plan_array){&plan->copies, plan->copy_count, MLA_STEP_SEQUENCES_MAX,
                                    sizeof(struct mla_plan_copy)};
    arrays[4] = (struct plan_array){&plan->blocks, plan->block_count, MLA_PLAN_BLOCKS_MAX,
                                    sizeof(uint32_t)};
    arrays[5] = (struct plan_array){&plan->runs, plan->run_count, PLAN_ENTRIES_MAX,
                                    sizeof(struct mla_plan_run)};
}

static bool plan_within_limits(struct mla_plan_message *plan)
{
    struct plan_array arrays[PLAN_ARRAYS];
    plan_arrays(plan, arrays);
    for (int i = 0; i < PLAN_ARRAYS; i++)
        if (arrays[i].count > arrays[i].count_max)
            return false;
    return true;
}

size_t mla_plan_message_bytes(const struct mla_plan_message *plan)
{
    struct mla_plan_message counts = *plan;
    struct plan_array arrays[PLAN_ARRAYS];
    plan_arrays(&counts, arrays);
    size_t bytes = MLA_HEADER_BYTES + shapes[MLA_PLAN].spans[0].bytes;
    for (int i = 0; i < PLAN_ARRAYS; i++)
        bytes += arrays[i].count * arrays[i].entry_bytes;
    return bytes;
}

static enum mla_status encode_plan(struct mla_header *header, struct mla_plan_message *plan,
                                   uint8_t *frame, size_t capacity, size_t *bytes)
{
    if (!plan_within_limits(plan) || mla_plan_message_bytes(plan) > capacity)
        return MLA_LIMIT;
    size_t used = mla_plan_message_bytes(plan);
    uint8_t *to = frame + MLA_HEADER_BYTES;
    header->count = 0;
    header->body_bytes = (uint32_t)(used - MLA_HEADER_BYTES);
    mla_wire_put_header(header, frame);
    const struct mla_wire_span *fields = &shapes[MLA_PLAN].spans[0];
    memcpy(to, plan, fields->bytes);
    to += fields->bytes;

    struct plan_array arrays[PLAN_ARRAYS];
    plan_arrays(plan, arrays);
    for (int i = 0; i < PLAN_ARRAYS; i++) {
        size_t array_bytes = arrays[i].count * arrays[i].entry_bytes;
        if (array_bytes)
            memcpy(to, *arrays[i].at, array_bytes);
        to += array_bytes;
    }
    *bytes = used;
    return MLA_OK;
}

enum mla_status mla_worker_message_encode(struct mla_worker_message *message, uint8_t *frame,
                                          size_t capacity, size_t *bytes)
{
    struct mla_header *header = &message->header;
    const struct mla_wire_shape *shape = shape_of(header->type);
    assert(shape && (shape->payload || header->payload_bytes == 0));
    header->status = MLA_OK;
    header->index = 0;
    if (header->type == MLA_PLAN)
        return encode_plan(header, &message->u.plan, frame, capacity, bytes);
    return mla_wire_encode(shape, header, &message->u, frame, capacity, bytes);
}

/* Row counts are compared in 64 bits: a sum of entries can't wrap. */
static enum mla_status check_microbatches(const struct mla_plan_message *plan, uint32_t *index)
{
    uint32_t next = 0;
    for (uint32_t i = 0; i < plan->microbatch_count; i++) {
        struct mla_plan_microbatch microbatch = mla_plan_microbatch_at(plan, i);
        uint64_t rows = 0;
        *index = i;
        if ((microbatch.kind != MLA_DECODE && microbatch.kind != MLA_PREFILL) ||
            microbatch.entry_first != next || microbatch.entry_count == 0 ||
            microbatch.entry_count > plan->entry_count - next)
            return MLA_FIELD;
        for (uint32_t k = 0; k < microbatch.entry_count; k++) {
            struct mla_plan_entry entry = mla_plan_entry_at(plan, next + k);
            if (entry.tokens == 0)
                return MLA_FIELD;
            rows += entry.tokens;
        }
        if (microbatch.rows != rows || microbatch.padded < rows)
            return MLA_FIELD;
        next += microbatch.entry_count;
    }
    *index = MLA_INDEX_NONE;
    return next == plan->entry_count ? MLA_OK : MLA_FIELD;
}

/* Each microbatch's rows are where its runs say, one after the other. */
static enum mla_status check_runs(const struct mla_plan_message *plan, uint32_t *index)
{
    uint32_t next = 0;
    for (uint32_t i = 0; i < plan->microbatch_count; i++) {
        uint32_t rows = mla_plan_microbatch_at(plan, i).rows;
        uint32_t covered = 0;
        *index = i;
        while (covered < rows) {
            if (next == plan->run_count)
                return MLA_FIELD;
            struct mla_plan_run run = mla_plan_run_at(plan, next++);
            if (run.microbatch_row != covered || run.count == 0 || run.count > rows - covered ||
                run.client_row > plan->rows || run.count > plan->rows - run.client_row)
                return MLA_FIELD;
            covered += run.count;
        }
    }
    *index = MLA_INDEX_NONE;
    return next == plan->run_count ? MLA_OK : MLA_FIELD;
}

static enum mla_status check_plan(const struct mla_plan_message *plan, uint32_t *index)
{
    uint64_t blocks = 0;
    for (uint32_t i = 0; i < plan->table_count; i++)
        blocks += mla_plan_table_at(plan, i).count;
    if (blocks != plan->block_count)
        return MLA_FIELD;
    enum mla_status status = check_microbatches(plan, index);
    return status == MLA_OK ? check_runs(plan, index) : status;
}

static enum mla_status decode_plan(const struct mla_header *header, const uint8_t *frame,
                                   struct mla_plan_message *out, uint32_t *index)
{
    const struct mla_wire_span *fields = &shapes[MLA_PLAN].spans[0];
    if (header->count || header->payload_bytes || header->body_bytes < fields->bytes)
        return MLA_MALFORMED;
    memcpy(out, frame + MLA_HEADER_BYTES, fields->bytes);
    if (!plan_within_limits(out))
        return MLA_LIMIT;
    if (MLA_HEADER_BYTES + (size_t)header->body_bytes != mla_plan_message_bytes(out))
        return MLA_MALFORMED;

    struct plan_array arrays[PLAN_ARRAYS];
    plan_arrays(out, arrays);
    const uint8_t *from = frame + MLA_HEADER_BYTES + fields->bytes;
    for (int i = 0; i < PLAN_ARRAYS; i++) {
        *arrays[i].at = from;
        from += arrays[i].count * arrays[i].entry_bytes;
    }
    return check_plan(out, index);
}

static enum mla_status check_join(const struct mla_join *join, uint32_t *index)
{
    if (join->ranks == 0 || join->ranks > MLA_RANKS_MAX || join->rank >= join->ranks ||
        join->kv_block_bytes == 0)
        return MLA_FIELD;
    return mla_wire_check_ascending(join->layers, join->layer_count, index);
}

static bool is_payload_dtype(uint32_t dtype)
{
    return dtype == MLA_F32 || dtype == MLA_BF16;
}

static enum mla_status check_work(const struct mla_work *work, const struct mla_header *header)
{
    if (!is_payload_dtype(work->dtype) || !is_payload_dtype(work->reply_dtype))
        return MLA_FIELD;
    if (work->region == 0)
        return work->input_at || work->output_at ? MLA_FIELD : MLA_OK;
    if (header->payload_bytes)
        return MLA_MALFORMED; /* one or the other */
    return work->input_at % MLA_REGION_ALIGNMENT || work->output_at % MLA_REGION_ALIGNMENT
               ? MLA_FIELD
               : MLA_OK;
}

/* *index: the offending entry of MLA_FIELD. */
static enum mla_status decode(const uint8_t *frame, size_t bytes, struct mla_worker_message *out,
                              uint32_t *index)
{
    const struct mla_header *header = &out->header;
    enum mla_status status = mla_wire_get_header(frame, bytes, &out->header);
    if (status != MLA_OK)
        return status;
    const struct mla_wire_shape *shape = shape_of(header->type);
    if (!shape)
        return MLA_TYPE;
    if (header->status || header->index)
        return MLA_MALFORMED;
    if (header->type == MLA_PLAN)
        return decode_plan(header, frame, &out->u.plan, index);
    status = mla_wire_decode(shape, header, frame, &out->u);
    if (status != MLA_OK)
        return status;

    switch (header->type) {
    case MLA_JOIN:
        return check_join(&out->u.join, index);
    case MLA_ADOPT:
        return mla_wire_check_ascending(out->u.adopt.buckets, out->u.adopt.bucket_count, index);
    case MLA_WORK:
        return check_work(&out->u.work, header);
    default:
        return MLA_OK;
    }
}

enum mla_status mla_worker_message_decode(const uint8_t *frame, size_t bytes,
                                          struct mla_worker_message *out)
{
    uint32_t index = MLA_INDEX_NONE;
    enum mla_status status = decode(frame, bytes, out, &index);
    if (status != MLA_OK)
        out->header.index = index;
    return status;
}

/* Entry i of an array that may stand at any address. */
#define ENTRY_AT(type, name, array)                                                                \
    type name(const struct mla_plan_message *plan, uint32_t i)                                     \
    {                                                                                              \
        type entry;                                                                                \
        memcpy(&entry, (const uint8_t *)plan->array + (size_t)i * sizeof entry, sizeof entry);     \
        return entry;                                                                              \
    }

ENTRY_AT(struct mla_plan_microbatch, mla_plan_microbatch_at, microbatches)
ENTRY_AT(struct mla_plan_entry, mla_plan_entry_at, entries)
ENTRY_AT(struct mla_plan_table, mla_plan_table_at, tables)
ENTRY_AT(struct mla_plan_copy, mla_plan_copy_at, copies)
ENTRY_AT(struct mla_plan_run, mla_plan_run_at, runs)
