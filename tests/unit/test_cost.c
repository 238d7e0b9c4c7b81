/* The arithmetic behind what the benches call a floor, and the shapes they run. */
#include "tests/bench/cost.h"
#include "tests/bench/lengths.h"
#include "tests/bench/shapes.h"

#include <criterion/criterion.h>
#include <string.h>

static void expect(struct mla_cost cost, double bytes, double flops, const char *what)
{
    cr_expect_eq(cost.bytes, bytes, "%s: %.0f bytes instead of %.0f", what, cost.bytes, bytes);
    cr_expect_eq(cost.flops, flops, "%s: %.0f flops instead of %.0f", what, cost.flops, flops);
}

/* Counted one by one. */
static double count_pairs(int64_t rows, int64_t keys, bool causal)
{
    double pairs = 0;
    for (int64_t row = 0; row < rows; row++)
        for (int64_t key = 0; key < keys; key++)
            pairs += !causal || key <= keys - rows + row;
    return pairs;
}

Test(cost, pairs)
{
    for (int64_t rows = 0; rows < 6; rows++)
        for (int64_t keys = 0; keys < 6; keys++)
            for (int causal = 0; causal < 2; causal++)
                cr_expect_eq(mla_cost_pairs(rows, keys, causal), count_pairs(rows, keys, causal),
                             "%ld rows, %ld keys, causal %d", (long)rows, (long)keys, causal);
    cr_expect_eq(mla_cost_pairs(8192, 8192, true), 8192.0 * 8193 / 2);
}

Test(cost, of_products)
{
    struct mla_gemm gemm = {.m = 3, .n = 5, .k = 7, .batch = 1};
    expect(mla_cost_gemm(&gemm, 2), 2 * (21 + 35 + 15), 210, "one");
    gemm.bias = &gemm;
    expect(mla_cost_gemm(&gemm, 2), 2 * (21 + 35 + 15 + 5), 210, "with bias");
    gemm.bias = NULL;
    gemm.batch = 4;
    gemm.a_stride = 1;
    expect(mla_cost_gemm(&gemm, 4), 4 * (84 + 35 + 60), 840, "a batch that shares B");
    gemm.b_stride = 1;
    expect(mla_cost_gemm(&gemm, 4), 4 * (84 + 140 + 60), 840, "a batch");
    gemm.m = 0;
    expect(mla_cost_gemm(&gemm, 4), 0, 0, "without rows");
}

Test(cost, of_rows)
{
    struct mla_latents latents = {.rows = 2, .cq = &latents, .q_lora = 5, .latent = 7, .rope = 4};
    expect(mla_cost_latents(&latents, 2), 2 * (2 * 2 * 16 + 12) + 2 * 4 * 4, 0, "latents");
    latents.cq = NULL;
    expect(mla_cost_latents(&latents, 2), 2 * (2 * 2 * 11 + 7) + 2 * 4 * 4, 0, "without q_lora");
    struct mla_rope rope = {.rows = 3, .heads = 5, .dim = 8};
    expect(mla_cost_rope(&rope, 2), 2 * 2 * 120 + 4 * 24, 0, "rope");
    struct mla_copy copy = {.rows = 3, .n = 7, .src_dtype = MLA_F32, .dst_dtype = MLA_BF16};
    expect(mla_cost_copy(&copy), 21 * 6, 0, "copy");
    struct mla_kv_write write = {.pool = {.dtype = MLA_F32, .latent = 7, .rope = 4}, .rows = 3};
    expect(mla_cost_kv_write(&write, 2), 33 * 6, 0, "kv_write");
    struct mla_kv_gather gather = {.kv.pool = write.pool, .rows = 3};
    expect(mla_cost_kv_gather(&gather, 2), 33 * 6, 0, "kv_gather");
    struct mla_merge merge = {.rows = 3, .heads = 5, .v_dim = 7};
    expect(mla_cost_merge(&merge, 2), 3 * 105 * 2 + 3 * 15 * 4, 0, "merge");
}

/* 128 sequences at 4096 tokens, 16 heads: 604 MB of cache, as everyone counts it. */
Test(cost, of_attention)
{
    struct mla_attend_decode decode = {.kv.pool = {.dtype = MLA_BF16, .latent = 512, .rope = 64},
                                       .heads = 16};
    double keys = 128.0 * 4096;
    expect(mla_cost_attend_decode(&decode, 128, keys, keys, 2),
           keys * 1152 + 128.0 * 16 * (576 + 512) * 2, 2 * keys * 16 * (576 + 512), "decode");
    struct mla_attend_prefill prefill = {
        .heads = 16, .nope = 128, .rope = 64, .v_dim = 128, .rows = 1024, .keys = 2048};
    expect(mla_cost_attend_prefill(&prefill, 5000, 2),
           2 * (1024.0 * 16 * (192 + 128) + 2048.0 * (16 * 256 + 64)) + 4 * 1024.0 * 16,
           2 * 5000.0 * 16 * (192 + 128), "prefill");
}

/* DeepSeek-V3's layer, 128 rows of 1024 tokens: 374 MB of weights and 151 MB of cache. */
Test(cost, of_a_layer)
{
    struct mla_cost_layer layer = {.hidden = 7168,
                                   .q_lora = 1536,
                                   .latent = 512,
                                   .rope = 64,
                                   .nope = 128,
                                   .v = 128,
                                   .heads = 128,
                                   .element = 2,
                                   .kv_element = 2};
    double weights = 2112.0 * 7168 + 2048 + 24576.0 * 1536 + 32768.0 * 512 + 7168.0 * 16384;
    cr_expect_eq(mla_cost_layer_bytes(&layer), 2 * weights);
    cr_expect_float_eq(mla_cost_layer_bytes(&layer), 374e6, 1e6);
    layer.rows = 128;
    layer.own_rows = 16;
    layer.cached = 128 * 1024;
    cr_expect_eq(mla_cost_layer_bytes(&layer),
                 2 * weights + 129.0 * 1024 * 1152 - 896.0 * 1152 + 2 * 2 * 16.0 * 7168);
    layer = (struct mla_cost_layer){.hidden = 3,
                                    .latent = 5,
                                    .rope = 2,
                                    .nope = 7,
                                    .v = 11,
                                    .heads = 13,
                                    .element = 4,
                                    .kv_element = 2};
    cr_expect_eq(mla_cost_layer_bytes(&layer),
                 4.0 * (7 * 3 + 5 + 13 * 9 * 3 + 13 * 18 * 5 + 3 * 13 * 11),
                 "without a q_lora_rank");
}

Test(cost, of_the_floor)
{
    struct mla_ceilings both = {.bytes_per_s = 3e12, .flops_per_s = 8e14};
    cr_expect_float_eq(mla_cost_floor_us((struct mla_cost){6e8, 1e9}, &both), 200, 1e-9);
    cr_expect_float_eq(mla_cost_floor_us((struct mla_cost){6e8, 8e11}, &both), 1000, 1e-9);
    both.flops_per_s = 0;
    cr_expect_float_eq(mla_cost_floor_us((struct mla_cost){6e8, 8e11}, &both), 200, 1e-9);
}

static void check_lengths(uint64_t seed, uint32_t count, uint32_t mean, uint32_t least)
{
    int32_t lengths[65];
    int64_t sum = 0;
    cr_assert_leq(count, 65);
    mla_lengths_unequal(seed, count, mean, least, lengths);
    for (uint32_t i = 0; i < count; i++) {
        cr_expect(lengths[i] >= (int32_t)least && lengths[i] <= (int32_t)(2 * mean - least),
                  "%d for a mean of %u", lengths[i], mean);
        sum += lengths[i];
    }
    cr_expect_eq(sum, (int64_t)count * mean);
}

Test(lengths, sum_is_kept)
{
    for (uint64_t seed = 0; seed < 50; seed++) {
        check_lengths(seed, 64, 4096, 1);
        check_lengths(seed, 65, 100, 2);
        check_lengths(seed, 1, 7, 1);
        check_lengths(seed, 2, 3, 3);
    }
}

Test(lengths, differ_by_seed_and_among_each_other)
{
    int32_t a[64], b[64], c[64];
    mla_lengths_unequal(1, 64, 4096, 1, a);
    mla_lengths_unequal(1, 64, 4096, 1, b);
    mla_lengths_unequal(2, 64, 4096, 1, c);
    cr_expect(memcmp(a, b, sizeof a) == 0);
    cr_expect(memcmp(a, c, sizeof a) != 0);
    int32_t least = INT32_MAX, most = 0;
    for (int i = 0; i < 64; i++) {
        least = a[i] < least ? a[i] : least;
        most = a[i] > most ? a[i] : most;
    }
    cr_expect(least < 1024 && most > 7168, "from %d to %d", least, most);
}

Test(lengths, shuffled_is_a_permutation)
{
    int32_t order[100];
    bool seen[100] = {false};
    int moved = 0;
    mla_shuffled(3, 100, order);
    for (int i = 0; i < 100; i++) {
        cr_assert(order[i] >= 0 && order[i] < 100 && !seen[order[i]]);
        seen[order[i]] = true;
        moved += order[i] != i;
    }
    cr_expect_gt(moved, 80);
}

Test(shapes, of_a_command_line)
{
    static const char *const wrong[] = {"",    "128",    "x",      "128x",  "x128", "0x5",
                                        "5x0", "1025x1", "1x2049", "1x1x1", "1 x1", "-1x1"};
    struct mla_shapes shapes = {0};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        cr_expect_not(mla_shapes_add(&shapes, wrong[i], 1024, 2048), "'%s'", wrong[i]);
    cr_expect_eq(shapes.count, 0);
    for (int i = 0; i < MLA_SHAPES_MAX; i++)
        cr_expect(mla_shapes_add(&shapes, "1024x2048", 1024, 2048));
    cr_expect(shapes.at[0].first == 1024 && shapes.at[MLA_SHAPES_MAX - 1].second == 2048);
    cr_expect_not(mla_shapes_add(&shapes, "1x1", 1024, 2048), "there is no more room");
}
