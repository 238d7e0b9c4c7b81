#include "coordinator/plan.h"

#include <criterion/criterion.h>
#include <string.h>

#define TOKENS_MAX MLA_STEP_TOKENS_MAX

/* Where one token goes: a plan spelt out, and what the reference below says of it. */
struct place {
    uint32_t kind, microbatch, table, position, client_row;
};

static struct place planned[TOKENS_MAX], expected[TOKENS_MAX];
static struct mla_plan plan;
static uint64_t random_state;

/* xorshift64*; every run of the tests is the same. */
static uint32_t random_below(uint32_t bound)
{
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return (uint32_t)((random_state * 0x2545f4914f6cdd1dull) >> 33) % bound;
}

static uint32_t random_range(uint32_t low, uint32_t high)
{
    return low + random_below(high - low + 1);
}

static void setup(void)
{
    random_state = 20240507;
    cr_assert_eq(mla_plan_init(&plan), MLA_OK);
}

static void teardown(void)
{
    mla_plan_fini(&plan);
    mla_plan_fini(&plan); /* safe on a zeroed plan */
}

TestSuite(plan, .init = setup, .fini = teardown);

static struct mla_plan_options one_bucket(uint32_t ranks, uint32_t decode_tokens_max,
                                          uint32_t bucket, uint32_t prefill_tokens_max)
{
    return (struct mla_plan_options){
        .ranks = ranks,
        .decode_tokens_max = decode_tokens_max,
        .prefill_tokens_max = prefill_tokens_max,
        .bucket_count = 1,
        .buckets = {bucket},
    };
}

/* The contract token by token, without a thought for speed. */
static uint32_t reference(const struct mla_plan_options *options,
                          const struct mla_plan_sequence *sequences, uint32_t count)
{
    uint32_t decode_max = options->buckets[options->bucket_count - 1];
    uint32_t total = 0, microbatches = 0;
    for (uint32_t kind = MLA_DECODE; kind <= MLA_PREFILL; kind++) {
        uint32_t rows = UINT32_MAX; /* of the last microbatch; none of this kind yet */
        for (uint32_t i = 0; i < count; i++) {
            const struct mla_plan_sequence *s = &sequences[i];
            bool decode = s->tokens <= options->decode_tokens_max;
            if (decode != (kind == MLA_DECODE))
                continue;
            for (uint32_t token = 0; token < s->tokens; token++) {
                bool full =
                    decode ? token == 0 && (rows == UINT32_MAX || rows + s->tokens > decode_max)
                           : rows == UINT32_MAX || rows == options->prefill_tokens_max;
                if (full) {
                    microbatches++;
                    rows = 0;
                }
                rows++;
                expected[total++] = (struct place){kind, microbatches - 1, s->table,
                                                   s->start + token, s->row + token};
            }
        }
    }
    return total;
}

/* The client rows come from the runs alone: of each rank's share, then of the microbatch. */
static void spell_client_rows(const struct mla_plan_options *options, uint32_t microbatch,
                              struct place *places)
{
    const struct mla_plan_microbatch *m = &plan.microbatches[microbatch];
    uint32_t next_row = 0;
    for (uint32_t rank = 0; rank < options->ranks; rank++) {
        uint32_t cursor = 0;
        uint32_t first, count, share = m->padded / options->ranks;
        mla_plan_rank_rows(m, options->ranks, rank, &first, &count);
        cr_assert_eq(first, next_row);
        cr_assert(count == share || first + count == m->rows);
        next_row += count;
        struct mla_plan_run run, last = {0};
        uint32_t row = first;
        while (mla_plan_next_run(&plan, microbatch, first, count, &cursor, &run)) {
            cr_assert_eq(run.microbatch_row, row);
            cr_assert_geq(run.count, 1);
            cr_assert(row == first || run.client_row != last.client_row + last.count,
                      "two runs that could be one");
            for (uint32_t i = 0; i < run.count; i++)
                places[row++].client_row = run.client_row + i;
            last = run;
        }
        cr_assert_eq(row, first + count);
    }
    cr_assert_eq(next_row, m->rows);

    uint32_t cursor = 0;
    uint32_t row = 0;
    struct mla_plan_run run;
    while (mla_plan_next_run(&plan, microbatch, 0, m->rows, &cursor, &run)) {
        cr_assert_eq(run.microbatch_row, row);
        for (uint32_t i = 0; i < run.count; i++, row++)
            cr_assert_eq(places[row].client_row, run.client_row + i);
    }
    cr_assert_eq(row, m->rows);
}

/* The least padding that the options allow. */
static void check_padding(const struct mla_plan_options *options,
                          const struct mla_plan_microbatch *m)
{
    uint32_t least = m->rows;
    if (m->kind == MLA_DECODE && options->pad_to_bucket)
        for (uint32_t i = options->bucket_count; i-- > 0;)
            least = options->buckets[i] >= m->rows ? options->buckets[i] : least;
    cr_assert_eq(m->padded % options->ranks, 0);
    cr_assert_geq(m->padded, least);
    cr_assert_lt(m->padded - least, options->ranks);
}

/* Spells the plan out into planned[]; checks all that holds for one microbatch by itself. */
static uint32_t spell(const struct mla_plan_options *options)
{
    uint32_t total = 0, entry = 0, half[MLA_PREFILL + 1] = {0};
    for (uint32_t m = 0; m < plan.microbatch_count; m++) {
        const struct mla_plan_microbatch *microbatch = &plan.microbatches[m];
        struct place *places = planned + total;
        uint32_t rows = 0;
        cr_assert_eq(microbatch->entry_first, entry);
        cr_assert_geq(microbatch->entry_count, 1);
        for (; entry < microbatch->entry_first + microbatch->entry_count; entry++) {
            const struct mla_plan_entry *e = &plan.entries[entry];
            cr_assert_geq(e->tokens, 1);
            for (uint32_t i = 0; i < e->tokens; i++) {
                places[rows++] =
                    (struct place){microbatch->kind, m, e->table, e->start + i, UINT32_MAX};
            }
        }
        cr_assert_eq(microbatch->rows, rows);
        cr_assert_leq(rows, microbatch->kind == MLA_DECODE
                                ? options->buckets[options->bucket_count - 1]
                                : options->prefill_tokens_max);
        check_padding(options, microbatch);
        spell_client_rows(options, m, places);
        half[microbatch->kind] += rows;
        total += rows;
    }
    cr_assert_eq(entry, plan.entry_count);
    cr_assert_eq(half[MLA_DECODE], plan.decode_rows);
    cr_assert_eq(half[MLA_PREFILL], plan.prefill_rows);
    return total;
}

static void build_and_compare(const struct mla_plan_options *options,
                              const struct mla_plan_sequence *sequences, uint32_t count)
{
    char why[MLA_SENTENCE_BYTES_MAX];
    cr_assert_eq(mla_plan_options_check(options, why), MLA_OK);
    cr_assert_eq(mla_plan_build(options, sequences, count, &plan), MLA_OK);
    uint32_t total = reference(options, sequences, count);
    cr_assert_eq(spell(options), total);
    cr_assert_eq(memcmp(planned, expected, total * sizeof *planned), 0);
}

/* Sequences in the client's order; with gaps, as where other groups have rows between ours. */
static void lay_out(struct mla_plan_sequence *sequences, uint32_t count, uint32_t gap_max)
{
    uint32_t row = 0;
    for (uint32_t i = 0; i < count; i++) {
        row += random_below(gap_max + 1);
        sequences[i].table = 1000 + i * 3;
        sequences[i].start = random_below(300);
        sequences[i].row = row;
        row += sequences[i].tokens;
    }
}

Test(plan, every_small_step)
{
    struct mla_plan_sequence sequences[4];
    for (uint32_t code = 0; code < 5 * 5 * 5 * 5; code++) {
        uint32_t count = 0;
        for (uint32_t rest = code; rest > 0; rest /= 5)
            if (rest % 5 > 0)
                sequences[count++].tokens = rest % 5;
        lay_out(sequences, count, 1);
        for (uint32_t ranks = 1; ranks <= 4; ranks++) {
            for (uint32_t prefill_max = 1; prefill_max <= 5; prefill_max++) {
                for (uint32_t bucket = 1; bucket <= 4; bucket++) {
                    for (uint32_t decode_max = 1; decode_max <= bucket; decode_max++) {
                        struct mla_plan_options options =
                            one_bucket(ranks, decode_max, bucket, prefill_max);
                        build_and_compare(&options, sequences, count);
                    }
                }
            }
        }
    }
}

static struct mla_plan_options random_options(void)
{
    static const uint32_t prefill_max[] = {1, 2, 63, 64, 65, 512, 2048};
    struct mla_plan_options options = {
        .ranks = random_range(1, random_below(4) == 0 ? MLA_RANKS_MAX : 8),
        .prefill_tokens_max = prefill_max[random_below(7)],
        .bucket_count = random_range(1, 8),
        .pad_to_bucket = random_below(2) == 0,
    };
    uint32_t last = options.buckets[0] = random_range(1, 2);
    for (uint32_t i = 1; i < options.bucket_count; i++)
        last = options.buckets[i] = random_range(last + 1, last * 2 + 1);
    options.decode_tokens_max = random_range(1, last < 4 ? last : 4);
    return options;
}

Test(plan, random_steps)
{
    static struct mla_plan_sequence sequences[MLA_STEP_SEQUENCES_MAX];
    for (uint32_t round = 0; round < 3000; round++) {
        struct mla_plan_options options = random_options();
        uint32_t count = random_range(1, random_below(10) == 0 ? MLA_STEP_SEQUENCES_MAX : 40);
        uint32_t decode_share = random_below(11), left = options.prefill_tokens_max * 200;
        left = left < 8192 ? left : 8192;
        for (uint32_t i = 0; i < count; i++) {
            bool decode = random_below(10) < decode_share;
            uint32_t tokens = random_range(1, decode ? options.decode_tokens_max : 300);
            sequences[i].tokens = tokens <= left ? tokens : 1;
            left -= tokens <= left ? tokens : 0;
        }
        lay_out(sequences, count, random_below(3));
        build_and_compare(&options, sequences, count);
    }
}

/* The reference might share the plan's mistakes; these hold by themselves. */
Test(plan, chunks_of_a_prompt_follow_each_other)
{
    struct mla_plan_sequence sequences[6];
    for (uint32_t round = 0; round < 2000; round++) {
        struct mla_plan_options options = random_options();
        for (uint32_t i = 0; i < 6; i++)
            sequences[i].tokens = random_range(1, 400);
        lay_out(sequences, 6, 0);
        cr_assert_eq(mla_plan_build(&options, sequences, 6, &plan), MLA_OK);
        uint32_t done[6] = {0}, microbatch_next[6] = {0};
        for (uint32_t m = 0; m < plan.microbatch_count; m++) {
            const struct mla_plan_microbatch *microbatch = &plan.microbatches[m];
            for (uint32_t i = 0; i < microbatch->entry_count; i++) {
                const struct mla_plan_entry *e = &plan.entries[microbatch->entry_first + i];
                uint32_t s = (e->table - 1000) / 3;
                cr_assert_eq(e->start, sequences[s].start + done[s]);
                cr_assert(done[s] == 0 || microbatch->kind == MLA_PREFILL);
                cr_assert_leq(microbatch_next[s], m, "two chunks in one microbatch");
                done[s] += e->tokens;
                microbatch_next[s] = m + 1;
            }
            cr_assert(m == 0 || microbatch->kind >= microbatch[-1].kind);
        }
        for (uint32_t i = 0; i < 6; i++)
            cr_assert_eq(done[i], sequences[i].tokens);
    }
}

Test(plan, decode_only_prefill_only_and_nothing)
{
    struct mla_plan_options options = one_bucket(2, 1, 8, 16);
    struct mla_plan_sequence decodes[] = {{7, 0, 1, 0}, {8, 100, 1, 1}}; /* the first has no past */
    build_and_compare(&options, decodes, 2);
    cr_assert_eq(plan.microbatch_count, 1);
    cr_assert_eq(plan.prefill_rows, 0);

    struct mla_plan_sequence prompt = {7, 0, 16, 0};
    build_and_compare(&options, &prompt, 1);
    cr_assert_eq(plan.microbatch_count, 1);
    cr_assert_eq(plan.decode_rows, 0);

    build_and_compare(&options, NULL, 0);
    cr_assert_eq(plan.microbatch_count, 0);
    cr_assert_eq(plan.entry_count, 0);
}

Test(plan, fewer_rows_than_ranks)
{
    struct mla_plan_options options = one_bucket(8, 1, 8, 16);
    struct mla_plan_sequence sequences[] = {{1, 5, 1, 0}, {2, 5, 1, 1}, {3, 5, 1, 2}};
    build_and_compare(&options, sequences, 3);
    cr_assert_eq(plan.microbatches[0].padded, 8);
    for (uint32_t rank = 0; rank < 8; rank++) {
        uint32_t first, count;
        mla_plan_rank_rows(&plan.microbatches[0], 8, rank, &first, &count);
        cr_assert_eq(count, rank < 3 ? 1 : 0);
    }
}

Test(plan, decode_comes_first_whatever_the_order)
{
    struct mla_plan_options options = one_bucket(1, 1, 8, 16);
    struct mla_plan_sequence sequences[] = {
        {10, 0, 5, 0}, {11, 9, 1, 5}, {12, 0, 6, 6}, {13, 70, 1, 12}};
    build_and_compare(&options, sequences, 4);
    const struct mla_plan_entry wanted[] = {{11, 9, 1}, {13, 70, 1}, {10, 0, 5}, {12, 0, 6}};
    cr_assert_eq(plan.entry_count, 4);
    cr_assert_eq(memcmp(plan.entries, wanted, sizeof wanted), 0);

    uint32_t cursor = 0;
    struct mla_plan_run run;
    cr_assert(mla_plan_next_run(&plan, 0, 1, 1, &cursor, &run));
    cr_assert_eq(run.microbatch_row, 1);
    cr_assert_eq(run.client_row, 12);
    cr_assert_eq(run.count, 1);
    cr_assert_not(mla_plan_next_run(&plan, 0, 1, 1, &cursor, &run));
    cursor = 0;
    cr_assert_not(mla_plan_next_run(&plan, 1, 2, 0, &cursor, &run), "no rows, no runs");
}

/* The last token of a prompt looks like a decode, and isn't one. */
Test(plan, remainder_of_one_token_beside_decodes)
{
    struct mla_plan_options options = one_bucket(1, 1, 8, 64);
    struct mla_plan_sequence sequences[] = {{1, 30, 1, 0}, {2, 0, 65, 1}, {3, 40, 1, 66}};
    build_and_compare(&options, sequences, 3);
    cr_assert_eq(plan.decode_rows, 2);
    cr_assert_eq(plan.prefill_rows, 65);
    cr_assert_eq(plan.microbatch_count, 3);
    cr_assert_eq(plan.microbatches[2].kind, MLA_PREFILL);
    cr_assert_eq(plan.microbatches[2].rows, 1);
    cr_assert_eq(plan.entries[plan.microbatches[2].entry_first].start, 64);
}

Test(plan, low_token_budgets_on_and_off_block_boundaries)
{
    static const uint32_t budgets[] = {1, 2, 63, 64, 65};
    static const uint32_t starts[] = {0, 1, 63, 64, 65};
    for (uint32_t b = 0; b < 5; b++) {
        for (uint32_t s = 0; s < 5; s++) {
            for (uint32_t tokens = 2; tokens <= 193; tokens++) {
                struct mla_plan_options options = one_bucket(3, 1, 4, budgets[b]);
                struct mla_plan_sequence prompt = {4, starts[s], tokens, 0};
                build_and_compare(&options, &prompt, 1);
                cr_assert_eq(plan.microbatch_count, (tokens + budgets[b] - 1) / budgets[b]);
            }
        }
    }
}

Test(plan, rest_of_a_microbatch_takes_the_next_prompt)
{
    struct mla_plan_options options = one_bucket(1, 1, 4, 10);
    struct mla_plan_sequence sequences[] = {{1, 0, 14, 0}, {2, 0, 8, 14}};
    build_and_compare(&options, sequences, 2);
    cr_assert_eq(plan.microbatch_count, 3);
    cr_assert_eq(plan.microbatches[1].rows, 10);
    cr_assert_eq(plan.microbatches[1].entry_count, 2);
    /* 4 and 6 tokens, side by side in the payload too. */
    cr_assert_eq(plan.run_count, 3);
}

Test(plan, draft_tokens_stay_together)
{
    struct mla_plan_options options = one_bucket(1, 3, 4, 16);
    struct mla_plan_sequence sequences[] = {{1, 9, 3, 0}, {2, 9, 3, 3}, {3, 9, 1, 6}};
    build_and_compare(&options, sequences, 3);
    cr_assert_eq(plan.microbatch_count, 2);
    cr_assert_eq(plan.microbatches[0].rows, 3);
    cr_assert_eq(plan.microbatches[1].rows, 4);
}

Test(plan, padding_to_buckets)
{
    struct mla_plan_options options = {
        .ranks = 3,
        .decode_tokens_max = 1,
        .prefill_tokens_max = 16,
        .bucket_count = 3,
        .buckets = {2, 4, 8},
        .pad_to_bucket = true,
    };
    static const uint32_t padded[] = {3, 3, 6, 6, 9, 9, 9, 9};
    static const uint32_t padded_eager[] = {3, 3, 3, 6, 6, 6, 9, 9};
    struct mla_plan_sequence sequences[9];
    for (uint32_t i = 0; i < 9; i++)
        sequences[i] = (struct mla_plan_sequence){i, 1, i == 8 ? 5 : 1, i};
    for (uint32_t rows = 1; rows <= 8; rows++) {
        options.pad_to_bucket = true;
        build_and_compare(&options, sequences, rows);
        cr_assert_eq(plan.microbatches[0].padded, padded[rows - 1]);
        options.pad_to_bucket = false;
        build_and_compare(&options, sequences, rows);
        cr_assert_eq(plan.microbatches[0].padded, padded_eager[rows - 1]);
    }
    options.pad_to_bucket = true;
    build_and_compare(&options, sequences, 9);
    cr_assert_eq(plan.microbatches[1].padded, 6, "a prompt has no bucket");
}

Test(plan, too_many_microbatches)
{
    struct mla_plan_options options = one_bucket(1, 1, 1, 1);
    struct mla_plan_sequence prompt = {1, 0, MLA_STEP_MICROBATCHES_MAX, 0};
    cr_assert_eq(mla_plan_build(&options, &prompt, 1, &plan), MLA_OK);
    prompt.tokens++;
    cr_assert_eq(mla_plan_build(&options, &prompt, 1, &plan), MLA_LIMIT);
    cr_assert_eq(plan.microbatch_count, 0);
    cr_assert_eq(plan.entry_count, 0);
    cr_assert_eq(plan.prefill_rows, 0);
    prompt.tokens = 3;
    build_and_compare(&options, &prompt, 1);
}

/* All sequences and all cuts at once: the entries' bound. */
Test(plan, largest_step)
{
    static struct mla_plan_sequence sequences[MLA_STEP_SEQUENCES_MAX];
    struct mla_plan_options options = one_bucket(1, 1, 1, 16);
    for (uint32_t i = 0; i < MLA_STEP_SEQUENCES_MAX; i++)
        sequences[i].tokens = i == 0 ? 40 : 64;
    lay_out(sequences, MLA_STEP_SEQUENCES_MAX, 0);
    build_and_compare(&options, sequences, MLA_STEP_SEQUENCES_MAX);
    cr_assert_eq(plan.microbatch_count, MLA_STEP_MICROBATCHES_MAX - 1);
    cr_assert_eq(plan.entry_count, MLA_STEP_SEQUENCES_MAX - 1 + MLA_STEP_MICROBATCHES_MAX - 1);
}

Test(plan, options)
{
    const struct mla_plan_options good = {
        .ranks = 4,
        .decode_tokens_max = 2,
        .prefill_tokens_max = 512,
        .bucket_count = 3,
        .buckets = {1, 2, 8},
    };
    struct mla_plan_options bad[12];
    for (uint32_t i = 0; i < 12; i++)
        bad[i] = good;
    bad[0].ranks = 0;
    bad[1].ranks = MLA_RANKS_MAX + 1;
    bad[2].decode_tokens_max = 0;
    bad[3].decode_tokens_max = 9;
    bad[4].prefill_tokens_max = 0;
    bad[5].prefill_tokens_max = MLA_STEP_TOKENS_MAX + 1;
    bad[6].bucket_count = 0;
    bad[7].bucket_count = MLA_DECODE_BUCKETS_MAX + 1;
    bad[8].buckets[0] = 0;
    bad[9].buckets[1] = 1;
    bad[10].buckets[2] = MLA_DECODE_ROWS_MAX + 1;
    bad[11].buckets[1] = UINT32_MAX;
    char why[MLA_SENTENCE_BYTES_MAX] = "";
    cr_assert_eq(mla_plan_options_check(&good, why), MLA_OK);
    cr_assert_str_empty(why);
    for (uint32_t i = 0; i < 12; i++) {
        why[0] = '\0';
        cr_assert_eq(mla_plan_options_check(&bad[i], why), MLA_OPTION, "case %u", i);
        cr_assert_eq(why[strlen(why) - 1], '.');
    }
}
