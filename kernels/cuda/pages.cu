/* The KV cache: rows to their slots, cached rows in a row, whole blocks. */
#include "kernels/cuda/copy_rows.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/pages.cuh"

#include <assert.h>

typedef __nv_bfloat16 bf16;

template <class T> struct slot_rows {
    typedef plain_row<const bf16> source;
    typedef pool_row<T> target;
    const bf16 *src;
    int64_t src_stride;
    struct mla_kv_pool pool;
    const int64_t *slots;

    __device__ bool find(int64_t row, source &from, target &to) const
    {
        const int64_t slot = slots[row];
        from = {src + row * src_stride};
        to = row_of<T>(pool, slot);
        return slot != MLA_SLOT_NONE;
    }
};

template <class T> static cudaError_t write(const struct mla_kv_write *w, cudaStream_t stream)
{
    const int64_t width = w->pool.latent + w->pool.rope;
    const slot_rows<T> rows = {(const bf16 *)w->src, w->src_stride, w->pool, w->slots};
    const bool eights = by_eights(rows.src, w->src_stride, width) &&
                        by_eights((const T *)w->pool.pages, width, width);
    return launch_copy_rows<bf16, T>(rows, w->rows, width, eights, stream);
}

extern "C" cudaError_t mla_cuda_launch_kv_write(const struct mla_kv_write *w, cudaStream_t stream)
{
    assert(w->rows >= 0 && (w->pool.dtype == MLA_BF16 || w->pool.dtype == MLA_F32));
    return w->pool.dtype == MLA_BF16 ? write<bf16>(w, stream) : write<float>(w, stream);
}

template <class T> struct cached_rows {
    typedef pool_row<const T> source;
    typedef plain_row<bf16> target;
    struct mla_kv_view kv;
    const int32_t *begin, *context_first;
    bf16 *dst;
    int64_t dst_stride;

    __device__ bool find(int64_t row, source &from, target &to) const
    {
        const int64_t s = sequence_of(context_first, kv.sequences, row);
        from = cached_row<T>(kv, s, begin[s] + row - context_first[s]);
        to = {dst + row * dst_stride};
        return true;
    }
};

template <class T> static cudaError_t gather(const struct mla_kv_gather *g, cudaStream_t stream)
{
    const int64_t width = g->kv.pool.latent + g->kv.pool.rope;
    const cached_rows<T> rows = {g->kv, g->begin, g->context_first, (bf16 *)g->dst, g->dst_stride};
    const bool eights = by_eights((const T *)g->kv.pool.pages, width, width) &&
                        by_eights(rows.dst, g->dst_stride, width);
    return launch_copy_rows<T, bf16>(rows, g->rows, width, eights, stream);
}

extern "C" cudaError_t mla_cuda_launch_kv_gather(const struct mla_kv_gather *g, cudaStream_t stream)
{
    assert(g->rows >= 0 && (g->kv.pool.dtype == MLA_BF16 || g->kv.pool.dtype == MLA_F32));
    return g->kv.pool.dtype == MLA_BF16 ? gather<bf16>(g, stream) : gather<float>(g, stream);
}

static __global__ void scatter_kernel(struct mla_scatter s)
{
    const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < s.count)
        s.dst[s.index[i]] = s.value[i];
}

extern "C" cudaError_t mla_cuda_launch_scatter(const struct mla_scatter *s, cudaStream_t stream)
{
    constexpr int THREADS = 256;
    if (s->count > 0)
        scatter_kernel<<<(unsigned)((s->count + THREADS - 1) / THREADS), THREADS, 0, stream>>>(*s);
    return cudaGetLastError();
}

/* Block ids travel in the launch's own parameters: nothing is left to wait for or to reuse. */
constexpr int PAIRS_MAX = 256;

template <class T> struct block_rows {
    typedef plain_row<const T> source;
    typedef plain_row<T> target;
    T *pool;
    int64_t block; /* elements */
    int32_t src[PAIRS_MAX], dst[PAIRS_MAX];

    __device__ bool find(int64_t pair, source &from, target &to) const
    {
        from = {pool + src[pair] * block};
        to = {pool + dst[pair] * block};
        return true;
    }
};

template <class T> static cudaError_t copy_blocks(const struct mla_kv_copy *c, cudaStream_t stream)
{
    const int64_t width = c->pool.latent + c->pool.rope;
    block_rows<T> rows = {(T *)c->pool.pages, MLA_BLOCK_TOKENS * width, {0}, {0}};
    const bool eights = by_eights(rows.pool, rows.block, rows.block);
    cudaError_t error = cudaSuccess;
    for (int64_t first = 0; error == cudaSuccess && first < c->count; first += PAIRS_MAX) {
        const int64_t count = c->count - first < PAIRS_MAX ? c->count - first : PAIRS_MAX;
        for (int64_t i = 0; i < count; i++) {
            rows.src[i] = c->src[first + i];
            rows.dst[i] = c->dst[first + i];
        }
        error = launch_copy_rows<T, T>(rows, count, rows.block, eights, stream);
    }
    return error;
}

extern "C" cudaError_t mla_cuda_launch_kv_copy(const struct mla_kv_copy *c, cudaStream_t stream)
{
    assert(c->count >= 0 && (c->pool.dtype == MLA_BF16 || c->pool.dtype == MLA_F32));
    return c->pool.dtype == MLA_BF16 ? copy_blocks<bf16>(c, stream) : copy_blocks<float>(c, stream);
}
