/* Which of a tile's tokens queries see, and what becomes of the others. */
#ifndef MLA_KERNELS_CUDA_DECODE_SEEN_CUH
#define MLA_KERNELS_CUDA_DECODE_SEEN_CUH

#include "kernels/cuda/decode_schedule.cuh"

namespace decode
{

/* How many of a tile's tokens the item has (may be more than there are, or negative), how many its
 * first row sees, and row `row` (padding: what the last one sees). A row sees one token at least.
 */
__device__ __forceinline__ int seen_by_any(const item &item, int tile)
{
    return item.length - tile * TILE_TOKENS;
}
__device__ __forceinline__ int seen_by(const item &item, int tile, int row)
{
    int later = max(0, item.rows - 1 - row);
    return max(1, item.length - later) - tile * TILE_TOKENS;
}
__device__ __forceinline__ int seen_by_all(const item &item, int tile)
{
    return seen_by(item, tile, 0);
}

/* Two bf16 values, each 0 if it is infinite or not a number. */
__device__ __forceinline__ uint32_t numbers_of(uint32_t pair)
{
    constexpr uint32_t exponent = 0x7F80;
    uint32_t low = (pair & exponent) == exponent ? 0 : pair & 0xFFFF;
    uint32_t high = (pair >> 16 & exponent) == exponent ? 0 : pair & 0xFFFF0000;
    return high | low;
}

/* A weight of 0 hides no value that is not a number. Of a panel's 64 tokens, those from `any` on
 * are not the item's and may be anything: they become 0. Those from `all` on are not for all
 * queries, and become 0 where they are no numbers: who sees them has that from their score. By
 * `threads` threads, of which this is number `thread`. */
__device__ __forceinline__ void clear_values(void *panel, int all, int any, int thread, int threads)
{
    uint4 *v = (uint4 *)panel;
    for (int i = max(all, 0) * 8 + thread; i < TILE_TOKENS * 8; i += threads) {
        uint4 piece = i < any * 8 ? v[i] : make_uint4(0, 0, 0, 0);
        piece.x = numbers_of(piece.x);
        piece.y = numbers_of(piece.y);
        piece.z = numbers_of(piece.z);
        piece.w = numbers_of(piece.w);
        v[i] = piece;
    }
}

} // namespace decode

#endif
