/* Absorbed attention over pages for any dimensions: a warp for each row and head, the warps of a
 * block on heads of one row, which read the same keys. */
#include "kernels/cuda/attend_plain.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/pages.cuh"

#include <assert.h>

typedef __nv_bfloat16 bf16;

template <class T> struct cached_keys {
    struct key {
        pool_row<const T> row;
        int64_t latent;

        __device__ float nope(int i) const { return widen(*row.at(i)); }
        __device__ float rope(int i) const { return widen(*row.at(latent + i)); }
        __device__ float value(int i) const { return nope(i); }
    };
    const struct mla_kv_view &kv;
    int64_t sequence;

    __device__ key at(int64_t token) const
    {
        return {cached_row<T>(kv, sequence, token), kv.pool.latent};
    }
};

template <class T>
static __global__ void __launch_bounds__(32 * PLAIN_WARPS_MAX)
    attend_decode_plain(const __grid_constant__ struct mla_attend_decode a)
{
    extern __shared__ float shared[];
    const int warp = threadIdx.x / 32;
    const int64_t row = blockIdx.x, head = (int64_t)blockIdx.y * (blockDim.x / 32) + warp;
    const int32_t *first = a.kv.row_first;
    if (row >= first[a.kv.sequences] || head >= a.heads)
        return;
    const int64_t s = sequence_of(first, a.kv.sequences, row);
    const int64_t keys = (int64_t)a.kv.kv_length[s] - (first[s + 1] - 1 - row);
    const query_dims dims = {(int)a.kv.pool.latent, (int)a.kv.pool.rope, (int)a.kv.pool.latent};
    float *q = shared + warp * query_floats(dims);
    attend_query(cached_keys<T>{a.kv, s}, keys,
                 (const bf16 *)a.q + row * a.q_row_stride + head * a.q_head_stride, dims, a.scale,
                 q, q + dims.nope + dims.rope,
                 (bf16 *)a.out + row * a.out_row_stride + head * a.out_head_stride);
}

extern "C" cudaError_t mla_cuda_launch_attend_decode(const struct mla_attend_decode *a,
                                                     cudaStream_t stream)
{
    const struct mla_kv_pool *pool = &a->kv.pool;
    const query_dims dims = {(int)pool->latent, (int)pool->rope, (int)pool->latent};
    const int warps = plain_warps(dims);
    const size_t shared = warps * query_floats(dims) * sizeof(float);
    const dim3 grid((unsigned)a->rows_max, (unsigned)ceil_div(a->heads, warps));
    assert(a->rows_max >= 0 && a->heads > 0 && warps > 0);
    assert(pool->dtype == MLA_BF16 || pool->dtype == MLA_F32);
    if (a->rows_max == 0)
        return cudaSuccess;
    if (pool->dtype == MLA_BF16)
        attend_decode_plain<bf16><<<grid, 32 * warps, shared, stream>>>(*a);
    else
        attend_decode_plain<float><<<grid, 32 * warps, shared, stream>>>(*a);
    return cudaGetLastError();
}
