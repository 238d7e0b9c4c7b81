/* All ranks of a group do a microbatch, or none does.
 *
 * A coordinator that dies may have sent a microbatch to some ranks and not to others. Those that
 * have it must not enter its collectives: they would wait there for ever, and a rank inside a
 * collective can't be given to the next coordinator. So a rank says that it has the next
 * microbatch, and goes into collectives when all have said so; until then it can turn back, and
 * whoever turns back closes the gate for all. Which of both happens is decided by one word in
 * memory that the ranks share, or, on several hosts, by what each has told the others. */
#ifndef MLA_WORKER_GATE_H
#define MLA_WORKER_GATE_H

#include "comm/collective.h"

#include <stdbool.h>

struct mla_gate;

/* Called by all ranks of the job at once. *out is NULL where there is one rank alone: then there is
 * no gate. MLA_COLLECTIVE, MLA_MEMORY. */
enum mla_status mla_gate_create(uint32_t rank, uint32_t ranks, uint32_t local_ranks,
                                struct mla_gate **out);
void mla_gate_destroy(struct mla_gate **gate);

/* The functions below do nothing (and succeed) without a gate. */

/* Begins an epoch. When all ranks were out of the one before. */
void mla_gate_open(struct mla_gate *gate, uint64_t epoch);
/* This rank has the next microbatch. */
void mla_gate_arrive(struct mla_gate *gate);
/* Waits until all have what this rank arrived for; at once when it did not arrive since it last
 * passed. `turn_back` is asked now and then. MLA_CLOSED: this or another rank turned back.
 * MLA_TIMEOUT: this rank wants to, and another one does not say whether it does. MLA_COLLECTIVE. */
enum mla_status mla_gate_pass(struct mla_gate *gate, bool (*turn_back)(void *), void *context);
/* Turns back, without or before passing; nobody passes any more in this epoch. */
void mla_gate_close(struct mla_gate *gate);

/* The same collective behind the gate: each call passes first. */
struct mla_gated_collective {
    struct mla_collective base;
    struct mla_collective *inner;
    struct mla_gate *gate;
    bool (*turn_back)(void *);
    void *context;
};
struct mla_collective *mla_gated_collective_init(struct mla_gated_collective *gated,
                                                 struct mla_gate *gate,
                                                 struct mla_collective *inner,
                                                 bool (*turn_back)(void *), void *context);

#endif
