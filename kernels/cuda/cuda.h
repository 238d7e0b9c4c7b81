/* What the C sources of the CUDA backend share. */
#ifndef MLA_KERNELS_CUDA_CUDA_H
#define MLA_KERNELS_CUDA_CUDA_H

#include "kernels/backend.h"

#include <cublasLt.h>
#include <cuda_runtime_api.h>

struct mla_cuda {
    struct mla_backend base;
    int device;
    int sms;  /* multiprocessors */
    int arch; /* 10 * major + minor of the compute capability */
    cudaStream_t queues[MLA_QUEUE_OUT + 1];
    bool capturing, capture_failed;
    cublasLtHandle_t blas;
    void *workspace; /* of products on the compute queue, MLA_CUDA_WORKSPACE_BYTES */
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

#endif
