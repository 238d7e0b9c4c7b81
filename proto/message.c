#include "proto/wire.h"

#include <assert.h>
#include <string.h>

#define SPAN    MLA_WIRE_SPAN
#define ENTRIES MLA_WIRE_ENTRIES

enum { TYPE_LAST = MLA_SHARE };

/* Types that are not named have no body: STATS. */
static const struct mla_wire_shape requests[TYPE_LAST + 1] = {
    [MLA_HELLO] = {.spans = {SPAN(mla_hello, version_min, version_max)}},
    [MLA_OPEN] = {.spans = {SPAN(mla_open, step, step)}, ENTRIES(mla_open, count, entries, 16)},
    [MLA_RUN] = {.spans = {SPAN(mla_run, step, hidden)},
                 ENTRIES(mla_run, place_count, places, 24),
                 .payload = true},
    [MLA_CLOSE] = {.spans = {SPAN(mla_close, step, action)}},
    [MLA_FORK] = {ENTRIES(mla_fork, count, entries, 20)},
    [MLA_TRUNCATE] = {ENTRIES(mla_truncate, count, entries, 12)},
    [MLA_FREE] = {ENTRIES(mla_free, count, sequences, 8)},
    [MLA_SHARE] = {.spans = {SPAN(mla_share_request, bytes, bytes)}},
};

static const struct mla_wire_shape replies[TYPE_LAST + 1] = {
    [MLA_HELLO] = {.spans = {SPAN(mla_hello_reply, version, decode_rows_max)},
                   ENTRIES(mla_hello_reply, layer_count, layers, 4)},
    [MLA_OPEN] = {.spans = {SPAN(mla_open_reply, step, blocks_free)}},
    [MLA_RUN] = {.spans = {SPAN(mla_run_reply, step, hidden),
                           SPAN(mla_run_reply, times, times.gathered_ns)},
                 .payload = true},
    [MLA_CLOSE] = {.spans = {SPAN(mla_close_reply, step, blocks_free)}},
    [MLA_FORK] = {.spans = {SPAN(mla_blocks_reply, blocks_free, blocks_free)}},
    [MLA_TRUNCATE] = {.spans = {SPAN(mla_blocks_reply, blocks_free, blocks_free)}},
    [MLA_FREE] = {.spans = {SPAN(mla_blocks_reply, blocks_free, blocks_free)}},
    [MLA_STATS] = {.spans = {SPAN(mla_stats, requests, heap_bytes)}},
    [MLA_SHARE] = {.spans = {SPAN(mla_grant, region, token)},
                   ENTRIES(mla_grant, path_bytes, path, 1)},
};

/* NULL for a type that is none. */
static const struct mla_wire_shape *shape_of(uint16_t type)
{
    const struct mla_wire_shape *shapes = type & MLA_REPLY ? replies : requests;
    type &= (uint16_t)~MLA_REPLY;
    return type >= MLA_HELLO && type <= TYPE_LAST ? &shapes[type] : NULL;
}

static enum mla_status encode_sentence(struct mla_message *message, uint8_t *frame, size_t capacity,
                                       size_t *bytes)
{
    size_t length = strnlen(message->u.sentence, MLA_SENTENCE_BYTES_MAX);
    assert((message->header.type & MLA_REPLY) && length < MLA_SENTENCE_BYTES_MAX);
    if (MLA_HEADER_BYTES + length > capacity)
        return MLA_LIMIT;
    message->header.count = 0;
    message->header.body_bytes = (uint32_t)length;
    mla_wire_put_header(&message->header, frame);
    memcpy(frame + MLA_HEADER_BYTES, message->u.sentence, length);
    *bytes = MLA_HEADER_BYTES + length;
    return MLA_OK;
}

enum mla_status mla_message_encode(struct mla_message *message, uint8_t *frame, size_t capacity,
                                   size_t *bytes)
{
    struct mla_header *header = &message->header;
    if (header->status != MLA_OK)
        return encode_sentence(message, frame, capacity, bytes);
    const struct mla_wire_shape *shape = shape_of(header->type);
    assert(shape && (shape->payload || header->payload_bytes == 0));
    header->index = 0;
    return mla_wire_encode(shape, header, &message->u, frame, capacity, bytes);
}

/* An error reply: to any type, also to one that is unknown here. */
static enum mla_status decode_sentence(const struct mla_header *header, const uint8_t *frame,
                                       char *out)
{
    if (header->count || header->payload_bytes)
        return MLA_MALFORMED;
    if (header->status >= MLA_SYSTEM) /* codes from there on don't travel */
        return MLA_FIELD;
    if (header->body_bytes >= MLA_SENTENCE_BYTES_MAX)
        return MLA_LIMIT;
    if (memchr(frame + MLA_HEADER_BYTES, 0, header->body_bytes))
        return MLA_MALFORMED;
    memcpy(out, frame + MLA_HEADER_BYTES, header->body_bytes);
    out[header->body_bytes] = 0;
    return MLA_OK;
}

/* *index: the offending entry of MLA_FIELD. */
static enum mla_status decode(const uint8_t *frame, size_t bytes, struct mla_message *out,
                              uint32_t *index)
{
    const struct mla_header *header = &out->header;
    enum mla_status status = mla_wire_get_header(frame, bytes, &out->header);
    if (status != MLA_OK)
        return status;
    bool reply = (header->type & MLA_REPLY) != 0;
    if (reply && header->status != MLA_OK)
        return decode_sentence(header, frame, out->u.sentence);
    const struct mla_wire_shape *shape = shape_of(header->type);
    if (!shape)
        return MLA_TYPE;
    if (header->status || header->index || (!reply && header->epoch))
        return MLA_MALFORMED;
    status = mla_wire_decode(shape, header, frame, &out->u);
    if (status != MLA_OK)
        return status;

    if (header->type == MLA_RUN && header->count > 0 && header->payload_bytes > 0)
        return MLA_MALFORMED; /* one or the other */
    if (header->type == MLA_CLOSE && out->u.close.action != MLA_COMMIT &&
        out->u.close.action != MLA_ABORT)
        return MLA_FIELD;
    if (header->type == (MLA_HELLO | MLA_REPLY))
        return mla_wire_check_ascending(out->u.hello_reply.layers, out->u.hello_reply.layer_count,
                                        index);
    return MLA_OK;
}

enum mla_status mla_message_decode(const uint8_t *frame, size_t bytes, struct mla_message *out)
{
    uint32_t index = MLA_INDEX_NONE;
    enum mla_status status = decode(frame, bytes, out, &index);
    if (status != MLA_OK)
        out->header.index = index;
    return status;
}
