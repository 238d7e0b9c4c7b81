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

template <class T>
static __device__ __forceinline__ const T *cached_row(const struct mla_kv_view &kv,
                                                      int64_t sequence, int64_t token)
{
    const int64_t block =
        kv.tables[kv.table[sequence] * kv.table_stride + token / MLA_BLOCK_TOKENS];
    return (const T *)kv.pool.rows +
           (block * MLA_BLOCK_TOKENS + token % MLA_BLOCK_TOKENS) * (kv.pool.latent + kv.pool.rope);
}

#endif
