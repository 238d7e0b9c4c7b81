/* Memory that is read for nothing but that it was: into the L2 cache, or to have something else out
 * of it. */
#include "kernels/cuda/depend.cuh"
#include "kernels/cuda/element.cuh"
#include "kernels/cuda/launch.h"

constexpr int READ_THREADS = 256, READ_BLOCKS_MAX = 1024, READ_AT_ONCE = 4;

static __global__ void __launch_bounds__(READ_THREADS)
    read_pieces(const uint4 *pieces, size_t count)
{
    const size_t stride = (size_t)gridDim.x * READ_THREADS;
    depend();
    for (size_t i = (size_t)blockIdx.x * READ_THREADS + threadIdx.x; i < count;
         i += stride * READ_AT_ONCE) {
#pragma unroll
        for (int j = 0; j < READ_AT_ONCE; j++)
            if (i + j * stride < count)
                asm volatile("{\n"
                             ".reg .b32 w0, w1, w2, w3;\n"
                             "ld.volatile.global.v4.u32 {w0, w1, w2, w3}, [%0];\n"
                             "}\n" ::"l"(pieces + i + j * stride));
    }
}

extern "C" cudaError_t mla_cuda_launch_read(const void *memory, size_t bytes, cudaStream_t stream)
{
    /* From the start of the first 16 bytes on, which an allocation has whole. */
    const uintptr_t first = (uintptr_t)memory / 16, end = ((uintptr_t)memory + bytes) / 16;
    const size_t count = end > first ? end - first : 0;
    int64_t blocks = ceil_div((int64_t)count, (int64_t)READ_THREADS * READ_AT_ONCE);
    if (blocks < 1)
        blocks = 1;
    if (blocks > READ_BLOCKS_MAX)
        blocks = READ_BLOCKS_MAX;
    return launch_dependent(read_pieces, dim3((unsigned)blocks), dim3(READ_THREADS), stream,
                            (const uint4 *)(first * 16), count);
}
