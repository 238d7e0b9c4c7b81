#include "comm/bootstrap.h"

#include "comm/mpi_error.h"

#include <stdlib.h>

enum mla_status mla_bootstrap_init(int *argc, char ***argv, uint32_t *rank, uint32_t *ranks)
{
    int provided = 0;
    int r = 0;
    int n = 1;
    enum mla_status status = mla_mpi_check(
        MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &provided), "MPI_Init_thread");
    if (status != MLA_OK)
        return status;
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    MPI_Comm_rank(MPI_COMM_WORLD, &r);
    MPI_Comm_size(MPI_COMM_WORLD, &n);
    *rank = (uint32_t)r;
    *ranks = (uint32_t)n;
    return MLA_OK;
}

void mla_bootstrap_fini(void)
{
    MPI_Finalize();
}

void mla_bootstrap_abort(int exit_code)
{
    MPI_Abort(MPI_COMM_WORLD, exit_code);
    _Exit(exit_code);
}

enum mla_status mla_bootstrap_broadcast(void *data, size_t bytes)
{
    return mla_mpi_check(MPI_Bcast(data, (int)bytes, MPI_BYTE, 0, MPI_COMM_WORLD), "MPI_Bcast");
}

static enum mla_status reduce(uint64_t *value, MPI_Op op)
{
    return mla_mpi_check(MPI_Allreduce(MPI_IN_PLACE, value, 1, MPI_UINT64_T, op, MPI_COMM_WORLD),
                         "MPI_Allreduce");
}

enum mla_status mla_bootstrap_min(uint64_t *value)
{
    return reduce(value, MPI_MIN);
}

enum mla_status mla_bootstrap_max(uint64_t *value)
{
    return reduce(value, MPI_MAX);
}

enum mla_status mla_bootstrap_local(uint32_t *local_rank, uint32_t *local_ranks)
{
    MPI_Comm local;
    int rank = 0;
    int ranks = 1;
    enum mla_status status = mla_mpi_check(
        MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &local),
        "MPI_Comm_split_type");
    if (status != MLA_OK)
        return status;
    MPI_Comm_rank(local, &rank);
    MPI_Comm_size(local, &ranks);
    MPI_Comm_free(&local);
    *local_rank = (uint32_t)rank;
    *local_ranks = (uint32_t)ranks;
    return MLA_OK;
}
