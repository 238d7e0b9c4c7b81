/* What the decode kernels are given; made by attend_decode.cu. */
#ifndef MLA_KERNELS_CUDA_ATTEND_DECODE_LAUNCH_CUH
#define MLA_KERNELS_CUDA_ATTEND_DECODE_LAUNCH_CUH

#include "kernels/cuda/attend_decode.h"
#include "kernels/cuda/decode_seen.cuh"
#include "kernels/cuda/racecheck.cuh"
#include "kernels/cuda/wgmma.cuh"

#include <cuda_bf16.h>

namespace decode
{

/* Of K: 64 values of 64 tokens, swizzled already; the last one is the rope (MLA_KV_PANELS). */
constexpr int LATENT_PANELS = 8, PANELS = LATENT_PANELS + 1;
constexpr int PANEL_BYTES = TILE_TOKENS * ptx::PANEL_ROW_BYTES;
constexpr int GROUP_THREADS = 128; /* a warpgroup */
constexpr int SHARED_BYTES_MAX = 227 * 1024;

/* The reference that is subtracted from scores follows the greatest of them only when that is so
 * much higher, so that O is hardly ever scaled. */
constexpr float RAISE = 8.0f;
constexpr float NO_SCORE = -1e30f; /* below all scores, but finite: its differences are numbers */

struct launch {
    CUtensorMap q;     /* bf16 [rows, heads, 576], boxes [an item's rows, a block's heads, 64] */
    const char *pages; /* [blocks, PANELS, PANEL_BYTES] */
    schedule schedule;
    const int32_t *tables;
    int64_t table_stride;
    __nv_bfloat16 *out;
    int64_t out_row_stride, out_head_stride;
    int heads, head_blocks, block_heads;
    bool shared_rows; /* several items of a sequence, so that most tiles are in the L2 cache */
    bool early;       /* an order for tiles that come soon; attend_decode_wide.cu */
    float scale_log2;
    uint32_t *counts;   /* [workers, head_blocks], 0 between launches */
    float4 *partial;    /* [2 workers, head_blocks] of partial_vectors */
    float2 *statistics; /* [2 workers, head_blocks, queries of a block]: maximum (log2), sum */
};

/* A partial's sums, 512 for each query, as registers lie. */
__host__ __device__ constexpr int64_t partial_vectors(int queries)
{
    return 512 / 4 * queries;
}

/* By queries of a block; `wide` has 64 too. */
cudaError_t attend_16(const launch &launch, int blocks, cudaStream_t stream);
cudaError_t attend_32(const launch &launch, int blocks, cudaStream_t stream);
cudaError_t attend_64(const launch &launch, int blocks, cudaStream_t stream);
cudaError_t attend_wide(const launch &launch, int blocks, cudaStream_t stream);

/* Workers of one item wait for each other: all blocks run at once or the launch fails. */
inline cudaError_t launch_together(void (*kernel)(launch), int threads, size_t shared_bytes,
                                   const launch &launch, int blocks, cudaStream_t stream)
{
    cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                             (int)shared_bytes);
    if (error != cudaSuccess)
        return error;
    cudaLaunchAttribute together = {};
    together.id = cudaLaunchAttributeCooperative;
    together.val.cooperative = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(blocks);
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    config.attrs = &together;
    config.numAttrs = 1;
    return cudaLaunchKernelEx(&config, kernel, launch);
}

/* Where a block's query goes, or NULL for one that is padding. */
__device__ __forceinline__ __nv_bfloat16 *output_of(const launch &launch, const item &item,
                                                    int head_block, int query)
{
    int row = query / launch.block_heads;
    int head = head_block * launch.block_heads + query % launch.block_heads;
    if (row >= item.rows || head >= launch.heads)
        return NULL;
    return launch.out + (item.row + row) * launch.out_row_stride + head * launch.out_head_stride;
}

/* The L2 cache's policy for the tiles' lines. To be evicted first is better, as parts of split
 * items stay in the cache then, and what was there before needs no writing back; but where all is
 * many times what the cache holds, and each tile is read once, lines come in 1 to 3% faster the
 * usual way. */
__device__ __forceinline__ uint64_t kv_policy(const launch &launch, const range &range)
{
    constexpr int many_tiles = 6000; /* 9 times the 50 MB of an H100 */
    bool usual = launch.head_blocks == 1 && !launch.shared_rows && range.tiles > many_tiles;
    return usual ? ptx::EVICT_NORMAL : ptx::EVICT_FIRST;
}

/* Copies panel `panel` of page `block` to shared memory. */
__device__ __forceinline__ void load_panel(const launch &launch, int block, int panel, void *to,
                                           uint64_t *full, uint64_t policy)
{
    ptx::barrier_arrive_expect(full, PANEL_BYTES);
    ptx::bulk_load(to, launch.pages + ((int64_t)block * PANELS + panel) * PANEL_BYTES, PANEL_BYTES,
                   full, policy);
}

/* A worker's part of one item. */
struct segment {
    item item;
    int tile_begin, tile_end;

    __device__ __forceinline__ segment(const range &range, const schedule &schedule, int index)
        : item(index == range.item_begin ? range.first : schedule.items[index])
    {
        tile_begin = index == range.item_begin ? range.tile_begin : 0;
        tile_end = index == range.item_end ? range.tile_end : (int)tiles_of(item.length);
    }
    __device__ __forceinline__ bool split() const { return item.splits > 1; }
};

} // namespace decode

#endif
