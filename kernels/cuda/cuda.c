/* Device, memory, queues, fences and graphs. */
#include "kernels/cuda/cuda.h"

#include <assert.h>
#include <nvtx3/nvToolsExt.h>
#include <stdio.h>
#include <stdlib.h>

static const int ARCH_MIN = 80; /* bf16 and cp.async begin there */

enum mla_status mla_cuda_check(struct mla_cuda *cuda, cudaError_t error, const char *what)
{
    if (error == cudaSuccess)
        return MLA_OK;
    cudaGetLastError(); /* what can be cleared must not turn up in a later launch */
    fprintf(stderr, "kernels: %s: %s\n", what, cudaGetErrorString(error));
    cuda->capture_failed = true;
    return error == cudaErrorMemoryAllocation ? MLA_MEMORY : MLA_INTERNAL;
}

static enum mla_status cuda_alloc(struct mla_backend *backend, size_t bytes, void **out)
{
    struct mla_cuda *cuda = mla_cuda_of(backend);
    void *memory = NULL;
    char what[64];
    assert(bytes > 0 && !cuda->capturing);
    snprintf(what, sizeof what, "%zu bytes of device memory", bytes);
    enum mla_status status = mla_cuda_check(cuda, cudaMalloc(&memory, bytes), what);
    if (status == MLA_OK)
        *out = memory;
    return status;
}

static void cuda_free(struct mla_backend *backend, void *memory)
{
    mla_cuda_check(mla_cuda_of(backend), cudaFree(memory), "cudaFree");
}

static enum mla_status cuda_memory_free(struct mla_backend *backend, uint64_t *bytes)
{
    size_t free_bytes = 0;
    size_t total = 0;
    enum mla_status status =
        mla_cuda_check(mla_cuda_of(backend), cudaMemGetInfo(&free_bytes, &total), "cudaMemGetInfo");
    if (status == MLA_OK)
        *bytes = free_bytes;
    return status;
}

static enum mla_status cuda_host_alloc(struct mla_backend *backend, size_t bytes, void **out)
{
    struct mla_cuda *cuda = mla_cuda_of(backend);
    void *memory = NULL;
    char what[64];
    assert(bytes > 0 && !cuda->capturing);
    snprintf(what, sizeof what, "%zu bytes of page-locked memory", bytes);
    enum mla_status status =
        mla_cuda_check(cuda, cudaHostAlloc(&memory, bytes, cudaHostAllocDefault), what);
    if (status == MLA_OK)
        *out = memory;
    return status;
}

/* Buffers come back on any thread, and one that has no device would open the first. */
static void cuda_host_free(struct mla_backend *backend, void *memory)
{
    struct mla_cuda *cuda = mla_cuda_of(backend);
    if (!memory)
        return;
    if (mla_cuda_check(cuda, cudaSetDevice(cuda->device), "cudaSetDevice") == MLA_OK)
        mla_cuda_check(cuda, cudaFreeHost(memory), "cudaFreeHost");
}

static enum mla_status transfer(struct mla_backend *backend, enum mla_queue queue,
                                enum cudaMemcpyKind kind, void *dst, const void *src, size_t bytes)
{
    struct mla_cuda *cuda = mla_cuda_of(backend);
    return mla_cuda_check(cuda, cudaMemcpyAsync(dst, src, bytes, kind, cuda->queues[queue]),
                          "cudaMemcpyAsync");
}

/* Kernels are given the host's own address, which is the device's wherever there is Linux. */
static enum mla_status cuda_host_register(struct mla_backend *backend, void *memory, size_t bytes)
{
    struct mla_cuda *cuda = mla_cuda_of(backend);
    void *address = NULL;
    enum mla_status status = mla_cuda_check(
        cuda, cudaHostRegister(memory, bytes, cudaHostRegisterMapped), "cudaHostRegister");
    if (status != MLA_OK)
        return status;
    status = mla_cuda_check(cuda, cudaHostGetDevicePointer(&address, memory, 0),
                            "cudaHostGetDevicePointer");
    if (status == MLA_OK && address == memory)
        return MLA_OK;
    mla_cuda_check(cuda, cudaHostUnregister(memory), "cudaHostUnregister");
    return status == MLA_OK ? MLA_MEMORY : status;
}

static void cuda_host_unregister(struct mla_backend *backend, void *memory)
{
    mla_cuda_check(mla_cuda_of(backend), cudaHostUnregister(memory), "cudaHostUnregister");
}

/* A captured transfer would read the host's memory again at each replay. */
static enum mla_status cuda_upload(struct mla_backend *backend, void *dst, const void *src,
                                   size_t bytes)
{
    assert(!mla_cuda_of(backend)->capturing);
    return transfer(backend, MLA_QUEUE_COMPUTE, cudaMemcpyHostToDevice, dst, src, bytes);
}

static enum mla_status cuda_download(struct mla_backend *backend, void *dst, const void *src,
                                     size_t bytes)
{
    assert(!mla_cuda_of(backend)->capturing);
    return transfer(backend, MLA_QUEUE_COMPUTE, cudaMemcpyDeviceToHost, dst, src, bytes);
}

static enum mla_status cuda_move(struct mla_backend *backend, void *dst, const void *src,
                                 size_t bytes)
{
    return transfer(backend, MLA_QUEUE_COMPUTE, cudaMemcpyDeviceToDevice, dst, src, bytes);
}

static enum mla_status cuda_copy_in(struct mla_backend *backend, void *dst, const void *src,
                                    size_t bytes)
{
    return transfer(backend, MLA_QUEUE_IN, cudaMemcpyHostToDevice, dst, src, bytes);
}

static enum mla_status cuda_copy_out(struct mla_backend *backend, void *dst, const void *src,
                                     size_t bytes)
{
    return transfer(backend, MLA_QUEUE_OUT, cudaMemcpyDeviceToHost, dst, src, bytes);
}

/* Stream by stream: other users of the device, NCCL for one, are none of our business. */
static enum mla_status cuda_synchronize(struct mla_backend *backend)
{
    struct mla_cuda *cuda = mla_cuda_of(backend);
    enum mla_status status = MLA_OK;
    for (int queue = 0; status == MLA_OK && queue <= MLA_QUEUE_OUT; queue++)
        status = mla_cuda_check(cuda, cudaStreamSynchronize(cuda->queues[queue]),
                                "cudaStreamSynchronize");
    return status;
}

struct mla_fence {
    cudaEvent_t event;
    bool recorded;
};

static enum mla_status cuda_fence_create(struct mla_backend *backend, struct mla_fence **out)
{
    struct mla_fence *fence = calloc(1, sizeof *fence);
    if (!fence)
        return MLA_MEMORY;
    enum mla_status status =
        mla_cuda_check(mla_cuda_of(backend), cudaEventCreate(&fence->event), "cudaEventCreate");
    if (status == MLA_OK)
        *out = fence;
    else
        free(fence);
    return status;
}

static void cuda_fence_destroy(struct mla_backend *backend, struct mla_fence *fence)
{
    if (!fence)
        return;
    mla_cuda_check(mla_cuda_of(backend), cudaEventDestroy(fence->event), "cudaEventDestroy");
    free(fence);
}

static enum mla_status cuda_fence_record(struct mla_backend *backend, enum mla_queue queue,
                                         struct mla_fence *fence)
{
    struct mla_cuda *cuda = mla_cuda_of(backend);
    assert(!cuda->capturing || queue != MLA_QUEUE_COMPUTE);
    enum mla_status status =
        mla_cuda_check(cuda, cudaEventRecord(fence->event, cuda->queues[queue]), "cudaEventRecord");
    if (status == MLA_OK)
        fence->recorded = true;
    return status;
}

static enum mla_status cuda_fence_wait(struct mla_backend *backend, enum mla_queue queue,
                                       struct mla_fence *fence)
{
    struct mla_cuda *cuda = mla_cuda_of(backend);
    assert(!cuda->capturing || queue != MLA_QUEUE_COMPUTE);
    if (!fence->recorded)
        return MLA_OK;
    return mla_cuda_check(cuda, cudaStreamWaitEvent(cuda->queues[queue], fence->event, 0),
                          "cudaStreamWaitEvent");
}

static enum mla_status cuda_fence_reached(struct mla_backend *backend, struct mla_fence *fence,
                                          bool *reached)
{
    cudaError_t error = fence->recorded ? cudaEventQuery(fence->event) : cudaSuccess;
    if (error != cudaErrorNotReady) {
        enum mla_status status = mla_cuda_check(mla_cuda_of(backend), error, "cudaEventQuery");
        if (status != MLA_OK)
            return status;
    }
    *reached = error == cudaSuccess;
    return MLA_OK;
}

static enum mla_status cuda_fence_await(struct mla_backend *backend, struct mla_fence *fence)
{
    if (!fence->recorded)
        return MLA_OK;
    return mla_cuda_check(mla_cuda_of(backend), cudaEventSynchronize(fence->event),
                          "cudaEventSynchronize");
}

static enum mla_status cuda_fence_span(struct mla_backend *backend, struct mla_fence *from,
                                       struct mla_fence *to, uint64_t *ns)
{
    float ms = 0;
    enum mla_status status = MLA_OK;
    if (from->recorded && to->recorded)
        status =
            mla_cuda_check(mla_cuda_of(backend), cudaEventElapsedTime(&ms, from->event, to->event),
                           "cudaEventElapsedTime");
    if (status == MLA_OK)
        *ns = ms > 0 ? (uint64_t)((double)ms * 1e6) : 0;
    return status;
}

struct mla_graph {
    cudaGraphExec_t exec;
};

/* Thread-local: calls of other threads, a library's for one, must not end the capture. */
static enum mla_status cuda_capture_begin(struct mla_backend *backend)
{
    struct mla_cuda *cuda = mla_cuda_of(backend);
    assert(!cuda->capturing);
    enum mla_status status = mla_cuda_check(
        cuda, cudaStreamBeginCapture(mla_cuda_compute(cuda), cudaStreamCaptureModeThreadLocal),
        "cudaStreamBeginCapture");
    cuda->capturing = status == MLA_OK;
    cuda->capture_failed = false;
    return status;
}

static enum mla_status instantiate(struct mla_cuda *cuda, cudaGraph_t captured,
                                   struct mla_graph **out)
{
    struct mla_graph *graph = calloc(1, sizeof *graph);
    if (!graph)
        return MLA_MEMORY;
    enum mla_status status = mla_cuda_check(cuda, cudaGraphInstantiate(&graph->exec, captured, 0),
                                            "cudaGraphInstantiate");
    if (status == MLA_OK) {
        status = mla_cuda_check(cuda, cudaGraphUpload(graph->exec, mla_cuda_compute(cuda)),
                                "cudaGraphUpload");
        if (status == MLA_OK) {
            *out = graph;
            return MLA_OK;
        }
        cudaGraphExecDestroy(graph->exec);
    }
    free(graph);
    return status;
}

static enum mla_status cuda_capture_end(struct mla_backend *backend, struct mla_graph **out)
{
    struct mla_cuda *cuda = mla_cuda_of(backend);
    cudaGraph_t captured = NULL;
    assert(cuda->capturing);
    cuda->capturing = false;
    bool failed = cuda->capture_failed; /* then the runtime may have ended the capture itself */
    enum mla_status status = mla_cuda_check(
        cuda, cudaStreamEndCapture(mla_cuda_compute(cuda), &captured), "cudaStreamEndCapture");
    if (status == MLA_OK)
        status = failed ? MLA_INTERNAL : instantiate(cuda, captured, out);
    if (captured)
        mla_cuda_check(cuda, cudaGraphDestroy(captured), "cudaGraphDestroy");
    return status;
}

static enum mla_status cuda_graph_run(struct mla_backend *backend, struct mla_graph *graph)
{
    struct mla_cuda *cuda = mla_cuda_of(backend);
    assert(!cuda->capturing);
    return mla_cuda_check(cuda, cudaGraphLaunch(graph->exec, mla_cuda_compute(cuda)),
                          "cudaGraphLaunch");
}

static void cuda_graph_destroy(struct mla_backend *backend, struct mla_graph *graph)
{
    if (!graph)
        return;
    mla_cuda_check(mla_cuda_of(backend), cudaGraphExecDestroy(graph->exec), "cudaGraphExecDestroy");
    free(graph);
}

/* After a device failure these fail too: what they say then is no news. */
static void cuda_destroy(struct mla_backend **backend)
{
    if (!*backend)
        return;
    struct mla_cuda *cuda = mla_cuda_of(*backend);
    for (int queue = 0; queue <= MLA_QUEUE_OUT; queue++)
        if (cuda->queues[queue]) {
            cudaStreamSynchronize(cuda->queues[queue]);
            cudaStreamDestroy(cuda->queues[queue]);
        }
    mla_cuda_gemm_fini(cuda);
    mla_cuda_attend_fini(cuda);
    cudaGetLastError();
    free(cuda);
    *backend = NULL;
}

static void cuda_range_begin(struct mla_backend *backend, const char *name)
{
    (void)backend;
    nvtxRangePushA(name);
}

static void cuda_range_end(struct mla_backend *backend)
{
    (void)backend;
    nvtxRangePop();
}

static const struct mla_backend_ops cuda_ops = {
    .name = "cuda",
    .alloc = cuda_alloc,
    .free = cuda_free,
    .memory_free = cuda_memory_free,
    .host_alloc = cuda_host_alloc,
    .host_free = cuda_host_free,
    .host_register = cuda_host_register,
    .host_unregister = cuda_host_unregister,
    .upload = cuda_upload,
    .download = cuda_download,
    .move = cuda_move,
    .copy_in = cuda_copy_in,
    .copy_out = cuda_copy_out,
    .synchronize = cuda_synchronize,
    .destroy = cuda_destroy,
    .fence_create = cuda_fence_create,
    .fence_destroy = cuda_fence_destroy,
    .fence_record = cuda_fence_record,
    .fence_wait = cuda_fence_wait,
    .fence_reached = cuda_fence_reached,
    .fence_await = cuda_fence_await,
    .fence_span = cuda_fence_span,
    .capture_begin = cuda_capture_begin,
    .capture_end = cuda_capture_end,
    .graph_run = cuda_graph_run,
    .graph_destroy = cuda_graph_destroy,
    .gemm = mla_cuda_gemm,
    .latents = mla_cuda_latents,
    .rope = mla_cuda_rope,
    .copy = mla_cuda_copy,
    .kv_write = mla_cuda_kv_write,
    .kv_gather = mla_cuda_kv_gather,
    .tune = mla_cuda_tune,
    .range_begin = cuda_range_begin,
    .range_end = cuda_range_end,
    .scatter = mla_cuda_scatter,
    .kv_copy = mla_cuda_kv_copy,
    .decode_schedule_bytes = mla_cuda_schedule_bytes,
    .schedule_decode = mla_cuda_schedule_decode,
    .attend_decode = mla_cuda_attend_decode,
    .attend_prefill = mla_cuda_attend_prefill,
    .merge = mla_cuda_merge,
};

/* No driver, an old driver and no GPU are all none. */
int mla_backend_cuda_count(void)
{
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess) {
        cudaGetLastError();
        return 0;
    }
    return count;
}

void mla_backend_cuda_bus_id(int device, char out[MLA_BUS_ID_BYTES])
{
    if (cudaDeviceGetPCIBusId(out, MLA_BUS_ID_BYTES, device) != cudaSuccess) {
        cudaGetLastError();
        out[0] = '\0';
    }
}

static enum mla_status open_device(struct mla_cuda *cuda)
{
    struct cudaDeviceProp properties;
    enum mla_status status = mla_cuda_check(cuda, cudaSetDevice(cuda->device), "cudaSetDevice");
    if (status == MLA_OK)
        status = mla_cuda_check(cuda, cudaGetDeviceProperties(&properties, cuda->device),
                                "cudaGetDeviceProperties");
    if (status != MLA_OK)
        return status;
    cuda->arch = 10 * properties.major + properties.minor;
    cuda->sms = properties.multiProcessorCount;
    if (cuda->arch < ARCH_MIN) {
        fprintf(stderr, "kernels: %s has compute capability %d.%d; 8.0 is the least\n",
                properties.name, properties.major, properties.minor);
        return MLA_OPTION;
    }
    return MLA_OK;
}

static enum mla_status open_queues(struct mla_cuda *cuda)
{
    enum mla_status status = MLA_OK;
    for (int queue = 0; status == MLA_OK && queue <= MLA_QUEUE_OUT; queue++)
        status = mla_cuda_check(
            cuda, cudaStreamCreateWithFlags(&cuda->queues[queue], cudaStreamNonBlocking),
            "cudaStreamCreateWithFlags");
    return status;
}

enum mla_status mla_backend_cuda_create(int device, struct mla_backend **out)
{
    assert(device >= 0);
    struct mla_cuda *cuda = calloc(1, sizeof *cuda);
    if (!cuda) {
        fputs("kernels: the CUDA backend found no memory\n", stderr);
        return MLA_MEMORY;
    }
    struct mla_backend *backend = &cuda->base;
    cuda->base.ops = &cuda_ops;
    cuda->base.activation = MLA_BF16;
    cuda->base.panels = true;
    cuda->base.graphs = true;
    cuda->device = device;
    enum mla_status status = open_device(cuda);
    if (status == MLA_OK)
        status = open_queues(cuda);
    if (status == MLA_OK)
        status = mla_cuda_gemm_init(cuda);
    if (status == MLA_OK)
        status = mla_cuda_attend_init(cuda);
    if (status == MLA_OK)
        *out = backend;
    else
        cuda_destroy(&backend);
    return status;
}

void *mla_backend_cuda_stream(struct mla_backend *backend)
{
    return mla_cuda_compute(mla_cuda_of(backend));
}
