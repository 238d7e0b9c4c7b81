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

/* OK, or MLA_OPTION with a sentence in why[MLA_SENTENCE_BYTES_MAX]: ranks and prefill_tokens_max
 * at least 1; at least one bucket, ascending; decode_tokens_max at least 1 and not above the last
 * bucket; all within limits.h. */
enum mla_status mla_plan_options_check(const struct mla_plan_options *options, char *why);

/* One sequence of the step. row: the row of its first token in the client's payload. */
struct mla_plan_sequence {
    uint32_t table, start, tokens, row;
};

/* Storage is made once; a plan is rebuilt in place for every step. */
struct mla_plan {
    uint32_t microbatch_count, entry_count, run_count, decode_rows, prefill_rows;
    struct mla_plan_microbatch *microbatches; /* [MLA_STEP_MICROBATCHES_MAX] */
    struct mla_plan_entry *entries; /* [MLA_STEP_SEQUENCES_MAX + MLA_STEP_MICROBATCHES_MAX] */
    struct mla_plan_run *runs;      /* as many; a microbatch's follow each other, all are maximal */
    uint32_t *run_first;            /* [MLA_STEP_MICROBATCHES_MAX]: each microbatch's first run */
};

/* MLA_MEMORY. */
enum mla_status mla_plan_init(struct mla_plan *plan);
void mla_plan_fini(struct mla_plan *plan);

/* Plan order: decode sequences in the client's order, then prefill ones. A decode sequence is
 * never cut; a microbatch of decodes holds as many whole sequences as fit the largest bucket.
 * Prefill microbatches hold up to prefill_tokens_max rows; a longer prompt is cut, and the rest
 * of a microbatch is filled with the next prompt; chunks of one prompt never share a microbatch.
 * padded is the rows, for a decode with pad_to_bucket the next bucket, rounded up to a multiple
 * of the ranks. MLA_LIMIT when MLA_STEP_MICROBATCHES_MAX does not suffice; the plan is then
 * empty. */
enum mla_status mla_plan_build(const struct mla_plan_options *options,
                               const struct mla_plan_sequence *sequences, uint32_t count,
                               struct mla_plan *plan);

/* Rows of rank `rank` in a microbatch, without padding: [*first, *first + *count), never beyond
 * the microbatch's rows. */
void mla_plan_rank_rows(const struct mla_plan_microbatch *microbatch, uint32_t ranks, uint32_t rank,
                        uint32_t *first, uint32_t *count);

/* The runs that make up rows [first, first + count) of a microbatch, in order, neighbours joined:
 * start with *cursor = 0 and call until it returns false. */
bool mla_plan_next_run(const struct mla_plan *plan, uint32_t microbatch, uint32_t first,
                       uint32_t count, uint32_t *cursor, struct mla_plan_run *run);

#endif
