#include "kernels/cuda/tensor_map.h"

#include <assert.h>
#include <cudaTypedefs.h>
#include <string.h>

/* The one driver function that we need, asked of the runtime: without a GPU there is no libcuda
 * that we could link with. */
static cudaError_t encoder(PFN_cuTensorMapEncodeTiled_v12000 *out)
{
    enum cudaDriverEntryPointQueryResult found;
    void *function = NULL;
    cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                                         cudaEnableDefault, &found);
    if (error != cudaSuccess) {
        return error;
    }
    if (found != cudaDriverEntryPointSuccess || !function) {
        return cudaErrorNotSupported;
    }
    /* ISO C has no conversion from a data pointer to a function pointer. */
    memcpy(out, &function, sizeof *out);
    return cudaSuccess;
}

cudaError_t mla_tensor_map_encode(const struct mla_tensor_map *tensor, CUtensorMap *out)
{
    PFN_cuTensorMapEncodeTiled_v12000 encode = NULL;
    cudaError_t error = encoder(&encode);
    if (error != cudaSuccess) {
        return error;
    }
    assert(tensor->dims >= 1 && tensor->dims <= MLA_TENSOR_MAP_DIMS_MAX);
    cuuint64_t extent[MLA_TENSOR_MAP_DIMS_MAX], stride_bytes[MLA_TENSOR_MAP_DIMS_MAX];
    cuuint32_t box[MLA_TENSOR_MAP_DIMS_MAX], step[MLA_TENSOR_MAP_DIMS_MAX];
    for (int i = 0; i < tensor->dims; i++) {
        extent[i] = tensor->extent[i];
        box[i] = tensor->box[i];
        step[i] = 1;
        if (i > 0) {
            stride_bytes[i - 1] = tensor->stride[i] * 2;
        }
    }
    /* The driver writes nothing through `base`. */
    void *base = (void *)tensor->base;
    CUtensorMap map;
    CUresult result =
        encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, (cuuint32_t)tensor->dims, base, extent,
               stride_bytes, box, step, CU_TENSOR_MAP_INTERLEAVE_NONE, tensor->swizzle,
               CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (result != CUDA_SUCCESS) {
        return cudaErrorInvalidValue;
    }
    *out = map;
    return cudaSuccess;
}
