/* Frames as proto/README.md describes them, written here a second time and independently of the
 * codec: each field gets a random value and its bytes are appended in the order of the page. */
#ifndef MLA_TESTS_UNIT_FRAMES_H
#define MLA_TESTS_UNIT_FRAMES_H

#include "proto/message.h"

#include <stdlib.h>
#include <string.h>

enum { FRAME_BYTES_MAX = MLA_MESSAGE_BYTES_MAX + 64 };

struct frame {
    size_t bytes;
    uint8_t data[FRAME_BYTES_MAX];
    uint64_t seed;
};

static inline uint64_t frame_random(struct frame *frame)
{
    frame->seed = frame->seed * 6364136223846793005u + 1442695040888963407u;
    return (frame->seed >> 32) | (frame->seed << 32);
}

static inline void frame_put(struct frame *frame, uint64_t value, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        frame->data[frame->bytes++] = (uint8_t)(value >> (8 * i));
}

/* Overwrites a field of the header. */
static inline void frame_set(struct frame *frame, size_t at, uint64_t value, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        frame->data[at + i] = (uint8_t)(value >> (8 * i));
}

/* `field` becomes `value`, and its bytes follow in the frame. */
#define PUT(frame, field, value)                                                                   \
    do {                                                                                           \
        (field) = (value);                                                                         \
        frame_put((frame), (field), sizeof(field));                                                \
    } while (0)
#define PUT_RANDOM(frame, field)                                                                   \
    do {                                                                                           \
        uint64_t random_bits = frame_random(frame);                                                \
        memcpy(&(field), &random_bits, sizeof(field));                                             \
        frame_put((frame), (field), sizeof(field));                                                \
    } while (0)

enum { STATUS_AT = 24, INDEX_AT = 28, COUNT_AT = 32, BODY_AT = 36, PAYLOAD_AT = 40 };

/* The header's bytes; frame_finish fills in the counts. */
static inline void frame_begin(struct frame *frame, const struct mla_header *header)
{
    frame->bytes = 0;
    frame_put(frame, 0x31414c4d, 4);
    frame_put(frame, 1, 2);
    frame_put(frame, header->type, 2);
    frame_put(frame, header->request_id, 8);
    frame_put(frame, header->epoch, 8);
    frame_put(frame, header->status, 4);
    frame_put(frame, header->index, 4);
    frame_put(frame, 0, 8);
    frame_put(frame, header->payload_bytes, 8);
}

static inline void frame_finish(struct frame *frame, uint32_t count)
{
    frame_set(frame, COUNT_AT, count, 4);
    frame_set(frame, BODY_AT, frame->bytes - 48, 4);
}

/* A copy that ends where its memory ends, so that the sanitizer sees a read beyond it. The caller
 * frees it. */
static inline uint8_t *frame_exact(const struct frame *frame, size_t bytes)
{
    uint8_t *copy = malloc(bytes ? bytes : 1);
    if (!copy)
        abort();
    memcpy(copy, frame->data, bytes);
    return copy;
}

#endif
