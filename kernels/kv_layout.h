/* How the pages of a KV pool lie in memory. What a page holds is the same: MLA_BLOCK_TOKENS rows of
 * `width` values. */
#ifndef MLA_KERNELS_KV_LAYOUT_H
#define MLA_KERNELS_KV_LAYOUT_H

#include "proto/limits.h"

#include <stdint.h>

#ifdef __CUDACC__
#define MLA_HOST_DEVICE __host__ __device__
#else
#define MLA_HOST_DEVICE
#endif

enum mla_kv_layout {
    MLA_KV_ROWS, /* [blocks, tokens, width] */
    /* [blocks, width / 64, tokens, 64]: panels of 64 values of all of a page's tokens, with the
     * eight 16-byte pieces of a token's 64 bf16 in the order that wgmma reads without bank
     * conflicts (its swizzle of 128 bytes): piece p of token t is the (p xor t mod 8)-th. So a
     * panel comes to shared memory by one copy of 8 KiB in a row; memory gives those faster than
     * boxes of a tensor (kernels/cuda/NOTES.md). For bf16 only. */
    MLA_KV_PANELS,
};

enum { MLA_KV_PANEL_VALUES = 64 };

/* Where value i of the row in `slot` (block * MLA_BLOCK_TOKENS + token) lies, counted in values.
 * Eight values from a multiple of eight on lie side by side in both layouts. */
MLA_HOST_DEVICE static inline int64_t mla_kv_place(enum mla_kv_layout layout, int64_t width,
                                                   int64_t slot, int64_t i)
{
    if (layout == MLA_KV_ROWS)
        return slot * width + i;
    const int64_t block = slot / MLA_BLOCK_TOKENS, token = slot % MLA_BLOCK_TOKENS;
    const int64_t panel = i / MLA_KV_PANEL_VALUES, value = i % MLA_KV_PANEL_VALUES;
    const int64_t row =
        block * MLA_BLOCK_TOKENS * width + (panel * MLA_BLOCK_TOKENS + token) * MLA_KV_PANEL_VALUES;
    return row + ((value / 8) ^ (token % 8)) * 8 + value % 8;
}

#endif
