/* What the decode kernels are given; made by attend_decode.cu. */
#ifndef MLA_KERNELS_CUDA_ATTEND_DECODE_LAUNCH_CUH
#define MLA_KERNELS_CUDA_ATTEND_DECODE_LAUNCH_CUH

#include "kernels/cuda/attend_decode.h"
#include "kernels/cuda/decode_schedule.cuh"

#include <cuda_bf16.h>

namespace decode
{

struct launch {
    CUtensorMap kv; /* bf16 [tokens of the pool, 576], boxes [64, 64] */
    CUtensorMap q;  /* bf16 [rows, heads, 576], boxes [1, block_heads, 64] */
    uint64_t kv_policy;
    schedule schedule;
    const int32_t *tables;
    int64_t table_stride;
    __nv_bfloat16 *out;
    int64_t out_row_stride, out_head_stride;
    int heads, head_blocks;
    float scale_log2;
    uint32_t *counts;   /* [workers, head_blocks], 0 between launches */
    float4 *partial;    /* [2 workers, head_blocks] of partial_vectors */
    float2 *statistics; /* [2 workers, head_blocks, block_heads]: maximum (log2), sum */
};

/* A partial's sums: [8 panels, heads / 8, 128 threads] vectors of four, as registers lie. */
__host__ __device__ constexpr int64_t partial_vectors(int heads)
{
    return 8 * (heads / 8) * 128;
}

cudaError_t attend_16(const launch &launch, int blocks, cudaStream_t stream);
cudaError_t attend_32(const launch &launch, int blocks, cudaStream_t stream);
cudaError_t attend_64(const launch &launch, int blocks, cudaStream_t stream);

} // namespace decode

#endif
