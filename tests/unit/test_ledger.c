#include "coordinator/ledger.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#define SEQUENCES_MAX 12u
#define CONTEXT_MAX   400u
#define BLOCKS_MAX    64u
#define TABLE_BLOCKS  ((CONTEXT_MAX + MLA_BLOCK_TOKENS - 1) / MLA_BLOCK_TOKENS)

/* A sequence as its client sees it: the tokens themselves. The first `length` are committed,
 * `reserved` more are written by an open step. */
struct model_sequence {
    bool used;
    uint32_t length, reserved;
    uint32_t content[CONTEXT_MAX];
};

/* A ledger beside what it must amount to. Workers know nothing but what changes() and reserve()
 * have told them: block tables, and blocks of tokens in place of latents. */
struct model {
    struct mla_ledger *ledger;
    uint32_t blocks, sequences, context_max, token_next;
    struct model_sequence tables[SEQUENCES_MAX];
    uint32_t worker_tables[SEQUENCES_MAX][TABLE_BLOCKS];
    uint32_t worker_blocks[BLOCKS_MAX][MLA_BLOCK_TOKENS];
    uint32_t outcomes[MLA_SEQUENCES_FULL + 1]; /* how often each status came */
};

static struct model model;
static uint64_t random_state;

/* xorshift64*; every run of the tests is the same. */
static uint32_t random_below(uint32_t bound)
{
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return (uint32_t)((random_state * 0x2545f4914f6cdd1dull) >> 33) % bound;
}

static bool one_in(uint32_t chances)
{
    return random_below(chances) == 0;
}

static uint32_t blocks_of(uint32_t tokens)
{
    return (tokens + MLA_BLOCK_TOKENS - 1) / MLA_BLOCK_TOKENS;
}

static void model_create(uint64_t seed, uint32_t blocks, uint32_t sequences, uint32_t context_max)
{
    random_state = seed;
    memset(&model, 0, sizeof model);
    model.blocks = blocks;
    model.sequences = sequences;
    model.context_max = context_max;
    cr_assert_eq(mla_ledger_create(blocks, sequences, context_max, &model.ledger), MLA_OK);
}

static void tell(uint32_t table)
{
    uint32_t first, count;
    const uint32_t *blocks;
    mla_ledger_changes(model.ledger, table, &first, &count, &blocks);
    cr_assert_leq(first + count, blocks_of(model.context_max));
    for (uint32_t i = 0; i < count; i++) {
        cr_assert_lt(blocks[i], model.blocks);
        model.worker_tables[table][first + i] = blocks[i];
    }
}

static void tell_all(void)
{
    for (uint32_t i = 0; i < model.sequences; i++)
        if (model.tables[i].used)
            tell(i);
}

/* A step of this sequence on the workers: writes what it reserved. Any number of times. */
static void run(uint32_t table)
{
    const struct model_sequence *s = &model.tables[table];
    for (uint32_t i = s->length; i < s->length + s->reserved; i++)
        model
            .worker_blocks[model.worker_tables[table][i / MLA_BLOCK_TOKENS]][i % MLA_BLOCK_TOKENS] =
            s->content[i];
}

static void verify(uint32_t table)
{
    const struct model_sequence *s = &model.tables[table];
    cr_assert_eq(mla_ledger_length(model.ledger, table), s->length);
    cr_assert_eq(mla_ledger_reserved(model.ledger, table), s->reserved);
    for (uint32_t i = 0; i < s->length; i += MLA_BLOCK_TOKENS) {
        uint32_t left = s->length - i;
        uint32_t tokens = left < MLA_BLOCK_TOKENS ? left : MLA_BLOCK_TOKENS;
        uint32_t block = model.worker_tables[table][i / MLA_BLOCK_TOKENS];
        cr_assert_eq(memcmp(model.worker_blocks[block], &s->content[i], tokens * sizeof(uint32_t)),
                     0, "sequence %u lost tokens near %u", table, i);
    }
}

static void verify_all(void)
{
    uint32_t used = 0;
    tell_all();
    for (uint32_t i = 0; i < model.sequences; i++) {
        if (model.tables[i].used) {
            used++;
            verify(i);
        }
    }
    cr_assert_eq(mla_ledger_sequences(model.ledger), used);
    cr_assert(mla_ledger_check(model.ledger));
}

/* How many tables hold each block, as far as the workers know. */
static uint32_t count_holders(uint32_t *holders)
{
    uint32_t used = 0;
    tell_all();
    memset(holders, 0, model.blocks * sizeof *holders);
    for (uint32_t i = 0; i < model.sequences; i++) {
        const struct model_sequence *s = &model.tables[i];
        for (uint32_t b = 0; s->used && b < blocks_of(s->length + s->reserved); b++)
            used += holders[model.worker_tables[i][b]]++ == 0;
    }
    return used;
}

static enum mla_status outcome(enum mla_status status)
{
    model.outcomes[status]++;
    return status;
}

static bool add(uint32_t *table)
{
    uint32_t taken = UINT32_MAX, sequences = mla_ledger_sequences(model.ledger);
    enum mla_status status = outcome(mla_ledger_add(model.ledger, &taken));
    if (sequences == model.sequences) {
        cr_assert_eq(status, MLA_SEQUENCES_FULL);
        cr_assert_eq(taken, UINT32_MAX);
        return false;
    }
    cr_assert_eq(status, MLA_OK);
    cr_assert_not(model.tables[taken].used);
    model.tables[taken] = (struct model_sequence){.used = true};
    *table = taken;
    return true;
}

/* What reserve must say, from the tables alone. */
static enum mla_status expected_reserve(uint32_t table, uint32_t tokens, uint32_t *need)
{
    const struct model_sequence *s = &model.tables[table];
    uint32_t holders[BLOCKS_MAX], used = count_holders(holders);
    cr_assert_eq(mla_ledger_blocks_free(model.ledger), model.blocks - used);
    if (s->length + tokens > model.context_max)
        return MLA_CONTEXT;
    uint32_t last = s->length / MLA_BLOCK_TOKENS;
    bool shared =
        s->length % MLA_BLOCK_TOKENS != 0 && holders[model.worker_tables[table][last]] > 1;
    *need = blocks_of(s->length + tokens) - blocks_of(s->length) + (shared ? 1 : 0);
    return *need > model.blocks - used ? MLA_KV_FULL : MLA_OK;
}

/* The copy is not yet made: a request that fails half-way never reaches the workers. */
static enum mla_status reserve(uint32_t table, uint32_t tokens, struct mla_plan_copy *copy)
{
    uint32_t free_before = mla_ledger_blocks_free(model.ledger), need = 0;
    bool exact = one_in(2); /* else the workers hear of several changes at once */
    enum mla_status expected = exact ? expected_reserve(table, tokens, &need) : MLA_OK;
    struct mla_plan_copy told = {77, 78};
    enum mla_status status = outcome(mla_ledger_reserve(model.ledger, table, tokens, &told));
    uint32_t taken = free_before - mla_ledger_blocks_free(model.ledger);
    cr_assert(!exact || status == expected);
    if (status != MLA_OK) {
        cr_assert(status == MLA_KV_FULL || status == MLA_CONTEXT);
        cr_assert_eq(taken, 0);
        cr_assert(told.src == 77 && told.dst == 78);
        cr_assert_eq(mla_ledger_reserved(model.ledger, table), 0);
        return status;
    }
    cr_assert(!exact || taken == need);
    struct model_sequence *s = &model.tables[table];
    s->reserved = tokens;
    for (uint32_t i = 0; i < tokens; i++)
        s->content[s->length + i] = ++model.token_next;
    *copy = told;
    return MLA_OK;
}

static void copy_block(const struct mla_plan_copy *copy)
{
    if (copy->src != copy->dst)
        memcpy(model.worker_blocks[copy->dst], model.worker_blocks[copy->src],
               sizeof model.worker_blocks[0]);
}

/* One request: several sequences are reserved together or not at all. */
static void open_step(void)
{
    uint32_t tables[SEQUENCES_MAX], count = 0, wanted = 1 + random_below(4);
    struct mla_plan_copy copies[SEQUENCES_MAX];
    uint32_t free_before = mla_ledger_blocks_free(model.ledger);
    bool fails = one_in(8), compares = one_in(2);
    static uint32_t tables_before[SEQUENCES_MAX][TABLE_BLOCKS];
    if (compares) {
        tell_all();
        memcpy(tables_before, model.worker_tables, sizeof tables_before);
    }
    for (uint32_t tries = 0; count < wanted && tries < SEQUENCES_MAX; tries++) {
        uint32_t table = random_below(model.sequences);
        if (!model.tables[table].used || model.tables[table].reserved > 0)
            continue;
        uint32_t tokens = 1 + (one_in(2) ? 0 : random_below(one_in(4) ? model.context_max : 100));
        if (reserve(table, tokens, &copies[count]) != MLA_OK) {
            fails = true;
            break;
        }
        tables[count++] = table;
    }
    if (fails) {
        for (uint32_t i = count; i-- > 0;) {
            mla_ledger_rollback(model.ledger, tables[i]);
            model.tables[tables[i]].reserved = 0;
        }
        cr_assert_eq(mla_ledger_blocks_free(model.ledger), free_before);
        if (compares) {
            for (uint32_t i = 0; i < count; i++) {
                tell(tables[i]);
                cr_assert_eq(memcmp(model.worker_tables[tables[i]], tables_before[tables[i]],
                                    blocks_of(model.tables[tables[i]].length) * sizeof(uint32_t)),
                             0);
            }
        }
        return;
    }
    for (uint32_t i = 0; i < count; i++)
        copy_block(&copies[i]);
    for (uint32_t i = 0; i < count; i++) {
        tell(tables[i]);
        run(tables[i]);
    }
}

/* Another layer, or a retry: blocks of open steps are written again and again. */
static void run_open_steps(void)
{
    for (uint32_t i = 0; i < model.sequences; i++)
        if (model.tables[i].used && model.tables[i].reserved > 0)
            run(i);
}

static void close_step(uint32_t table)
{
    struct model_sequence *s = &model.tables[table];
    run(table);
    if (one_in(3)) {
        mla_ledger_abort(model.ledger, table);
    } else {
        mla_ledger_commit(model.ledger, table);
        s->length += s->reserved;
    }
    s->reserved = 0;
}

static void fork_sequence(uint32_t parent)
{
    const struct model_sequence *from = &model.tables[parent];
    uint32_t length = one_in(2) ? from->length : 1 + random_below(from->length);
    uint32_t child = UINT32_MAX, free_before = mla_ledger_blocks_free(model.ledger);
    bool full = mla_ledger_sequences(model.ledger) == model.sequences;
    enum mla_status status = outcome(mla_ledger_fork(model.ledger, parent, length, &child));
    cr_assert_eq(mla_ledger_blocks_free(model.ledger), free_before);
    cr_assert_eq(status, full ? MLA_SEQUENCES_FULL : MLA_OK);
    if (full) {
        cr_assert_eq(child, UINT32_MAX);
        return;
    }
    cr_assert_not(model.tables[child].used);
    model.tables[child] = *from;
    model.tables[child].length = length;
    model.tables[child].reserved = 0;
}

static void truncate_sequence(uint32_t table)
{
    uint32_t length = random_below(model.tables[table].length + 1);
    mla_ledger_truncate(model.ledger, table, length);
    model.tables[table].length = length;
}

static void free_sequence(uint32_t table)
{
    mla_ledger_free(model.ledger, table);
    model.tables[table].used = false;
}

static void random_operation(void)
{
    uint32_t table = random_below(model.sequences), choice = random_below(100);
    const struct model_sequence *s = &model.tables[table];
    if (choice < 40)
        open_step();
    else if (choice < 45)
        run_open_steps();
    else if (choice < 55 && one_in(2))
        add(&table);
    else if (!s->used)
        return;
    else if (s->reserved > 0 && choice < 85)
        close_step(table);
    else if (choice < 90 && s->length > 0)
        fork_sequence(table);
    else if (choice < 96 && s->reserved == 0)
        truncate_sequence(table);
    else if (choice >= 96)
        free_sequence(table); /* also while a step of it is open */
}

static void random_operations(uint64_t seed, uint32_t blocks, uint32_t sequences,
                              uint32_t context_max)
{
    model_create(seed, blocks, sequences, context_max);
    for (uint32_t i = 0; i < 60000; i++) {
        random_operation();
        cr_assert(mla_ledger_check(model.ledger), "operation %u", i);
        for (uint32_t table = 0; table < sequences; table++) {
            if (model.tables[table].used && one_in(4)) {
                tell(table);
                verify(table);
            }
        }
    }
    verify_all();
    cr_assert_gt(model.outcomes[MLA_OK], 10000);
    cr_assert_gt(model.outcomes[MLA_KV_FULL], 100);
    cr_assert_gt(model.outcomes[MLA_CONTEXT], 100);
    cr_assert_gt(model.outcomes[MLA_SEQUENCES_FULL], 100);
    for (uint32_t i = 0; i < sequences; i++)
        if (model.tables[i].used)
            free_sequence(i);
    cr_assert_eq(mla_ledger_blocks_free(model.ledger), blocks);
    cr_assert(mla_ledger_check(model.ledger));
    mla_ledger_destroy(&model.ledger);
    cr_assert_null(model.ledger);
    mla_ledger_destroy(&model.ledger);
}

Test(ledger, random_few_blocks)
{
    random_operations(1, 12, 8, 400);
}
Test(ledger, random_more_blocks)
{
    random_operations(2, 24, 12, 300);
}
Test(ledger, random_context_of_whole_blocks)
{
    random_operations(3, 10, 6, 192);
}

/* Adds a sequence of that many committed tokens. */
static uint32_t sequence_of(struct mla_ledger *ledger, uint32_t tokens)
{
    uint32_t table;
    struct mla_plan_copy copy;
    cr_assert_eq(mla_ledger_add(ledger, &table), MLA_OK);
    cr_assert_eq(mla_ledger_reserve(ledger, table, tokens, &copy), MLA_OK);
    cr_assert_eq(copy.src, copy.dst);
    mla_ledger_commit(ledger, table);
    return table;
}

static struct mla_plan_copy reserve_copy(struct mla_ledger *ledger, uint32_t table, uint32_t tokens)
{
    struct mla_plan_copy copy;
    cr_assert_eq(mla_ledger_reserve(ledger, table, tokens, &copy), MLA_OK);
    return copy;
}

static uint32_t changed(struct mla_ledger *ledger, uint32_t table, uint32_t *first)
{
    uint32_t count;
    const uint32_t *blocks;
    mla_ledger_changes(ledger, table, first, &count, &blocks);
    return count;
}

Test(ledger, blocks_follow_the_tokens)
{
    struct mla_ledger *ledger;
    cr_assert_eq(mla_ledger_create(8, 4, 512, &ledger), MLA_OK);
    cr_assert_eq(mla_ledger_blocks_total(ledger), 8);
    uint32_t a = sequence_of(ledger, 63);
    static const uint32_t lengths[] = {64, 65, 128, 129};
    static const uint32_t left[] = {7, 6, 6, 5};
    for (uint32_t i = 0; i < 4; i++) {
        reserve_copy(ledger, a, lengths[i] - mla_ledger_length(ledger, a));
        mla_ledger_commit(ledger, a);
        cr_assert_eq(mla_ledger_blocks_free(ledger), left[i]);
    }
    mla_ledger_truncate(ledger, a, 65);
    cr_assert_eq(mla_ledger_blocks_free(ledger), 6);
    mla_ledger_truncate(ledger, a, 64);
    cr_assert_eq(mla_ledger_blocks_free(ledger), 7);
    mla_ledger_truncate(ledger, a, 0);
    cr_assert_eq(mla_ledger_blocks_free(ledger), 8);
    mla_ledger_destroy(&ledger);
}

Test(ledger, only_a_shared_partial_block_is_copied)
{
    struct mla_ledger *ledger;
    cr_assert_eq(mla_ledger_create(8, 8, 512, &ledger), MLA_OK);
    uint32_t a = sequence_of(ledger, 100), whole, partial, first;
    cr_assert_eq(mla_ledger_fork(ledger, a, 64, &whole), MLA_OK);
    cr_assert_eq(mla_ledger_fork(ledger, a, 100, &partial), MLA_OK);
    cr_assert_eq(mla_ledger_blocks_free(ledger), 6);

    struct mla_plan_copy copy = reserve_copy(ledger, whole, 1);
    cr_assert_eq(copy.src, copy.dst);
    cr_assert_eq(changed(ledger, partial, &first), 2);
    copy = reserve_copy(ledger, partial, 1);
    cr_assert_neq(copy.src, copy.dst);
    cr_assert_eq(changed(ledger, partial, &first), 1);
    cr_assert_eq(first, 1);
    copy = reserve_copy(ledger, a, 1); /* by now alone on its block */
    cr_assert_eq(copy.src, copy.dst);
    cr_assert_eq(mla_ledger_blocks_free(ledger), 4);
    cr_assert(mla_ledger_check(ledger));
    mla_ledger_destroy(&ledger);
}

Test(ledger, abort_keeps_the_copy_and_rollback_the_shared_block)
{
    struct mla_ledger *ledger;
    cr_assert_eq(mla_ledger_create(8, 8, 512, &ledger), MLA_OK);
    uint32_t a = sequence_of(ledger, 10), b;
    cr_assert_eq(mla_ledger_fork(ledger, a, 10, &b), MLA_OK);

    struct mla_plan_copy first = reserve_copy(ledger, b, 300);
    cr_assert_eq(mla_ledger_blocks_free(ledger), 2);
    mla_ledger_rollback(ledger, b);
    cr_assert_eq(mla_ledger_blocks_free(ledger), 7);
    struct mla_plan_copy again = reserve_copy(ledger, b, 300);
    cr_assert(first.src == again.src && first.dst == again.dst, "the rollback left a trace");

    mla_ledger_abort(ledger, b);
    cr_assert_eq(mla_ledger_length(ledger, b), 10);
    cr_assert_eq(mla_ledger_blocks_free(ledger), 6);
    again = reserve_copy(ledger, b, 1);
    cr_assert_eq(again.src, again.dst);
    cr_assert(mla_ledger_check(ledger));
    mla_ledger_destroy(&ledger);
}

/* The copy of a shared block needs a free one too. */
Test(ledger, exhaustion_changes_nothing)
{
    struct mla_ledger *ledger;
    cr_assert_eq(mla_ledger_create(3, 4, 512, &ledger), MLA_OK);
    uint32_t a = sequence_of(ledger, 140), b, first;
    cr_assert_eq(mla_ledger_fork(ledger, a, 140, &b), MLA_OK);
    changed(ledger, b, &first);
    struct mla_plan_copy copy = {5, 6};
    cr_assert_eq(mla_ledger_reserve(ledger, b, 1, &copy), MLA_KV_FULL);
    cr_assert(copy.src == 5 && copy.dst == 6);
    cr_assert_eq(mla_ledger_reserved(ledger, b), 0);
    cr_assert_eq(changed(ledger, b, &first), 0);
    cr_assert_eq(mla_ledger_reserve(ledger, b, 512 - 140 + 1, &copy), MLA_CONTEXT);
    cr_assert_eq(mla_ledger_reserve(ledger, b, UINT32_MAX, &copy), MLA_CONTEXT);

    mla_ledger_free(ledger, a);
    copy = reserve_copy(ledger, b, 52);
    cr_assert_eq(copy.src, copy.dst);
    cr_assert_eq(mla_ledger_blocks_free(ledger), 0);
    mla_ledger_free(ledger, b); /* its reservation goes with it */
    cr_assert_eq(mla_ledger_blocks_free(ledger), 3);
    cr_assert_eq(mla_ledger_sequences(ledger), 0);
    cr_assert(mla_ledger_check(ledger));
    mla_ledger_destroy(&ledger);
}

/* A table that another sequence had before is told from its first block on. */
Test(ledger, a_new_sequence_has_nothing_told)
{
    struct mla_ledger *ledger;
    cr_assert_eq(mla_ledger_create(8, 1, 512, &ledger), MLA_OK);
    uint32_t a = sequence_of(ledger, 200), first = 9;
    cr_assert_eq(changed(ledger, a, &first), 4);
    mla_ledger_free(ledger, a);
    uint32_t b = sequence_of(ledger, 300);
    cr_assert_eq(a, b);
    cr_assert_eq(changed(ledger, b, &first), 5);
    cr_assert_eq(first, 0);
    mla_ledger_destroy(&ledger);
}

/* A block table area of 4 GiB; only what is used may become memory. */
Test(ledger, largest)
{
    struct mla_ledger *ledger;
    cr_assert_eq(mla_ledger_create(MLA_CONTEXT_MAX / MLA_BLOCK_TOKENS, MLA_SEQUENCES_MAX,
                                   MLA_CONTEXT_MAX, &ledger),
                 MLA_OK);
    uint32_t table, a, b, first;
    for (uint32_t i = 0; i < MLA_SEQUENCES_MAX - 2; i++)
        cr_assert_eq(mla_ledger_add(ledger, &table), MLA_OK);
    a = sequence_of(ledger, MLA_CONTEXT_MAX);
    cr_assert_eq(mla_ledger_fork(ledger, a, MLA_CONTEXT_MAX, &b), MLA_OK);
    cr_assert_eq(mla_ledger_add(ledger, &table), MLA_SEQUENCES_FULL);
    cr_assert_eq(changed(ledger, b, &first), MLA_CONTEXT_MAX / MLA_BLOCK_TOKENS);
    cr_assert_eq(mla_ledger_blocks_free(ledger), 0);
    cr_assert(mla_ledger_check(ledger));
    mla_ledger_destroy(&ledger);
}
