/* Tensor collectives of one group: MPI for CPU ranks, NCCL for GPUs. Every rank makes the same
 * calls in the same order. A failure ends the group. */
#ifndef MLA_COMM_COLLECTIVE_H
#define MLA_COMM_COLLECTIVE_H

#include "proto/dtype.h"
#include "proto/status.h"

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
    void (*destroy)(struct mla_collective **);
};

/* Each implementation's struct begins with this. */
struct mla_collective {
    const struct mla_collective_ops *ops;
    uint32_t rank, ranks;
    uint64_t ns; /* time spent in collectives so far */
};

/* f32 in host memory over MPI_COMM_WORLD. With one rank nothing moves. MLA_MEMORY. */
enum mla_status mla_collective_mpi_create(uint32_t rank, uint32_t ranks,
                                          struct mla_collective **out);

#endif
