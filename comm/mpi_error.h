/* What MPI says of a failed call. */
#ifndef MLA_COMM_MPI_ERROR_H
#define MLA_COMM_MPI_ERROR_H

#include "proto/status.h"

#include <mpi.h>
#include <stdio.h>

/* MLA_OK, or MLA_COLLECTIVE after a line on stderr. */
static inline enum mla_status mla_mpi_check(int rc, const char *what)
{
    if (rc == MPI_SUCCESS)
        return MLA_OK;
    char text[MPI_MAX_ERROR_STRING];
    int length = 0;
    MPI_Error_string(rc, text, &length);
    fprintf(stderr, "%s: %.*s\n", what, length, text);
    return MLA_COLLECTIVE;
}

#endif
