#include "comm/bootstrap.h"
#include "comm/collective.h"
#include "comm/nccl_timer.h"
#include "comm/windows.h"

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

enum operation { ALL_GATHER, REDUCE_SCATTER, OPERATIONS };

struct nccl {
    struct mla_collective base;
    ncclComm_t communicator;                /* NULL: one rank, nothing to do */
    ncclComm_t windowed;                    /* where windows are registered; NULL: there are none */
    struct mla_windows windows[OPERATIONS]; /* MEASURED: when to take which */
    int version;                            /* NCCL's */
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

/* Where a rank's part of [ranks, count] begins. */
static void *part_of(const struct nccl *nccl, void *data, size_t count)
{
    return (char *)data + count * nccl->base.rank * mla_dtype_bytes(MLA_BF16);
}

static enum mla_status gather_with(const struct nccl *nccl, ncclComm_t communicator, void *data,
                                   size_t count)
{
    return check(nccl,
                 ncclAllGather(part_of(nccl, data, count), data, count, ncclBfloat16, communicator,
                               nccl->stream),
                 "ncclAllGather");
}

static enum mla_status sum_with(const struct nccl *nccl, ncclComm_t communicator, void *data,
                                size_t count)
{
    return check(nccl,
                 ncclReduceScatter(data, part_of(nccl, data, count), count, ncclBfloat16, ncclSum,
                                   communicator, nccl->stream),
                 "ncclReduceScatter");
}

/* The same on all ranks, as `windows` is. */
static ncclComm_t chosen(const struct nccl *nccl, enum operation operation, size_t count)
{
    const size_t bytes = count * mla_dtype_bytes(MLA_BF16);
    bool windowed = nccl->windowed && mla_windows_are_right(nccl->version, bytes) &&
                    (!(nccl->flags & MLA_NCCL_MEASURED) ||
                     mla_windows_are_faster(&nccl->windows[operation], bytes));
    return windowed ? nccl->windowed : nccl->communicator;
}

static enum mla_status all_gather(struct mla_collective *collective, void *data, size_t count)
{
    struct nccl *nccl = nccl_of(collective);
    if (!nccl->communicator || count == 0)
        return MLA_OK;
    return gather_with(nccl, chosen(nccl, ALL_GATHER, count), data, count);
}

static enum mla_status reduce_scatter(struct mla_collective *collective, void *data, size_t count,
                                      void **part)
{
    struct nccl *nccl = nccl_of(collective);
    enum mla_status status = MLA_OK;
    if (nccl->communicator && count > 0)
        status = sum_with(nccl, chosen(nccl, REDUCE_SCATTER, count), data, count);
    if (status == MLA_OK)
        *part = part_of(nccl, data, count);
    return status;
}

static enum mla_status allocate(const struct nccl *nccl, size_t bytes, struct region *region)
{
    if (!nccl->windowed)
        return mla_nccl_cuda_check(cudaMalloc(&region->memory, bytes), "cudaMalloc");
    size_t pages = (bytes + NCCL_WIN_REQUIRED_ALIGNMENT - 1) / NCCL_WIN_REQUIRED_ALIGNMENT;
    enum mla_status status = check(
        nccl, ncclMemAlloc(&region->memory, pages * NCCL_WIN_REQUIRED_ALIGNMENT), "ncclMemAlloc");
    if (status != MLA_OK)
        return MLA_MEMORY;
    return check(nccl,
                 ncclCommWindowRegister(nccl->windowed, region->memory,
                                        pages * NCCL_WIN_REQUIRED_ALIGNMENT, &region->window,
                                        NCCL_WIN_COLL_SYMMETRIC),
                 "ncclCommWindowRegister");
}

static void release_region(const struct nccl *nccl, struct region *region)
{
    if (region->window)
        check(nccl, ncclCommWindowDeregister(nccl->windowed, region->window),
              "ncclCommWindowDeregister");
    if (region->memory && nccl->windowed)
        check(nccl, ncclMemFree(region->memory), "ncclMemFree");
    else
        mla_nccl_cuda_check(cudaFree(region->memory), "cudaFree");
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
    mla_nccl_cuda_check(cudaStreamSynchronize(nccl->stream), "cudaStreamSynchronize");
    release_region(nccl, region);
}

static void destroy(struct mla_collective **collective)
{
    if (!*collective)
        return;
    struct nccl *nccl = nccl_of(*collective);
    while (nccl->regions)
        release(*collective, nccl->regions->memory);
    if (nccl->windowed)
        check(nccl, ncclCommDestroy(nccl->windowed), "ncclCommDestroy");
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
static enum mla_status join(const struct nccl *nccl, ncclComm_t *out)
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
                 ncclCommInitRankConfig(out, (int)nccl->base.ranks, invitation.id,
                                        (int)nccl->base.rank, &config),
                 "ncclCommInitRankConfig");
}

/* Ten of one collective in a row. */
struct row {
    const struct nccl *nccl;
    ncclComm_t communicator;
    enum operation operation;
    void *data;
    size_t count;
};

static enum mla_status run_row(void *context)
{
    const struct row *row = context;
    enum mla_status status = MLA_OK;
    for (int i = 0; status == MLA_OK && i < 10; i++)
        status = row->operation == ALL_GATHER
                     ? gather_with(row->nccl, row->communicator, row->data, row->count)
                     : sum_with(row->nccl, row->communicator, row->data, row->count);
    return status;
}

static void tell(const struct nccl *nccl, const char *what, const struct mla_windows *windows)
{
    if (nccl->base.rank > 0)
        return;
    fprintf(stderr, "%s with windows for parts of", what);
    for (uint32_t i = 0; i < MLA_WINDOWS_SIZES; i++)
        if (windows->faster[i])
            fprintf(stderr, " %zu", mla_windows_bytes(i));
    fputs(" bytes\n", stderr);
}

/* Both ways at all sizes, in the same order on all ranks; the slowest rank's times count. */
static enum mla_status measure(struct nccl *nccl, enum operation operation, void *data)
{
    uint64_t ns[2][MLA_WINDOWS_SIZES];
    enum mla_status status = MLA_OK;
    for (uint32_t i = 0; status == MLA_OK && i < MLA_WINDOWS_SIZES; i++)
        for (int windowed = 0; status == MLA_OK && windowed < 2; windowed++) {
            struct row row = {.nccl = nccl,
                              .communicator = windowed ? nccl->windowed : nccl->communicator,
                              .operation = operation,
                              .data = data,
                              .count = mla_windows_bytes(i) / mla_dtype_bytes(MLA_BF16)};
            status = mla_nccl_time(nccl->stream, run_row, &row, &ns[windowed][i]);
            if (status == MLA_OK)
                status = mla_bootstrap_max(&ns[windowed][i]);
        }
    if (status == MLA_OK)
        mla_windows_choose(ns[0], ns[1], &nccl->windows[operation]);
    return status;
}

static enum mla_status measure_all(struct nccl *nccl)
{
    size_t bytes = nccl->base.ranks * mla_windows_bytes(MLA_WINDOWS_SIZES - 1);
    void *data = NULL;
    enum mla_status status = alloc(&nccl->base, bytes, &data);
    if (status == MLA_OK) /* sums of zeros stay zeros */
        status =
            mla_nccl_cuda_check(cudaMemsetAsync(data, 0, bytes, nccl->stream), "cudaMemsetAsync");
    for (int operation = 0; status == MLA_OK && operation < OPERATIONS; operation++)
        status = measure(nccl, (enum operation)operation, data);
    if (status == MLA_OK) {
        tell(nccl, "all-gather", &nccl->windows[ALL_GATHER]);
        tell(nccl, "reduce-scatter", &nccl->windows[REDUCE_SCATTER]);
    }
    release(&nccl->base, data);
    return status;
}

static enum mla_status join_all(struct nccl *nccl)
{
    enum mla_status status = join(nccl, &nccl->communicator);
    if (status != MLA_OK || !(nccl->flags & (MLA_NCCL_SYMMETRIC | MLA_NCCL_MEASURED)))
        return status;
    if (!mla_windows_are_right(nccl->version, 0)) {
        if (nccl->base.rank == 0)
            fprintf(stderr, "no windows for collectives: NCCL %d has them wrong\n", nccl->version);
        return MLA_OK;
    }
    status = join(nccl, &nccl->windowed);
    return status == MLA_OK && nccl->flags & MLA_NCCL_MEASURED ? measure_all(nccl) : status;
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
    enum mla_status status = check(nccl, ncclGetVersion(&nccl->version), "ncclGetVersion");
    if (status == MLA_OK && (ranks > 1 || flags & MLA_NCCL_ALONE))
        status = join_all(nccl);
    if (status == MLA_OK)
        *out = collective;
    else
        destroy(&collective);
    return status;
}

bool mla_collective_nccl_has_windows(const struct mla_collective *collective, bool sums,
                                     size_t count)
{
    const struct nccl *nccl = (const struct nccl *)(const void *)collective;
    return nccl->windowed &&
           chosen(nccl, sums ? REDUCE_SCATTER : ALL_GATHER, count) == nccl->windowed;
}

enum mla_status mla_collective_nccl_create(uint32_t rank, uint32_t ranks, void *stream,
                                           struct mla_collective **out)
{
    return mla_collective_nccl_create_flags(rank, ranks, stream, 0, out);
}
