#include "coordinator/ledger.h"

#include <assert.h>
#include <stdlib.h>

#define BLOCK_NONE UINT32_MAX

struct table {
    bool used;
    uint32_t length, reserved; /* tokens: committed, and those of the open reservation */
    uint32_t block_count;      /* blocks of both */
    uint32_t told;             /* leading blocks that mla_ledger_changes has given out */
    uint32_t shared;           /* block that the open reservation replaced, or BLOCK_NONE */
};

struct mla_ledger {
    uint32_t block_total, sequences_max, context_max, context_blocks;
    struct table *tables;                    /* [sequences_max] */
    uint32_t *ids;                           /* [sequences_max][context_blocks] */
    uint32_t *references;                    /* [block_total]: tables that hold the block */
    uint32_t *free_blocks, free_block_count; /* stack */
    uint32_t *free_tables, free_table_count; /* stack */
};

static uint32_t blocks_of(uint32_t tokens)
{
    return tokens / MLA_BLOCK_TOKENS + (tokens % MLA_BLOCK_TOKENS != 0);
}

/* A stack of all numbers below count, the lowest on top. */
static uint32_t *stack_create(uint32_t count)
{
    uint32_t *stack = calloc(count, sizeof *stack);
    for (uint32_t i = 0; stack != NULL && i < count; i++)
        stack[i] = count - 1 - i;
    return stack;
}

enum mla_status mla_ledger_create(uint32_t blocks, uint32_t sequences, uint32_t context_max,
                                  struct mla_ledger **out)
{
    assert(blocks >= 1 && blocks <= MLA_BLOCKS_MAX);
    assert(sequences >= 1 && sequences <= MLA_SEQUENCES_MAX);
    assert(context_max >= 1 && context_max <= MLA_CONTEXT_MAX);
    struct mla_ledger *ledger = calloc(1, sizeof *ledger);
    if (ledger == NULL)
        return MLA_MEMORY;
    *ledger = (struct mla_ledger){
        .block_total = blocks,
        .sequences_max = sequences,
        .context_max = context_max,
        .context_blocks = blocks_of(context_max),
        .tables = calloc(sequences, sizeof *ledger->tables),
        /* Up to 4 GiB of addresses; only what sequences really use is ever touched. */
        .ids = calloc((size_t)sequences * blocks_of(context_max), sizeof *ledger->ids),
        .references = calloc(blocks, sizeof *ledger->references),
        .free_blocks = stack_create(blocks),
        .free_block_count = blocks,
        .free_tables = stack_create(sequences),
        .free_table_count = sequences,
    };
    if (ledger->tables == NULL || ledger->ids == NULL || ledger->references == NULL ||
        ledger->free_blocks == NULL || ledger->free_tables == NULL) {
        mla_ledger_destroy(&ledger);
        return MLA_MEMORY;
    }
    *out = ledger;
    return MLA_OK;
}

void mla_ledger_destroy(struct mla_ledger **ledger)
{
    if (*ledger == NULL)
        return;
    free((*ledger)->tables);
    free((*ledger)->ids);
    free((*ledger)->references);
    free((*ledger)->free_blocks);
    free((*ledger)->free_tables);
    free(*ledger);
    *ledger = NULL;
}

static struct table *table_at(const struct mla_ledger *ledger, uint32_t table)
{
    assert(table < ledger->sequences_max && ledger->tables[table].used);
    return &ledger->tables[table];
}

static uint32_t *ids_of(const struct mla_ledger *ledger, uint32_t table)
{
    return ledger->ids + (size_t)table * ledger->context_blocks;
}

static uint32_t take_block(struct mla_ledger *ledger)
{
    assert(ledger->free_block_count > 0);
    uint32_t block = ledger->free_blocks[--ledger->free_block_count];
    ledger->references[block] = 1;
    return block;
}

static void release_block(struct mla_ledger *ledger, uint32_t block)
{
    assert(ledger->references[block] > 0);
    if (--ledger->references[block] == 0)
        ledger->free_blocks[ledger->free_block_count++] = block;
}

/* Keeps the first `count` blocks. The others go back newest first, so that an undone reservation
 * leaves the stack as it was. */
static void shrink(struct mla_ledger *ledger, uint32_t table, uint32_t count)
{
    struct table *t = table_at(ledger, table);
    const uint32_t *ids = ids_of(ledger, table);
    while (t->block_count > count)
        release_block(ledger, ids[--t->block_count]);
    if (t->told > count)
        t->told = count;
}

uint32_t mla_ledger_blocks_total(const struct mla_ledger *ledger)
{
    return ledger->block_total;
}

uint32_t mla_ledger_blocks_free(const struct mla_ledger *ledger)
{
    return ledger->free_block_count;
}

uint32_t mla_ledger_sequences(const struct mla_ledger *ledger)
{
    return ledger->sequences_max - ledger->free_table_count;
}

enum mla_status mla_ledger_add(struct mla_ledger *ledger, uint32_t *table)
{
    if (ledger->free_table_count == 0)
        return MLA_SEQUENCES_FULL;
    uint32_t taken = ledger->free_tables[--ledger->free_table_count];
    ledger->tables[taken] = (struct table){.used = true, .shared = BLOCK_NONE};
    *table = taken;
    return MLA_OK;
}

void mla_ledger_free(struct mla_ledger *ledger, uint32_t table)
{
    shrink(ledger, table, 0);
    ledger->tables[table].used = false;
    ledger->free_tables[ledger->free_table_count++] = table;
}

uint32_t mla_ledger_length(const struct mla_ledger *ledger, uint32_t table)
{
    return table_at(ledger, table)->length;
}

uint32_t mla_ledger_reserved(const struct mla_ledger *ledger, uint32_t table)
{
    return table_at(ledger, table)->reserved;
}

enum mla_status mla_ledger_reserve(struct mla_ledger *ledger, uint32_t table, uint32_t tokens,
                                   struct mla_plan_copy *copy)
{
    struct table *t = table_at(ledger, table);
    uint32_t *ids = ids_of(ledger, table);
    assert(tokens >= 1 && t->reserved == 0);
    if (tokens > ledger->context_max - t->length)
        return MLA_CONTEXT;
    uint32_t count = blocks_of(t->length + tokens);
    uint32_t last = t->block_count - 1; /* read only where there is a partial block */
    bool replace = t->length % MLA_BLOCK_TOKENS != 0 && ledger->references[ids[last]] > 1;
    if (count - t->block_count + (replace ? 1 : 0) > ledger->free_block_count)
        return MLA_KV_FULL;
    struct mla_plan_copy made = {0};
    if (replace) {
        made = (struct mla_plan_copy){.src = ids[last], .dst = take_block(ledger)};
        release_block(ledger, made.src);
        ids[last] = made.dst;
        t->shared = made.src;
        if (t->told > last)
            t->told = last;
    }
    while (t->block_count < count)
        ids[t->block_count++] = take_block(ledger);
    t->reserved = tokens;
    *copy = made;
    return MLA_OK;
}

void mla_ledger_rollback(struct mla_ledger *ledger, uint32_t table)
{
    struct table *t = table_at(ledger, table);
    assert(t->reserved > 0);
    if (t->shared == BLOCK_NONE) {
        mla_ledger_abort(ledger, table);
        return;
    }
    uint32_t last = blocks_of(t->length) - 1;
    shrink(ledger, table, last);
    assert(ledger->references[t->shared] > 0);
    ledger->references[t->shared]++;
    ids_of(ledger, table)[last] = t->shared;
    t->block_count = last + 1;
    t->shared = BLOCK_NONE;
    t->reserved = 0;
}

void mla_ledger_commit(struct mla_ledger *ledger, uint32_t table)
{
    struct table *t = table_at(ledger, table);
    assert(t->reserved > 0);
    t->length += t->reserved;
    t->reserved = 0;
    t->shared = BLOCK_NONE;
}

void mla_ledger_abort(struct mla_ledger *ledger, uint32_t table)
{
    struct table *t = table_at(ledger, table);
    assert(t->reserved > 0);
    shrink(ledger, table, blocks_of(t->length));
    t->reserved = 0;
    t->shared = BLOCK_NONE;
}

enum mla_status mla_ledger_fork(struct mla_ledger *ledger, uint32_t parent, uint32_t length,
                                uint32_t *child)
{
    assert(length >= 1 && length <= table_at(ledger, parent)->length);
    uint32_t added;
    enum mla_status status = mla_ledger_add(ledger, &added);
    if (status != MLA_OK)
        return status;
    const uint32_t *from = ids_of(ledger, parent);
    uint32_t *to = ids_of(ledger, added);
    struct table *t = table_at(ledger, added);
    t->length = length;
    t->block_count = blocks_of(length);
    for (uint32_t i = 0; i < t->block_count; i++) {
        to[i] = from[i];
        ledger->references[to[i]]++;
    }
    *child = added;
    return MLA_OK;
}

void mla_ledger_truncate(struct mla_ledger *ledger, uint32_t table, uint32_t length)
{
    struct table *t = table_at(ledger, table);
    assert(t->reserved == 0 && length <= t->length);
    shrink(ledger, table, blocks_of(length));
    t->length = length;
}

void mla_ledger_changes(struct mla_ledger *ledger, uint32_t table, uint32_t *first, uint32_t *count,
                        const uint32_t **blocks)
{
    struct table *t = table_at(ledger, table);
    *first = t->told;
    *count = t->block_count - t->told;
    *blocks = ids_of(ledger, table) + t->told;
    t->told = t->block_count;
}

/* Adds one table's blocks to held[block]. Of all tables only one may write to a block, and the
 * blocks of a reservation are its own. */
static bool count_table(const struct mla_ledger *ledger, uint32_t table, uint32_t *held,
                        bool *written)
{
    const struct table *t = &ledger->tables[table];
    if (t->reserved > ledger->context_max || t->length > ledger->context_max - t->reserved ||
        t->block_count != blocks_of(t->length + t->reserved) || t->told > t->block_count ||
        (t->reserved == 0 && t->shared != BLOCK_NONE))
        return false;
    for (uint32_t i = 0; i < t->block_count; i++) {
        uint32_t block = ids_of(ledger, table)[i];
        if (block >= ledger->block_total ||
            (i >= blocks_of(t->length) && ledger->references[block] != 1))
            return false;
        held[block]++;
        if (t->reserved > 0 && i >= t->length / MLA_BLOCK_TOKENS) {
            if (written[block])
                return false;
            written[block] = true;
        }
    }
    return true;
}

static bool tables_check(const struct mla_ledger *ledger, uint32_t *held, bool *written)
{
    uint32_t used = 0;
    for (uint32_t i = 0; i < ledger->sequences_max; i++) {
        if (ledger->tables[i].used) {
            used++;
            if (!count_table(ledger, i, held, written))
                return false;
        }
    }
    for (uint32_t i = 0; i < ledger->free_table_count; i++) {
        uint32_t table = ledger->free_tables[i];
        if (table >= ledger->sequences_max || ledger->tables[table].used)
            return false;
    }
    return used + ledger->free_table_count == ledger->sequences_max;
}

/* Counts the free blocks into held[], so that one that is free twice shows as well. */
static bool blocks_check(const struct mla_ledger *ledger, uint32_t *held)
{
    uint32_t used = 0;
    for (uint32_t i = 0; i < ledger->block_total; i++) {
        used += held[i] > 0;
        if (held[i] != ledger->references[i])
            return false;
    }
    for (uint32_t i = 0; i < ledger->free_block_count; i++) {
        uint32_t block = ledger->free_blocks[i];
        if (block >= ledger->block_total || held[block]++ > 0)
            return false;
    }
    return used + ledger->free_block_count == ledger->block_total;
}

bool mla_ledger_check(const struct mla_ledger *ledger)
{
    uint32_t *held = calloc(ledger->block_total, sizeof *held);
    bool *written = calloc(ledger->block_total, sizeof *written);
    bool good = held != NULL && written != NULL && tables_check(ledger, held, written) &&
                blocks_check(ledger, held);
    free(held);
    free(written);
    return good;
}
