/* How a product of few rows is shared out, and what its kernel is given. */
#include "kernels/cuda/gemm_skinny.h"

#include "kernels/cuda/depend.cuh"
#include "kernels/cuda/element.cuh"
#include "kernels/cuda/gemm_skinny_sm90.cuh"
#include "kernels/cuda/tensor_map.h"

#include <assert.h>

namespace
{

/* Of each of two blocks on a multiprocessor. */
constexpr int SHARED_MAX = 228 * 1024 / 2 - 1024;
constexpr int SPLITS_MAX = 4, SPLIT_STEPS_MIN = 4;

bool aligned(const void *base, int64_t row_stride, int64_t batch, int64_t batch_stride)
{
    return (uintptr_t)base % 16 == 0 && row_stride > 0 && row_stride % 8 == 0 &&
           (batch == 1 || (batch_stride > 0 && batch_stride % 8 == 0));
}

/* [batch, rows, width], in boxes of box_rows rows by 64 values. */
cudaError_t encode(const void *base, int64_t width, int64_t rows, int64_t row_stride, int64_t batch,
                   int64_t batch_stride, int box_rows, CUtensorMap *out)
{
    struct mla_tensor_map map = {};
    map.base = base;
    map.dims = 3;
    map.extent[0] = (uint64_t)width;
    map.extent[1] = (uint64_t)rows;
    map.extent[2] = (uint64_t)batch;
    map.stride[1] = (uint64_t)row_stride;
    map.stride[2] = (uint64_t)(batch > 1 ? batch_stride : row_stride);
    map.box[0] = skinny::STEP;
    map.box[1] = (uint32_t)box_rows;
    map.box[2] = 1;
    map.swizzle = CU_TENSOR_MAP_SWIZZLE_128B;
    return mla_tensor_map_encode(&map, out);
}

/* As many blocks as multiprocessors, about: one alone loads no more than 60 KB/us. More splits, or
 * splits of a few steps, cost more than they gain (NOTES.md). */
int splits_for(int tiles, int steps, int multiprocessors)
{
    int splits = (multiprocessors + tiles / 2) / tiles;
    if (splits > SPLITS_MAX)
        splits = SPLITS_MAX;
    if (splits > steps / SPLIT_STEPS_MIN)
        splits = steps / SPLIT_STEPS_MIN;
    return splits > 1 ? splits : 1;
}

template <int TOKENS, int TURNED>
cudaError_t launch(skinny::launch &p, int blocks, cudaStream_t stream)
{
    using shape = skinny::shape<TOKENS>;
    auto kernel = skinny::multiply<TOKENS, TURNED>;
    const int sums = (p.splits - 1) * shape::SUMS_BYTES;
    const int steps_each = (int)ceil_div(p.steps, p.splits);
    p.stages = (SHARED_MAX - sums - skinny::barrier_bytes(0)) /
               (shape::STAGE_BYTES + skinny::barrier_bytes(1) - skinny::barrier_bytes(0));
    if (p.stages > steps_each)
        p.stages = steps_each;
    cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, SHARED_MAX);
    if (error == cudaSuccess)
        error = prefer_shared_memory(kernel);
    if (error != cudaSuccess)
        return error;
    cudaLaunchAttribute attributes[2] = {};
    attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[0].val.programmaticStreamSerializationAllowed = SIDE_BY_SIDE;
    attributes[1].id = cudaLaunchAttributeClusterDimension;
    attributes[1].val.clusterDim.x = (unsigned)p.splits;
    attributes[1].val.clusterDim.y = 1;
    attributes[1].val.clusterDim.z = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3((unsigned)blocks);
    config.blockDim = dim3(skinny::THREADS);
    config.dynamicSmemBytes =
        (size_t)(p.stages * shape::STAGE_BYTES + sums + skinny::barrier_bytes(p.stages));
    config.stream = stream;
    config.attrs = attributes;
    config.numAttrs = p.splits > 1 ? 2 : 1;
    return cudaLaunchKernelEx(&config, kernel, p);
}

} // namespace

extern "C" bool mla_cuda_skinny_fits(const struct mla_gemm *g)
{
    const int64_t most = (int64_t)1 << 20;
    return g->m >= 1 && g->m <= MLA_CUDA_SKINNY_ROWS_MAX && g->n >= 8 && g->n % 8 == 0 &&
           g->n <= most && g->k >= 1 && g->k <= most && g->batch >= 1 && g->batch <= 1024 &&
           aligned(g->a, g->lda, g->batch, g->a_stride) &&
           aligned(g->b, g->ldb, g->batch, g->b_stride) &&
           aligned(g->c, g->ldc, g->batch, g->c_stride);
}

extern "C" cudaError_t mla_cuda_skinny_launch(const struct mla_gemm *g, int multiprocessors,
                                              cudaStream_t stream)
{
    assert(mla_cuda_skinny_fits(g));
    const int tokens = g->m <= 16 ? 16 : MLA_CUDA_SKINNY_ROWS_MAX;
    const bool turned = !g->b_transposed;
    skinny::launch p = {};
    cudaError_t error = encode(g->a, g->k, g->m, g->lda, g->batch, g->a_stride, tokens, &p.x);
    if (error == cudaSuccess)
        error = encode(g->b, turned ? g->n : g->k, turned ? g->k : g->n, g->ldb, g->batch,
                       g->b_stride, skinny::COLUMNS, &p.w);
    if (error != cudaSuccess)
        return error;
    p.c = (__nv_bfloat16 *)g->c;
    p.ldc = g->ldc;
    p.c_stride = g->c_stride;
    p.bias = (const __nv_bfloat16 *)g->bias;
    p.m = (int)g->m;
    p.n = (int)g->n;
    p.steps = (int)ceil_div(g->k, skinny::STEP);
    p.tiles = (int)ceil_div(g->n, skinny::COLUMNS);
    const int tiles = p.tiles * (int)g->batch;
    p.splits = splits_for(tiles, p.steps, multiprocessors);
    const int blocks = tiles * p.splits;
    if (tokens == 16)
        return turned ? launch<16, 1>(p, blocks, stream) : launch<16, 0>(p, blocks, stream);
    return turned ? launch<32, 1>(p, blocks, stream) : launch<32, 0>(p, blocks, stream);
}
