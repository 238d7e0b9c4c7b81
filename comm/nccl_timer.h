/* How long calls take that are queued on a stream: replayed from a graph, so that the host's share
 * does not count. */
#ifndef MLA_COMM_NCCL_TIMER_H
#define MLA_COMM_NCCL_TIMER_H

#include "proto/status.h"

#include <cuda_runtime_api.h>
#include <stdint.h>

/* The least of a few replays of `body`, in ns. All ranks that share body's collectives call it
 * together. What body fails with, MLA_COLLECTIVE, MLA_MEMORY. */
enum mla_status mla_nccl_time(cudaStream_t stream, enum mla_status (*body)(void *context),
                              void *context, uint64_t *ns);

/* The status of a call of CUDA, whose words are logged. */
enum mla_status mla_nccl_cuda_check(cudaError_t error, const char *what);

#endif
