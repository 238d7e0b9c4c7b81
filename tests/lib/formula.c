#include "tests/lib/formula.h"

#include "proto/dtype.h"

#include <assert.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

static uint64_t fnv1a(const char *name)
{
    uint64_t hash = 0xcbf29ce484222325u;
    for (; *name; name++)
        hash = (hash ^ (unsigned char)*name) * 0x100000001b3u;
    return hash;
}

static uint64_t splitmix64(uint64_t x)
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

static bool ends_with(const char *name, const char *end)
{
    size_t length = strlen(name), tail = strlen(end);
    return length >= tail && strcmp(name + length - tail, end) == 0;
}

void mla_formula_fill(const char *name, uint32_t dims, const uint64_t *shape, uint64_t first,
                      uint64_t count, float *dst)
{
    assert(dims >= 1);
    uint64_t seed = fnv1a(name) + first;
    float offset = 0, scale = 1;
    if (ends_with(name, "layernorm.weight")) {
        offset = 1;
        scale = 0.1f;
    } else if (ends_with(name, ".weight")) {
        scale = sqrtf(3.0f / (float)shape[dims - 1]);
    }
    for (uint64_t i = 0; i < count; i++) {
        float u = (float)(int32_t)(splitmix64(seed + i) >> 40) * 0x1p-23f - 1;
        /* Two roundings, as the original has them: this must not become one fused operation. */
        float scaled = u * scale;
        dst[i] = mla_bf16_to_f32(mla_f32_to_bf16(scaled + offset));
    }
}
