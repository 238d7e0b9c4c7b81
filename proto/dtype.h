/* Element types of payloads, weights and caches, and their conversions. */
#ifndef MLA_PROTO_DTYPE_H
#define MLA_PROTO_DTYPE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum mla_dtype {
    MLA_F32 = 1,
    MLA_BF16 = 2,
    MLA_F16 = 3, /* checkpoints only */
};

/* Bytes of one element, 0 for a number that is no dtype. */
static inline size_t mla_dtype_bytes(enum mla_dtype dtype)
{
    switch (dtype) {
    case MLA_F32:
        return 4;
    case MLA_BF16:
    case MLA_F16:
        return 2;
    }
    return 0;
}

static inline const char *mla_dtype_name(enum mla_dtype dtype)
{
    switch (dtype) {
    case MLA_F32:
        return "f32";
    case MLA_BF16:
        return "bf16";
    case MLA_F16:
        return "f16";
    }
    return "unknown";
}

static inline float mla_bf16_to_f32(uint16_t bits)
{
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

/* Round to nearest even; NaN stays NaN. */
static inline uint16_t mla_f32_to_bf16(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if ((bits & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)((bits >> 16) | 0x40u);
    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

#endif
