/* The collectives of one MPI job against sums that every rank computes for itself. CTest runs it
 * under mpirun with several numbers of ranks; MPI starts once in a process, so there is exactly
 * one Test. */
#include "comm/bootstrap.h"
#include "comm/collective.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

static uint32_t rank, ranks;
static struct mla_collective *collective;

static const size_t counts[] = {1, 3, 64, 1001, 200000};

/* Element i of the part of rank `of` that rank `from` has; a small integer, so sums are exact. */
static float value(uint32_t from, uint32_t of, size_t i)
{
    return (float)((from * 31 + of * 7 + i * 3) % 1000 + 1);
}

static void all_gather(size_t count)
{
    float *data = malloc(ranks * count * sizeof *data);
    for (size_t i = 0; i < ranks * count; i++)
        data[i] = -1;
    for (size_t i = 0; i < count; i++)
        data[rank * count + i] = value(rank, rank, i);
    cr_assert_eq(collective->ops->all_gather(collective, data, count), MLA_OK);
    for (uint32_t r = 0; r < ranks; r++)
        for (size_t i = 0; i < count; i++)
            cr_assert_eq(data[r * count + i], value(r, r, i),
                         "rank %u, part %u, element %zu of %zu", rank, r, i, count);
    free(data);
}

static void reduce_scatter(size_t count)
{
    float *data = malloc(ranks * count * sizeof *data);
    void *part = NULL;
    for (uint32_t r = 0; r < ranks; r++)
        for (size_t i = 0; i < count; i++)
            data[r * count + i] = value(rank, r, i);
    cr_assert_eq(collective->ops->reduce_scatter(collective, data, count, &part), MLA_OK);
    const float *sums = part;
    cr_assert(sums >= data && sums + count <= data + ranks * count, "the sums are not in data");
    for (size_t i = 0; i < count; i++) {
        float sum = 0;
        for (uint32_t from = 0; from < ranks; from++)
            sum += value(from, rank, i);
        cr_assert_eq(sums[i], sum, "rank %u, element %zu of %zu", rank, i, count);
    }
    free(data);
}

static void agreements(void)
{
    uint64_t least = 1000 - rank;
    uint64_t most = (uint64_t)1 << (40 + rank);
    uint64_t word[3] = {0};
    uint32_t local_rank = UINT32_MAX;
    uint32_t local_ranks = 0;
    if (rank == 0)
        memcpy(word, (uint64_t[]){1, UINT64_MAX, 3}, sizeof word);
    cr_assert_eq(mla_bootstrap_min(&least), MLA_OK);
    cr_expect_eq(least, 1000 - (ranks - 1));
    cr_assert_eq(mla_bootstrap_max(&most), MLA_OK);
    cr_expect_eq(most, (uint64_t)1 << (40 + ranks - 1));
    cr_assert_eq(mla_bootstrap_broadcast(word, sizeof word), MLA_OK);
    cr_expect(word[0] == 1 && word[1] == UINT64_MAX && word[2] == 3);
    cr_assert_eq(mla_bootstrap_local(&local_rank, &local_ranks), MLA_OK);
    cr_expect(local_rank == rank && local_ranks == ranks, "all of them are on this host");
}

Test(collective, of_one_job)
{
    const char *wanted = getenv("MLA_TEST_RANKS");
    cr_assert_not_null(wanted);
    cr_assert_eq(mla_bootstrap_init(NULL, NULL, &rank, &ranks), MLA_OK);
    cr_assert_eq(ranks, strtoul(wanted, NULL, 10), "mpirun's ranks are not one job");
    cr_assert_lt(rank, ranks);
    agreements();
    cr_assert_eq(mla_collective_mpi_create(rank, ranks, &collective), MLA_OK);
    cr_expect(collective->rank == rank && collective->ranks == ranks && collective->ns == 0);
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        all_gather(counts[i]);
        reduce_scatter(counts[i]);
    }
    cr_expect_eq(collective->ns > 0, ranks > 1, "%llu ns", (unsigned long long)collective->ns);
    collective->ops->destroy(&collective);
    cr_expect_null(collective);
    mla_bootstrap_fini();
}
