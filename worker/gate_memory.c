/* The gate of ranks on one host: one word in memory that they share counts the arrivals of all. A
 * rank arrives for the next microbatch only when it has passed for this one, so all have arrived
 * for the n-th when the count is n * ranks. */
#include "comm/bootstrap.h"
#include "worker/gate_kind.h"

#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define WORD_BYTES sizeof(atomic_ullong)

struct memory_gate {
    struct mla_gate base;
    atomic_ullong *word;
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

static atomic_ullong *word_of(struct mla_gate *gate)
{
    return ((struct memory_gate *)gate)->word;
}

static bool is_open(const struct mla_gate *gate, uint64_t word)
{
    return mla_gate_is_epoch(gate, word) && !(word & MLA_GATE_CLOSED);
}

/* Whether all have arrived for what this rank arrived for. */
static bool is_passable(const struct mla_gate *gate, uint64_t word)
{
    return mla_gate_is_epoch(gate, word) &&
           (word & MLA_GATE_ARRIVALS) >= gate->arrived * gate->ranks;
}

/* The first rank begins the epoch, the others find it. */
static void begin(struct mla_gate *gate)
{
    unsigned long long word = atomic_load(word_of(gate));
    while (!mla_gate_is_epoch(gate, word) &&
           !atomic_compare_exchange_weak(word_of(gate), &word, mla_gate_first_word(gate))) {}
}

static void arrive(struct mla_gate *gate)
{
    unsigned long long word = atomic_load(word_of(gate));
    while (is_open(gate, word) && !atomic_compare_exchange_weak(word_of(gate), &word, word + 1)) {}
}

static enum mla_status look(struct mla_gate *gate)
{
    unsigned long long word = atomic_load(word_of(gate));
    if (is_passable(gate, word))
        return MLA_OK;
    return is_open(gate, word) ? MLA_AGAIN : MLA_CLOSED;
}

static void shut(struct mla_gate *gate)
{
    unsigned long long word = atomic_load(word_of(gate));
    while (is_open(gate, word) && !(gate->pending && is_passable(gate, word)) &&
           !atomic_compare_exchange_weak(word_of(gate), &word, word | MLA_GATE_CLOSED)) {}
}

static void destroy(struct mla_gate *gate)
{
    munmap(word_of(gate), WORD_BYTES);
    free(gate);
}

enum mla_status mla_gate_memory_create(uint32_t rank, uint32_t ranks, struct mla_gate **out)
{
    static const struct mla_gate_ops ops = {
        .open = begin, .arrive = arrive, .look = look, .close = shut, .destroy = destroy};
    struct memory_gate *gate = calloc(1, sizeof *gate);
    void *memory = MAP_FAILED;
    int fd = open_shared(rank);
    if (fd >= 0)
        memory = mmap(NULL, WORD_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    uint64_t good = gate && memory != MAP_FAILED;
    enum mla_status status = mla_bootstrap_min(&good); /* also: all have opened it */
    if (fd >= 0)
        close(fd);
    if (status == MLA_OK && good && gate) {
        gate->base = (struct mla_gate){.ops = &ops, .ranks = ranks};
        gate->word = memory;
        *out = &gate->base;
        return MLA_OK;
    }
    if (memory != MAP_FAILED)
        munmap(memory, WORD_BYTES);
    free(gate);
    return status;
}
