/* Where rows and cached tokens are. */
#ifndef MLA_KERNELS_CUDA_PAGES_CUH
#define MLA_KERNELS_CUDA_PAGES_CUH

#include "kernels/backend.h"
#include "proto/limits.h"

/* The sequence that has `row` in first [sequences + 1]; row < first[sequences]. */
static __device__ __forceinline__ int64_t sequence_of(const int32_t *first, int64_t sequences,
                                                      int64_t row)
{
    int64_t low = 0, high = sequences; /* first[low] <= row < first[high] */
    while (high - low > 1) {
        const int64_t middle = (low + high) / 2;
        if (first[middle] <= row)
            low = middle;
        else
            high = middle;
    }
    return low;
}

/* A row of a pool of T. */
template <class T> struct pool_row {
    T *pool;
    int64_t slot, width;
    enum mla_kv_layout layout;

    __device__ __forceinline__ T *at(int64_t i) const
    {
        return pool + mla_kv_place(layout, width, slot, i);
    }
};

template <class T>
static __device__ __forceinline__ pool_row<T> row_of(const struct mla_kv_pool &pool, int64_t slot)
{
    return {(T *)pool.pages, slot, pool.latent + pool.rope, pool.layout};
}

template <class T>
static __device__ __forceinline__ pool_row<const T> cached_row(const struct mla_kv_view &kv,
                                                               int64_t sequence, int64_t token)
{
    const int64_t block =
        kv.tables[kv.table[sequence] * kv.table_stride + token / MLA_BLOCK_TOKENS];
    return row_of<const T>(kv.pool, block * MLA_BLOCK_TOKENS + token % MLA_BLOCK_TOKENS);
}

#endif
