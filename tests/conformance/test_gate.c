/* Ranks of one MPI job at the gate, each turning back when it likes: whatever happens, all ranks
 * pass for the same microbatches. MPI starts once in a process, so there is exactly one Test. */
#include "comm/bootstrap.h"
#include "worker/gate.h"

#include <criterion/criterion.h>
#include <sched.h>
#include <stdlib.h>

enum { EPOCHS = 150, ROUNDS_MAX = 40 };

static uint32_t rank, ranks;
static uint64_t seed;

static uint32_t next_random(uint32_t below)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(seed >> 33) % below;
}

static void dawdle(void)
{
    for (uint32_t i = next_random(20); i > 0; i--)
        sched_yield();
}

/* A rank whose coordinator went notices it while it waits. */
static bool turns_back(void *context)
{
    return *(bool *)context;
}

/* How many microbatches this rank passed for, of those it got. */
static uint64_t live(struct mla_gate *gate, uint32_t got)
{
    uint64_t passed = 0;
    bool gone = false;
    while (passed < got) {
        dawdle();
        mla_gate_arrive(gate);
        dawdle();
        gone = passed + 1 == got; /* its last one: others may have fewer */
        if (mla_gate_pass(gate, turns_back, &gone) != MLA_OK)
            break;
        cr_assert_eq(mla_gate_pass(gate, turns_back, &gone), MLA_OK, "passed is passed");
        passed++;
    }
    mla_gate_close(gate);
    return passed;
}

static void all_or_none(uint32_t local_ranks)
{
    struct mla_gate *gate = NULL;
    uint64_t most_ever = 0;
    cr_assert_eq(mla_gate_create(rank, ranks, local_ranks, &gate), MLA_OK);
    cr_assert_eq(gate == NULL, ranks == 1);
    seed = rank;
    for (uint64_t epoch = 1; epoch <= EPOCHS; epoch++) {
        uint32_t all_get = (uint32_t)(epoch % ROUNDS_MAX);
        uint32_t got = all_get + next_random(3); /* a coordinator died in between */
        uint64_t least = 0;
        uint64_t most = 0;
        uint64_t had = got;
        mla_gate_open(gate, epoch);
        least = most = live(gate, got);
        cr_assert_eq(mla_bootstrap_min(&least), MLA_OK);
        cr_assert_eq(mla_bootstrap_max(&most), MLA_OK);
        cr_assert_eq(mla_bootstrap_min(&had), MLA_OK);
        if (gate)
            cr_assert_eq(least, most, "epoch %llu: ranks passed %llu to %llu times",
                         (unsigned long long)epoch, (unsigned long long)least,
                         (unsigned long long)most);
        cr_assert(most <= had || !gate, "passed for what not all had");
        most_ever = most > most_ever ? most : most_ever;
    }
    cr_assert_geq(most_ever, ROUNDS_MAX / 2);
    mla_gate_destroy(&gate);
}

Test(gate, all_ranks_pass_or_none)
{
    cr_assert_eq(mla_bootstrap_init(NULL, NULL, &rank, &ranks), MLA_OK);
    all_or_none(ranks);
    all_or_none(1); /* as if each were on a host of its own */
    mla_bootstrap_fini();
}
