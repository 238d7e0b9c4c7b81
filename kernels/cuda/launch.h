/* Launchers of the plain kernels: any dimensions, sm_80 and newer. Each queues the operation of
 * kernels/backend.h on `stream` and returns what the launch said; no rows launch nothing. */
#ifndef MLA_KERNELS_CUDA_LAUNCH_H
#define MLA_KERNELS_CUDA_LAUNCH_H

#include "kernels/backend.h"

#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

cudaError_t mla_cuda_launch_latents(const struct mla_latents *latents, cudaStream_t stream);
cudaError_t mla_cuda_launch_rope(const struct mla_rope *rope, cudaStream_t stream);
cudaError_t mla_cuda_launch_copy(const struct mla_copy *copy, cudaStream_t stream);
cudaError_t mla_cuda_launch_kv_write(const struct mla_kv_write *write, cudaStream_t stream);
cudaError_t mla_cuda_launch_kv_gather(const struct mla_kv_gather *gather, cudaStream_t stream);
cudaError_t mla_cuda_launch_scatter(const struct mla_scatter *scatter, cudaStream_t stream);
cudaError_t mla_cuda_launch_kv_copy(const struct mla_kv_copy *copy, cudaStream_t stream);
cudaError_t mla_cuda_launch_merge(const struct mla_merge *merge, cudaStream_t stream);
/* Reads memory and does nothing with it. */
cudaError_t mla_cuda_launch_read(const void *memory, size_t bytes, cudaStream_t stream);
cudaError_t mla_cuda_launch_attend_decode(const struct mla_attend_decode *attend,
                                          cudaStream_t stream);
cudaError_t mla_cuda_launch_attend_prefill(const struct mla_attend_prefill *attend,
                                           cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
