/* Multi-head attention for any dimensions: a warp for each row and head, the warps of a block on
 * rows of one head, which read the same keys. */
#include "kernels/cuda/attend_plain.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/pages.cuh"

#include <assert.h>

typedef __nv_bfloat16 bf16;

struct expanded_keys {
    struct key {
        const bf16 *nopes, *ropes, *values;

        __device__ float nope(int i) const { return widen(nopes[i]); }
        __device__ float rope(int i) const { return widen(ropes[i]); }
        __device__ float value(int i) const { return widen(values[i]); }
    };
    const bf16 *nope, *rope, *value;
    int64_t stride, rope_stride, value_stride;

    __device__ key at(int64_t token) const
    {
        return {nope + token * stride, rope + token * rope_stride, value + token * value_stride};
    }
};

static __device__ expanded_keys keys_of(const struct mla_attend_prefill &a, int64_t first,
                                        int64_t head)
{
    return {(const bf16 *)a.k_nope + first * a.k_row_stride + head * a.k_head_stride,
            (const bf16 *)a.k_rope + first * a.k_rope_stride,
            (const bf16 *)a.v + first * a.v_row_stride + head * a.v_head_stride,
            a.k_row_stride,
            a.k_rope_stride,
            a.v_row_stride};
}

static __global__ void __launch_bounds__(32 * PLAIN_WARPS_MAX)
    attend_prefill_plain(const __grid_constant__ struct mla_attend_prefill a)
{
    extern __shared__ float shared[];
    const int warp = threadIdx.x / 32;
    const int64_t row = (int64_t)blockIdx.x * (blockDim.x / 32) + warp, head = blockIdx.y;
    if (row >= a.rows)
        return;
    const int64_t s = sequence_of(a.row_first, a.sequences, row);
    int64_t keys = (int64_t)a.key_first[s + 1] - a.key_first[s];
    if (a.causal)
        keys -= a.row_first[s + 1] - 1 - row;
    const query_dims dims = {(int)a.nope, (int)a.rope, (int)a.v_dim};
    float *q = shared + warp * query_floats(dims);
    const float lse =
        attend_query(keys_of(a, a.key_first[s], head), keys,
                     (const bf16 *)a.q + row * a.q_row_stride + head * a.q_head_stride, dims,
                     a.scale, q, q + dims.nope + dims.rope,
                     (bf16 *)a.out + row * a.out_row_stride + head * a.out_head_stride);
    if (threadIdx.x % 32 == 0)
        a.lse[row * a.heads + head] = lse;
}

extern "C" cudaError_t mla_cuda_launch_attend_prefill(const struct mla_attend_prefill *a,
                                                      cudaStream_t stream)
{
    const query_dims dims = {(int)a->nope, (int)a->rope, (int)a->v_dim};
    const int warps = plain_warps(dims);
    const size_t shared = warps * query_floats(dims) * sizeof(float);
    const dim3 grid((unsigned)ceil_div(a->rows, warps), (unsigned)a->heads);
    assert(a->rows >= 0 && a->heads > 0 && warps > 0);
    if (a->rows == 0)
        return cudaSuccess;
    attend_prefill_plain<<<grid, 32 * warps, shared, stream>>>(*a);
    return cudaGetLastError();
}
