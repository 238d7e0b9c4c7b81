#include "tests/unit/frames.h"

#include <criterion/criterion.h>
#include <stdio.h>

static struct mla_message sent, got, again;
static struct frame frame;
static uint8_t encoded[MLA_MESSAGE_BYTES_MAX];

#define RANDOM(field)    PUT_RANDOM(&frame, sent.u.field)
#define IS(field, value) PUT(&frame, sent.u.field, value)

static void set_count(uint16_t type, uint32_t count)
{
    if (type == MLA_OPEN)
        sent.u.open.count = count;
    else if (type == MLA_FORK)
        sent.u.fork.count = count;
    else if (type == MLA_TRUNCATE)
        sent.u.truncate.count = count;
    else if (type == MLA_FREE)
        sent.u.free.count = count;
    else if (type == MLA_RUN)
        sent.u.run.place_count = count;
    else if (type == (MLA_SHARE | MLA_REPLY))
        sent.u.share_reply.path_bytes = count;
    else
        sent.u.hello_reply.layer_count = count;
}

static void dims(void)
{
    RANDOM(hello_reply.dims.hidden);
    RANDOM(hello_reply.dims.heads);
    RANDOM(hello_reply.dims.q_lora);
    RANDOM(hello_reply.dims.latent);
    RANDOM(hello_reply.dims.nope);
    RANDOM(hello_reply.dims.rope);
    RANDOM(hello_reply.dims.v);
}

static void hello_reply(uint32_t count)
{
    RANDOM(hello_reply.version);
    RANDOM(hello_reply.payload_modes);
    dims();
    RANDOM(hello_reply.groups);
    RANDOM(hello_reply.ranks);
    RANDOM(hello_reply.block_tokens);
    RANDOM(hello_reply.blocks_total);
    RANDOM(hello_reply.blocks_free);
    RANDOM(hello_reply.context_max);
    RANDOM(hello_reply.step_tokens_max);
    RANDOM(hello_reply.step_sequences_max);
    RANDOM(hello_reply.steps_open_max);
    RANDOM(hello_reply.runs_queued_max);
    RANDOM(hello_reply.decode_tokens_max);
    RANDOM(hello_reply.prefill_tokens_max);
    RANDOM(hello_reply.decode_rows_max);
    set_count(MLA_HELLO | MLA_REPLY, count);
    for (uint32_t i = 0; i < count; i++)
        IS(hello_reply.layers[i], 3 * i);
}

static void open_request(uint32_t count)
{
    RANDOM(open.step);
    set_count(MLA_OPEN, count);
    for (uint32_t i = 0; i < count; i++) {
        RANDOM(open.entries[i].sequence);
        RANDOM(open.entries[i].start);
        RANDOM(open.entries[i].tokens);
    }
}

static void open_reply(void)
{
    RANDOM(open_reply.step);
    RANDOM(open_reply.decode_rows);
    RANDOM(open_reply.prefill_rows);
    RANDOM(open_reply.microbatches);
    RANDOM(open_reply.blocks_free);
}

static void run_request(uint32_t places)
{
    RANDOM(run.step);
    RANDOM(run.layer);
    RANDOM(run.dtype);
    RANDOM(run.reply_dtype);
    RANDOM(run.rows);
    RANDOM(run.hidden);
    set_count(MLA_RUN, places);
    for (uint32_t i = 0; i < places; i++) {
        RANDOM(run.places[i].region);
        RANDOM(run.places[i].input_at);
        RANDOM(run.places[i].output_at);
    }
}

static void share_reply(uint32_t count)
{
    RANDOM(share_reply.region);
    RANDOM(share_reply.bytes);
    for (uint32_t i = 0; i < MLA_REGION_TOKEN_BYTES; i++)
        RANDOM(share_reply.token[i]);
    set_count(MLA_SHARE | MLA_REPLY, count);
    for (uint32_t i = 0; i < count; i++)
        IS(share_reply.path[i], (char)('/' + i % 60));
}

static void run_reply(void)
{
    RANDOM(run_reply.step);
    RANDOM(run_reply.layer);
    RANDOM(run_reply.dtype);
    RANDOM(run_reply.rows);
    RANDOM(run_reply.hidden);
    RANDOM(run_reply.times.received_ns);
    RANDOM(run_reply.times.replied_ns);
    RANDOM(run_reply.times.queued_ns);
    RANDOM(run_reply.times.compute_ns);
    RANDOM(run_reply.times.collective_ns);
    RANDOM(run_reply.times.gathered_ns);
}

static void stats_reply(void)
{
    RANDOM(stats_reply.requests);
    RANDOM(stats_reply.errors);
    RANDOM(stats_reply.runs);
    RANDOM(stats_reply.rows_decode);
    RANDOM(stats_reply.rows_prefill);
    RANDOM(stats_reply.microbatches);
    RANDOM(stats_reply.bytes_in);
    RANDOM(stats_reply.bytes_out);
    RANDOM(stats_reply.bytes_copied);
    RANDOM(stats_reply.groups_ready);
    RANDOM(stats_reply.clients);
    RANDOM(stats_reply.steps_open);
    RANDOM(stats_reply.runs_in_flight);
    RANDOM(stats_reply.sequences);
    RANDOM(stats_reply.blocks_total);
    RANDOM(stats_reply.blocks_used);
    RANDOM(stats_reply.blocks_free);
    RANDOM(stats_reply.heap_bytes);
}

static void entries(uint16_t type, uint32_t count)
{
    set_count(type, count);
    for (uint32_t i = 0; i < count; i++) {
        if (type == MLA_FORK) {
            RANDOM(fork.entries[i].parent);
            RANDOM(fork.entries[i].child);
            RANDOM(fork.entries[i].length);
        } else if (type == MLA_TRUNCATE) {
            RANDOM(truncate.entries[i].sequence);
            RANDOM(truncate.entries[i].length);
        } else {
            RANDOM(free.sequences[i]);
        }
    }
}

/* Returns the count of entries that the type has. */
static uint32_t build_body(uint16_t type, uint32_t count)
{
    switch (type) {
    case MLA_HELLO:
        RANDOM(hello.version_min);
        RANDOM(hello.version_max);
        return 0;
    case MLA_HELLO | MLA_REPLY:
        hello_reply(count % 257);
        return count % 257;
    case MLA_OPEN:
        open_request(count);
        return count;
    case MLA_OPEN | MLA_REPLY:
        open_reply();
        return 0;
    case MLA_RUN:
        run_request(count % 2);
        return count % 2;
    case MLA_RUN | MLA_REPLY:
        run_reply();
        return 0;
    case MLA_CLOSE:
        RANDOM(close.step);
        IS(close.action, 1 + count % 2);
        return 0;
    case MLA_CLOSE | MLA_REPLY:
        RANDOM(close_reply.step);
        RANDOM(close_reply.blocks_free);
        return 0;
    case MLA_FORK:
    case MLA_TRUNCATE:
    case MLA_FREE:
        entries(type, count);
        return count;
    case MLA_FORK | MLA_REPLY:
    case MLA_TRUNCATE | MLA_REPLY:
    case MLA_FREE | MLA_REPLY:
        RANDOM(blocks_reply.blocks_free);
        return 0;
    case MLA_STATS:
        return 0;
    case MLA_STATS | MLA_REPLY:
        stats_reply();
        return 0;
    case MLA_SHARE:
        RANDOM(share.bytes);
        return 0;
    case MLA_SHARE | MLA_REPLY:
        share_reply(count % 108);
        return count % 108;
    default:
        abort();
    }
}

/* A random message in `sent`, its bytes in `frame`. */
static void build(uint16_t type, uint32_t count)
{
    bool reply = (type & MLA_REPLY) != 0;
    bool payload = type == (MLA_RUN | MLA_REPLY) || (type == MLA_RUN && count % 2 == 0);
    memset(&sent, 0, sizeof sent);
    sent.header = (struct mla_header){.type = type,
                                      .request_id = frame_random(&frame),
                                      .epoch = reply ? frame_random(&frame) : 0,
                                      .payload_bytes = payload ? frame_random(&frame) >> 34 : 0};
    frame_begin(&frame, &sent.header);
    frame_finish(&frame, build_body(type, count));
}

static void build_error(uint16_t type, const char *sentence)
{
    memset(&sent, 0, sizeof sent);
    sent.header = (struct mla_header){
        .type = type, .request_id = frame_random(&frame), .status = MLA_KV_FULL, .index = 7};
    snprintf(sent.u.sentence, sizeof sent.u.sentence, "%s", sentence);
    frame_begin(&frame, &sent.header);
    for (size_t i = 0; sentence[i]; i++)
        frame_put(&frame, (uint8_t)sentence[i], 1);
    frame_finish(&frame, 0);
}

static enum mla_status decode(size_t bytes)
{
    uint8_t *exact = frame_exact(&frame, bytes);
    memset(&got, 0, sizeof got);
    enum mla_status status = mla_message_decode(exact, bytes, &got);
    free(exact);
    return status;
}

/* What decodes has one spelling: encoding it again gives the same bytes. */
static void check_canonical(void)
{
    size_t bytes = 0;
    again = got;
    cr_assert_eq(mla_message_encode(&again, encoded, sizeof encoded, &bytes), MLA_OK);
    cr_assert_eq(bytes, frame.bytes);
    cr_assert_arr_eq(encoded, frame.data, bytes, "type %u", got.header.type);
}

static void check_round_trip(void)
{
    size_t bytes = 0;
    cr_assert_eq(mla_message_encode(&sent, encoded, sizeof encoded, &bytes), MLA_OK);
    cr_assert_eq(bytes, frame.bytes, "type %u", sent.header.type);
    cr_assert_arr_eq(encoded, frame.data, bytes, "type %u", sent.header.type);
    cr_assert_eq(decode(frame.bytes), MLA_OK, "type %u", sent.header.type);
    check_canonical();
}

static const uint16_t types[] = {
    MLA_HELLO,    MLA_HELLO | MLA_REPLY,    MLA_OPEN,  MLA_OPEN | MLA_REPLY,
    MLA_RUN,      MLA_RUN | MLA_REPLY,      MLA_CLOSE, MLA_CLOSE | MLA_REPLY,
    MLA_FORK,     MLA_FORK | MLA_REPLY,     MLA_FREE,  MLA_FREE | MLA_REPLY,
    MLA_TRUNCATE, MLA_TRUNCATE | MLA_REPLY, MLA_STATS, MLA_STATS | MLA_REPLY,
    MLA_SHARE,    MLA_SHARE | MLA_REPLY,
};

#define EACH_TYPE                                                                                  \
    for (const uint16_t *type = types; type < types + sizeof types / sizeof *types; type++)

Test(message, round_trip)
{
    const uint32_t counts[] = {0, 1, 2, 17, 256, MLA_STEP_SEQUENCES_MAX};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        EACH_TYPE
        {
            build(*type, counts[i]);
            check_round_trip();
        }
    }
}

Test(message, error_round_trip)
{
    char longest[MLA_SENTENCE_BYTES_MAX];
    memset(longest, 'x', sizeof longest);
    longest[sizeof longest - 1] = 0;
    const char *sentences[] = {"", "3 blocks are free", "\xc3\xa9t\xc3\xa9", longest};
    for (size_t i = 0; i < sizeof sentences / sizeof *sentences; i++) {
        build_error(MLA_OPEN | MLA_REPLY, sentences[i]);
        check_round_trip();
        build_error(MLA_REPLY, sentences[i]); /* to a request whose type could not be read */
        check_round_trip();
    }
    frame_put(&frame, 'x', 1);
    frame_finish(&frame, 0);
    cr_assert_eq(decode(frame.bytes), MLA_LIMIT);
    build_error(MLA_OPEN | MLA_REPLY, "a sentence");
    frame_set(&frame, COUNT_AT, 1, 4);
    cr_assert_eq(decode(frame.bytes), MLA_MALFORMED);
    frame_set(&frame, COUNT_AT, 0, 4);
    frame.data[MLA_HEADER_BYTES + 3] = 0;
    cr_assert_eq(decode(frame.bytes), MLA_MALFORMED);
    frame.data[MLA_HEADER_BYTES + 3] = 'e';
    frame_set(&frame, STATUS_AT, MLA_MEMORY, 4); /* a code that does not travel */
    cr_assert_eq(decode(frame.bytes), MLA_FIELD);
}

/* The example of proto/README.md. */
Test(message, example)
{
    static const uint8_t open[] = {
        0x4d, 0x4c, 0x41, 0x31, 0x01, 0x00, 0x02, 0x00, 0x07, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
        0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
        0x00, 0x00, 0x02, 0x00, 0x00, 0x00, 0x28, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
        0x00, 0x00, 0x00, 0x64, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x0b, 0x00, 0x00, 0x00,
        0x00, 0x00, 0x00, 0x00, 0x80, 0x00, 0x00, 0x00, 0x01, 0x00, 0x00, 0x00, 0x0c, 0x00, 0x00,
        0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x2c, 0x01, 0x00, 0x00};
    size_t bytes = 0;
    sent = (struct mla_message){.header = {.type = MLA_OPEN, .request_id = 7},
                                .u.open = {.step = 100, .count = 2}};
    sent.u.open.entries[0] = (struct mla_open_entry){.sequence = 11, .start = 128, .tokens = 1};
    sent.u.open.entries[1] = (struct mla_open_entry){.sequence = 12, .start = 0, .tokens = 300};
    cr_assert_eq(mla_message_encode(&sent, encoded, sizeof encoded, &bytes), MLA_OK);
    cr_assert_eq(bytes, sizeof open);
    cr_assert_arr_eq(encoded, open, sizeof open);
}

Test(message, every_length_but_the_right_one_is_refused)
{
    EACH_TYPE
    {
        build(*type, 9);
        for (size_t bytes = 0; bytes < frame.bytes; bytes++)
            cr_assert_eq(decode(bytes), MLA_MALFORMED, "type %u, %zu bytes", *type, bytes);
        frame_put(&frame, 0, 1);
        cr_assert_eq(decode(frame.bytes), MLA_MALFORMED, "type %u, a byte more", *type);
        frame_finish(&frame, 0); /* the body's length is right, but not for its entries */
        cr_assert_neq(decode(frame.bytes), MLA_OK, "type %u, a longer body", *type);
    }
}

Test(message, every_corruption_is_refused_or_means_what_it_says)
{
    EACH_TYPE
    {
        build(*type, 9);
        for (size_t at = 0; at < frame.bytes; at++) {
            for (int bits = 1; bits < 256; bits += at < MLA_HEADER_BYTES ? 1 : 37) {
                frame.data[at] ^= (uint8_t)bits;
                if (decode(frame.bytes) == MLA_OK)
                    check_canonical();
                frame.data[at] ^= (uint8_t)bits;
            }
        }
    }
}

static bool has_entries(uint16_t type)
{
    return type == MLA_OPEN || type == MLA_FORK || type == MLA_TRUNCATE || type == MLA_FREE ||
           type == MLA_RUN || type == (MLA_HELLO | MLA_REPLY) || type == (MLA_SHARE | MLA_REPLY);
}

Test(message, unused_header_fields_are_zero)
{
    EACH_TYPE
    {
        bool reply = (*type & MLA_REPLY) != 0;
        build(*type, 3);
        frame_set(&frame, INDEX_AT, 1, 4);
        cr_assert_eq(decode(frame.bytes), MLA_MALFORMED, "type %u, index", *type);
        frame_set(&frame, INDEX_AT, 0, 4);
        frame_set(&frame, STATUS_AT, MLA_BUSY, 4);
        if (!reply)
            cr_assert_eq(decode(frame.bytes), MLA_MALFORMED, "type %u, status", *type);
        frame_set(&frame, STATUS_AT, 0, 4);
        frame_set(&frame, 16, 5, 8);
        cr_assert_eq(decode(frame.bytes), reply ? MLA_OK : MLA_MALFORMED, "type %u, epoch", *type);
        build(*type, 3);
        if (!has_entries(*type)) {
            frame_set(&frame, COUNT_AT, 1, 4);
            cr_assert_eq(decode(frame.bytes), MLA_MALFORMED, "type %u, count", *type);
            frame_set(&frame, COUNT_AT, 0, 4);
        }
        if (sent.header.payload_bytes)
            continue;
        frame_set(&frame, PAYLOAD_AT, 4, 8);
        cr_assert_eq(decode(frame.bytes), MLA_MALFORMED, "type %u, payload", *type);
    }
}

Test(message, header_says_what_could_be_read)
{
    build(MLA_OPEN, 2);
    cr_assert_eq(decode(MLA_HEADER_BYTES - 1), MLA_MALFORMED);
    cr_assert_eq(got.header.type, 0);
    cr_assert_eq(got.header.request_id, 0);
    cr_assert_eq(got.header.index, MLA_INDEX_NONE);

    frame_set(&frame, 4, 2, 2);
    cr_assert_eq(decode(frame.bytes), MLA_VERSION);
    cr_assert_eq(got.header.type, MLA_OPEN);
    cr_assert_eq(got.header.request_id, sent.header.request_id);

    build(MLA_OPEN, 2);
    frame_set(&frame, 6, 99, 2);
    cr_assert_eq(decode(frame.bytes), MLA_TYPE);
    cr_assert_eq(got.header.type, 99);
    cr_assert_eq(got.header.request_id, sent.header.request_id);

    frame_set(&frame, 0, 0, 4);
    cr_assert_eq(decode(frame.bytes), MLA_MALFORMED);
    cr_assert_eq(got.header.type, 0);
    cr_assert_eq(got.header.request_id, 0);
}

Test(message, counts_over_their_limit)
{
    static const struct {
        uint16_t type;
        uint32_t limit;
    } counted[] = {{MLA_OPEN, MLA_STEP_SEQUENCES_MAX},
                   {MLA_FORK, MLA_STEP_SEQUENCES_MAX},
                   {MLA_TRUNCATE, MLA_STEP_SEQUENCES_MAX},
                   {MLA_FREE, MLA_STEP_SEQUENCES_MAX},
                   {MLA_RUN, 1},
                   {MLA_HELLO | MLA_REPLY, MLA_LAYERS_MAX},
                   {MLA_SHARE | MLA_REPLY, MLA_REGION_PATH_BYTES_MAX}};
    for (size_t i = 0; i < sizeof counted / sizeof *counted; i++) {
        uint16_t type = counted[i].type;
        uint32_t limit = counted[i].limit;
        size_t bytes = 4711;
        build(type, limit);
        const uint32_t counts[] = {limit + 1, 0x20000000, 0x80000000, UINT32_MAX};
        for (size_t k = 0; k < 4; k++) {
            frame_set(&frame, COUNT_AT, counts[k], 4);
            cr_assert_eq(decode(frame.bytes), MLA_LIMIT, "type %u, %u", type, counts[k]);
        }
        set_count(type, limit + 1);
        cr_assert_eq(mla_message_encode(&sent, encoded, sizeof encoded, &bytes), MLA_LIMIT);
        cr_assert_eq(bytes, 4711);
    }
    build(MLA_RUN, 0);
    frame_set(&frame, PAYLOAD_AT, MLA_PAYLOAD_BYTES_MAX + 1, 8);
    cr_assert_eq(decode(frame.bytes), MLA_LIMIT);
    frame_set(&frame, PAYLOAD_AT, MLA_PAYLOAD_BYTES_MAX, 8);
    cr_assert_eq(decode(frame.bytes), MLA_OK);
}

Test(message, capacity)
{
    EACH_TYPE
    {
        size_t bytes = 4711;
        build(*type, 5);
        cr_assert_eq(mla_message_encode(&sent, encoded, frame.bytes - 1, &bytes), MLA_LIMIT);
        cr_assert_eq(bytes, 4711);
        cr_assert_eq(mla_message_encode(&sent, encoded, frame.bytes, &bytes), MLA_OK);
    }
    size_t bytes = 0;
    build_error(MLA_RUN | MLA_REPLY, "no");
    cr_assert_eq(mla_message_encode(&sent, encoded, MLA_HEADER_BYTES + 1, &bytes), MLA_LIMIT);
}

Test(message, fields_outside_their_values)
{
    build(MLA_CLOSE, 0);
    for (uint32_t action = 0; action < 4; action++) {
        frame_set(&frame, MLA_HEADER_BYTES + 8, action, 4);
        bool known = action == MLA_COMMIT || action == MLA_ABORT;
        cr_assert_eq(decode(frame.bytes), known ? MLA_OK : MLA_FIELD);
    }
    build(MLA_HELLO | MLA_REPLY, 8);
    frame_set(&frame, frame.bytes - 4, sent.u.hello_reply.layers[6], 4);
    cr_assert_eq(decode(frame.bytes), MLA_FIELD);
    cr_assert_eq(got.header.index, 7);
}

Test(status, names_and_exit_codes)
{
    cr_assert_str_eq(mla_status_name(MLA_OK), "OK");
    cr_assert_str_eq(mla_status_name(MLA_KV_FULL), "KV_FULL");
    cr_assert_str_eq(mla_status_name(MLA_AGAIN), "AGAIN");
    cr_assert_str_eq(mla_status_name((enum mla_status)9), "UNKNOWN");
    cr_assert_str_eq(mla_status_name((enum mla_status)4711), "UNKNOWN");
    cr_assert_str_eq(mla_status_name((enum mla_status) - 1), "UNKNOWN");
    for (int code = -2; code < 130; code++)
        cr_assert_gt(strlen(mla_status_sentence((enum mla_status)code)), 5, "%d", code);
    cr_assert_eq(mla_status_exit_code(MLA_OK), 0);
    cr_assert_eq(mla_status_exit_code(MLA_OPTION), 2);
    cr_assert_eq(mla_status_exit_code(MLA_CONFIG), 3);
    cr_assert_eq(mla_status_exit_code(MLA_CHECKPOINT), 4);
    cr_assert_eq(mla_status_exit_code(MLA_ENDPOINT), 5);
    cr_assert_eq(mla_status_exit_code(MLA_MEMORY), 6);
    cr_assert_eq(mla_status_exit_code(MLA_TIMEOUT), 7);
    cr_assert_eq(mla_status_exit_code(MLA_CLOSED), 7);
    cr_assert_eq(mla_status_exit_code(MLA_GROUP_LOST), 8);
    cr_assert_eq(mla_status_exit_code(MLA_DEADLINE), 8);
    cr_assert_eq(mla_status_exit_code(MLA_COLLECTIVE), 1);
}
