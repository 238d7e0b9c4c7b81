/* The split of one step within one group: which rows run as decode, which as prefill, in which
 * microbatches, and which rank gets which rows. Pure: values in, values out. */
#ifndef MLA_COORDINATOR_PLAN_H
#define MLA_COORDINATOR_PLAN_H

#include "proto/limits.h"
#include "proto/status.h"
#include "proto/worker_message.h"

#include <stdbool.h>

struct mla_plan_options {
    uint32_t ranks;
    uint32_t decode_tokens_max;  /* a sequence with at most this many new tokens is decode */
    uint32_t prefill_tokens_max; /* rows of one prefill microbatch */
    uint32_t bucket_count;
    uint32_t buckets[MLA_DECODE_BUCKETS_MAX]; /* ascending; the last bounds a decode microbatch */
    bool pad_to_bucket; /* decode microbatches are padded to the next bucket (graphs) */
};

/* OK, or MLA_OPTION with a sentence: ranks 1..; prefill_tokens_max >= 1; at least one bucket,
 * ascending, within limits.h; decode_tokens_max >= 1 and not above the last bucket. */
enum mla_status mla_plan_options_check(const struct mla_plan_options *options, char *why);

/* One sequence of the step. row: the row of its first token in the client's payload. */
struct mla_plan_sequence {
    uint32_t table, start, tokens, row;
};

/* Storage is made once; a plan is rebuilt in place for every step. */
struct mla_plan {
    uint32_t microbatch_count, entry_count, decode_rows, prefill_rows;
    struct mla_plan_microbatch *microbatches; /* [MLA_STEP_MICROBATCHES_MAX] */
    struct mla_plan_entry *entries; /* [MLA_STEP_SEQUENCES_MAX + MLA_STEP_MICROBATCHES_MAX] */
    uint32_t *rows;                 /* [entries]: the client's row of each entry's first token */
};

enum mla_status mla_plan_init(struct mla_plan *plan);
void mla_plan_fini(struct mla_plan *plan);

/* Plan order: decode sequences in the client's order, then prefill ones. A decode sequence is
 * never cut; a microbatch of decodes holds as many whole sequences as fit the largest bucket.
 * Prefill microbatches hold up to prefill_tokens_max rows; a longer prompt is cut, and the rest
 * of a microbatch is filled with the next prompt; chunks of one prompt never share a microbatch.
 * MLA_LIMIT when MLA_STEP_MICROBATCHES_MAX does not suffice; the plan is then empty. */
enum mla_status mla_plan_build(const struct mla_plan_options *options,
                               const struct mla_plan_sequence *sequences, uint32_t count,
                               struct mla_plan *plan);

/* Rows of rank `rank` in a microbatch, without padding: [*first, *first + *count). */
void mla_plan_rank_rows(const struct mla_plan_microbatch *microbatch, uint32_t ranks, uint32_t rank,
                        uint32_t *first, uint32_t *count);

/* A run of rows that is contiguous both in the microbatch and in the client's payload. */
struct mla_plan_run {
    uint32_t microbatch_row, client_row, count;
};

/* The runs that make up rows [first, first + count) of a microbatch, in order, neighbours joined.
 * Start with *cursor = 0 and call until it returns false. No state but the cursor (an entry
 * index relative to the microbatch, and what of it is done). */
struct mla_plan_cursor {
    uint32_t entry, entry_row; /* next entry to look at, and its first row in the microbatch */
};
bool mla_plan_next_run(const struct mla_plan *plan, uint32_t microbatch, uint32_t first,
                       uint32_t count, struct mla_plan_cursor *cursor, struct mla_plan_run *run);

#endif
