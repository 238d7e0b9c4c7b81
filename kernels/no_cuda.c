/* A build without CUDA. */
#include "kernels/backend.h"

#include <assert.h>

int mla_backend_cuda_count(void)
{
    return 0;
}

void mla_backend_cuda_bus_id(int device, char out[MLA_BUS_ID_BYTES])
{
    (void)device;
    out[0] = '\0';
}

enum mla_status mla_backend_cuda_create(int device, struct mla_backend **out)
{
    (void)device;
    (void)out;
    return MLA_OPTION;
}

void *mla_backend_cuda_stream(struct mla_backend *backend)
{
    (void)backend;
    assert(!"there is no CUDA backend in this build");
    return NULL;
}
