/* Collectives of a rank that is alone in its process, whatever the number of ranks: nothing moves.
 * Memory is the backend's. */
#ifndef MLA_TESTS_LIB_ALONE_H
#define MLA_TESTS_LIB_ALONE_H

#include "comm/collective.h"
#include "kernels/backend.h"

struct mla_alone {
    struct mla_collective base;
    struct mla_backend *backend;
};

/* Rank 0 of `ranks`; there is nothing to free. */
void mla_alone_init(struct mla_alone *alone, struct mla_backend *backend, uint32_t ranks);

#endif
