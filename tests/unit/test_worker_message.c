#include "proto/worker_message.h"
#include "tests/unit/frames.h"

#include <criterion/criterion.h>

enum { MICROBATCHES = 3, ENTRIES = 6, TABLES = 4, COPIES = 2, BLOCKS = 10, RUNS = 5 };

/* The arrays of the plan that is sent. */
static struct plan {
    struct mla_plan_microbatch microbatches[MICROBATCHES];
    struct mla_plan_entry entries[ENTRIES];
    struct mla_plan_table tables[TABLES];
    struct mla_plan_copy copies[COPIES];
    uint32_t blocks[BLOCKS];
    struct mla_plan_run runs[RUNS];
} plan;

static struct mla_worker_message sent, got, again;
static struct frame frame;
static uint8_t encoded[FRAME_BYTES_MAX];
static uint8_t *received; /* what `got` points into */

#define RANDOM(field)    PUT_RANDOM(&frame, sent.u.field)
#define IS(field, value) PUT(&frame, sent.u.field, value)

static const uint16_t types[] = {MLA_JOIN,     MLA_ADOPT,     MLA_READY,  MLA_PLAN,     MLA_WORK,
                                 MLA_DONE,     MLA_HEARTBEAT, MLA_FAILED, MLA_SHUTDOWN, MLA_ATTACH,
                                 MLA_ATTACHED, MLA_DETACH,    MLA_ALIVE,  MLA_DISMISS};

#define EACH_TYPE                                                                                  \
    for (const uint16_t *type = types; type < types + sizeof types / sizeof *types; type++)

static void join(uint32_t count)
{
    RANDOM(join.job);
    RANDOM(join.group);
    IS(join.rank, MLA_RANKS_MAX - 1);
    IS(join.ranks, MLA_RANKS_MAX);
    RANDOM(join.flags);
    RANDOM(join.dims.hidden);
    RANDOM(join.dims.heads);
    RANDOM(join.dims.q_lora);
    RANDOM(join.dims.latent);
    RANDOM(join.dims.nope);
    RANDOM(join.dims.rope);
    RANDOM(join.dims.v);
    RANDOM(join.context_max);
    RANDOM(join.kv_blocks_max);
    RANDOM(join.kv_block_bytes);
    sent.u.join.layer_count = count;
    for (uint32_t i = 0; i < count; i++)
        IS(join.layers[i], 5 * i);
}

static void adopt(uint32_t count)
{
    RANDOM(adopt.epoch);
    RANDOM(adopt.kv_blocks);
    RANDOM(adopt.sequences);
    RANDOM(adopt.context_max);
    RANDOM(adopt.steps);
    RANDOM(adopt.step_tokens_max);
    RANDOM(adopt.prefill_tokens_max);
    RANDOM(adopt.decode_tokens_max);
    RANDOM(adopt.credits);
    RANDOM(adopt.heartbeat_ms);
    RANDOM(adopt.silence_ms);
    RANDOM(adopt.stall_ms);
    sent.u.adopt.bucket_count = count;
    for (uint32_t i = 0; i < count; i++)
        IS(adopt.buckets[i], 1 + 2 * i);
}

/* Three microbatches over the entries 0..2, 3 and 4..5. */
static void plan_arrays(void)
{
    static const uint32_t counts[MICROBATCHES] = {3, 1, 2};
    uint32_t first = 0;
    for (uint32_t i = 0; i < ENTRIES; i++)
        plan.entries[i].tokens = 2 + (uint32_t)frame_random(&frame) % 100;
    for (uint32_t i = 0; i < MICROBATCHES; i++) {
        struct mla_plan_microbatch *microbatch = &plan.microbatches[i];
        uint32_t rows = 0;
        for (uint32_t k = first; k < first + counts[i]; k++)
            rows += plan.entries[k].tokens;
        PUT(&frame, microbatch->kind, i == 0 ? MLA_DECODE : MLA_PREFILL);
        PUT(&frame, microbatch->rows, rows);
        PUT(&frame, microbatch->padded, rows + i);
        PUT(&frame, microbatch->entry_first, first);
        PUT(&frame, microbatch->entry_count, counts[i]);
        first += counts[i];
    }
    for (uint32_t i = 0; i < ENTRIES; i++) {
        PUT_RANDOM(&frame, plan.entries[i].table);
        PUT_RANDOM(&frame, plan.entries[i].start);
        PUT(&frame, plan.entries[i].tokens, plan.entries[i].tokens);
    }
    for (uint32_t i = 0; i < TABLES; i++) {
        PUT_RANDOM(&frame, plan.tables[i].table);
        PUT_RANDOM(&frame, plan.tables[i].first);
        PUT(&frame, plan.tables[i].count, i + 1);
    }
    for (uint32_t i = 0; i < COPIES; i++) {
        PUT_RANDOM(&frame, plan.copies[i].src);
        PUT_RANDOM(&frame, plan.copies[i].dst);
    }
    for (uint32_t i = 0; i < BLOCKS; i++)
        PUT_RANDOM(&frame, plan.blocks[i]);
}

/* The microbatches are two runs, one, and two, somewhere among 10000 rows of the client. */
static void plan_runs(void)
{
    static const uint32_t counts[MICROBATCHES] = {2, 1, 2};
    uint32_t k = 0;
    for (uint32_t i = 0; i < MICROBATCHES; i++) {
        uint32_t rows = plan.microbatches[i].rows;
        uint32_t at = 0;
        for (uint32_t left = counts[i]; left > 0; left--, k++) {
            uint32_t count = left > 1 ? 1 : rows - at;
            PUT(&frame, plan.runs[k].microbatch_row, at);
            PUT(&frame, plan.runs[k].client_row, (uint32_t)frame_random(&frame) % 9000);
            PUT(&frame, plan.runs[k].count, count);
            at += count;
        }
    }
}

static void plan_message(void)
{
    RANDOM(plan.step);
    RANDOM(plan.slot);
    IS(plan.microbatch_count, MICROBATCHES);
    IS(plan.entry_count, ENTRIES);
    IS(plan.table_count, TABLES);
    IS(plan.copy_count, COPIES);
    IS(plan.block_count, BLOCKS);
    IS(plan.run_count, RUNS);
    IS(plan.rows, 10000);
    sent.u.plan.microbatches = plan.microbatches;
    sent.u.plan.entries = plan.entries;
    sent.u.plan.tables = plan.tables;
    sent.u.plan.copies = plan.copies;
    sent.u.plan.blocks = plan.blocks;
    sent.u.plan.runs = plan.runs;
    plan_arrays();
    plan_runs();
}

static void work(bool shared)
{
    RANDOM(work.step);
    RANDOM(work.work);
    RANDOM(work.slot);
    RANDOM(work.layer);
    RANDOM(work.microbatch);
    IS(work.dtype, MLA_BF16);
    IS(work.reply_dtype, MLA_F32);
    RANDOM(work.rows);
    IS(work.region, shared ? frame_random(&frame) | 1 : 0);
    IS(work.input_at, shared ? frame_random(&frame) << 4 : 0);
    IS(work.output_at, shared ? frame_random(&frame) << 4 : 0);
}

static uint32_t attach(uint32_t count)
{
    count = count < MLA_REGION_PATH_BYTES_MAX ? count : MLA_REGION_PATH_BYTES_MAX;
    RANDOM(attach.region);
    RANDOM(attach.bytes);
    for (uint32_t i = 0; i < MLA_REGION_TOKEN_BYTES; i++)
        RANDOM(attach.token[i]);
    sent.u.attach.path_bytes = count;
    for (uint32_t i = 0; i < count; i++)
        IS(attach.path[i], (char)('a' + i % 26));
    return count;
}

static void done(void)
{
    RANDOM(done.step);
    RANDOM(done.work);
    RANDOM(done.rank);
    RANDOM(done.rows);
    RANDOM(done.dtype);
    RANDOM(done.compute_ns);
    RANDOM(done.collective_ns);
}

/* Returns the count of the header. `shared`: rows in shared memory. */
static uint32_t build_body(uint16_t type, uint32_t count, bool shared)
{
    switch (type) {
    case MLA_JOIN:
        join(count);
        return count;
    case MLA_ADOPT:
        adopt(count % 33);
        return count % 33;
    case MLA_READY:
        RANDOM(ready.group);
        RANDOM(ready.rank);
        RANDOM(ready.kv_blocks);
        return 0;
    case MLA_PLAN:
        plan_message();
        return 0;
    case MLA_WORK:
        work(shared);
        return 0;
    case MLA_DONE:
        done();
        return 0;
    case MLA_HEARTBEAT:
        RANDOM(heartbeat.group);
        RANDOM(heartbeat.rank);
        RANDOM(heartbeat.progress);
        return 0;
    case MLA_FAILED:
        RANDOM(failed.group);
        RANDOM(failed.rank);
        RANDOM(failed.status);
        return 0;
    case MLA_ATTACH:
        return attach(count);
    case MLA_ATTACHED:
        RANDOM(attached.region);
        RANDOM(attached.status);
        return 0;
    case MLA_DETACH:
        RANDOM(detach.region);
        return 0;
    case MLA_DISMISS:
        RANDOM(dismiss.status);
        return 0;
    default:
        return 0;
    }
}

static void build(uint16_t type, uint32_t count)
{
    bool shared = type == MLA_WORK && count % 2 == 0;
    bool payload = (type == MLA_WORK && !shared) || type == MLA_DONE;
    memset(&sent, 0, sizeof sent);
    sent.header = (struct mla_header){.type = type,
                                      .request_id = frame_random(&frame),
                                      .epoch = frame_random(&frame),
                                      .payload_bytes = payload ? frame_random(&frame) >> 34 : 0};
    frame_begin(&frame, &sent.header);
    frame_finish(&frame, build_body(type, count, shared));
}

static enum mla_status decode(size_t bytes)
{
    free(received);
    received = frame_exact(&frame, bytes);
    memset(&got, 0, sizeof got);
    return mla_worker_message_decode(received, bytes, &got);
}

/* What decodes has one spelling: encoding it again gives the same bytes. */
static void check_canonical(void)
{
    size_t bytes = 0;
    again = got;
    cr_assert_eq(mla_worker_message_encode(&again, encoded, sizeof encoded, &bytes), MLA_OK);
    cr_assert_eq(bytes, frame.bytes);
    cr_assert_arr_eq(encoded, frame.data, bytes, "type %u", got.header.type);
}

static void check_round_trip(void)
{
    size_t bytes = 0;
    cr_assert_eq(mla_worker_message_encode(&sent, encoded, sizeof encoded, &bytes), MLA_OK);
    cr_assert_eq(bytes, frame.bytes, "type %u", sent.header.type);
    cr_assert_arr_eq(encoded, frame.data, bytes, "type %u", sent.header.type);
    cr_assert_eq(decode(frame.bytes), MLA_OK, "type %u", sent.header.type);
    check_canonical();
}

static void forget(void)
{
    free(received);
    received = NULL;
}

TestSuite(worker_message, .fini = forget);

Test(worker_message, round_trip)
{
    const uint32_t counts[] = {0, 1, 2, 32, MLA_LAYERS_MAX};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        EACH_TYPE
        {
            build(*type, counts[i]);
            cr_assert(*type == MLA_PLAN || frame.bytes <= MLA_WORKER_MESSAGE_BYTES_MAX);
            check_round_trip();
        }
    }
}

Test(worker_message, plan_arrays_are_found_at_odd_addresses)
{
    build(MLA_PLAN, 0);
    cr_assert_eq(mla_plan_message_bytes(&sent.u.plan), frame.bytes);
    uint8_t *odd = malloc(frame.bytes + 1);
    cr_assert_not_null(odd);
    memcpy(odd + 1, frame.data, frame.bytes);
    cr_assert_eq(mla_worker_message_decode(odd + 1, frame.bytes, &got), MLA_OK);
    for (uint32_t i = 0; i < MICROBATCHES; i++) {
        struct mla_plan_microbatch microbatch = mla_plan_microbatch_at(&got.u.plan, i);
        cr_assert_eq(memcmp(&microbatch, &plan.microbatches[i], sizeof microbatch), 0);
    }
    for (uint32_t i = 0; i < ENTRIES; i++) {
        struct mla_plan_entry entry = mla_plan_entry_at(&got.u.plan, i);
        cr_assert_eq(memcmp(&entry, &plan.entries[i], sizeof entry), 0);
    }
    for (uint32_t i = 0; i < TABLES; i++) {
        struct mla_plan_table table = mla_plan_table_at(&got.u.plan, i);
        cr_assert_eq(memcmp(&table, &plan.tables[i], sizeof table), 0);
    }
    for (uint32_t i = 0; i < COPIES; i++) {
        struct mla_plan_copy copy = mla_plan_copy_at(&got.u.plan, i);
        cr_assert_eq(memcmp(&copy, &plan.copies[i], sizeof copy), 0);
    }
    for (uint32_t i = 0; i < BLOCKS; i++)
        cr_assert_eq(mla_plan_block_at(&got.u.plan, i), plan.blocks[i]);
    for (uint32_t i = 0; i < RUNS; i++) {
        struct mla_plan_run run = mla_plan_run_at(&got.u.plan, i);
        cr_assert_eq(memcmp(&run, &plan.runs[i], sizeof run), 0);
    }
    free(odd);
}

Test(worker_message, empty_plan)
{
    memset(&sent, 0, sizeof sent);
    sent.header.type = MLA_PLAN;
    frame_begin(&frame, &sent.header);
    frame_put(&frame, 0, 8);
    for (int i = 0; i < 8; i++)
        frame_put(&frame, 0, 4);
    frame_finish(&frame, 0);
    check_round_trip();
}

Test(worker_message, every_length_but_the_right_one_is_refused)
{
    EACH_TYPE
    {
        build(*type, 9);
        for (size_t bytes = 0; bytes < frame.bytes; bytes++)
            cr_assert_eq(decode(bytes), MLA_MALFORMED, "type %u, %zu bytes", *type, bytes);
        /* bodies that are as long as the header says, but not as long as their counts say */
        size_t full = frame.bytes;
        for (size_t bytes = MLA_HEADER_BYTES; bytes <= full + 1; bytes++) {
            frame_set(&frame, BODY_AT, bytes - MLA_HEADER_BYTES, 4);
            cr_assert_eq(decode(bytes) == MLA_OK, bytes == full, "type %u, %zu", *type, bytes);
        }
    }
}

Test(worker_message, every_corruption_is_refused_or_means_what_it_says)
{
    EACH_TYPE
    {
        build(*type, 9);
        for (size_t at = 0; at < frame.bytes; at++) {
            for (int bits = 1; bits < 256; bits += at < MLA_HEADER_BYTES + 32 ? 1 : 7) {
                frame.data[at] ^= (uint8_t)bits;
                if (decode(frame.bytes) == MLA_OK)
                    check_canonical();
                frame.data[at] ^= (uint8_t)bits;
            }
        }
    }
}

Test(worker_message, unused_header_fields_are_zero)
{
    EACH_TYPE
    {
        build(*type, 3);
        frame_set(&frame, INDEX_AT, 1, 4);
        cr_assert_eq(decode(frame.bytes), MLA_MALFORMED, "type %u, index", *type);
        frame_set(&frame, INDEX_AT, 0, 4);
        frame_set(&frame, STATUS_AT, 1, 4);
        cr_assert_eq(decode(frame.bytes), MLA_MALFORMED, "type %u, status", *type);
        frame_set(&frame, STATUS_AT, 0, 4);
        frame_set(&frame, PAYLOAD_AT, 4, 8);
        bool payload = *type == MLA_WORK || *type == MLA_DONE; /* 3: WORK without a region */
        cr_assert_eq(decode(frame.bytes), payload ? MLA_OK : MLA_MALFORMED, "type %u", *type);
    }
}

Test(worker_message, other_types_are_refused)
{
    for (uint32_t type = 0; type <= UINT16_MAX; type++) {
        if (type >= MLA_JOIN && type <= MLA_DISMISS)
            continue;
        build(MLA_SHUTDOWN, 0);
        frame_set(&frame, 6, type, 2);
        cr_assert_eq(decode(frame.bytes), MLA_TYPE, "type %u", type);
    }
}

Test(worker_message, counts_over_their_limit)
{
    static const uint32_t limits[] = {
        MLA_STEP_MICROBATCHES_MAX, MLA_STEP_SEQUENCES_MAX + MLA_STEP_MICROBATCHES_MAX,
        MLA_STEP_SEQUENCES_MAX,    MLA_STEP_SEQUENCES_MAX,
        MLA_PLAN_BLOCKS_MAX,       MLA_STEP_SEQUENCES_MAX + MLA_STEP_MICROBATCHES_MAX};
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
        const uint32_t counts[] = {limits[i] + 1, 0x0ccccccd, 0x40000000, UINT32_MAX};
        for (size_t k = 0; k < 4; k++) {
            build(MLA_PLAN, 0);
            frame_set(&frame, MLA_HEADER_BYTES + 12 + 4 * i, counts[k], 4);
            cr_assert_eq(decode(frame.bytes), MLA_LIMIT, "array %zu, %u", i, counts[k]);
        }
        size_t bytes = 4711;
        build(MLA_PLAN, 0);
        (&sent.u.plan.microbatch_count)[i] = limits[i] + 1;
        cr_assert_eq(mla_worker_message_encode(&sent, encoded, sizeof encoded, &bytes), MLA_LIMIT);
        cr_assert_eq(bytes, 4711);
    }
    build(MLA_JOIN, 4);
    frame_set(&frame, COUNT_AT, MLA_LAYERS_MAX + 1, 4);
    cr_assert_eq(decode(frame.bytes), MLA_LIMIT);
    build(MLA_ADOPT, 4);
    frame_set(&frame, COUNT_AT, MLA_DECODE_BUCKETS_MAX + 1, 4);
    cr_assert_eq(decode(frame.bytes), MLA_LIMIT);
    build(MLA_ATTACH, 4);
    frame_set(&frame, COUNT_AT, MLA_REGION_PATH_BYTES_MAX + 1, 4);
    cr_assert_eq(decode(frame.bytes), MLA_LIMIT);
}

Test(worker_message, capacity)
{
    EACH_TYPE
    {
        size_t bytes = 4711;
        build(*type, 5);
        cr_assert_eq(mla_worker_message_encode(&sent, encoded, frame.bytes - 1, &bytes), MLA_LIMIT);
        cr_assert_eq(bytes, 4711);
        cr_assert_eq(mla_worker_message_encode(&sent, encoded, frame.bytes, &bytes), MLA_OK);
    }
}

/* Where the arrays of the plan stand. */
enum {
    MICROBATCH = MLA_HEADER_BYTES + 40,
    ENTRY = MICROBATCH + MICROBATCHES * 20,
    TABLE = ENTRY + ENTRIES * 12,
    RUN = TABLE + TABLES * 12 + COPIES * 8 + BLOCKS * 4,
};

Test(worker_message, plans_that_disagree_with_themselves)
{
    const struct {
        size_t at;
        uint32_t value, index;
    } wrong[] = {
        {MICROBATCH + 0, 0, 0},                  /* kind */
        {MICROBATCH + 20, 3, 1},                 /* kind */
        {MICROBATCH + 4, 0, 0},                  /* rows are not the tokens' sum */
        {MICROBATCH + 28, 0, 1},                 /* padded < rows */
        {MICROBATCH + 12, 1, 0},                 /* entry_first: a gap before */
        {MICROBATCH + 32, 2, 1},                 /* an overlap */
        {MICROBATCH + 56, 1, 2},                 /* entry_count: one is left over */
        {MICROBATCH + 56, 3, 2},                 /* one too many */
        {MICROBATCH + 16, UINT32_MAX, 0},        /* far too many */
        {MICROBATCH + 36, 0, 1},                 /* none */
        {ENTRY + 8, 0, 0},                       /* tokens */
        {ENTRY + 8, UINT32_MAX, 0},              /* tokens whose sum wraps */
        {TABLE + 8, 2, MLA_INDEX_NONE},          /* blocks are not the tables' sum */
        {TABLE + 8, UINT32_MAX, MLA_INDEX_NONE}, /* a sum that wraps */
        {RUN + 0, 1, 0},                         /* a run's row: a gap before */
        {RUN + 12, 0, 0},                        /* twice the same row */
        {RUN + 8, 0, 0},                         /* an empty run */
        {RUN + 20, UINT32_MAX, 0},               /* more rows than the microbatch has */
        {RUN + 20, 1, 0},                        /* fewer */
        {RUN + 4, 10000, 0},                     /* behind the client's last row */
        {RUN + 28, UINT32_MAX, 1},               /* far behind */
        {RUN + 56, 1, 2},                        /* the last one does not reach the end */
        {MLA_HEADER_BYTES + 36, 5, 0},           /* the client has not so many rows */
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        build(MLA_PLAN, 0);
        frame_set(&frame, wrong[i].at, wrong[i].value, 4);
        cr_assert_eq(decode(frame.bytes), MLA_FIELD, "case %zu", i);
        cr_assert_eq(got.header.index, wrong[i].index, "case %zu", i);
    }
}

static void set(size_t at, uint32_t value)
{
    frame_set(&frame, at, value, 4);
}

static void check_refused(uint32_t index)
{
    cr_assert_eq(decode(frame.bytes), MLA_FIELD);
    cr_assert_eq(got.header.index, index);
}

Test(worker_message, plans_that_are_wrong_though_their_sums_fit)
{
    build(MLA_PLAN, 0); /* microbatch 1 has nothing, its entry is the next one's */
    set(MICROBATCH + 24, 0);
    set(MICROBATCH + 36, 0);
    set(MICROBATCH + 44, plan.microbatches[1].rows + plan.microbatches[2].rows);
    set(MICROBATCH + 48, UINT32_MAX);
    set(MICROBATCH + 52, 3);
    set(MICROBATCH + 56, 3);
    check_refused(1);

    build(MLA_PLAN, 0); /* an entry without tokens */
    set(ENTRY + 20, 0);
    set(MICROBATCH + 4, plan.microbatches[0].rows - plan.entries[1].tokens);
    check_refused(0);

    build(MLA_PLAN, 0); /* the same sum modulo 2^32 */
    set(ENTRY + 8, UINT32_MAX);
    set(ENTRY + 20, plan.entries[0].tokens + plan.entries[1].tokens + 1);
    check_refused(0);

    build(MLA_PLAN, 0); /* nobody has the last entry */
    set(MICROBATCH + 44, plan.entries[4].tokens);
    set(MICROBATCH + 56, 1);
    check_refused(MLA_INDEX_NONE);

    build(MLA_PLAN, 0); /* blocks: the same sum modulo 2^32 */
    set(TABLE + 8, UINT32_MAX);
    set(TABLE + 20, plan.tables[0].count + plan.tables[1].count + 1);
    check_refused(MLA_INDEX_NONE);
}

Test(worker_message, fields_outside_their_values)
{
    for (uint32_t dtype = 0; dtype < 5; dtype++) {
        bool known = dtype == MLA_F32 || dtype == MLA_BF16;
        for (size_t at = 28; at <= 32; at += 4) {
            build(MLA_WORK, 0);
            frame_set(&frame, MLA_HEADER_BYTES + at, dtype, 4);
            cr_assert_eq(decode(frame.bytes), known ? MLA_OK : MLA_FIELD);
        }
    }
    build(MLA_WORK, 2); /* in a region */
    frame_set(&frame, PAYLOAD_AT, 64, 8);
    cr_assert_eq(decode(frame.bytes), MLA_MALFORMED, "a payload as well");
    for (size_t at = 48; at <= 56; at += 8) {
        build(MLA_WORK, 2);
        frame_set(&frame, MLA_HEADER_BYTES + at, 8, 8);
        cr_assert_eq(decode(frame.bytes), MLA_FIELD, "not aligned");
        build(MLA_WORK, 1);
        frame_set(&frame, MLA_HEADER_BYTES + at, 16, 8);
        cr_assert_eq(decode(frame.bytes), MLA_FIELD, "a place without a region");
    }
    static const struct {
        size_t at;
        uint64_t value;
        size_t bytes;
    } joins[] = {{12, MLA_RANKS_MAX, 4}, {16, 0, 4}, {16, MLA_RANKS_MAX + 1, 4}, {60, 0, 8}};
    for (size_t i = 0; i < sizeof joins / sizeof *joins; i++) {
        build(MLA_JOIN, 3);
        frame_set(&frame, MLA_HEADER_BYTES + joins[i].at, joins[i].value, joins[i].bytes);
        cr_assert_eq(decode(frame.bytes), MLA_FIELD, "case %zu", i);
    }
    static const uint16_t ascending[] = {MLA_JOIN, MLA_ADOPT};
    for (size_t i = 0; i < 2; i++) {
        build(ascending[i], 6);
        frame_set(&frame, frame.bytes - 8, 4711, 4);
        cr_assert_eq(decode(frame.bytes), MLA_FIELD);
        cr_assert_eq(got.header.index, 5);
    }
}
