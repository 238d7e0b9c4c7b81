/* Tensor collectives of one group: MPI for CPU ranks, NCCL for GPUs. Every rank makes the same
 * calls in the same order. A failure ends the group. */
#ifndef MLA_COMM_COLLECTIVE_H
#define MLA_COMM_COLLECTIVE_H

#include "proto/dtype.h"
#include "proto/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct mla_collective;

struct mla_collective_ops {
    const char *name;
    /* data [ranks, count]: rank r's part is in place at r * count; afterwards all parts are. */
    enum mla_status (*all_gather)(struct mla_collective *, void *data, size_t count);
    /* data [ranks, count] is summed over the ranks; *part points into data, to this rank's
     * `count` sums. The rest of data is undefined. */
    enum mla_status (*reduce_scatter)(struct mla_collective *, void *data, size_t count,
                                      void **part);
    /* Memory that the collectives read and write fastest, aligned to 256 bytes, contents
     * undefined; any other memory of the device will do, too. Every rank allocates and frees the
     * same, in the same order. bytes > 0. MLA_MEMORY, MLA_COLLECTIVE. */
    enum mla_status (*alloc)(struct mla_collective *, size_t bytes, void **out);
    void (*free)(struct mla_collective *, void *memory); /* NULL is allowed */
    void (*destroy)(struct mla_collective **);
};

/* Each implementation's struct begins with this. */
struct mla_collective {
    const struct mla_collective_ops *ops;
    uint32_t rank, ranks;
    uint64_t ns; /* time the calls took so far */
};

/* f32 in host memory over MPI_COMM_WORLD. With one rank nothing moves. MLA_MEMORY. */
enum mla_status mla_collective_mpi_create(uint32_t rank, uint32_t ranks,
                                          struct mla_collective **out);

enum mla_collective_nccl_flags {
    /* Collectives go with windows of NCCL's symmetric memory where this NCCL has them right: less
     * latency for small parts. */
    MLA_NCCL_SYMMETRIC = 1,
    /* NCCL is called with one rank, too. */
    MLA_NCCL_ALONE = 2,
    /* The same at the sizes alone where create found that faster. */
    MLA_NCCL_MEASURED = 4,
};

/* bf16 in the memory of the calling thread's CUDA device, over NCCL; only in a build with CUDA.
 * Collectives are queued on `stream`, a cudaStream_t, and can be captured there; graphs that hold
 * them go before destroy. alloc and free wait for the device. Called by all ranks of the MPI job
 * at once. With one rank nothing moves. MLA_MEMORY, MLA_COLLECTIVE. */
enum mla_status mla_collective_nccl_create(uint32_t rank, uint32_t ranks, void *stream,
                                           struct mla_collective **out);
enum mla_status mla_collective_nccl_create_flags(uint32_t rank, uint32_t ranks, void *stream,
                                                 unsigned flags, struct mla_collective **out);

/* Whether its reduce-scatter (`sums`) or all-gather of parts of `count` goes with windows. */
bool mla_collective_nccl_has_windows(const struct mla_collective *collective, bool sums,
                                     size_t count);

#endif
