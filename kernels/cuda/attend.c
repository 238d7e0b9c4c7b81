/* Which kernel attends: the plain ones take any dimensions. */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/launch.h"

#include <assert.h>

/* The plain kernel needs no schedule. */
size_t mla_cuda_schedule_bytes(struct mla_backend *backend, int64_t rows_max, int64_t heads)
{
    (void)backend;
    (void)rows_max;
    (void)heads;
    return 0;
}

enum mla_status mla_cuda_schedule_decode(struct mla_backend *backend,
                                         const struct mla_attend_decode *attend, void *schedule)
{
    (void)backend;
    (void)attend;
    (void)schedule;
    return MLA_OK;
}

enum mla_status mla_cuda_attend_decode(struct mla_backend *backend,
                                       const struct mla_attend_decode *attend)
{
    struct mla_cuda *cuda = mla_cuda_of(backend);
    return mla_cuda_check(cuda, mla_cuda_launch_attend_decode(attend, mla_cuda_compute(cuda)),
                          "attend_decode");
}

enum mla_status mla_cuda_attend_prefill(struct mla_backend *backend,
                                        const struct mla_attend_prefill *attend)
{
    struct mla_cuda *cuda = mla_cuda_of(backend);
    return mla_cuda_check(cuda, mla_cuda_launch_attend_prefill(attend, mla_cuda_compute(cuda)),
                          "attend_prefill");
}
