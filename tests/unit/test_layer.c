/* The layer on one rank against the naive one in double precision, in models that no golden case
 * has. */
#include "tests/lib/layer_world.h"

#include <criterion/criterion.h>

static const struct model models[] = {
    {"bias, pairs apart", 48, 4, 24, 32, 16, 8, 12, true, false, PLAIN},
    {"bias, no q_lora", 40, 2, 0, 24, 8, 16, 24, true, true, PLAIN},
    {"no q_lora, pairs apart, YaRN", 64, 5, 0, 40, 24, 12, 16, false, false, YARN},
    {"odd sizes", 33, 3, 13, 17, 7, 2, 5, true, true, PLAIN},
    {"smallest", 2, 1, 1, 2, 1, 2, 1, false, true, PLAIN},
    {"more heads and wider rows than a tile", 72, 19, 30, 130, 20, 10, 70, true, false, YARN},
};

static void begin(const struct model *model, enum mla_dtype kv_dtype, int64_t chunk_rows)
{
    struct mla_backend *backend = NULL;
    cr_assert_eq(mla_backend_cpu_create(2, &backend), MLA_OK);
    /* Weights and sums are f32; a bf16 cache has 8 bits. */
    world_begin(model, backend, kv_dtype, chunk_rows, kv_dtype == MLA_F32 ? 2e-6 : 3e-3);
}

static void check(const struct model *model, enum mla_dtype kv_dtype, int64_t chunk_rows)
{
    begin(model, kv_dtype, chunk_rows);
    world_check_all();
    world_end();
}

Test(layer, bias_and_pairs_apart)
{
    check(&models[0], MLA_F32, 64);
}

Test(layer, bias_without_q_lora)
{
    check(&models[1], MLA_F32, 7);
}

Test(layer, yarn_without_q_lora)
{
    check(&models[2], MLA_F32, 1000);
}

Test(layer, odd_sizes)
{
    check(&models[3], MLA_F32, 7);
}

Test(layer, smallest_sizes)
{
    check(&models[4], MLA_F32, 64);
}

Test(layer, beyond_a_tile)
{
    check(&models[5], MLA_F32, 64);
}

Test(layer, context_row_by_row)
{
    check(&models[0], MLA_F32, 1);
}

Test(layer, bf16_cache)
{
    check(&models[0], MLA_BF16, 64);
}

/* A sequence may begin with decode, and be nothing but decode. */
Test(layer, decode_from_the_first_token)
{
    begin(&models[0], MLA_F32, 64);
    for (uint32_t position = 0; position < 20; position++) {
        plan_microbatch(&world_plan, MLA_DECODE);
        plan_entry(&world_plan, 2, position, 1);
        plan_pad(&world_plan, 4);
        world_run_step("decode");
    }
    world_check_cache();
    world_end();
}
