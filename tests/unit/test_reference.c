/* The config, the rope table, the formula and the reference layer against golden outputs of
 * another implementation (tests/golden/golden.py). */
#include "proto/limits.h"
#include "tests/lib/formula.h"
#include "tests/lib/reference.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static struct mla_reference *reference;
static struct mla_safetensors golden;

static void load(const char *name, uint32_t layer)
{
    char path[512], why[MLA_SENTENCE_BYTES_MAX] = "";
    struct mla_config config;
    snprintf(path, sizeof path, "%s/golden/%s", MLA_TESTS_DIR, name);
    cr_assert_eq(mla_config_read(path, &config, why), MLA_OK, "%s", why);
    snprintf(path, sizeof path, "%s/golden/%s/golden.safetensors", MLA_TESTS_DIR, name);
    cr_assert_eq(mla_safetensors_open(path, &golden, why), MLA_OK, "%s", why);
    cr_assert_eq(mla_reference_create(&config, layer, &reference), MLA_OK);
}

static void unload(void)
{
    mla_reference_destroy(&reference);
    mla_safetensors_close(&golden);
}

/* ||out - golden|| / ||golden|| over the rows that were kept. */
static double difference(uint32_t layer, uint32_t index, uint32_t tokens)
{
    uint64_t hidden = reference->config.hidden, shape[2] = {tokens, hidden};
    char name[64];
    snprintf(name, sizeof name, "input.%u.%u", layer, index);
    float *x = malloc(tokens * hidden * sizeof *x);
    double *out = malloc(tokens * hidden * sizeof *out);
    mla_formula_fill(name, 2, shape, 0, tokens * hidden, x);
    cr_assert_eq(mla_reference_run(reference, tokens, x, out), MLA_OK);

    snprintf(name, sizeof name, "output.%u.%u", layer, index);
    const struct mla_tensor *wanted = mla_safetensors_find(&golden, name);
    snprintf(name, sizeof name, "rows.%u.%u", layer, index);
    const struct mla_tensor *rows = mla_safetensors_find(&golden, name);
    cr_assert(wanted && rows && wanted->shape[1] == hidden && wanted->shape[0] == rows->shape[0]);
    double error = 0, norm = 0;
    for (uint64_t i = 0; i < rows->shape[0]; i++) {
        int32_t row;
        memcpy(&row, rows->data + i * sizeof row, sizeof row);
        mla_tensor_to_f32(wanted, i * hidden, hidden, x);
        for (uint64_t k = 0; k < hidden; k++) {
            error += pow(out[(uint64_t)row * hidden + k] - x[k], 2);
            norm += pow(x[k], 2);
        }
    }
    free(x);
    free(out);
    cr_assert_gt(norm, 0);
    return sqrt(error / norm);
}

/* The published outputs are f32; their rounding is all that may differ. */
#define TOLERANCE 2e-6

static void check(const char *name, uint32_t layer, const uint32_t *lengths, uint32_t count)
{
    load(name, layer);
    for (uint32_t i = 0; i < count; i++) {
        double found = difference(layer, i, lengths[i]);
        cr_expect_lt(found, TOLERANCE, "%s, layer %u, %u tokens: %g", name, layer, lengths[i],
                     found);
    }
    unload();
}

static const uint32_t tiny_lengths[] = {1, 7, 64, 65, 200};
static const uint32_t lite_lengths[] = {1, 33, 130};

Test(reference, v3_tiny_layer_0)
{
    check("v3-tiny", 0, tiny_lengths, 5);
}

Test(reference, v3_tiny_layer_1)
{
    check("v3-tiny", 1, tiny_lengths, 5);
}

Test(reference, v2_lite)
{
    check("v2-lite", 0, lite_lengths, 3);
}

/* What a mistake would cost, so that the tolerance is known to see it. */
Test(reference, mistakes_are_seen)
{
    load("v3-tiny", 0);
    struct mla_rope_config *rope = &reference->config.rope_config;
    rope->interleaved = false;
    cr_expect_gt(difference(0, 1, 7), 100 * TOLERANCE, "pairs");
    rope->interleaved = true;
    rope->mscale = rope->mscale_all_dim = 0;
    rope->attention_factor = 1;
    cr_expect_gt(difference(0, 1, 7), 100 * TOLERANCE, "the softmax scale without m^2");
    unload();
}
