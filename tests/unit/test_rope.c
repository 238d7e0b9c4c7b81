#include "worker/config.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>

static const struct mla_config plain = {
    .nope = 128, .rope = 64, .rope_config = {.type = MLA_ROPE_PLAIN, .theta = 10000}};

/* DeepSeek-V3's. */
static const struct mla_config yarn = {.nope = 128,
                                       .rope = 64,
                                       .rope_config = {.type = MLA_ROPE_YARN,
                                                       .theta = 10000,
                                                       .factor = 40,
                                                       .beta_fast = 32,
                                                       .beta_slow = 1,
                                                       .mscale = 1,
                                                       .mscale_all_dim = 1,
                                                       .original_context = 4096}};

#define POSITIONS 163840u

/* cos and sin of pair `pair` at `position`; the table is made once per test. */
static void expect(const float *table, uint32_t dim, uint32_t position, uint32_t pair,
                   double frequency, double scale)
{
    const float *entry = table + (size_t)position * dim + 2 * (size_t)pair;
    double angle = frequency * position;
    cr_expect_float_eq(entry[0], scale * cos(angle), 1e-6, "cos, position %u, pair %u: %g",
                       position, pair, entry[0]);
    cr_expect_float_eq(entry[1], scale * sin(angle), 1e-6, "sin, position %u, pair %u: %g",
                       position, pair, entry[1]);
}

static const uint32_t positions[] = {0, 1, 2, 63, 4095, 4096, 100000, POSITIONS - 1};

Test(rope, plain_table)
{
    float *table = malloc(sizeof *table * POSITIONS * 64);
    mla_config_rope_table(&plain, POSITIONS, table);
    for (size_t i = 0; i < sizeof positions / sizeof *positions; i++) {
        for (uint32_t pair = 0; pair < 32; pair++)
            expect(table, 64, positions[i], pair, 1 / pow(10000, pair / 32.0), 1);
    }
    free(table);
}

/* With these numbers the ramp goes from pair 10 to pair 23 (worked out by hand: 64 ln(4096 / (2 pi
 * 32)) / (2 ln 10000) = 10.47 and 64 ln(4096 / (2 pi)) / (2 ln 10000) = 22.51). */
Test(rope, yarn_table)
{
    float *table = malloc(sizeof *table * POSITIONS * 64);
    mla_config_rope_table(&yarn, POSITIONS, table);
    for (size_t i = 0; i < sizeof positions / sizeof *positions; i++) {
        for (uint32_t pair = 0; pair < 32; pair++) {
            double frequency = 1 / pow(10000, pair / 32.0);
            double slow = pair <= 10 ? 0 : pair >= 23 ? 1 : (pair - 10) / 13.0;
            expect(table, 64, positions[i], pair, frequency / 40 * slow + frequency * (1 - slow),
                   1);
        }
    }
    free(table);
}

/* A context so short that even the fastest wave turns less than beta_fast times. */
Test(rope, yarn_range_is_clamped)
{
    struct mla_config config = yarn;
    float table[2 * 16];
    config.rope = 16;
    config.rope_config.original_context = 64;
    mla_config_rope_table(&config, 2, table);
    for (uint32_t pair = 0; pair < 8; pair++) {
        double frequency = 1 / pow(10000, pair / 8.0), slow = fmin(pair / 3.0, 1);
        expect(table, 16, 1, pair, frequency / 40 * slow + frequency * (1 - slow), 1);
    }
}

/* beta_fast = beta_slow on a whole dimension: no ramp but a step. */
Test(rope, yarn_step)
{
    struct mla_config config = yarn;
    float table[2 * 64];
    config.rope_config.original_context = 1;
    config.rope_config.beta_fast = config.rope_config.beta_slow = 1 / (2 * M_PI);
    mla_config_rope_table(&config, 2, table);
    for (uint32_t pair = 0; pair < 32; pair++)
        expect(table, 64, 1, pair, 1 / pow(10000, pair / 32.0) / (pair == 0 ? 1 : 40), 1);
}

/* What cos and sin are multiplied with, read from cos(0). */
static double scale_of(double mscale, double mscale_all_dim, double attention_factor)
{
    struct mla_config config = yarn;
    float table[64];
    config.rope_config.mscale = mscale;
    config.rope_config.mscale_all_dim = mscale_all_dim;
    config.rope_config.attention_factor = attention_factor;
    mla_config_rope_table(&config, 1, table);
    return table[0];
}

Test(rope, rotation_scale)
{
    double log40 = log(40);
    cr_expect_float_eq(scale_of(1, 1, 0), 1, 1e-7);
    cr_expect_float_eq(scale_of(1, 0.707, 0), (0.1 * log40 + 1) / (0.0707 * log40 + 1), 1e-6);
    cr_expect_float_eq(scale_of(0, 0, 0), 0.1 * log40 + 1, 1e-6);
    cr_expect_float_eq(scale_of(0.5, 0, 0), 0.1 * log40 + 1, 1e-6, "only with both");
    cr_expect_float_eq(scale_of(1, 0.707, 1.25), 1.25, 1e-7);
}

Test(rope, softmax_scale)
{
    struct mla_config config = yarn;
    double m = 0.1 * log(40) + 1;
    cr_expect_float_eq(mla_config_softmax_scale(&plain), 1 / sqrt(192), 1e-8);
    cr_expect_float_eq(mla_config_softmax_scale(&config), m * m / sqrt(192), 1e-8);
    config.rope_config.mscale_all_dim = 0.707;
    m = 0.0707 * log(40) + 1;
    cr_expect_float_eq(mla_config_softmax_scale(&config), m * m / sqrt(192), 1e-8);
    config.rope_config.mscale_all_dim = 0;
    cr_expect_float_eq(mla_config_softmax_scale(&config), 1 / sqrt(192), 1e-8);
    config.rope_config.mscale_all_dim = 1;
    config.rope_config.factor = 1;
    cr_expect_float_eq(mla_config_softmax_scale(&config), 1 / sqrt(192), 1e-8);
}
