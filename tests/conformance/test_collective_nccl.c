/* The collectives of one MPI job over NCCL, a GPU for each rank, against sums that every rank
 * computes for itself; eager and in a graph. MPI starts once in a process: exactly one Test. */
#include "comm/bootstrap.h"
#include "comm/collective.h"
#include "kernels/backend.h"
#include "tests/conformance/gpu.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>

static uint32_t rank, ranks;
static struct mla_backend *backend;
static struct mla_collective *collective;

static const size_t counts[] = {1, 3, 64, 1001, 2112, 200000};

/* Element i of the part of rank `of` that rank `from` has. Sums over 36 ranks are exact in bf16. */
static float value(uint32_t from, uint32_t of, size_t i)
{
    return (float)((from * 3 + of * 5 + i) % 8);
}

/* [ranks, count] on the device: what this rank has of every part, or of its own alone. */
static void put(void *data, size_t count, bool own)
{
    uint16_t *host = malloc(ranks * count * sizeof *host);
    cr_assert_not_null(host);
    for (uint32_t of = 0; of < ranks; of++)
        for (size_t i = 0; i < count; i++)
            host[of * count + i] = mla_f32_to_bf16(!own || of == rank ? value(rank, of, i) : -1);
    cr_assert_eq(backend->ops->upload(backend, data, host, ranks * count * sizeof *host), MLA_OK);
    cr_assert_eq(backend->ops->synchronize(backend), MLA_OK);
    free(host);
}

static void expect_gathered(void *data, size_t count)
{
    uint16_t *host = malloc(ranks * count * sizeof *host);
    cr_assert_not_null(host);
    cr_assert_eq(backend->ops->download(backend, host, data, ranks * count * sizeof *host), MLA_OK);
    cr_assert_eq(backend->ops->synchronize(backend), MLA_OK);
    for (uint32_t of = 0; of < ranks; of++)
        for (size_t i = 0; i < count; i++)
            cr_assert_eq(mla_bf16_to_f32(host[of * count + i]), value(of, of, i),
                         "rank %u, part %u, element %zu of %zu", rank, of, i, count);
    free(host);
}

static void expect_sums(const void *part, size_t count)
{
    uint16_t *host = malloc(count * sizeof *host);
    cr_assert_not_null(host);
    cr_assert_eq(backend->ops->download(backend, host, part, count * sizeof *host), MLA_OK);
    cr_assert_eq(backend->ops->synchronize(backend), MLA_OK);
    for (size_t i = 0; i < count; i++) {
        float sum = 0;
        for (uint32_t from = 0; from < ranks; from++)
            sum += value(from, rank, i);
        cr_assert_eq(mla_bf16_to_f32(host[i]), sum, "rank %u, element %zu of %zu", rank, i, count);
    }
    free(host);
}

static void eager(void *data, size_t count)
{
    void *part = NULL;
    put(data, count, true);
    cr_assert_eq(collective->ops->all_gather(collective, data, count), MLA_OK);
    expect_gathered(data, count);
    put(data, count, false);
    cr_assert_eq(collective->ops->reduce_scatter(collective, data, count, &part), MLA_OK);
    expect_sums(part, count);
}

/* The layer's order: one gathers, the other sums, in memory of their own. */
static void captured(void *gathered, void *summed, size_t count)
{
    const struct mla_backend_ops *ops = backend->ops;
    struct mla_graph *graph = NULL;
    void *part = NULL;
    cr_assert_eq(ops->capture_begin(backend), MLA_OK);
    cr_assert_eq(collective->ops->all_gather(collective, gathered, count), MLA_OK);
    cr_assert_eq(collective->ops->reduce_scatter(collective, summed, count, &part), MLA_OK);
    cr_assert_eq(ops->capture_end(backend, &graph), MLA_OK);
    for (int i = 0; i < 3; i++) {
        put(gathered, count, true);
        put(summed, count, false);
        cr_assert_eq(ops->graph_run(backend, graph), MLA_OK);
        expect_gathered(gathered, count);
        expect_sums(part, count);
    }
    ops->graph_destroy(backend, graph);
}

static void check(unsigned flags)
{
    cr_assert_eq(mla_collective_nccl_create_flags(rank, ranks, mla_backend_cuda_stream(backend),
                                                  flags, &collective),
                 MLA_OK);
    cr_expect(collective->rank == rank && collective->ranks == ranks);
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        const size_t bytes = ranks * counts[i] * mla_dtype_bytes(MLA_BF16);
        void *memory[2] = {NULL, NULL};
        for (int j = 0; j < 2; j++) {
            cr_assert_eq(collective->ops->alloc(collective, bytes, &memory[j]), MLA_OK);
            cr_assert_eq((uintptr_t)memory[j] % 256, 0);
        }
        eager(memory[0], counts[i]);
        captured(memory[0], memory[1], counts[i]);
        for (int j = 0; j < 2; j++)
            collective->ops->free(collective, memory[j]);
    }
    collective->ops->free(collective, NULL);
    collective->ops->destroy(&collective);
    cr_expect_null(collective);
}

Test(collective_nccl, of_one_job)
{
    const char *wanted = getenv("MLA_TEST_RANKS");
    uint32_t local_rank = 0, local_ranks = 0;
    cr_assert_not_null(wanted);
    if (!mla_test_has_gpu())
        return;
    if ((unsigned long)mla_backend_cuda_count() < strtoul(wanted, NULL, 10)) {
        fputs("SKIPPED: fewer GPUs than ranks\n", stderr);
        return;
    }
    cr_assert_eq(mla_bootstrap_init(NULL, NULL, &rank, &ranks), MLA_OK);
    cr_assert_eq(ranks, strtoul(wanted, NULL, 10), "mpirun's ranks are not one job");
    cr_assert_eq(mla_bootstrap_local(&local_rank, &local_ranks), MLA_OK);
    cr_assert_eq(mla_backend_cuda_create((int)local_rank, &backend), MLA_OK);
    check(MLA_NCCL_ALONE);
    check(MLA_NCCL_ALONE | MLA_NCCL_SYMMETRIC);
    check(MLA_NCCL_ALONE | MLA_NCCL_MEASURED);
    backend->ops->destroy(&backend);
    mla_bootstrap_fini();
}
