#include "comm/bootstrap.h"
#include "comm/collective.h"

#include <assert.h>
#include <cuda_runtime_api.h>
#include <nccl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

/* Memory that `alloc` gave. */
struct region {
    struct region *next;
    void *memory;
    ncclWindow_t window; /* NULL: cudaMalloc's, or NCCL has no use for a window here */
};

struct nccl {
    struct mla_collective base;
    ncclComm_t communicator; /* NULL: one rank, nothing to do */
    cudaStream_t stream;
    unsigned flags;
    struct region *regions;
};

static struct nccl *nccl_of(struct mla_collective *collective)
{
    return (struct nccl *)(void *)collective;
}

static enum mla_status check(const struct nccl *nccl, ncclResult_t result, const char *what)
{
    if (result == ncclSuccess)
        return MLA_OK;
    fprintf(stderr, "%s: %s: %s\n", what, ncclGetErrorString(result),
            ncclGetLastError(nccl->communicator));
    return MLA_COLLECTIVE;
}

static enum mla_status check_cuda(cudaError_t error, const char *what)
{
    if (error == cudaSuccess)
        return MLA_OK;
    cudaGetLastError();
    fprintf(stderr, "collectives: %s: %s\n", what, cudaGetErrorString(error));
    return error == cudaErrorMemoryAllocation ? MLA_MEMORY : MLA_COLLECTIVE;
}

/* Where a rank's part of [ranks, count] begins. */
static void *part_of(const struct nccl *nccl, void *data, size_t count)
{
    return (char *)data + count * nccl->base.rank * mla_dtype_bytes(MLA_BF16);
}

static enum mla_status all_gather(struct mla_collective *collective, void *data, size_t count)
{
    struct nccl *nccl = nccl_of(collective);
    if (!nccl->communicator || count == 0)
        return MLA_OK;
    return check(nccl,
                 ncclAllGather(part_of(nccl, data, count), data, count, ncclBfloat16,
                               nccl->communicator, nccl->stream),
                 "ncclAllGather");
}

static enum mla_status reduce_scatter(struct mla_collective *collective, void *data, size_t count,
                                      void **part)
{
    struct nccl *nccl = nccl_of(collective);
    void *own = part_of(nccl, data, count);
    enum mla_status status = MLA_OK;
    if (nccl->communicator && count > 0)
        status = check(nccl,
                       ncclReduceScatter(data, own, count, ncclBfloat16, ncclSum,
                                         nccl->communicator, nccl->stream),
                       "ncclReduceScatter");
    if (status == MLA_OK)
        *part = own;
    return status;
}

static bool symmetric(const struct nccl *nccl)
{
    return nccl->communicator && nccl->flags & MLA_NCCL_SYMMETRIC;
}

static enum mla_status allocate(const struct nccl *nccl, size_t bytes, struct region *region)
{
    if (!symmetric(nccl))
        return check_cuda(cudaMalloc(&region->memory, bytes), "cudaMalloc");
    size_t pages = (bytes + NCCL_WIN_REQUIRED_ALIGNMENT - 1) / NCCL_WIN_REQUIRED_ALIGNMENT;
    enum mla_status status = check(
        nccl, ncclMemAlloc(&region->memory, pages * NCCL_WIN_REQUIRED_ALIGNMENT), "ncclMemAlloc");
    if (status != MLA_OK)
        return MLA_MEMORY;
    return check(nccl,
                 ncclCommWindowRegister(nccl->communicator, region->memory,
                                        pages * NCCL_WIN_REQUIRED_ALIGNMENT, &region->window,
                                        NCCL_WIN_COLL_SYMMETRIC),
                 "ncclCommWindowRegister");
}

static void release_region(const struct nccl *nccl, struct region *region)
{
    if (region->window)
        check(nccl, ncclCommWindowDeregister(nccl->communicator, region->window),
              "ncclCommWindowDeregister");
    if (region->memory && symmetric(nccl))
        check(nccl, ncclMemFree(region->memory), "ncclMemFree");
    else
        check_cuda(cudaFree(region->memory), "cudaFree");
    free(region);
}

static enum mla_status alloc(struct mla_collective *collective, size_t bytes, void **out)
{
    struct nccl *nccl = nccl_of(collective);
    assert(bytes > 0);
    struct region *region = calloc(1, sizeof *region);
    if (!region)
        return MLA_MEMORY;
    enum mla_status status = allocate(nccl, bytes, region);
    if (status != MLA_OK) {
        release_region(nccl, region);
        return status;
    }
    region->next = nccl->regions;
    nccl->regions = region;
    *out = region->memory;
    return MLA_OK;
}

static void release(struct mla_collective *collective, void *memory)
{
    struct nccl *nccl = nccl_of(collective);
    if (!memory)
        return;
    struct region **at = &nccl->regions;
    while (*at && (*at)->memory != memory)
        at = &(*at)->next;
    struct region *region = *at;
    assert(region);
    *at = region->next;
    check_cuda(cudaStreamSynchronize(nccl->stream), "cudaStreamSynchronize");
    release_region(nccl, region);
}

static void destroy(struct mla_collective **collective)
{
    if (!*collective)
        return;
    struct nccl *nccl = nccl_of(*collective);
    while (nccl->regions)
        release(*collective, nccl->regions->memory);
    if (nccl->communicator)
        check(nccl, ncclCommDestroy(nccl->communicator), "ncclCommDestroy");
    free(nccl);
    *collective = NULL;
}

static const struct mla_collective_ops ops = {
    .name = "nccl",
    .all_gather = all_gather,
    .reduce_scatter = reduce_scatter,
    .alloc = alloc,
    .free = release,
    .destroy = destroy,
};

/* Rank 0's id and whether it has one. */
static enum mla_status join(struct nccl *nccl)
{
    struct {
        ncclUniqueId id;
        enum mla_status status;
    } invitation = {.status = MLA_OK};
    if (nccl->base.rank == 0)
        invitation.status = check(nccl, ncclGetUniqueId(&invitation.id), "ncclGetUniqueId");
    enum mla_status status = mla_bootstrap_broadcast(&invitation, sizeof invitation);
    if (status == MLA_OK)
        status = invitation.status;
    if (status != MLA_OK)
        return status;
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    return check(nccl,
                 ncclCommInitRankConfig(&nccl->communicator, (int)nccl->base.ranks, invitation.id,
                                        (int)nccl->base.rank, &config),
                 "ncclCommInitRankConfig");
}

enum mla_status mla_collective_nccl_create_flags(uint32_t rank, uint32_t ranks, void *stream,
                                                 unsigned flags, struct mla_collective **out)
{
    assert(rank < ranks);
    struct nccl *nccl = calloc(1, sizeof *nccl);
    if (!nccl)
        return MLA_MEMORY;
    struct mla_collective *collective = &nccl->base;
    *collective = (struct mla_collective){.ops = &ops, .rank = rank, .ranks = ranks};
    nccl->stream = stream;
    nccl->flags = flags;
    enum mla_status status = ranks > 1 || flags & MLA_NCCL_ALONE ? join(nccl) : MLA_OK;
    if (status == MLA_OK)
        *out = collective;
    else
        destroy(&collective);
    return status;
}

enum mla_status mla_collective_nccl_create(uint32_t rank, uint32_t ranks, void *stream,
                                           struct mla_collective **out)
{
    return mla_collective_nccl_create_flags(rank, ranks, stream, 0, out);
}
