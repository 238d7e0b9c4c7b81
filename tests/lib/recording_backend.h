/* A backend with graphs for machines without a GPU: what is called between capture_begin and
 * capture_end is written down and run later, on another backend. */
#ifndef MLA_TESTS_LIB_RECORDING_BACKEND_H
#define MLA_TESTS_LIB_RECORDING_BACKEND_H

#include "kernels/backend.h"

struct mla_recording {
    struct mla_backend base;
    struct mla_backend *inner;
    struct mla_graph *capturing; /* or NULL */
    uint32_t captured, replayed, destroyed;
    bool refuse; /* captures fail */
};

/* Owns `inner`; destroyed by its own destroy. */
void mla_recording_init(struct mla_recording *recording, struct mla_backend *inner);

#endif
