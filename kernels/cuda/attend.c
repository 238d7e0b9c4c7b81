/* Which kernel attends: the plain ones take any dimensions, Hopper's those of DeepSeek's models. */
#include "kernels/cuda/attend_prefill.h"
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/launch.h"

#include <assert.h>

enum mla_status mla_cuda_attend_init(struct mla_cuda *cuda)
{
    if (cuda->arch != 90)
        return MLA_OK;
    const size_t bytes = MLA_CUDA_PREFILL_QUEUE_WORDS * sizeof *cuda->prefill_queue;
    enum mla_status status =
        mla_cuda_check(cuda, cudaMalloc((void **)&cuda->prefill_queue, bytes), "cudaMalloc");
    if (status == MLA_OK)
        status = mla_cuda_check(
            cuda, cudaMemsetAsync(cuda->prefill_queue, 0, bytes, mla_cuda_compute(cuda)),
            "cudaMemsetAsync");
    return status;
}

void mla_cuda_attend_fini(struct mla_cuda *cuda)
{
    cudaFree(cuda->prefill_queue);
}

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
    cudaStream_t stream = mla_cuda_compute(cuda);
    const bool sm90 = cuda->arch == 90 && mla_cuda_attend_prefill_sm90_fits(attend);
    return mla_cuda_check(cuda,
                          sm90 ? mla_cuda_attend_prefill_sm90(attend, cuda->prefill_queue, stream)
                               : mla_cuda_launch_attend_prefill(attend, stream),
                          "attend_prefill");
}
