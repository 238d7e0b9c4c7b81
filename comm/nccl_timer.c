#include "comm/nccl_timer.h"

#include <stdio.h>

enum { REPLAYS = 7 };

enum mla_status mla_nccl_cuda_check(cudaError_t error, const char *what)
{
    if (error == cudaSuccess)
        return MLA_OK;
    cudaGetLastError();
    fprintf(stderr, "collectives: %s: %s\n", what, cudaGetErrorString(error));
    return error == cudaErrorMemoryAllocation ? MLA_MEMORY : MLA_COLLECTIVE;
}

/* Thread-local, as NCCL's own threads may call CUDA meanwhile. */
static enum mla_status capture(cudaStream_t stream, enum mla_status (*body)(void *context),
                               void *context, cudaGraphExec_t *out)
{
    cudaGraph_t graph = NULL;
    enum mla_status status = mla_nccl_cuda_check(
        cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
    if (status != MLA_OK)
        return status;
    status = body(context);
    enum mla_status ended =
        mla_nccl_cuda_check(cudaStreamEndCapture(stream, &graph), "cudaStreamEndCapture");
    if (status == MLA_OK)
        status = ended;
    if (status == MLA_OK)
        status = mla_nccl_cuda_check(cudaGraphInstantiate(out, graph, 0), "cudaGraphInstantiate");
    if (graph)
        cudaGraphDestroy(graph);
    return status;
}

/* From the first event to the second, with one replay in between. */
static enum mla_status replay(cudaStream_t stream, cudaGraphExec_t graph, cudaEvent_t events[2],
                              uint64_t *ns)
{
    float ms = 0;
    enum mla_status status =
        mla_nccl_cuda_check(cudaEventRecord(events[0], stream), "cudaEventRecord");
    if (status == MLA_OK)
        status = mla_nccl_cuda_check(cudaGraphLaunch(graph, stream), "cudaGraphLaunch");
    if (status == MLA_OK)
        status = mla_nccl_cuda_check(cudaEventRecord(events[1], stream), "cudaEventRecord");
    if (status == MLA_OK)
        status = mla_nccl_cuda_check(cudaEventSynchronize(events[1]), "cudaEventSynchronize");
    if (status == MLA_OK)
        status = mla_nccl_cuda_check(cudaEventElapsedTime(&ms, events[0], events[1]),
                                     "cudaEventElapsedTime");
    if (status == MLA_OK)
        *ns = (uint64_t)((double)ms * 1e6);
    return status;
}

enum mla_status mla_nccl_time(cudaStream_t stream, enum mla_status (*body)(void *context),
                              void *context, uint64_t *ns)
{
    cudaGraphExec_t graph = NULL;
    cudaEvent_t events[2] = {NULL, NULL};
    uint64_t least = UINT64_MAX;
    enum mla_status status = body(context); /* what is made on first use */
    if (status == MLA_OK)
        status = mla_nccl_cuda_check(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
    for (int i = 0; status == MLA_OK && i < 2; i++)
        status = mla_nccl_cuda_check(cudaEventCreate(&events[i]), "cudaEventCreate");
    if (status == MLA_OK)
        status = capture(stream, body, context, &graph);
    for (int i = 0; status == MLA_OK && i < REPLAYS; i++) {
        uint64_t one = 0;
        status = replay(stream, graph, events, &one);
        least = status == MLA_OK && one < least ? one : least;
    }
    if (graph)
        cudaGraphExecDestroy(graph);
    for (int i = 0; i < 2; i++)
        if (events[i])
            cudaEventDestroy(events[i]);
    if (status == MLA_OK)
        *ns = least;
    return status;
}
