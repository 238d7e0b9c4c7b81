#include "kernels/cuda/attend_decode.h"
#include "kernels/cuda/attend_decode_launch.cuh"
#include "kernels/cuda/ptx.cuh"
#include "proto/limits.h"

#include <assert.h>
#include <math.h>
#include <string.h>

namespace
{

using namespace decode;

constexpr int64_t VALUE_BYTES = 2;
static_assert(TILE_TOKENS == MLA_BLOCK_TOKENS, "a tile is a page");

bool aligned(const void *pointer)
{
    return (uintptr_t)pointer % 16 == 0;
}
bool aligned(int64_t stride)
{
    return stride * VALUE_BYTES % 16 == 0;
}

/* The map of a tensor, from those made before or new. */
cudaError_t find_map(struct mla_cuda_decode *decode, const struct mla_tensor_map *tensor,
                     CUtensorMap *out)
{
    uint64_t mixed = (uint64_t)(uintptr_t)tensor->base / 16 + tensor->box[1] * 31;
    auto *entry = &decode->maps[(mixed * 0x9E3779B97F4A7C15u >> 32) % MLA_CUDA_DECODE_MAPS];
    if (memcmp(&entry->tensor, tensor, sizeof *tensor) != 0) {
        cudaError_t error = mla_tensor_map_encode(tensor, out);
        if (error != cudaSuccess)
            return error;
        entry->tensor = *tensor;
        memcpy(entry->map, out, sizeof *out);
    }
    memcpy(out, entry->map, sizeof *out);
    return cudaSuccess;
}

/* In boxes of a block of an item's queries by 64 values; heads that aren't there are zeros. */
cudaError_t map_q(struct mla_cuda_decode *decode, const struct mla_attend_decode *attend,
                  const blocking &blocking, CUtensorMap *out)
{
    struct mla_tensor_map tensor;
    memset(&tensor, 0, sizeof tensor);
    tensor.base = attend->q;
    tensor.dims = 3;
    tensor.extent[0] = MLA_CUDA_DECODE_WIDTH;
    tensor.extent[1] = (uint64_t)attend->heads;
    tensor.extent[2] = (uint64_t)attend->rows_max;
    tensor.stride[1] = (uint64_t)attend->q_head_stride;
    tensor.stride[2] = (uint64_t)attend->q_row_stride;
    tensor.box[0] = 64;
    tensor.box[1] = (uint32_t)blocking.heads;
    tensor.box[2] = (uint32_t)blocking.rows;
    tensor.swizzle = CU_TENSOR_MAP_SWIZZLE_128B;
    return find_map(decode, &tensor, out);
}

/* A count for each worker and block of heads. */
size_t counts_bytes(int multiprocessors)
{
    return ((size_t)multiprocessors * sizeof(uint32_t) + 255) / 256 * 256;
}

} // namespace

extern "C" bool mla_cuda_decode_fits(const struct mla_attend_decode *attend)
{
    const struct mla_kv_pool *pool = &attend->kv.pool;
    return pool->layout == MLA_KV_PANELS && pool->latent == MLA_CUDA_DECODE_LATENT &&
           pool->rope == MLA_CUDA_DECODE_ROPE && aligned(pool->pages) && aligned(attend->q) &&
           aligned(attend->q_row_stride) && aligned(attend->q_head_stride) &&
           aligned(attend->out) && aligned(attend->out_row_stride) &&
           aligned(attend->out_head_stride);
}

extern "C" size_t mla_cuda_decode_scratch_bytes(int multiprocessors)
{
    constexpr int queries = WIDE_QUERIES; /* no block has more */
    size_t partial = partial_vectors(queries) * sizeof(float4) + queries * sizeof(float2);
    return counts_bytes(multiprocessors) + 2 * (size_t)multiprocessors * partial;
}

extern "C" cudaError_t mla_cuda_attend_decode_sm90(struct mla_cuda_decode *decode,
                                                   const struct mla_attend_decode *attend,
                                                   cudaStream_t stream)
{
    assert(mla_cuda_decode_fits(attend));
    launch launch = {};
    blocking blocking = blocking_of(attend);
    cudaError_t error = map_q(decode, attend, blocking, &launch.q);
    if (error != cudaSuccess)
        return error;

    int queries = blocking.heads * blocking.rows;
    launch.head_blocks = blocking.blocks;
    launch.block_heads = blocking.heads;
    launch.shared_rows = blocking.items > 1;
    launch.early = blocking.items * blocking.blocks > 2 || decode->fast_memory;
    int worker_count = workers(decode->multiprocessors, blocking);
    schedule_layout((void *)attend->schedule, worker_count, attend->rows_max, &launch.schedule);
    launch.pages = (const char *)attend->kv.pool.pages;
    launch.tables = attend->kv.tables;
    launch.table_stride = attend->kv.table_stride;
    launch.out = (__nv_bfloat16 *)attend->out;
    launch.out_row_stride = attend->out_row_stride;
    launch.out_head_stride = attend->out_head_stride;
    launch.heads = (int)attend->heads;
    launch.scale_log2 = (float)(attend->scale * M_LOG2E);
    launch.counts = (uint32_t *)decode->scratch;
    launch.partial = (float4 *)((char *)decode->scratch + counts_bytes(decode->multiprocessors));
    int blocks = worker_count * blocking.blocks;
    launch.statistics = (float2 *)(launch.partial + (int64_t)2 * blocks * partial_vectors(queries));
    return blocking.wide   ? attend_wide(launch, blocks, stream)
           : queries == 16 ? attend_16(launch, blocks, stream)
           : queries == 32 ? attend_32(launch, blocks, stream)
                           : attend_64(launch, blocks, stream);
}
