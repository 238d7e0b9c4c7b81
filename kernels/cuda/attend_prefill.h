/* Prefill attention on NVIDIA GPUs: multi-head attention of new rows over expanded keys, sequence
 * by sequence, as struct mla_attend_prefill (kernels/backend.h) describes it. Lengths are read
 * from device memory: a captured launch may be replayed with other row_first and key_first, as
 * long as rows, keys and sequences stay what they are. */
#ifndef MLA_KERNELS_CUDA_ATTEND_PREFILL_H
#define MLA_KERNELS_CUDA_ATTEND_PREFILL_H

#include "kernels/backend.h"

#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Whether mla_cuda_attend_prefill_sm90 takes these arguments: nope 128, rope 64, v_dim 128, a
 * positive scale, fewer than 2^30 rows, keys and tiles, and q, k_nope, k_rope, v and out aligned
 * to 16 bytes with strides that are multiples of 8 elements. */
bool mla_cuda_attend_prefill_sm90_fits(const struct mla_attend_prefill *attend);

/* Words of device memory that the kernel shares its tiles out with. They are 0 before the first
 * launch and again after every launch; launches that share them don't overlap. */
#define MLA_CUDA_PREFILL_QUEUE_WORDS 2

/* On a device of compute capability 9.0; the arguments fit. Same input: same bits, whatever the
 * other sequences of the batch are. A NaN or infinity among a sequence's q, keys and values stays
 * in that sequence, but can reach rows that don't see its key yet. */
cudaError_t mla_cuda_attend_prefill_sm90(const struct mla_attend_prefill *attend, uint32_t *queue,
                                         cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
