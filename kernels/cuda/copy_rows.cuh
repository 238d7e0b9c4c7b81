/* Rows from one place, layout and dtype to another. What row goes where is up to ROWS:
 *   source, target                                          what has a T *at(int64_t column)
 *   __device__ bool find(int64_t row, source &src, target &dst) const    false: skip this row
 */
#ifndef MLA_KERNELS_CUDA_COPY_ROWS_CUH
#define MLA_KERNELS_CUDA_COPY_ROWS_CUH

#include "kernels/cuda/depend.cuh"
#include "kernels/cuda/element.cuh"

#include <cuda_runtime.h>
#include <type_traits>

constexpr int COPY_THREADS = 256;

/* Values side by side. */
template <class T> struct plain_row {
    T *values;

    __device__ __forceinline__ T *at(int64_t column) const { return values + column; }
};

/* blockDim: x over the columns, y over rows. */
template <class S, class D, int WIDTH, class ROWS>
__global__ void __launch_bounds__(COPY_THREADS) copy_rows(ROWS rows, int64_t count, int64_t n)
{
    const int64_t row = (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
    const int64_t column = ((int64_t)blockIdx.y * blockDim.x + threadIdx.x) * WIDTH;
    typename ROWS::source src;
    typename ROWS::target dst;
    depend();
    if (row >= count || column >= n || !rows.find(row, src, dst))
        return;
    if constexpr (WIDTH == EIGHT) {
        float values[EIGHT];
        load_eight(values, src.at(column));
        store_eight(dst.at(column), values);
    } else if constexpr (std::is_same_v<S, D>) {
        *dst.at(column) = *src.at(column);
    } else {
        *dst.at(column) = narrow<D>(widen(*src.at(column)));
    }
}

template <class S, class D, class ROWS>
static cudaError_t launch_copy_rows(const ROWS &rows, int64_t count, int64_t n, bool eights,
                                    cudaStream_t stream)
{
    if (count == 0)
        return cudaSuccess;
    const int64_t columns = eights ? n / EIGHT : n;
    unsigned across = 1;
    while (across < COPY_THREADS && across < columns)
        across *= 2;
    const dim3 block(across, COPY_THREADS / across);
    const dim3 grid((unsigned)ceil_div(count, block.y), (unsigned)ceil_div(columns, block.x));
    return launch_dependent(eights ? copy_rows<S, D, EIGHT, ROWS> : copy_rows<S, D, 1, ROWS>, grid,
                            block, stream, rows, count, n);
}

#endif
