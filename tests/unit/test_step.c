#include "tests/unit/plans.h"
#include "worker/step.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BLOCKS = 64, SEQUENCES = 5, CONTEXT_MAX = 640, STRIDE = 10 };

static const struct mla_config config = {.latent = 2, .rope = 2};
static struct mla_backend *backend;
static struct mla_kvcache cache;
static struct mla_step step;
static struct plan plan;

/* Block i of table t: all different, in no order. */
static uint32_t block_of(uint32_t table, uint32_t i)
{
    return (table * STRIDE + i) * 23 % BLOCKS;
}

static void setup(void)
{
    cr_assert_eq(mla_backend_cpu_create(1, &backend), MLA_OK);
    cr_assert_eq(
        mla_kvcache_init(&cache, backend, &config, MLA_F32, 1, BLOCKS, SEQUENCES, CONTEXT_MAX),
        MLA_OK);
    plan_begin(&plan, 1);
    for (uint32_t table = 0; table < SEQUENCES; table++) {
        uint32_t blocks[STRIDE];
        for (uint32_t i = 0; i < STRIDE; i++)
            blocks[i] = block_of(table, i);
        plan_table(&plan, table, 0, blocks, STRIDE);
    }
    cr_assert_eq(mla_kvcache_apply(&cache, &plan.message), MLA_OK);
    plan_begin(&plan, 77);
}

static void teardown(void)
{
    mla_step_fini(&step, backend);
    mla_kvcache_fini(&cache);
    backend->ops->destroy(&backend);
}

TestSuite(step, .init = setup, .fini = teardown);

/* A copy in host memory, until the test ends. */
static const void *host(const void *device, size_t bytes)
{
    cr_assert_gt(bytes, 0);
    void *copy = malloc(bytes);
    cr_assert_not_null(copy);
    cr_assert_eq(backend->ops->download(backend, copy, device, bytes), MLA_OK);
    cr_assert_eq(backend->ops->synchronize(backend), MLA_OK);
    return copy;
}

static void build(uint32_t chunk_rows)
{
    cr_assert_eq(mla_step_build(&step, &cache, &plan.message, chunk_rows, 1), MLA_OK);
    cr_assert_eq(step.number, plan.message.step);
    cr_assert_eq(step.microbatch_count, plan.message.microbatch_count);
}

/* Everything but chunks, from the plan by another way. */
static void check_rows(uint32_t index)
{
    const struct mla_microbatch *mb = &step.microbatches[index];
    const struct mla_plan_microbatch *from = &plan.microbatches[index];
    const uint32_t *positions = host(mb->positions, from->padded * sizeof *positions);
    const int64_t *slots = host(mb->slots, from->padded * sizeof *slots);
    uint32_t sequences = from->kind == MLA_DECODE ? from->padded : from->entry_count;
    const uint32_t *table = host(mb->table, sequences * sizeof *table);
    const uint32_t *row_first = host(mb->row_first, (sequences + 1) * sizeof *row_first);
    const uint32_t *kv_length = host(mb->kv_length, sequences * sizeof *kv_length);
    cr_expect(mb->kind == (enum mla_microbatch_kind)from->kind && mb->rows == from->rows &&
              mb->padded == from->padded && mb->sequences == sequences);
    uint32_t row = 0;
    uint32_t most = 0;
    for (uint32_t i = 0; i < from->entry_count; i++) {
        const struct mla_plan_entry *entry = &plan.entries[from->entry_first + i];
        cr_expect_eq(table[i], entry->table);
        cr_expect_eq(row_first[i], row);
        cr_expect_eq(kv_length[i], entry->start + entry->tokens);
        most = entry->tokens > most ? entry->tokens : most;
        for (uint32_t k = 0; k < entry->tokens; k++, row++) {
            uint32_t position = entry->start + k;
            cr_expect_eq(positions[row], position, "row %u", row);
            cr_expect_eq(slots[row], block_of(entry->table, position / 64) * 64 + position % 64,
                         "row %u", row);
        }
    }
    for (uint32_t i = from->entry_count; i < sequences; i++)
        cr_expect(table[i] == 0 && row_first[i] == from->rows && kv_length[i] == 0,
                  "sequence %u has no rows", i);
    cr_expect_eq(row_first[sequences], from->rows);
    cr_expect_eq(mb->rows_max, most);
    for (; row < from->padded; row++) {
        cr_expect_eq(positions[row], 0, "padding row %u", row);
        cr_expect_eq(slots[row], MLA_SLOT_NONE, "padding row %u", row);
    }
    free((void *)positions);
    free((void *)slots);
    free((void *)table);
    free((void *)row_first);
    free((void *)kv_length);
}

/* All chunks together have every cached position of every sequence once, and in order. */
static void check_chunks(uint32_t index, int64_t chunk_rows)
{
    const struct mla_microbatch *mb = &step.microbatches[index];
    const struct mla_plan_microbatch *from = &plan.microbatches[index];
    uint32_t seen[PLAN_PARTS_MAX] = {0};
    for (uint32_t c = 0; c < mb->chunk_count; c++) {
        const struct mla_context_chunk *chunk = &mb->chunks[c];
        const int32_t *begin = host(chunk->begin, from->entry_count * sizeof *begin);
        const int32_t *first = host(chunk->first, (from->entry_count + 1) * sizeof *first);
        int64_t most = 0;
        cr_expect_eq(first[0], 0);
        for (uint32_t i = 0; i < from->entry_count; i++) {
            int32_t rows = first[i + 1] - first[i];
            cr_assert_geq(rows, 0);
            cr_expect(begin[i] >= 0 && begin[i] + rows <= CONTEXT_MAX);
            most = rows > most ? rows : most;
            if (rows == 0)
                continue;
            cr_expect_eq((uint32_t)begin[i], seen[i], "chunk %u, sequence %u", c, i);
            seen[i] += (uint32_t)rows;
        }
        cr_expect_eq(first[from->entry_count], chunk->rows);
        cr_expect(chunk->rows >= 1 && chunk->rows <= chunk_rows);
        cr_expect(c + 1 == mb->chunk_count || chunk->rows == chunk_rows, "chunk %u has room", c);
        cr_expect_eq(chunk->rows_max, most);
        free((void *)begin);
        free((void *)first);
    }
    for (uint32_t i = 0; i < from->entry_count; i++) {
        uint32_t cached = from->kind == MLA_PREFILL ? plan.entries[from->entry_first + i].start : 0;
        cr_expect_eq(seen[i], cached, "microbatch %u, sequence %u: %u of %u cached rows", index, i,
                     seen[i], cached);
    }
}

static void check(uint32_t chunk_rows)
{
    build(chunk_rows);
    for (uint32_t i = 0; i < step.microbatch_count; i++) {
        check_rows(i);
        check_chunks(i, chunk_rows);
    }
}

static const uint32_t chunk_sizes[] = {1, 7, 64, 1000};

Test(step, decode)
{
    plan_microbatch(&plan, MLA_DECODE);
    plan_entry(&plan, 3, 0, 1);   /* no past */
    plan_entry(&plan, 0, 63, 1);  /* the last row of a block */
    plan_entry(&plan, 4, 64, 1);  /* the first */
    plan_entry(&plan, 1, 126, 4); /* over the border */
    plan_entry(&plan, 2, 639, 1); /* the last there is */
    plan_pad(&plan, 16);
    check(64);
    cr_expect_eq(step.microbatches[0].chunk_count, 0, "decode reads its context from the pages");
}

Test(step, prefill_without_context)
{
    plan_microbatch(&plan, MLA_PREFILL);
    plan_entry(&plan, 0, 0, 65);
    plan_entry(&plan, 1, 0, 1);
    plan_entry(&plan, 2, 0, 130);
    plan_pad(&plan, 200);
    for (uint32_t i = 0; i < COUNT_OF(chunk_sizes); i++) {
        check(chunk_sizes[i]);
        cr_expect_eq(step.microbatches[0].chunk_count, 0);
    }
}

Test(step, context_in_chunks)
{
    static const uint32_t wanted[] = {270, 39, 5, 1};
    plan_microbatch(&plan, MLA_PREFILL);
    plan_entry(&plan, 1, 64, 3);
    plan_entry(&plan, 0, 0, 70); /* between others */
    plan_entry(&plan, 3, 1, 1);
    plan_entry(&plan, 4, 205, 100);
    plan_entry(&plan, 2, 0, 2);
    for (uint32_t i = 0; i < COUNT_OF(chunk_sizes); i++) {
        check(chunk_sizes[i]);
        cr_expect_eq(step.microbatches[0].chunk_count, wanted[i]);
    }
}

/* A chunk that ends where a sequence does, and sequences without context at both ends. */
Test(step, context_of_whole_chunks)
{
    plan_microbatch(&plan, MLA_PREFILL);
    plan_entry(&plan, 0, 0, 5);
    plan_entry(&plan, 1, 128, 5);
    plan_entry(&plan, 2, 64, 5);
    plan_entry(&plan, 3, 0, 5);
    check(64);
    cr_expect_eq(step.microbatches[0].chunk_count, 3);
}

/* A long prompt is cut: the later piece finds the earlier one in the cache. */
Test(step, microbatches_of_both_kinds)
{
    plan_microbatch(&plan, MLA_DECODE);
    plan_entry(&plan, 0, 300, 1);
    plan_entry(&plan, 1, 17, 2);
    plan_pad(&plan, 4);
    plan_microbatch(&plan, MLA_PREFILL);
    plan_entry(&plan, 2, 10, 90);
    plan_microbatch(&plan, MLA_PREFILL);
    plan_entry(&plan, 2, 100, 60);
    plan_entry(&plan, 3, 0, 33);
    plan_pad(&plan, 96);
    for (uint32_t i = 0; i < COUNT_OF(chunk_sizes); i++)
        check(chunk_sizes[i]);
}

/* One step's storage serves larger and smaller plans. */
Test(step, built_again)
{
    for (uint32_t round = 0; round < 4; round++) {
        plan_begin(&plan, 100 + round);
        plan_microbatch(&plan, MLA_PREFILL);
        plan_entry(&plan, 1, round % 2 ? 500 : 3, round % 2 ? 100 : 2);
        for (uint32_t i = 0; i < round; i++) {
            plan_microbatch(&plan, MLA_DECODE);
            plan_entry(&plan, 2 + i, 20 + i, 1);
        }
        check(7);
    }
}

/* A refused plan leaves a slot without a step. */
static void refuse(void)
{
    struct plan good;
    plan_begin(&good, 5);
    plan_microbatch(&good, MLA_DECODE);
    plan_entry(&good, 0, 0, 1);
    cr_assert_eq(mla_step_build(&step, &cache, &good.message, 64, 1), MLA_OK);
    cr_expect_eq(mla_step_build(&step, &cache, &plan.message, 64, 1), MLA_MALFORMED);
    cr_expect_eq(step.number, 0);
}

Test(step, refuses_a_table)
{
    plan_microbatch(&plan, MLA_DECODE);
    plan_entry(&plan, 0, 0, 1);
    plan_entry(&plan, SEQUENCES, 0, 1);
    refuse();
}

Test(step, refuses_a_long_sequence)
{
    plan_microbatch(&plan, MLA_PREFILL);
    plan_entry(&plan, 0, 0, 1);
    plan_entry(&plan, 1, 600, 41);
    refuse();
}

Test(step, refuses_a_sum_that_overflows)
{
    plan_microbatch(&plan, MLA_DECODE);
    plan_entry(&plan, 0, UINT32_MAX, 1);
    refuse();
}
