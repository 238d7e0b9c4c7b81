/* What the C sources of the CUDA backend share. */
#ifndef MLA_KERNELS_CUDA_CUDA_H
#define MLA_KERNELS_CUDA_CUDA_H

#include "kernels/backend.h"
#include "kernels/cuda/attend_decode.h"

#include <cublasLt.h>
#include <cuda_runtime_api.h>

struct mla_cuda_gemms; /* products that were planned already */

struct mla_cuda {
    struct mla_backend base;
    int device;
    int sms;  /* multiprocessors */
    int arch; /* 10 * major + minor of the compute capability */
    cudaStream_t queues[MLA_QUEUE_OUT + 1];
    bool capturing, capture_failed;
    cublasLtHandle_t blas;
    void *workspace; /* of products on the compute queue, MLA_CUDA_WORKSPACE_BYTES */
    struct mla_cuda_gemms *gemms;
    uint32_t *prefill_queue;       /* MLA_CUDA_PREFILL_QUEUE_WORDS; NULL but on sm_90 */
    struct mla_cuda_decode decode; /* on sm_90 */
};

/* What NVIDIA asks for on Hopper. */
#define MLA_CUDA_WORKSPACE_BYTES ((size_t)32 << 20)

static inline struct mla_cuda *mla_cuda_of(struct mla_backend *backend)
{
    return (struct mla_cuda *)(void *)backend;
}

static inline cudaStream_t mla_cuda_compute(const struct mla_cuda *cuda)
{
    return cuda->queues[MLA_QUEUE_COMPUTE];
}

/* The status of a call; a failure is logged with the runtime's words for it, and ends a capture
 * that is going on. */
enum mla_status mla_cuda_check(struct mla_cuda *cuda, cudaError_t error, const char *what);

/* cuBLASLt's handle, workspace and the memory of planned products. MLA_MEMORY, MLA_INTERNAL. */
enum mla_status mla_cuda_gemm_init(struct mla_cuda *cuda);
void mla_cuda_gemm_fini(struct mla_cuda *cuda);
enum mla_status mla_cuda_tune(struct mla_backend *, bool on);

/* What the kernels that attend share between launches. MLA_MEMORY, MLA_INTERNAL. */
enum mla_status mla_cuda_attend_init(struct mla_cuda *cuda);
void mla_cuda_attend_fini(struct mla_cuda *cuda);

enum mla_status mla_cuda_gemm(struct mla_backend *, const struct mla_gemm *);
enum mla_status mla_cuda_latents(struct mla_backend *, const struct mla_latents *);
enum mla_status mla_cuda_rope(struct mla_backend *, const struct mla_rope *);
enum mla_status mla_cuda_copy(struct mla_backend *, const struct mla_copy *);
enum mla_status mla_cuda_kv_write(struct mla_backend *, const struct mla_kv_write *);
enum mla_status mla_cuda_kv_gather(struct mla_backend *, const struct mla_kv_gather *);
enum mla_status mla_cuda_scatter(struct mla_backend *, const struct mla_scatter *);
enum mla_status mla_cuda_kv_copy(struct mla_backend *, const struct mla_kv_copy *);
size_t mla_cuda_schedule_bytes(struct mla_backend *, int64_t rows_max, int64_t heads);
enum mla_status mla_cuda_schedule_decode(struct mla_backend *, const struct mla_attend_decode *,
                                         void *schedule);
enum mla_status mla_cuda_attend_decode(struct mla_backend *, const struct mla_attend_decode *);
enum mla_status mla_cuda_attend_prefill(struct mla_backend *, const struct mla_attend_prefill *);
enum mla_status mla_cuda_merge(struct mla_backend *, const struct mla_merge *);

#endif
