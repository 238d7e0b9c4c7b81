#include "worker/gate.h"

#include "comm/bootstrap.h"
#include "proto/clock.h"

#include <fcntl.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

/* The word: 24 bits of the epoch, closed or not, and how often ranks arrived in this epoch. A rank
 * arrives for the next microbatch only when it has passed for this one, so all have arrived for the
 * n-th when the count is n * ranks. */
#define ARRIVALS_MASK ((1ull << 39) - 1)
#define CLOSED        (1ull << 39)
#define EPOCH_SHIFT   40
#define EPOCH_MASK    0xffffffull
#define ASK_NS        1000000u /* how often to ask whether to turn back */
#define WORD_BYTES    sizeof(atomic_ullong)

struct mla_gate {
    atomic_ullong *word;
    uint32_t ranks;
    uint64_t epoch;
    uint64_t arrived; /* of this rank in this epoch */
    bool pending;     /* arrived and not passed */
};

/* A file in memory that has no name and goes with its last process: the other ranks open it through
 * the first one's descriptor. */
static int open_shared(uint32_t rank)
{
    struct {
        int32_t pid, fd;
    } where = {0};
    int fd = -1;
    if (rank == 0) {
        fd = memfd_create("mla-gate", MFD_CLOEXEC);
        if (fd >= 0 && ftruncate(fd, (off_t)sysconf(_SC_PAGESIZE)) != 0) {
            close(fd);
            fd = -1;
        }
        where.pid = getpid();
        where.fd = fd;
    }
    if (mla_bootstrap_broadcast(&where, sizeof where) != MLA_OK || where.fd < 0)
        return fd;
    if (rank > 0) {
        char path[64];
        snprintf(path, sizeof path, "/proc/%d/fd/%d", where.pid, where.fd);
        fd = open(path, O_RDWR | O_CLOEXEC);
    }
    return fd;
}

enum mla_status mla_gate_create(uint32_t rank, uint32_t ranks, uint32_t local_ranks,
                                struct mla_gate **out)
{
    *out = NULL;
    if (ranks == 1 || ranks != local_ranks)
        return MLA_OK;
    struct mla_gate *gate = calloc(1, sizeof *gate);
    void *memory = MAP_FAILED;
    int fd = open_shared(rank);
    if (fd >= 0)
        memory = mmap(NULL, WORD_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    uint64_t good = gate && memory != MAP_FAILED;
    enum mla_status status = mla_bootstrap_min(&good); /* also: all have opened it */
    if (fd >= 0)
        close(fd);
    if (status == MLA_OK && good && gate) {
        gate->word = memory;
        gate->ranks = ranks;
        *out = gate;
        return MLA_OK;
    }
    if (status == MLA_OK && rank == 0)
        fprintf(stderr, "warning: the ranks can't share memory: a coordinator that dies under load "
                        "may cost a restart\n");
    if (memory != MAP_FAILED)
        munmap(memory, WORD_BYTES);
    free(gate);
    return status;
}

void mla_gate_destroy(struct mla_gate **gate_at)
{
    struct mla_gate *gate = *gate_at;
    if (!gate)
        return;
    munmap(gate->word, WORD_BYTES);
    free(gate);
    *gate_at = NULL;
}

static bool is_open(const struct mla_gate *gate, uint64_t word)
{
    return word >> EPOCH_SHIFT == (gate->epoch & EPOCH_MASK) && !(word & CLOSED);
}

void mla_gate_open(struct mla_gate *gate, uint64_t epoch)
{
    if (!gate)
        return;
    gate->epoch = epoch;
    gate->arrived = 0;
    gate->pending = false;
    /* The first rank begins the epoch, the others find it. */
    unsigned long long word = atomic_load(gate->word);
    while (word >> EPOCH_SHIFT != (epoch & EPOCH_MASK) &&
           !atomic_compare_exchange_weak(gate->word, &word, (epoch & EPOCH_MASK) << EPOCH_SHIFT)) {}
}

void mla_gate_arrive(struct mla_gate *gate)
{
    if (!gate)
        return;
    unsigned long long word = atomic_load(gate->word);
    gate->pending = true;
    gate->arrived++;
    while (is_open(gate, word) && !atomic_compare_exchange_weak(gate->word, &word, word + 1)) {}
}

/* Whether all have arrived for what this rank arrived for. */
static bool is_passable(const struct mla_gate *gate, uint64_t word)
{
    return word >> EPOCH_SHIFT == (gate->epoch & EPOCH_MASK) &&
           (word & ARRIVALS_MASK) >= gate->arrived * gate->ranks;
}

enum mla_status mla_gate_pass(struct mla_gate *gate, bool (*turn_back)(void *), void *context)
{
    if (!gate || !gate->pending)
        return MLA_OK;
    uint64_t ask_ns = 0;
    for (;;) {
        unsigned long long word = atomic_load(gate->word);
        if (is_passable(gate, word)) {
            gate->pending = false;
            return MLA_OK;
        }
        if (!is_open(gate, word))
            return MLA_CLOSED;
        uint64_t now_ns = mla_now_ns();
        if (ask_ns == 0)
            ask_ns = now_ns + ASK_NS;
        if (now_ns >= ask_ns) {
            ask_ns = now_ns + ASK_NS;
            if (turn_back(context))
                mla_gate_close(gate); /* and see whether all arrived first */
        }
        sched_yield();
    }
}

void mla_gate_close(struct mla_gate *gate)
{
    if (!gate)
        return;
    unsigned long long word = atomic_load(gate->word);
    while (is_open(gate, word) && !(gate->pending && is_passable(gate, word)) &&
           !atomic_compare_exchange_weak(gate->word, &word, word | CLOSED)) {}
}

/* ---- Collectives behind it */

static enum mla_status pass(struct mla_gated_collective *gated)
{
    return mla_gate_pass(gated->gate, gated->turn_back, gated->context);
}

static enum mla_status all_gather(struct mla_collective *collective, void *data, size_t count)
{
    struct mla_gated_collective *gated = (struct mla_gated_collective *)collective;
    uint64_t begin_ns = mla_now_ns();
    enum mla_status status = pass(gated);
    uint64_t waited_ns = mla_now_ns() - begin_ns;
    if (status == MLA_OK)
        status = gated->inner->ops->all_gather(gated->inner, data, count);
    gated->inner->ns += waited_ns; /* for the other ranks, as inside the collective */
    collective->ns = gated->inner->ns;
    return status;
}

static enum mla_status reduce_scatter(struct mla_collective *collective, void *data, size_t count,
                                      void **part)
{
    struct mla_gated_collective *gated = (struct mla_gated_collective *)collective;
    enum mla_status status = pass(gated);
    if (status == MLA_OK)
        status = gated->inner->ops->reduce_scatter(gated->inner, data, count, part);
    collective->ns = gated->inner->ns;
    return status;
}

static enum mla_status alloc(struct mla_collective *collective, size_t bytes, void **out)
{
    struct mla_gated_collective *gated = (struct mla_gated_collective *)collective;
    return gated->inner->ops->alloc(gated->inner, bytes, out);
}

static void release(struct mla_collective *collective, void *memory)
{
    struct mla_gated_collective *gated = (struct mla_gated_collective *)collective;
    gated->inner->ops->free(gated->inner, memory);
}

static void destroy(struct mla_collective **collective)
{
    *collective = NULL; /* what it stands before lives on */
}

struct mla_collective *mla_gated_collective_init(struct mla_gated_collective *gated,
                                                 struct mla_gate *gate,
                                                 struct mla_collective *inner,
                                                 bool (*turn_back)(void *), void *context)
{
    static const struct mla_collective_ops ops = {.name = "gated",
                                                  .all_gather = all_gather,
                                                  .reduce_scatter = reduce_scatter,
                                                  .alloc = alloc,
                                                  .free = release,
                                                  .destroy = destroy};
    if (!gate)
        return inner;
    *gated = (struct mla_gated_collective){
        .base = {.ops = &ops, .rank = inner->rank, .ranks = inner->ranks},
        .inner = inner,
        .gate = gate,
        .turn_back = turn_back,
        .context = context};
    return &gated->base;
}
