#include "proto/wire.h"

#include <string.h>

/* From request_id on the header is its own wire format. */
enum { VERSION_AT = 4, TYPE_AT = 6, REST_AT = 8 };
_Static_assert(offsetof(struct mla_header, request_id) == REST_AT, "header layout");
_Static_assert(offsetof(struct mla_header, payload_bytes) == 40, "header layout");
_Static_assert(sizeof(struct mla_header) == MLA_HEADER_BYTES, "header layout");

void mla_wire_put_header(const struct mla_header *header, uint8_t *frame)
{
    uint32_t magic = MLA_MAGIC;
    uint16_t version = MLA_PROTOCOL_VERSION;
    memcpy(frame, &magic, sizeof magic);
    memcpy(frame + VERSION_AT, &version, sizeof version);
    memcpy(frame + TYPE_AT, &header->type, sizeof header->type);
    memcpy(frame + REST_AT, &header->request_id, MLA_HEADER_BYTES - REST_AT);
}

enum mla_status mla_wire_get_header(const uint8_t *frame, size_t bytes, struct mla_header *out)
{
    uint32_t magic = 0;
    uint16_t version = 0;
    memset(out, 0, sizeof *out);
    if (bytes < MLA_HEADER_BYTES)
        return MLA_MALFORMED;
    memcpy(&magic, frame, sizeof magic);
    if (magic != MLA_MAGIC)
        return MLA_MALFORMED;
    memcpy(&version, frame + VERSION_AT, sizeof version);
    memcpy(&out->type, frame + TYPE_AT, sizeof out->type);
    memcpy(&out->request_id, frame + REST_AT, MLA_HEADER_BYTES - REST_AT);
    if (version != MLA_PROTOCOL_VERSION)
        return MLA_VERSION;
    return out->body_bytes == bytes - MLA_HEADER_BYTES ? MLA_OK : MLA_MALFORMED;
}

/* Small: count is within its limit. */
static size_t body_bytes(const struct mla_wire_shape *shape, uint32_t count)
{
    size_t bytes = (size_t)count * shape->entry_bytes;
    for (int i = 0; i < MLA_WIRE_SPANS_MAX; i++)
        bytes += shape->spans[i].bytes;
    return bytes;
}

enum mla_status mla_wire_encode(const struct mla_wire_shape *shape, struct mla_header *header,
                                const void *body, uint8_t *frame, size_t capacity, size_t *bytes)
{
    const uint8_t *from = body;
    uint32_t count = 0;
    if (shape->entry_bytes)
        memcpy(&count, from + shape->count_at, sizeof count);
    if (count > shape->count_max || MLA_HEADER_BYTES + body_bytes(shape, count) > capacity)
        return MLA_LIMIT;

    header->count = count;
    header->body_bytes = (uint32_t)body_bytes(shape, count);
    mla_wire_put_header(header, frame);
    uint8_t *to = frame + MLA_HEADER_BYTES;
    for (int i = 0; i < MLA_WIRE_SPANS_MAX; i++) {
        memcpy(to, from + shape->spans[i].at, shape->spans[i].bytes);
        to += shape->spans[i].bytes;
    }
    for (uint32_t i = 0; i < count; i++, to += shape->entry_bytes)
        memcpy(to, from + shape->entries_at + (size_t)i * shape->entry_stride, shape->entry_bytes);
    *bytes = MLA_HEADER_BYTES + header->body_bytes;
    return MLA_OK;
}

enum mla_status mla_wire_decode(const struct mla_wire_shape *shape, const struct mla_header *header,
                                const uint8_t *frame, void *body)
{
    uint32_t count = header->count;
    if ((!shape->payload && header->payload_bytes) || (!shape->entry_bytes && count))
        return MLA_MALFORMED;
    if (header->payload_bytes > MLA_PAYLOAD_BYTES_MAX || count > shape->count_max)
        return MLA_LIMIT;
    if (header->body_bytes != body_bytes(shape, count))
        return MLA_MALFORMED;

    uint8_t *to = body;
    const uint8_t *from = frame + MLA_HEADER_BYTES;
    for (int i = 0; i < MLA_WIRE_SPANS_MAX; i++) {
        memcpy(to + shape->spans[i].at, from, shape->spans[i].bytes);
        from += shape->spans[i].bytes;
    }
    if (shape->entry_bytes)
        memcpy(to + shape->count_at, &count, sizeof count);
    for (uint32_t i = 0; i < count; i++, from += shape->entry_bytes)
        memcpy(to + shape->entries_at + (size_t)i * shape->entry_stride, from, shape->entry_bytes);
    return MLA_OK;
}

enum mla_status mla_wire_check_ascending(const uint32_t *values, uint32_t count, uint32_t *index)
{
    for (uint32_t i = 1; i < count; i++) {
        if (values[i] <= values[i - 1]) {
            *index = i;
            return MLA_FIELD;
        }
    }
    return MLA_OK;
}
