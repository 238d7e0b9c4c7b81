/* Random numbers of a simulation: the same seed, the same numbers (splitmix64). */
#ifndef MLA_TESTS_SIM_RANDOM_H
#define MLA_TESTS_SIM_RANDOM_H

#include <stdbool.h>
#include <stdint.h>

static inline uint64_t mix(uint64_t a, uint64_t b)
{
    uint64_t z = (a ^ (b * 0x9e3779b97f4a7c15u)) + 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static inline uint64_t random_next(uint64_t *state)
{
    *state += 0x9e3779b97f4a7c15u;
    return mix(*state, 1);
}

/* least to most, both included. */
static inline uint32_t random_within(uint64_t *state, uint32_t least, uint32_t most)
{
    return least + (uint32_t)(random_next(state) % (most - least + 1u));
}

static inline bool random_chance(uint64_t *state, uint32_t of_1000)
{
    return random_next(state) % 1000 < of_1000;
}

#endif
