#include "tests/bench/lengths.h"

#include <assert.h>

uint64_t mla_bench_random(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static void shuffle(uint64_t *state, uint32_t count, int32_t *values)
{
    for (uint32_t i = count; i > 1; i--) {
        uint32_t other = (uint32_t)(mla_bench_random(state) % i);
        int32_t value = values[i - 1];
        values[i - 1] = values[other];
        values[other] = value;
    }
}

void mla_lengths_unequal(uint64_t seed, uint32_t count, uint32_t mean, uint32_t least,
                         int32_t *lengths)
{
    assert(mean >= least);
    uint64_t state = seed;
    uint32_t spread = mean - least;
    /* What one of a pair is longer, the other is shorter. */
    for (uint32_t i = 0; i + 1 < count; i += 2) {
        int32_t more = (int32_t)(mla_bench_random(&state) % (spread + 1));
        lengths[i] = (int32_t)mean + more;
        lengths[i + 1] = (int32_t)mean - more;
    }
    if (count % 2)
        lengths[count - 1] = (int32_t)mean;
    shuffle(&state, count, lengths);
}

void mla_shuffled(uint64_t seed, uint32_t count, int32_t *order)
{
    uint64_t state = seed;
    for (uint32_t i = 0; i < count; i++)
        order[i] = (int32_t)i;
    shuffle(&state, count, order);
}
