/* The operations on rows and pages: each is one launch. */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/launch.h"

enum mla_status mla_cuda_latents(struct mla_backend *backend, const struct mla_latents *latents)
{
    struct mla_cuda *cuda = mla_cuda_of(backend);
    return mla_cuda_check(cuda, mla_cuda_launch_latents(latents, mla_cuda_compute(cuda)),
                          "latents");
}

enum mla_status mla_cuda_rope(struct mla_backend *backend, const struct mla_rope *rope)
{
    struct mla_cuda *cuda = mla_cuda_of(backend);
    return mla_cuda_check(cuda, mla_cuda_launch_rope(rope, mla_cuda_compute(cuda)), "rope");
}

enum mla_status mla_cuda_copy(struct mla_backend *backend, const struct mla_copy *copy)
{
    struct mla_cuda *cuda = mla_cuda_of(backend);
    return mla_cuda_check(cuda, mla_cuda_launch_copy(copy, mla_cuda_compute(cuda)), "copy");
}

enum mla_status mla_cuda_kv_write(struct mla_backend *backend, const struct mla_kv_write *write)
{
    struct mla_cuda *cuda = mla_cuda_of(backend);
    return mla_cuda_check(cuda, mla_cuda_launch_kv_write(write, mla_cuda_compute(cuda)),
                          "kv_write");
}

enum mla_status mla_cuda_kv_gather(struct mla_backend *backend, const struct mla_kv_gather *gather)
{
    struct mla_cuda *cuda = mla_cuda_of(backend);
    return mla_cuda_check(cuda, mla_cuda_launch_kv_gather(gather, mla_cuda_compute(cuda)),
                          "kv_gather");
}

enum mla_status mla_cuda_scatter(struct mla_backend *backend, const struct mla_scatter *scatter)
{
    struct mla_cuda *cuda = mla_cuda_of(backend);
    return mla_cuda_check(cuda, mla_cuda_launch_scatter(scatter, mla_cuda_compute(cuda)),
                          "scatter");
}

enum mla_status mla_cuda_kv_copy(struct mla_backend *backend, const struct mla_kv_copy *copy)
{
    struct mla_cuda *cuda = mla_cuda_of(backend);
    return mla_cuda_check(cuda, mla_cuda_launch_kv_copy(copy, mla_cuda_compute(cuda)), "kv_copy");
}

enum mla_status mla_cuda_merge(struct mla_backend *backend, const struct mla_merge *merge)
{
    struct mla_cuda *cuda = mla_cuda_of(backend);
    return mla_cuda_check(cuda, mla_cuda_launch_merge(merge, mla_cuda_compute(cuda)), "merge");
}
