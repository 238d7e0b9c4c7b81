/* Lengths of sequences for benches. */
#ifndef MLA_TESTS_BENCH_LENGTHS_H
#define MLA_TESTS_BENCH_LENGTHS_H

#include <stdint.h>

/* splitmix64 (Steele, Lea, Flood, 2014): the next number, and the state after it. */
uint64_t mla_bench_random(uint64_t *state);

/* Lengths from `least` to 2 * mean - least, evenly spread, that together are count * mean: what
 * sequences of equal length would read is read unequally. The same for the same seed. */
void mla_lengths_unequal(uint64_t seed, uint32_t count, uint32_t mean, uint32_t least,
                         int32_t *lengths);

/* A permutation of 0 .. count - 1. */
void mla_shuffled(uint64_t seed, uint32_t count, int32_t *order);

#endif
