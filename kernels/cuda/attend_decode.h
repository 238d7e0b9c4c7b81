/* Decode attention on NVIDIA GPUs: absorbed (MQA) attention over the paged latent cache, as
 * struct mla_attend_decode describes it. A schedule shares out the work once per microbatch; its
 * kernel and the attention read every length from device memory, so that both can be captured and
 * replayed with other lengths. */
#ifndef MLA_KERNELS_CUDA_ATTEND_DECODE_H
#define MLA_KERNELS_CUDA_ATTEND_DECODE_H

#include "kernels/backend.h"
#include "kernels/cuda/tensor_map.h"

#include <cuda_runtime.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
    MLA_CUDA_DECODE_LATENT = 512,
    MLA_CUDA_DECODE_ROPE = 64,
    MLA_CUDA_DECODE_WIDTH = MLA_CUDA_DECODE_LATENT + MLA_CUDA_DECODE_ROPE,
    MLA_CUDA_DECODE_MAPS = 64, /* of queries; others are made again */
};

/* What one backend keeps for all launches; zeroed, then the first three set. For one thread. */
struct mla_cuda_decode {
    int multiprocessors;
    bool fast_memory; /* for each multiprocessor; of two orders of work another is faster then */
    void *scratch;    /* mla_cuda_decode_scratch_bytes, aligned to 256, zeroed once */
    /* Tensor maps made before, found by what they describe. */
    struct {
        struct mla_tensor_map tensor;
        uint64_t map[sizeof(CUtensorMap) / sizeof(uint64_t)];
    } maps[MLA_CUDA_DECODE_MAPS];
};

/* Whether the kernels of this header take these arguments, on an sm_90 device: latent 512,
 * rope 64, a pool of MLA_KV_PANELS, rows of q and out aligned to 16 bytes. */
bool mla_cuda_decode_fits(const struct mla_attend_decode *attend);

/* Bytes of a schedule, and of the scratch that serves any number of heads. */
size_t mla_cuda_decode_schedule_bytes(int multiprocessors, int64_t rows_max);
size_t mla_cuda_decode_scratch_bytes(int multiprocessors);

/* Makes the schedule: a contiguous range of the list of all rows' tiles (64 tokens) for each
 * worker, and which rows are split between workers. Of `attend` kv, rows_max and heads count.
 * schedule: device memory, aligned to 64. */
cudaError_t mla_cuda_decode_schedule(const struct mla_cuda_decode *decode,
                                     const struct mla_attend_decode *attend, void *schedule,
                                     cudaStream_t stream);

/* `attend` must fit. At most one launch at a time uses a scratch. */
cudaError_t mla_cuda_attend_decode_sm90(struct mla_cuda_decode *decode,
                                        const struct mla_attend_decode *attend,
                                        cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
