/* Plan messages from literals, for what is below the executor. */
#ifndef MLA_TESTS_UNIT_PLANS_H
#define MLA_TESTS_UNIT_PLANS_H

#include "proto/worker_message.h"

#define COUNT_OF(array) ((uint32_t)(sizeof(array) / sizeof *(array)))

enum { PLAN_PARTS_MAX = 16, PLAN_BLOCKS_MAX = 1024 };

struct plan {
    struct mla_plan_message message;
    struct mla_plan_microbatch microbatches[PLAN_PARTS_MAX];
    struct mla_plan_entry entries[PLAN_PARTS_MAX];
    struct mla_plan_table tables[PLAN_PARTS_MAX];
    struct mla_plan_copy copies[PLAN_PARTS_MAX];
    uint32_t blocks[PLAN_BLOCKS_MAX];
};

static inline void plan_begin(struct plan *plan, uint64_t step)
{
    plan->message = (struct mla_plan_message){.step = step,
                                              .microbatches = plan->microbatches,
                                              .entries = plan->entries,
                                              .tables = plan->tables,
                                              .copies = plan->copies,
                                              .blocks = plan->blocks};
}

/* The entries that follow are its own. */
static inline void plan_microbatch(struct plan *plan, enum mla_microbatch_kind kind)
{
    plan->microbatches[plan->message.microbatch_count++] =
        (struct mla_plan_microbatch){.kind = kind, .entry_first = plan->message.entry_count};
}

static inline void plan_entry(struct plan *plan, uint32_t table, uint32_t start, uint32_t tokens)
{
    struct mla_plan_microbatch *last = &plan->microbatches[plan->message.microbatch_count - 1];
    plan->entries[plan->message.entry_count++] =
        (struct mla_plan_entry){.table = table, .start = start, .tokens = tokens};
    last->entry_count++;
    last->rows += tokens;
    last->padded = last->rows;
}

static inline void plan_pad(struct plan *plan, uint32_t padded)
{
    plan->microbatches[plan->message.microbatch_count - 1].padded = padded;
}

/* tables[table][first + i] = blocks[i] */
static inline void plan_table(struct plan *plan, uint32_t table, uint32_t first,
                              const uint32_t *blocks, uint32_t count)
{
    plan->tables[plan->message.table_count++] =
        (struct mla_plan_table){.table = table, .first = first, .count = count};
    for (uint32_t i = 0; i < count; i++)
        plan->blocks[plan->message.block_count++] = blocks[i];
}

static inline void plan_copy(struct plan *plan, uint32_t src, uint32_t dst)
{
    plan->copies[plan->message.copy_count++] = (struct mla_plan_copy){.src = src, .dst = dst};
}

#endif
