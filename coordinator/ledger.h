/* Sequences and KV blocks of one group. Pure: no sockets, no clock; all memory is taken by
 * create. A sequence is a table (index), a committed length and a list of blocks; blocks are
 * counted references, so FORK shares them. Always: free + used blocks = total. */
#ifndef MLA_COORDINATOR_LEDGER_H
#define MLA_COORDINATOR_LEDGER_H

#include "proto/limits.h"
#include "proto/status.h"
#include "proto/worker_message.h"

#include <stdbool.h>

struct mla_ledger;

/* blocks KV blocks, `sequences` block tables, context_max tokens of one sequence: each at least 1
 * and within limits.h. MLA_MEMORY. */
enum mla_status mla_ledger_create(uint32_t blocks, uint32_t sequences, uint32_t context_max,
                                  struct mla_ledger **out);
void mla_ledger_destroy(struct mla_ledger **ledger);

uint32_t mla_ledger_blocks_total(const struct mla_ledger *ledger);
uint32_t mla_ledger_blocks_free(const struct mla_ledger *ledger);
uint32_t mla_ledger_sequences(const struct mla_ledger *ledger); /* in use */

/* An empty sequence. MLA_SEQUENCES_FULL. */
enum mla_status mla_ledger_add(struct mla_ledger *ledger, uint32_t *table);
/* Gives its blocks back, also a reservation's. */
void mla_ledger_free(struct mla_ledger *ledger, uint32_t table);

uint32_t mla_ledger_length(const struct mla_ledger *ledger, uint32_t table);   /* committed */
uint32_t mla_ledger_reserved(const struct mla_ledger *ledger, uint32_t table); /* 0: none */

/* Blocks for `tokens` (>= 1) more; a shared partial last block is replaced by a fresh one and
 * the copy to make is told (copy->src != copy->dst; equal: none). One reservation a sequence at
 * a time. MLA_KV_FULL, MLA_CONTEXT: nothing changed. */
enum mla_status mla_ledger_reserve(struct mla_ledger *ledger, uint32_t table, uint32_t tokens,
                                   struct mla_plan_copy *copy);
/* Undoes the reservations of one request that failed half-way: newest first, before anything
 * else is done to the ledger. Restores the shared block too. */
void mla_ledger_rollback(struct mla_ledger *ledger, uint32_t table);
/* The reserved tokens become part of the sequence. */
void mla_ledger_commit(struct mla_ledger *ledger, uint32_t table);
/* The reserved blocks go back; a block that was copied on write stays the sequence's own. */
void mla_ledger_abort(struct mla_ledger *ledger, uint32_t table);

/* A new sequence that shares the first `length` (1..committed) tokens. MLA_SEQUENCES_FULL. */
enum mla_status mla_ledger_fork(struct mla_ledger *ledger, uint32_t parent, uint32_t length,
                                uint32_t *child);
/* Keeps the first `length` (<= committed) tokens. No reservation may be open. */
void mla_ledger_truncate(struct mla_ledger *ledger, uint32_t table, uint32_t length);

/* The part of the block table that changed since the last call for this table: ids
 * [*first, *first + *count) at *blocks (valid until the next change). Marks it told. */
void mla_ledger_changes(struct mla_ledger *ledger, uint32_t table, uint32_t *first, uint32_t *count,
                        const uint32_t **blocks);

/* Recounts everything, on memory of its own; false on a broken invariant. For tests and the
 * simulator. */
bool mla_ledger_check(const struct mla_ledger *ledger);

#endif
