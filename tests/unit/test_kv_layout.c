/* Where the values of a KV pool lie. */
#include "kernels/kv_layout.h"

#include <criterion/criterion.h>
#include <string.h>

enum { BLOCKS = 3, WIDTH = 192, VALUES = BLOCKS * MLA_BLOCK_TOKENS * WIDTH };

static void each_place_once(enum mla_kv_layout layout)
{
    static bool taken[VALUES];
    memset(taken, 0, sizeof taken);
    for (int64_t slot = 0; slot < (int64_t)BLOCKS * MLA_BLOCK_TOKENS; slot++)
        for (int64_t i = 0; i < WIDTH; i++) {
            int64_t at = mla_kv_place(layout, WIDTH, slot, i);
            cr_assert(at >= 0 && at < VALUES && !taken[at], "slot %d, value %d", (int)slot, (int)i);
            taken[at] = true;
            int64_t block = slot / MLA_BLOCK_TOKENS;
            cr_assert_eq(at / ((int64_t)MLA_BLOCK_TOKENS * WIDTH), block,
                         "blocks are copied whole");
            cr_assert_eq(at % 8, i % 8, "eight values are one access");
            cr_assert_eq(at - i % 8, mla_kv_place(layout, WIDTH, slot, i - i % 8));
        }
}

Test(kv_layout, each_value_has_a_place_of_its_own)
{
    each_place_once(MLA_KV_ROWS);
    each_place_once(MLA_KV_PANELS);
}

Test(kv_layout, rows_are_side_by_side)
{
    cr_expect_eq(mla_kv_place(MLA_KV_ROWS, WIDTH, 70, 5), 70 * WIDTH + 5);
}

/* As TMA would lay out boxes of 64 tokens by 64 values with its swizzle of 128 bytes: of an address
 * in bytes, bits 4 to 6 are xored with bits 7 to 9. */
Test(kv_layout, panels_are_swizzled)
{
    for (int64_t token = 0; token < MLA_BLOCK_TOKENS; token++)
        for (int64_t i = 0; i < WIDTH; i++) {
            int64_t box = i / 64 * MLA_BLOCK_TOKENS * 64 * 2, bytes = token * 128 + i % 64 * 2;
            int64_t swizzled = bytes ^ (bytes >> 7 & 7) << 4;
            cr_assert_eq(mla_kv_place(MLA_KV_PANELS, WIDTH, token, i) * 2, box + swizzled);
        }
}
