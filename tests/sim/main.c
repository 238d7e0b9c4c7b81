/* mla-sim: seeds of the simulation. See tests/README.md. */
#include "proto/clock.h"
#include "proto/parse.h"
#include "tests/sim/sim.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char usage[] =
    "usage: mla-sim [--seed N [--trace]] | [--seeds COUNT [--from N]]\n"
    "Runs the coordinator's core under simulated time, network and faults.\n"
    "  --seed N      one run; --trace tells all that happens\n"
    "  --seeds N     so many runs, from seed 1 or --from\n";

enum { NUMBER_MAX = 1000000000 };

enum option_id { OPTION_SEED = 256, OPTION_SEEDS, OPTION_TRACE, OPTION_HELP };

static const struct option known[] = {
    {"seed", required_argument, NULL, OPTION_SEED},
    {"from", required_argument, NULL, OPTION_SEED},
    {"seeds", required_argument, NULL, OPTION_SEEDS},
    {"trace", no_argument, NULL, OPTION_TRACE},
    {"help", no_argument, NULL, OPTION_HELP},
    {0},
};

struct chosen {
    uint64_t first, count;
    bool trace;
};

static bool set(void *context, int id, const char *text)
{
    struct chosen *out = context;
    if (id == OPTION_TRACE)
        return out->trace = true;
    return mla_parse_number(text, 1, NUMBER_MAX, id == OPTION_SEED ? &out->first : &out->count);
}

static struct sim sim;

static char crash_line[96];
static size_t crash_bytes;

/* An assertion of the core's: tell which seed it was. */
static void crashed(int number)
{
    (void)!write(STDOUT_FILENO, crash_line, crash_bytes);
    signal(number, SIG_DFL);
    raise(number);
}

int main(int argc, char **argv)
{
    struct chosen chosen = {.first = 1, .count = 1};
    enum mla_status status = mla_parse_options(argc, argv, known, usage, set, &chosen);
    if (status != MLA_OK)
        return status == MLA_AGAIN ? 0 : mla_status_exit_code(status);
    struct sim_options options = {.trace = chosen.trace};
    uint64_t count = chosen.count;
    signal(SIGABRT, crashed);
    signal(SIGSEGV, crashed);
    if (!options.trace && !freopen("/dev/null", "w", stderr)) /* the core's log */
        return 1;
    struct sim sum = {0};
    uint64_t begin_ns = mla_now_ns();
    for (uint64_t seed = chosen.first; seed < chosen.first + count; seed++) {
        options.seed = seed;
        crash_bytes = (size_t)snprintf(crash_line, sizeof crash_line,
                                       "seed %llu crashed; again: mla-sim --seed %llu --trace\n",
                                       (unsigned long long)seed, (unsigned long long)seed);
        sim_run(&sim, &options);
        sum.events_done += sim.events_done;
        sum.replies_checked += sim.replies_checked;
        sum.rows_checked += sim.rows_checked;
        sum.steps_committed += sim.steps_committed;
        sum.ghosts += sim.ghosts;
        sum.shared_runs += sim.shared_runs;
        sum.repeats += sim.repeats;
        sum.lost += sim.lost;
        sum.faults_made += sim.faults_made;
        sum.adopted_again += sim.adopted_again;
        sum.now_ns += sim.now_ns;
    }
    printf("%llu seeds in %.1f s: %.0f s simulated, %llu events, %llu faults, %llu replies, %llu "
           "repetitions, %llu steps committed, %llu rows checked, %llu RUNs in shared memory, %llu "
           "sequences lost, %llu jobs adopted again, %llu messages of connections that had ended\n",
           (unsigned long long)count, (double)(mla_now_ns() - begin_ns) / 1e9,
           (double)sum.now_ns / 1e9, (unsigned long long)sum.events_done,
           (unsigned long long)sum.faults_made, (unsigned long long)sum.replies_checked,
           (unsigned long long)sum.repeats, (unsigned long long)sum.steps_committed,
           (unsigned long long)sum.rows_checked, (unsigned long long)sum.shared_runs,
           (unsigned long long)sum.lost, (unsigned long long)sum.adopted_again,
           (unsigned long long)sum.ghosts);
    return 0;
}
