/* Operations on rows: the norms and RoPE of the latents, RoPE of heads, copies. */
#include "kernels/cuda/copy_rows.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/pages.cuh"

#include <assert.h>

typedef __nv_bfloat16 bf16;

constexpr int LATENTS_THREADS = 256;

/* Sum over the block. */
static __device__ __forceinline__ float block_sum(float value)
{
    __shared__ float sums[32];
    value = warp_sum(value);
    if (threadIdx.x % 32 == 0)
        sums[threadIdx.x / 32] = value;
    __syncthreads();
    return warp_sum(threadIdx.x % 32 < blockDim.x / 32 ? sums[threadIdx.x % 32] : 0.0f);
}

/* Where a row is kept besides: slot MLA_SLOT_NONE if nowhere. */
struct cache_row {
    const struct mla_kv_pool &pool;
    int64_t slot;
};

static __device__ __forceinline__ void keep(const cache_row &cache, int64_t at, bf16 value)
{
    if (cache.slot == MLA_SLOT_NONE)
        return;
    if (cache.pool.dtype == MLA_BF16)
        *row_of<bf16>(cache.pool, cache.slot).at(at) = value;
    else
        *row_of<float>(cache.pool, cache.slot).at(at) = widen(value);
}

/* In f32 the cache has what it would have if the row's bf16 had been copied there. */
static __device__ __forceinline__ void keep_eight(const cache_row &cache, int64_t at,
                                                  const float (&values)[EIGHT])
{
    if (cache.slot == MLA_SLOT_NONE)
        return;
    if (cache.pool.dtype == MLA_BF16) {
        store_eight(row_of<bf16>(cache.pool, cache.slot).at(at), values);
        return;
    }
    float rounded[EIGHT];
#pragma unroll
    for (int i = 0; i < EIGHT; i++)
        rounded[i] = widen(narrow<bf16>(values[i]));
    store_eight(row_of<float>(cache.pool, cache.slot).at(at), rounded);
}

/* RMSNorm of one row by one block. HELD: each thread has eight values, with their weights loaded
 * before the kernel in front has ended. */
template <bool HELD> struct rms_norm;

template <> struct rms_norm<true> {
    float weights[EIGHT];

    __device__ rms_norm(const bf16 *weight, int64_t n)
    {
        if (threadIdx.x * EIGHT < n)
            load_eight(weights, weight + threadIdx.x * EIGHT);
    }

    __device__ void apply(bf16 *x, const bf16 *, int64_t n, float eps, const cache_row &cache)
    {
        const int64_t at = threadIdx.x * EIGHT;
        float values[EIGHT], squares = 0;
        if (at < n) {
            load_eight(values, x + at);
#pragma unroll
            for (int i = 0; i < EIGHT; i++)
                squares += values[i] * values[i];
        }
        const float factor = rsqrtf(block_sum(squares) / (float)n + eps);
        if (at >= n)
            return;
#pragma unroll
        for (int i = 0; i < EIGHT; i++)
            values[i] *= factor * weights[i];
        store_eight(x + at, values);
        keep_eight(cache, at, values);
    }
};

template <> struct rms_norm<false> {
    __device__ rms_norm(const bf16 *, int64_t) {}

    __device__ void apply(bf16 *x, const bf16 *weight, int64_t n, float eps, const cache_row &cache)
    {
        float squares = 0;
        for (int64_t i = threadIdx.x; i < n; i += blockDim.x)
            squares += widen(x[i]) * widen(x[i]);
        const float factor = rsqrtf(block_sum(squares) / (float)n + eps);
        for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
            x[i] = narrow<bf16>(widen(x[i]) * factor * widen(weight[i]));
            keep(cache, i, x[i]);
        }
    }
};

/* Pair i of a head is at [2 i], [2 i + 1] or at [i], [i + pairs]. */
static __device__ __forceinline__ void rotate_pair(bf16 *dst, const bf16 *src, const float *table,
                                                   int64_t pair, int64_t pairs, bool interleaved)
{
    const int64_t first = interleaved ? 2 * pair : pair;
    const int64_t second = interleaved ? first + 1 : pair + pairs;
    const float cosine = table[2 * pair], sine = table[2 * pair + 1];
    const float x = widen(src[first]), y = widen(src[second]);
    dst[first] = narrow<bf16>(x * cosine - y * sine);
    dst[second] = narrow<bf16>(x * sine + y * cosine);
}

/* One block normalises a row's query latent, another its key-value latent and rotates its key. */
template <bool HELD>
static __global__ void __launch_bounds__(LATENTS_THREADS) latents(struct mla_latents l)
{
    const int64_t row = blockIdx.x;
    if (blockIdx.y == 1) {
        rms_norm<HELD> query((const bf16 *)l.q_norm, l.q_lora);
        depend();
        query.apply((bf16 *)l.cq + row * l.stride, (const bf16 *)l.q_norm, l.q_lora, l.eps,
                    {l.pool, MLA_SLOT_NONE});
        return;
    }
    rms_norm<HELD> key_value((const bf16 *)l.kv_norm, l.latent);
    depend();
    bf16 *ckv = (bf16 *)l.ckv + row * l.stride, *kpe = ckv + l.latent;
    const cache_row cache = {l.pool, l.slots ? l.slots[row] : MLA_SLOT_NONE};
    const float *table = l.table + l.positions[row] * l.rope;
    const int64_t pairs = l.rope / 2;
    /* From the last thread on, as the first ones have the latent. */
    for (int64_t pair = blockDim.x - 1 - threadIdx.x; pair < pairs; pair += blockDim.x) {
        rotate_pair(kpe, kpe, table, pair, pairs, l.interleaved);
        const int64_t first = l.interleaved ? 2 * pair : pair;
        const int64_t second = l.interleaved ? first + 1 : pair + pairs;
        keep(cache, l.latent + first, kpe[first]);
        keep(cache, l.latent + second, kpe[second]);
    }
    key_value.apply(ckv, (const bf16 *)l.kv_norm, l.latent, l.eps, cache);
}

extern "C" cudaError_t mla_cuda_launch_latents(const struct mla_latents *l, cudaStream_t stream)
{
    constexpr int64_t most = LATENTS_THREADS * EIGHT;
    assert(l->rows >= 0 && l->latent > 0 && l->rope % 2 == 0);
    assert(!l->slots || (l->pool.latent == l->latent && l->pool.rope == l->rope &&
                         (l->pool.dtype == MLA_BF16 || l->pool.dtype == MLA_F32)));
    if (l->rows == 0)
        return cudaSuccess;
    /* Rows of the cache follow one another. */
    const bool held =
        l->latent <= most && by_eights((bf16 *)l->ckv, l->stride, l->latent) &&
        by_eights((const bf16 *)l->kv_norm, 0, l->latent) &&
        (!l->cq || (l->q_lora <= most && by_eights((bf16 *)l->cq, l->stride, l->q_lora) &&
                    by_eights((const bf16 *)l->q_norm, 0, l->q_lora))) &&
        (!l->slots || by_eights((const bf16 *)l->pool.pages, l->latent + l->rope, l->latent));
    const dim3 grid((unsigned)l->rows, l->cq ? 2 : 1);
    return launch_dependent(held ? latents<true> : latents<false>, grid, dim3(LATENTS_THREADS),
                            stream, *l);
}

/* A thread rotates a pair, or four interleaved ones in 16 bytes. */
template <bool FOURS> static __global__ void __launch_bounds__(256) rope(struct mla_rope r)
{
    const int64_t row = blockIdx.x, pairs = r.dim / 2;
    const unsigned share = (unsigned)(FOURS ? pairs / 4 : pairs); /* threads of a head */
    const unsigned item = blockIdx.y * blockDim.x + threadIdx.x;
    const int64_t head = item / share, pair = item % share * (FOURS ? 4 : 1);
    depend();
    if (head >= r.heads)
        return;
    const bf16 *src = (const bf16 *)r.src + row * r.src_row_stride + head * r.src_head_stride;
    bf16 *dst = (bf16 *)r.dst + row * r.dst_row_stride + head * r.dst_head_stride;
    const float *table = r.table + r.positions[row] * r.dim;
    if constexpr (FOURS) {
        float values[EIGHT], angles[EIGHT];
        load_eight(values, src + 2 * pair);
        load_eight(angles, table + 2 * pair);
#pragma unroll
        for (int i = 0; i < EIGHT; i += 2) {
            const float x = values[i], y = values[i + 1];
            values[i] = x * angles[i] - y * angles[i + 1];
            values[i + 1] = x * angles[i + 1] + y * angles[i];
        }
        store_eight(dst + 2 * pair, values);
    } else {
        rotate_pair(dst, src, table, pair, pairs, r.interleaved);
    }
}

extern "C" cudaError_t mla_cuda_launch_rope(const struct mla_rope *r, cudaStream_t stream)
{
    assert(r->rows >= 0 && r->heads > 0 && r->dim > 0 && r->dim % 2 == 0);
    if (r->rows == 0)
        return cudaSuccess;
    const bool fours =
        r->interleaved && by_eights((const bf16 *)r->src, r->src_row_stride, r->dim) &&
        r->src_head_stride % EIGHT == 0 && by_eights((bf16 *)r->dst, r->dst_row_stride, r->dim) &&
        r->dst_head_stride % EIGHT == 0 && by_eights(r->table, r->dim, r->dim);
    const int64_t threads = r->heads * (fours ? r->dim / EIGHT : r->dim / 2);
    const unsigned block = threads < 256 ? (unsigned)ceil_div(threads, 32) * 32 : 256;
    const dim3 grid((unsigned)r->rows, (unsigned)ceil_div(threads, block));
    return launch_dependent(fours ? rope<true> : rope<false>, grid, dim3(block), stream, *r);
}

template <class S, class D> struct strided_rows {
    typedef plain_row<const S> source;
    typedef plain_row<D> target;
    const S *src;
    D *dst;
    int64_t src_stride, dst_stride;

    __device__ bool find(int64_t row, source &from, target &to) const
    {
        from = {src + row * src_stride};
        to = {dst + row * dst_stride};
        return true;
    }
};

template <class S, class D> static cudaError_t copy(const struct mla_copy *c, cudaStream_t stream)
{
    const strided_rows<S, D> rows = {(const S *)c->src, (D *)c->dst, c->src_stride, c->dst_stride};
    const bool eights =
        by_eights(rows.src, c->src_stride, c->n) && by_eights(rows.dst, c->dst_stride, c->n);
    return launch_copy_rows<S, D>(rows, c->rows, c->n, eights, stream);
}

extern "C" cudaError_t mla_cuda_launch_copy(const struct mla_copy *c, cudaStream_t stream)
{
    assert(c->rows >= 0 && c->n > 0);
    assert(c->src_dtype != MLA_F16 && c->dst_dtype != MLA_F16);
    if (c->src_dtype == MLA_BF16)
        return c->dst_dtype == MLA_BF16 ? copy<bf16, bf16>(c, stream)
                                        : copy<bf16, float>(c, stream);
    return c->dst_dtype == MLA_BF16 ? copy<float, bf16>(c, stream) : copy<float, float>(c, stream);
}
