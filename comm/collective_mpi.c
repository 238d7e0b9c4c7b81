#include "comm/collective.h"

#include "comm/mpi_error.h"
#include "proto/clock.h"

#include <assert.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>

enum { ALIGNMENT = 256 };

static enum mla_status finish(struct mla_collective *collective, uint64_t begin_ns, int rc,
                              const char *what)
{
    collective->ns += mla_now_ns() - begin_ns;
    return mla_mpi_check(rc, what);
}

static enum mla_status all_gather(struct mla_collective *collective, void *data, size_t count)
{
    if (collective->ranks == 1)
        return MLA_OK;
    if (count > INT_MAX)
        return MLA_LIMIT;
    uint64_t begin_ns = mla_now_ns();
    int rc = MPI_Allgather(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, data, (int)count, MPI_FLOAT,
                           MPI_COMM_WORLD);
    return finish(collective, begin_ns, rc, "MPI_Allgather");
}

static enum mla_status reduce_scatter(struct mla_collective *collective, void *data, size_t count,
                                      void **part)
{
    if (collective->ranks > 1) {
        if (count > INT_MAX)
            return MLA_LIMIT;
        uint64_t begin_ns = mla_now_ns();
        int rc = MPI_Reduce_scatter_block(MPI_IN_PLACE, data, (int)count, MPI_FLOAT, MPI_SUM,
                                          MPI_COMM_WORLD);
        enum mla_status status = finish(collective, begin_ns, rc, "MPI_Reduce_scatter_block");
        if (status != MLA_OK)
            return status;
    }
    *part = data; /* in place, MPI leaves a rank's result at the beginning */
    return MLA_OK;
}

static enum mla_status alloc(struct mla_collective *collective, size_t bytes, void **out)
{
    (void)collective;
    assert(bytes > 0);
    void *memory = bytes <= SIZE_MAX - ALIGNMENT
                       ? aligned_alloc(ALIGNMENT, (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT)
                       : NULL;
    if (!memory) {
        fprintf(stderr, "collectives: %zu bytes of memory were refused\n", bytes);
        return MLA_MEMORY;
    }
    *out = memory;
    return MLA_OK;
}

static void release(struct mla_collective *collective, void *memory)
{
    (void)collective;
    free(memory);
}

static void destroy(struct mla_collective **collective)
{
    free(*collective);
    *collective = NULL;
}

static const struct mla_collective_ops ops = {
    .name = "mpi",
    .all_gather = all_gather,
    .reduce_scatter = reduce_scatter,
    .alloc = alloc,
    .free = release,
    .destroy = destroy,
};

enum mla_status mla_collective_mpi_create(uint32_t rank, uint32_t ranks,
                                          struct mla_collective **out)
{
    struct mla_collective *collective = malloc(sizeof *collective);
    if (!collective)
        return MLA_MEMORY;
    *collective = (struct mla_collective){.ops = &ops, .rank = rank, .ranks = ranks};
    *out = collective;
    return MLA_OK;
}
