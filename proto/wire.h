/* How the bodies of messages and their bytes correspond; private to the codec.
 *
 * The wire is little-endian and so is every host this is built for, so a field's bytes are the
 * same in both places and only the padding of structs has to be left out: a body is described by
 * the spans of its struct that hold no padding, and one description serves both directions. */
#ifndef MLA_PROTO_WIRE_H
#define MLA_PROTO_WIRE_H

#include "proto/message.h"

#include <stdbool.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the codec copies little-endian fields");

#define MLA_WIRE_SPANS_MAX 3

/* Fields that stand in a struct one after the other. */
struct mla_wire_span {
    uint16_t at, bytes;
};

/* All zeros: a message without a body. */
struct mla_wire_shape {
    struct mla_wire_span spans[MLA_WIRE_SPANS_MAX];
    uint16_t count_at, entries_at;
    uint16_t entry_bytes, entry_stride; /* on the wire, in the struct; 0: there are no entries */
    uint32_t count_max;
    bool payload; /* a payload frame may follow */
};

#define MLA_WIRE_SPAN(type, first, last)                                                           \
    {                                                                                              \
        offsetof(struct type, first), offsetof(struct type, last) - offsetof(struct type, first) + \
                                          sizeof(((struct type *)0)->last)                         \
    }

/* Entries of `bytes` each in the array `array`, as many as the field `counter` says. */
#define MLA_WIRE_ENTRIES(type, counter, array, bytes)                                              \
    .count_at = offsetof(struct type, counter), .entries_at = offsetof(struct type, array),        \
    .entry_bytes = (bytes), .entry_stride = sizeof(((struct type *)0)->array[0]),                  \
    .count_max = sizeof(((struct type *)0)->array) / sizeof(((struct type *)0)->array[0])

/* Writes magic, version and header. */
void mla_wire_put_header(const struct mla_header *header, uint8_t *frame);
/* Reads them; all zeros without a magic. Checks that body_bytes is what is there. MLA_MALFORMED,
 * MLA_VERSION. */
enum mla_status mla_wire_get_header(const uint8_t *frame, size_t bytes, struct mla_header *out);

/* A whole frame from `body`; fills header->count and header->body_bytes. MLA_LIMIT. */
enum mla_status mla_wire_encode(const struct mla_wire_shape *shape, struct mla_header *header,
                                const void *body, uint8_t *frame, size_t capacity, size_t *bytes);
/* `body` from a frame whose header was read. MLA_MALFORMED, MLA_LIMIT. */
enum mla_status mla_wire_decode(const struct mla_wire_shape *shape, const struct mla_header *header,
                                const uint8_t *frame, void *body);

/* MLA_FIELD and the first index whose value is not above the one before it. */
enum mla_status mla_wire_check_ascending(const uint32_t *values, uint32_t count, uint32_t *index);

#endif
