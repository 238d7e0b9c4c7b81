/* MPI: who am I, and the small agreements of start-up. One per process. */
#ifndef MLA_COMM_BOOTSTRAP_H
#define MLA_COMM_BOOTSTRAP_H

#include "proto/status.h"

#include <stddef.h>
#include <stdint.h>

/* A program started without mpirun is rank 0 of 1. MLA_COLLECTIVE. */
enum mla_status mla_bootstrap_init(int *argc, char ***argv, uint32_t *rank, uint32_t *ranks);
void mla_bootstrap_fini(void);
/* Ends the whole job at once. Never returns. */
_Noreturn void mla_bootstrap_abort(int exit_code);

/* rank 0's bytes on all ranks. */
enum mla_status mla_bootstrap_broadcast(void *data, size_t bytes);
/* The smallest of all ranks' values, on all ranks. */
enum mla_status mla_bootstrap_min(uint64_t *value);
/* The largest of all ranks' values, on all ranks. */
enum mla_status mla_bootstrap_max(uint64_t *value);
/* Ranks of this job on this host, and which of them this is. */
enum mla_status mla_bootstrap_local(uint32_t *local_rank, uint32_t *local_ranks);

#endif
