#include "tests/unit/plans.h"
#include "worker/kvcache.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

enum { LAYERS = 3, BLOCKS = 10, SEQUENCES = 4, CONTEXT_MAX = 200, STRIDE = 4 };

static const struct mla_config config = {.latent = 5, .rope = 2};
static struct mla_backend *backend;
static struct mla_kvcache cache;
static size_t block_bytes;
static struct plan plan;

/* Block b of layer l is filled with l * BLOCKS + b. */
static void fill_blocks(void)
{
    for (uint32_t layer = 0; layer < LAYERS; layer++)
        for (int block = 0; block < BLOCKS; block++) {
            uint8_t bytes[4096];
            memset(bytes, (int)layer * BLOCKS + block, block_bytes);
            cr_assert_eq(backend->ops->upload(backend,
                                              (char *)cache.pools[layer] + block * block_bytes,
                                              bytes, block_bytes),
                         MLA_OK);
        }
    cr_assert_eq(backend->ops->synchronize(backend), MLA_OK);
}

static void setup_as(enum mla_dtype dtype)
{
    cr_assert_eq(mla_backend_cpu_create(1, &backend), MLA_OK);
    cr_assert_eq(
        mla_kvcache_init(&cache, backend, &config, dtype, LAYERS, BLOCKS, SEQUENCES, CONTEXT_MAX),
        MLA_OK);
    block_bytes = mla_kvcache_block_bytes(&config, dtype);
    cr_assert_leq(block_bytes, 4096);
    fill_blocks();
    plan_begin(&plan, 1);
}

static void setup(void)
{
    setup_as(MLA_F32);
}

static void teardown(void)
{
    mla_kvcache_fini(&cache);
    backend->ops->destroy(&backend);
}

TestSuite(kvcache, .init = setup, .fini = teardown);

/* The block of that layer holds what `source` held. */
static void expect_block(uint32_t layer, int block, int source)
{
    uint8_t found[4096];
    uint8_t wanted[4096];
    memset(wanted, (int)layer * BLOCKS + source, block_bytes);
    cr_assert_eq(backend->ops->download(
                     backend, found, (char *)cache.pools[layer] + block * block_bytes, block_bytes),
                 MLA_OK);
    cr_assert_eq(backend->ops->synchronize(backend), MLA_OK);
    cr_expect_arr_eq(found, wanted, block_bytes, "layer %u, block %d is not %d", layer, block,
                     source);
}

static void expect_table(uint32_t table, uint32_t first, const int32_t *wanted, uint32_t count)
{
    int32_t found[STRIDE];
    size_t at = (size_t)table * cache.table_stride + first;
    cr_expect_arr_eq(cache.host_tables + at, wanted, count * sizeof *wanted);
    cr_assert_eq(backend->ops->download(backend, found, cache.tables + at, count * sizeof *found),
                 MLA_OK);
    cr_assert_eq(backend->ops->synchronize(backend), MLA_OK);
    cr_expect_arr_eq(found, wanted, count * sizeof *wanted, "table %u on the device", table);
}

/* Tables stay, blocks past the new end are refused, and all of the new pools can be used. */
Test(kvcache, other_pools)
{
    uint32_t ids[] = {4, BLOCKS - 1};
    plan_table(&plan, 1, 0, ids, 2);
    cr_assert_eq(mla_kvcache_apply(&cache, &plan.message), MLA_OK);
    cr_assert_eq(mla_kvcache_resize(&cache, 3), MLA_OK);
    expect_table(1, 0, (const int32_t[]){4, BLOCKS - 1}, 2);
    plan_begin(&plan, 2);
    plan_copy(&plan, 0, 3);
    cr_expect_eq(mla_kvcache_apply(&cache, &plan.message), MLA_MALFORMED);
    cr_assert_eq(mla_kvcache_resize(&cache, BLOCKS), MLA_OK);
    fill_blocks();
    plan_begin(&plan, 3);
    plan_copy(&plan, 0, BLOCKS - 1);
    cr_assert_eq(mla_kvcache_apply(&cache, &plan.message), MLA_OK);
    for (uint32_t layer = 0; layer < LAYERS; layer++)
        expect_block(layer, BLOCKS - 1, 0);
}

Test(kvcache, sizes)
{
    cr_expect_eq(block_bytes, 1792); /* 64 rows of 7 values */
    cr_expect_eq(mla_kvcache_block_bytes(&config, MLA_BF16), 896);
    cr_expect_eq(cache.table_stride, STRIDE, "200 tokens take 4 blocks");
    struct mla_kv_pool pool = mla_kvcache_pool(&cache, 2);
    cr_expect(pool.pages == cache.pools[2] && pool.dtype == MLA_F32 && pool.latent == 5 &&
              pool.rope == 2);
}

Test(kvcache, table_changes)
{
    plan_table(&plan, 0, 0, (uint32_t[]){7, 1}, 2);
    plan_table(&plan, 3, 1, (uint32_t[]){9, 0, 2}, 3);
    cr_assert_eq(mla_kvcache_apply(&cache, &plan.message), MLA_OK);
    expect_table(0, 0, (int32_t[]){7, 1}, 2);
    expect_table(3, 1, (int32_t[]){9, 0, 2}, 3);

    /* The next step's changes leave the rest as it is. */
    plan_begin(&plan, 2);
    plan_table(&plan, 0, 1, (uint32_t[]){4, 5}, 2);
    plan_table(&plan, 1, 3, (uint32_t[]){6}, 1);
    plan_table(&plan, 2, 4, NULL, 0);
    cr_assert_eq(mla_kvcache_apply(&cache, &plan.message), MLA_OK);
    expect_table(0, 0, (int32_t[]){7, 4, 5}, 3);
    expect_table(1, 3, (int32_t[]){6}, 1);
    expect_table(3, 1, (int32_t[]){9, 0, 2}, 3);
}

static void copies(void)
{
    plan_copy(&plan, 1, 8);
    plan_copy(&plan, 9, 0);
    cr_assert_eq(mla_kvcache_apply(&cache, &plan.message), MLA_OK);
    for (uint32_t layer = 0; layer < LAYERS; layer++)
        for (int block = 0; block < BLOCKS; block++)
            expect_block(layer, block, block == 8 ? 1 : block == 0 ? 9 : block);
}

Test(kvcache, copies_in_every_layer)
{
    copies();
}

Test(kvcache_bf16, copies_in_every_layer, .fini = teardown)
{
    setup_as(MLA_BF16);
    copies();
}

/* The plan is refused and nothing of it was done, although all before the mistake is right. */
static void refuse(void)
{
    static const int32_t before[] = {1, 2, 3, 4};
    struct plan first;
    plan_begin(&first, 1);
    plan_table(&first, 0, 0, (const uint32_t *)before, STRIDE);
    cr_assert_eq(mla_kvcache_apply(&cache, &first.message), MLA_OK);
    cr_expect_eq(mla_kvcache_apply(&cache, &plan.message), MLA_MALFORMED);
    expect_table(0, 0, before, STRIDE);
    for (uint32_t layer = 0; layer < LAYERS; layer++)
        for (int block = 0; block < BLOCKS; block++)
            expect_block(layer, block, block);
}

static void good_part(void)
{
    plan_table(&plan, 0, 0, (uint32_t[]){5, 6}, 2);
    plan_copy(&plan, 1, 2);
}

Test(kvcache, refuses_a_table)
{
    good_part();
    plan_table(&plan, SEQUENCES, 0, (uint32_t[]){1}, 1);
    refuse();
}

Test(kvcache, refuses_a_place_beyond_the_table)
{
    good_part();
    plan_table(&plan, 1, STRIDE, (uint32_t[]){1}, 1);
    refuse();
}

Test(kvcache, refuses_more_than_the_table_holds)
{
    good_part();
    plan_table(&plan, 1, 2, (uint32_t[]){1, 2, 3}, 3);
    refuse();
}

Test(kvcache, refuses_a_sum_that_overflows)
{
    good_part();
    plan_table(&plan, 1, UINT32_MAX, (uint32_t[]){1}, 1);
    refuse();
}

Test(kvcache, refuses_a_block)
{
    good_part();
    plan_table(&plan, 1, 0, (uint32_t[]){1, BLOCKS}, 2);
    refuse();
}

Test(kvcache, refuses_a_source)
{
    good_part();
    plan_copy(&plan, BLOCKS, 3);
    refuse();
}

Test(kvcache, refuses_a_destination)
{
    good_part();
    plan_copy(&plan, 3, UINT32_MAX);
    refuse();
}

Test(kvcache, refuses_more_copies_than_there_is_room_for)
{
    static struct mla_plan_copy many[MLA_STEP_SEQUENCES_MAX + 1];
    good_part();
    plan.message.copies = many;
    plan.message.copy_count = MLA_STEP_SEQUENCES_MAX + 1;
    refuse();
}
