/* Attention of one query by one warp, for any dimensions: f32, a running maximum ("Online
 * normalizer calculation for softmax", Milakov and Gimelshein, 2018), base 2 inside. */
#ifndef MLA_KERNELS_CUDA_ATTEND_PLAIN_CUH
#define MLA_KERNELS_CUDA_ATTEND_PLAIN_CUH

#include "kernels/cuda/element.cuh"

#include <math_constants.h>

/* Keys of one step: their loads and sums don't wait for each other. */
constexpr int STEP_KEYS = 4;
constexpr int PLAIN_WARPS_MAX = 8;
constexpr size_t PLAIN_SHARED_BYTES = 48 << 10; /* any GPU gives that */

struct query_dims {
    int nope, rope, v;
};

static inline __host__ __device__ int query_floats(const struct query_dims &dims)
{
    return dims.nope + dims.rope + dims.v;
}

/* Warps of a block, each with a query and its sums in shared memory. */
static inline int plain_warps(const struct query_dims &dims)
{
    const size_t warps = PLAIN_SHARED_BYTES / (query_floats(dims) * sizeof(float));
    return warps < PLAIN_WARPS_MAX ? (int)warps : PLAIN_WARPS_MAX;
}

/* scores[j] = q . k_j over the first `count` keys of a step. */
template <class KEY>
static __device__ __forceinline__ void score(float (&scores)[STEP_KEYS],
                                             const KEY (&keys)[STEP_KEYS], int count,
                                             const float *q, const struct query_dims &dims)
{
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int j = 0; j < STEP_KEYS; j++)
        scores[j] = 0;
    for (int i = lane; i < dims.nope; i += 32)
#pragma unroll
        for (int j = 0; j < STEP_KEYS; j++)
            if (j < count)
                scores[j] += q[i] * keys[j].nope(i);
    for (int i = lane; i < dims.rope; i += 32)
#pragma unroll
        for (int j = 0; j < STEP_KEYS; j++)
            if (j < count)
                scores[j] += q[dims.nope + i] * keys[j].rope(i);
#pragma unroll
    for (int j = 0; j < STEP_KEYS; j++)
        scores[j] = warp_sum(scores[j]);
}

/* out = softmax(scale q k^T) v over keys.at(0 .. count); 0 without keys. Returns the natural
 * logarithm of the sum of exponentials. Keys past `count` are not read. `q` and `sums` are shared
 * memory of this warp: [nope + rope] and [v]. KEYS: __device__ key at(int64_t key) const, and key
 * has float nope(i), rope(i), value(i). */
template <class KEYS>
static __device__ float attend_query(const KEYS &keys, int64_t count, const __nv_bfloat16 *query,
                                     const struct query_dims &dims, float scale, float *q,
                                     float *sums, __nv_bfloat16 *out)
{
    const int lane = threadIdx.x % 32;
    float max = -CUDART_INF_F, sum = 0;
    for (int i = lane; i < dims.nope + dims.rope; i += 32)
        q[i] = widen(query[i]) * scale * CUDART_L2E_F;
    for (int i = lane; i < dims.v; i += 32)
        sums[i] = 0;
    __syncwarp();
    for (int64_t key = 0; key < count; key += STEP_KEYS) {
        const int step = count - key < STEP_KEYS ? (int)(count - key) : STEP_KEYS;
        typename KEYS::key step_keys[STEP_KEYS];
        float weights[STEP_KEYS];
#pragma unroll
        for (int j = 0; j < STEP_KEYS; j++)
            if (j < step)
                step_keys[j] = keys.at(key + j);
        score(weights, step_keys, step, q, dims);
        const float before = max;
#pragma unroll
        for (int j = 0; j < STEP_KEYS; j++)
            if (j < step)
                max = fmaxf(max, weights[j]);
        const float rescale = exp2f(before - max);
        sum *= rescale;
#pragma unroll
        for (int j = 0; j < STEP_KEYS; j++) {
            weights[j] = exp2f(weights[j] - max);
            if (j < step)
                sum += weights[j];
        }
        for (int i = lane; i < dims.v; i += 32) {
            float value = sums[i] * rescale;
#pragma unroll
            for (int j = 0; j < STEP_KEYS; j++)
                if (j < step)
                    value += weights[j] * step_keys[j].value(i);
            sums[i] = value;
        }
    }
    for (int i = lane; i < dims.v; i += 32)
        out[i] = narrow<__nv_bfloat16>(count > 0 ? sums[i] / sum : 0.0f);
    return count > 0 ? max * CUDART_LN2_F + logf(sum) : -CUDART_INF_F;
}

#endif
