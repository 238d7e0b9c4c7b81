/* The two kinds of gate, which differ in how ranks know of each other: by memory that they share,
 * or by words that they tell each other. Both have a word of the same form: 24 bits of the epoch,
 * closed or not, and how often was arrived in this epoch. */
#ifndef MLA_WORKER_GATE_KIND_H
#define MLA_WORKER_GATE_KIND_H

#include "worker/gate.h"

#include <stdint.h>

#define MLA_GATE_ARRIVALS    ((1ull << 39) - 1)
#define MLA_GATE_CLOSED      (1ull << 39)
#define MLA_GATE_EPOCH_SHIFT 40
#define MLA_GATE_EPOCH_MASK  0xffffffull

struct mla_gate_ops {
    void (*open)(struct mla_gate *gate);
    /* gate->arrived counts this one. */
    void (*arrive)(struct mla_gate *gate);
    /* Of what this rank arrived for. MLA_OK: all have; MLA_CLOSED: that will never be; MLA_AGAIN:
     * neither is known. */
    enum mla_status (*look)(struct mla_gate *gate);
    void (*close)(struct mla_gate *gate);
    void (*destroy)(struct mla_gate *gate);
};

/* What both begin with. */
struct mla_gate {
    const struct mla_gate_ops *ops;
    uint32_t ranks;
    uint64_t epoch;
    uint64_t arrived; /* of this rank in this epoch */
    bool pending;     /* arrived and not passed */
};

/* Called by all ranks of the job at once. *out is NULL on all where not all can share memory. */
enum mla_status mla_gate_memory_create(uint32_t rank, uint32_t ranks, struct mla_gate **out);
enum mla_status mla_gate_words_create(uint32_t rank, uint32_t ranks, struct mla_gate **out);

static inline bool mla_gate_is_epoch(const struct mla_gate *gate, uint64_t word)
{
    return word >> MLA_GATE_EPOCH_SHIFT == (gate->epoch & MLA_GATE_EPOCH_MASK);
}

static inline uint64_t mla_gate_first_word(const struct mla_gate *gate)
{
    return (gate->epoch & MLA_GATE_EPOCH_MASK) << MLA_GATE_EPOCH_SHIFT;
}

#endif
