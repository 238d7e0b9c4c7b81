/* Shapes on a command line: "128x4096". */
#ifndef MLA_TESTS_BENCH_SHAPES_H
#define MLA_TESTS_BENCH_SHAPES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { MLA_SHAPES_MAX = 32 };

struct mla_shape {
    uint32_t first, second;
};

struct mla_shapes {
    uint32_t count;
    struct mla_shape at[MLA_SHAPES_MAX];
};

/* Adds a shape of two numbers from 1 to their maxima; false for anything else, or one too many. */
bool mla_shapes_add(struct mla_shapes *shapes, const char *text, uint32_t first_max,
                    uint32_t second_max);

#endif
