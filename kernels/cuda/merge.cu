/* Joins two partial attentions by log-sum-exp, a warp for each row and head. */
#include "kernels/cuda/element.cuh"
#include "kernels/cuda/launch.h"

#include <assert.h>

typedef __nv_bfloat16 bf16;

constexpr int WARPS = 8;

/* What has no weight isn't looked at: it may be NaN. */
template <bool EIGHTS>
static __device__ void blend(bf16 *out, const bf16 *other, int64_t n, float weight,
                             float other_weight)
{
    const int lane = threadIdx.x % 32;
    if constexpr (EIGHTS) {
        for (int64_t i = lane * EIGHT; i < n; i += 32 * EIGHT) {
            float sum[EIGHT] = {0}, part[EIGHT];
            if (weight != 0) {
                load_eight(part, out + i);
#pragma unroll
                for (int j = 0; j < EIGHT; j++)
                    sum[j] = weight * part[j];
            }
            if (other_weight != 0) {
                load_eight(part, other + i);
#pragma unroll
                for (int j = 0; j < EIGHT; j++)
                    sum[j] += other_weight * part[j];
            }
            store_eight(out + i, sum);
        }
    } else {
        for (int64_t i = lane; i < n; i += 32)
            out[i] = narrow<bf16>((weight != 0 ? weight * widen(out[i]) : 0.0f) +
                                  (other_weight != 0 ? other_weight * widen(other[i]) : 0.0f));
    }
}

template <bool EIGHTS>
static __global__ void __launch_bounds__(32 * WARPS) merge(struct mla_merge m)
{
    const int64_t item = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32;
    if (item >= m.rows * m.heads)
        return;
    const int64_t at = item / m.heads * m.out_row_stride + item % m.heads * m.out_head_stride;
    const float a = m.lse[item], b = m.lse_b[item];
    const float max = fmaxf(a, b);
    float weight = a == -INFINITY ? 0.0f : expf(a - max);
    float other = b == -INFINITY ? 0.0f : expf(b - max);
    const float sum = weight + other;
    if (sum != 0) {
        weight /= sum;
        other /= sum;
    }
    blend<EIGHTS>((bf16 *)m.out + at, (const bf16 *)m.out_b + at, m.v_dim, weight, other);
    __syncwarp();
    if (threadIdx.x % 32 == 0)
        m.lse[item] = sum != 0 ? max + logf(sum) : -INFINITY;
}

extern "C" cudaError_t mla_cuda_launch_merge(const struct mla_merge *m, cudaStream_t stream)
{
    assert(m->rows >= 0 && m->heads > 0 && m->v_dim > 0);
    if (m->rows == 0)
        return cudaSuccess;
    const bool eights = m->out_head_stride % EIGHT == 0 &&
                        by_eights((bf16 *)m->out, m->out_row_stride, m->v_dim) &&
                        by_eights((const bf16 *)m->out_b, m->out_row_stride, m->v_dim);
    const unsigned grid = (unsigned)ceil_div(m->rows * m->heads, WARPS);
    if (eights)
        merge<true><<<grid, 32 * WARPS, 0, stream>>>(*m);
    else
        merge<false><<<grid, 32 * WARPS, 0, stream>>>(*m);
    return cudaGetLastError();
}
