#include "coordinator/plan.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>

/* Every microbatch cuts at most one prompt. */
#define ENTRIES_MAX (MLA_STEP_SEQUENCES_MAX + MLA_STEP_MICROBATCHES_MAX)

static enum mla_status refuse(char *why, const char *what, uint32_t value, uint32_t low,
                              uint32_t high)
{
    snprintf(why, MLA_SENTENCE_BYTES_MAX, "%s is %u, allowed is %u to %u.", what, value, low, high);
    return MLA_OPTION;
}

enum mla_status mla_plan_options_check(const struct mla_plan_options *options, char *why)
{
    if (options->ranks < 1 || options->ranks > MLA_RANKS_MAX)
        return refuse(why, "The number of ranks", options->ranks, 1, MLA_RANKS_MAX);
    if (options->prefill_tokens_max < 1 || options->prefill_tokens_max > MLA_STEP_TOKENS_MAX) {
        return refuse(why, "prefill-tokens-max", options->prefill_tokens_max, 1,
                      MLA_STEP_TOKENS_MAX);
    }
    if (options->bucket_count < 1 || options->bucket_count > MLA_DECODE_BUCKETS_MAX) {
        return refuse(why, "The number of buckets", options->bucket_count, 1,
                      MLA_DECODE_BUCKETS_MAX);
    }
    uint32_t low = 1;
    for (uint32_t i = 0; i < options->bucket_count; i++) {
        if (options->buckets[i] < low || options->buckets[i] > MLA_DECODE_ROWS_MAX)
            return refuse(why, "A bucket", options->buckets[i], low, MLA_DECODE_ROWS_MAX);
        low = options->buckets[i] + 1;
    }
    uint32_t last = options->buckets[options->bucket_count - 1];
    if (options->decode_tokens_max < 1 || options->decode_tokens_max > last)
        return refuse(why, "decode-tokens-max", options->decode_tokens_max, 1, last);
    return MLA_OK;
}

enum mla_status mla_plan_init(struct mla_plan *plan)
{
    struct mla_plan made = {
        .microbatches = calloc(MLA_STEP_MICROBATCHES_MAX, sizeof *made.microbatches),
        .entries = calloc(ENTRIES_MAX, sizeof *made.entries),
        .runs = calloc(ENTRIES_MAX, sizeof *made.runs),
        .run_first = calloc(MLA_STEP_MICROBATCHES_MAX, sizeof *made.run_first),
    };
    if (made.microbatches == NULL || made.entries == NULL || made.runs == NULL ||
        made.run_first == NULL) {
        mla_plan_fini(&made);
        return MLA_MEMORY;
    }
    *plan = made;
    return MLA_OK;
}

void mla_plan_fini(struct mla_plan *plan)
{
    free(plan->microbatches);
    free(plan->entries);
    free(plan->runs);
    free(plan->run_first);
    *plan = (struct mla_plan){0};
}

static void clear(struct mla_plan *plan)
{
    plan->microbatch_count = 0;
    plan->entry_count = 0;
    plan->run_count = 0;
    plan->decode_rows = 0;
    plan->prefill_rows = 0;
}

static enum mla_status add_microbatch(struct mla_plan *plan, enum mla_microbatch_kind kind)
{
    if (plan->microbatch_count == MLA_STEP_MICROBATCHES_MAX)
        return MLA_LIMIT;
    plan->microbatches[plan->microbatch_count] = (struct mla_plan_microbatch){
        .kind = kind,
        .entry_first = plan->entry_count,
    };
    plan->run_first[plan->microbatch_count] = plan->run_count;
    plan->microbatch_count++;
    return MLA_OK;
}

/* Tokens [done, done + tokens) of a sequence go to the end of the last microbatch. */
static void add_entry(struct mla_plan *plan, const struct mla_plan_sequence *sequence,
                      uint32_t done, uint32_t tokens)
{
    assert(plan->entry_count < ENTRIES_MAX);
    uint32_t last = plan->microbatch_count - 1;
    struct mla_plan_microbatch *microbatch = &plan->microbatches[last];
    uint32_t client_row = sequence->row + done;

    plan->entries[plan->entry_count++] = (struct mla_plan_entry){
        .table = sequence->table,
        .start = sequence->start + done,
        .tokens = tokens,
    };
    struct mla_plan_run *run = plan->runs + plan->run_count;
    if (plan->run_count > plan->run_first[last] &&
        run[-1].client_row + run[-1].count == client_row) {
        run[-1].count += tokens;
    } else {
        *run = (struct mla_plan_run){microbatch->rows, client_row, tokens};
        plan->run_count++;
    }
    microbatch->entry_count++;
    microbatch->rows += tokens;
}

/* The microbatches of one kind. A chunk is cut only where its microbatch is full, so the next
 * chunk of the prompt is in the next microbatch. */
static enum mla_status add_half(const struct mla_plan_options *options,
                                const struct mla_plan_sequence *sequences, uint32_t count,
                                enum mla_microbatch_kind kind, struct mla_plan *plan,
                                uint32_t *rows)
{
    uint32_t rows_max = kind == MLA_DECODE ? options->buckets[options->bucket_count - 1]
                                           : options->prefill_tokens_max;
    uint32_t room = 0;
    for (uint32_t i = 0; i < count; i++) {
        const struct mla_plan_sequence *sequence = &sequences[i];
        assert(sequence->tokens >= 1 && sequence->tokens <= MLA_STEP_TOKENS_MAX);
        if ((sequence->tokens <= options->decode_tokens_max) != (kind == MLA_DECODE))
            continue;
        for (uint32_t done = 0; done < sequence->tokens;) {
            uint32_t left = sequence->tokens - done;
            if (room == 0 || (kind == MLA_DECODE && room < left)) {
                if (add_microbatch(plan, kind) != MLA_OK)
                    return MLA_LIMIT;
                room = rows_max;
            }
            uint32_t tokens = left < room ? left : room;
            add_entry(plan, sequence, done, tokens);
            done += tokens;
            room -= tokens;
        }
        *rows += sequence->tokens;
    }
    return MLA_OK;
}

static uint32_t padded_rows(const struct mla_plan_options *options,
                            const struct mla_plan_microbatch *microbatch)
{
    uint32_t rows = microbatch->rows;
    if (options->pad_to_bucket && microbatch->kind == MLA_DECODE) {
        uint32_t bucket = 0;
        while (options->buckets[bucket] < rows)
            bucket++;
        rows = options->buckets[bucket];
    }
    return (rows + options->ranks - 1) / options->ranks * options->ranks;
}

enum mla_status mla_plan_build(const struct mla_plan_options *options,
                               const struct mla_plan_sequence *sequences, uint32_t count,
                               struct mla_plan *plan)
{
    assert(count <= MLA_STEP_SEQUENCES_MAX);
    clear(plan);
    if (add_half(options, sequences, count, MLA_DECODE, plan, &plan->decode_rows) != MLA_OK ||
        add_half(options, sequences, count, MLA_PREFILL, plan, &plan->prefill_rows) != MLA_OK) {
        clear(plan);
        return MLA_LIMIT;
    }
    for (uint32_t i = 0; i < plan->microbatch_count; i++)
        plan->microbatches[i].padded = padded_rows(options, &plan->microbatches[i]);
    return MLA_OK;
}

void mla_plan_rank_rows(const struct mla_plan_microbatch *microbatch, uint32_t ranks, uint32_t rank,
                        uint32_t *first, uint32_t *count)
{
    assert(rank < ranks && microbatch->padded % ranks == 0);
    uint32_t share = microbatch->padded / ranks;
    uint32_t begin = rank * share < microbatch->rows ? rank * share : microbatch->rows;
    uint32_t left = microbatch->rows - begin;
    *first = begin;
    *count = left < share ? left : share;
}

bool mla_plan_next_run(const struct mla_plan *plan, uint32_t microbatch, uint32_t first,
                       uint32_t count, uint32_t *cursor, struct mla_plan_run *run)
{
    assert(microbatch < plan->microbatch_count);
    uint32_t end = first + count;
    uint32_t i = plan->run_first[microbatch] + *cursor;
    uint32_t i_end =
        microbatch + 1 < plan->microbatch_count ? plan->run_first[microbatch + 1] : plan->run_count;
    while (i < i_end && plan->runs[i].microbatch_row + plan->runs[i].count <= first)
        i++;
    if (i == i_end || count == 0 || plan->runs[i].microbatch_row >= end)
        return false;
    struct mla_plan_run whole = plan->runs[i];
    uint32_t skipped = first > whole.microbatch_row ? first - whole.microbatch_row : 0;
    uint32_t whole_end = whole.microbatch_row + whole.count;
    run->microbatch_row = whole.microbatch_row + skipped;
    run->client_row = whole.client_row + skipped;
    run->count = (whole_end < end ? whole_end : end) - run->microbatch_row;
    *cursor = i + 1 - plan->run_first[microbatch];
    return true;
}
