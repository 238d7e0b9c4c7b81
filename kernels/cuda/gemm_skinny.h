/* Products with few rows on Hopper: C [m, n] = A [m, k] op(B) + bias, where reading the weights B
 * is what takes the time. */
#ifndef MLA_KERNELS_CUDA_GEMM_SKINNY_H
#define MLA_KERNELS_CUDA_GEMM_SKINNY_H

#include "kernels/backend.h"

#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { MLA_CUDA_SKINNY_ROWS_MAX = 32 };

/* Whether the kernel takes these arguments, on an sm_90 device: m up to the above, n and all
 * strides multiples of 8, pointers aligned to 16 bytes, no stride of 0 between batches. */
bool mla_cuda_skinny_fits(const struct mla_gemm *gemm);

/* `gemm` must fit; `multiprocessors` are the device's. Same arguments: same bits. B and the bias
 * may be read before the kernels queued in front have finished. */
cudaError_t mla_cuda_skinny_launch(const struct mla_gemm *gemm, int multiprocessors,
                                   cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
