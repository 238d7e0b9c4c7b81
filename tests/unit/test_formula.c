#include "tests/lib/formula.h"

#include "proto/dtype.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>

/* Made by the functions of tests/golden/goldenpy. */
static const struct {
    const char *name;
    uint64_t shape[2];
    uint64_t first;
    float values[4];
} known[] = {
    {"model.layers.0.self_attn.q_a_proj.weight",
     {1536, 7168},
     0,
     {0x1.d4p-7f, 0x1.94p-7f, 0x1.66p-7f, 0x1.2ep-8f}},
    {"model.layers.0.self_attn.o_proj.weight",
     {7168, 16384},
     117440508,
     {-0x1.92p-8f, 0x1.52p-7f, -0x1.bp-7f, 0x1.6ap-7f}},
    {"model.layers.1.self_attn.kv_a_layernorm.weight",
     {512},
     0,
     {0x1.16p+0f, 0x1.dcp-1f, 0x1.1p+0f, 0x1.eep-1f}},
    {"model.layers.60.self_attn.kv_a_proj_with_mqa.bias",
     {576},
     572,
     {0x1.a2p-3f, -0x1.82p-1f, 0x1.a2p-2f, 0x1.72p-1f}},
    {"input.0.1", {33, 2048}, 67580, {-0x1.d6p-2f, 0x1.36p-1f, 0x1.9p-1f, -0x1.a8p-1f}},
};

Test(formula, known_values)
{
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        float values[4];
        mla_formula_fill(known[i].name, known[i].shape[1] ? 2 : 1, known[i].shape, known[i].first,
                         4, values);
        for (size_t k = 0; k < 4; k++)
            cr_expect_eq(values[k], known[i].values[k], "%s[%zu]: %.9g, not %.9g", known[i].name, k,
                         values[k], known[i].values[k]);
    }
}

/* Any part of a tensor is the same as in the whole. */
Test(formula, parts)
{
    static const uint64_t shape[2] = {64, 100};
    float *whole = malloc(6400 * sizeof *whole), part[100];
    mla_formula_fill("model.layers.0.self_attn.o_proj.weight", 2, shape, 0, 6400, whole);
    for (uint64_t row = 0; row < 64; row++) {
        mla_formula_fill("model.layers.0.self_attn.o_proj.weight", 2, shape, row * 100, 100, part);
        for (uint64_t i = 0; i < 100; i++)
            cr_expect_eq(part[i], whole[row * 100 + i]);
    }
    free(whole);
}

/* Uniform, of the variance that keeps a layer's outputs near 1, and exact in bf16. */
Test(formula, distribution)
{
    static const uint64_t shape[2] = {1000, 300};
    const size_t count = 300000;
    float *values = malloc(count * sizeof *values);
    double sum = 0, squares = 0;
    mla_formula_fill("x.weight", 2, shape, 0, count, values);
    for (size_t i = 0; i < count; i++) {
        cr_assert_leq(fabsf(values[i]), 0.1001f); /* sqrt(3 / 300), rounded to bf16 */
        cr_assert_eq(values[i], mla_bf16_to_f32(mla_f32_to_bf16(values[i])));
        sum += values[i];
        squares += (double)values[i] * values[i];
    }
    cr_expect_float_eq(sum / (double)count, 0, 5e-4);
    cr_expect_float_eq(squares / (double)count, 1.0 / 300, 2e-5);
    free(values);
}
