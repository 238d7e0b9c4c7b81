/* Maps that tell the tensor memory accelerator (TMA) where a tensor lies. Made on the host; kernels
 * take them as __grid_constant__ parameters. */
#ifndef MLA_KERNELS_CUDA_TENSOR_MAP_H
#define MLA_KERNELS_CUDA_TENSOR_MAP_H

#include <cuda.h>
#include <cuda_runtime_api.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define MLA_TENSOR_MAP_DIMS_MAX 5

/* A bf16 tensor in device memory. Dimension 0 is the innermost, with elements side by side.
 * A box is what one load moves; its rows (box[0] elements) lie packed in shared memory, permuted
 * by `swizzle`: with 128B and box[0] = 64, the 16-byte chunk c of row r is at c ^ (r % 8), and the
 * box must begin at a multiple of 1024 bytes. Parts of a box that lie outside of the tensor read
 * zeros.
 * base is aligned to 16 bytes; strides count elements and are multiples of 8; extents are at
 * least 1, boxes 1 to 256, box[0] rows at most 128 bytes when swizzled. */
struct mla_tensor_map {
    const void *base;
    int dims;
    uint64_t extent[MLA_TENSOR_MAP_DIMS_MAX];
    uint64_t stride[MLA_TENSOR_MAP_DIMS_MAX]; /* [0] is 1 and not looked at */
    uint32_t box[MLA_TENSOR_MAP_DIMS_MAX];
    CUtensorMapSwizzle swizzle;
};

/* cudaErrorInvalidValue: the driver refuses these numbers. cudaErrorNotSupported: an older
 * driver. */
cudaError_t mla_tensor_map_encode(const struct mla_tensor_map *tensor, CUtensorMap *out);

#ifdef __cplusplus
}
#endif

#endif
