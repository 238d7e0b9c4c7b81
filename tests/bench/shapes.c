#include "tests/bench/shapes.h"

#include "proto/parse.h"

#include <stdio.h>
#include <string.h>

bool mla_shapes_add(struct mla_shapes *shapes, const char *text, uint32_t first_max,
                    uint32_t second_max)
{
    char first[16];
    uint64_t numbers[2];
    const char *x = strchr(text, 'x');
    if (!x || (size_t)(x - text) >= sizeof first || shapes->count == MLA_SHAPES_MAX)
        return false;
    snprintf(first, sizeof first, "%.*s", (int)(x - text), text);
    if (!mla_parse_number(first, 1, first_max, &numbers[0]) ||
        !mla_parse_number(x + 1, 1, second_max, &numbers[1]))
        return false;
    shapes->at[shapes->count++] = (struct mla_shape){(uint32_t)numbers[0], (uint32_t)numbers[1]};
    return true;
}
