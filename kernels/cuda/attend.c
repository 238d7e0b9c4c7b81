/* Which kernel attends: Hopper's where they fit, else the plain ones, which take any dimensions. */
#include "kernels/cuda/attend_decode.h"
#include "kernels/cuda/attend_prefill.h"
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/launch.h"

#include <assert.h>

static bool is_hopper(const struct mla_cuda *cuda)
{
    return cuda->arch == 90;
}

/* What kernels expect to be zeros at their first launch. */
static enum mla_status alloc_zeroed(struct mla_cuda *cuda, size_t bytes, void **out)
{
    enum mla_status status = mla_cuda_check(cuda, cudaMalloc(out, bytes), "cudaMalloc");
    if (status == MLA_OK)
        status = mla_cuda_check(cuda, cudaMemsetAsync(*out, 0, bytes, mla_cuda_compute(cuda)),
                                "cudaMemsetAsync");
    return status;
}

/* Whether a multiprocessor could get more than 16 bytes from memory in each of its cycles: an H200
 * gives 19, an H100 13. */
static enum mla_status memory_is_fast(struct mla_cuda *cuda, bool *out)
{
    static const enum cudaDeviceAttr attributes[] = {
        cudaDevAttrClockRate, cudaDevAttrMemoryClockRate, cudaDevAttrGlobalMemoryBusWidth};
    int clock_memory_bits[3] = {0};
    enum mla_status status = MLA_OK;
    for (int i = 0; i < 3 && status == MLA_OK; i++)
        status = mla_cuda_check(
            cuda, cudaDeviceGetAttribute(&clock_memory_bits[i], attributes[i], cuda->device),
            "cudaDeviceGetAttribute");
    double cycles = (double)cuda->sms * clock_memory_bits[0];
    double bytes = 2.0 * clock_memory_bits[1] * clock_memory_bits[2] / 8; /* twice a clock */
    *out = bytes > 16 * cycles;
    return status;
}

enum mla_status mla_cuda_attend_init(struct mla_cuda *cuda)
{
    if (!is_hopper(cuda))
        return MLA_OK;
    cuda->decode.multiprocessors = cuda->sms;
    enum mla_status status = memory_is_fast(cuda, &cuda->decode.fast_memory);
    if (status == MLA_OK)
        status =
            alloc_zeroed(cuda, mla_cuda_decode_scratch_bytes(cuda->sms), &cuda->decode.scratch);
    if (status == MLA_OK)
        status = alloc_zeroed(cuda, MLA_CUDA_PREFILL_QUEUE_WORDS * sizeof *cuda->prefill_queue,
                              (void **)&cuda->prefill_queue);
    return status;
}

void mla_cuda_attend_fini(struct mla_cuda *cuda)
{
    cudaFree(cuda->decode.scratch);
    cudaFree(cuda->prefill_queue);
}

size_t mla_cuda_schedule_bytes(struct mla_backend *backend, int64_t rows_max, int64_t heads)
{
    (void)heads;
    const struct mla_cuda *cuda = mla_cuda_of(backend);
    return is_hopper(cuda) ? mla_cuda_decode_schedule_bytes(cuda->sms, rows_max) : 0;
}

/* The plain kernel needs no schedule, and takes none. */
enum mla_status mla_cuda_schedule_decode(struct mla_backend *backend,
                                         const struct mla_attend_decode *attend, void *schedule)
{
    struct mla_cuda *cuda = mla_cuda_of(backend);
    if (!is_hopper(cuda) || attend->rows_max == 0)
        return MLA_OK;
    return mla_cuda_check(
        cuda, mla_cuda_decode_schedule(&cuda->decode, attend, schedule, mla_cuda_compute(cuda)),
        "schedule_decode");
}

enum mla_status mla_cuda_attend_decode(struct mla_backend *backend,
                                       const struct mla_attend_decode *attend)
{
    struct mla_cuda *cuda = mla_cuda_of(backend);
    cudaStream_t stream = mla_cuda_compute(cuda);
    if (attend->rows_max == 0)
        return MLA_OK;
    if (is_hopper(cuda) && mla_cuda_decode_fits(attend))
        return mla_cuda_check(cuda, mla_cuda_attend_decode_sm90(&cuda->decode, attend, stream),
                              "attend_decode");
    return mla_cuda_check(cuda, mla_cuda_launch_attend_decode(attend, stream), "attend_decode");
}

enum mla_status mla_cuda_attend_prefill(struct mla_backend *backend,
                                        const struct mla_attend_prefill *attend)
{
    struct mla_cuda *cuda = mla_cuda_of(backend);
    cudaStream_t stream = mla_cuda_compute(cuda);
    const bool sm90 = is_hopper(cuda) && mla_cuda_attend_prefill_sm90_fits(attend);
    return mla_cuda_check(cuda,
                          sm90 ? mla_cuda_attend_prefill_sm90(attend, cuda->prefill_queue, stream)
                               : mla_cuda_launch_attend_prefill(attend, stream),
                          "attend_prefill");
}
