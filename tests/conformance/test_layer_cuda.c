/* The layer on a GPU: eager and replayed, bit for bit the same and near the naive one, in shapes
 * that take the kernels for DeepSeek's dimensions and in shapes that take the plain ones. */
#include "tests/conformance/gpu.h"
#include "tests/lib/layer_world.h"

#include <criterion/criterion.h>

/* bf16 activations: six roundings to 8 bits in a row, and as much again inside attention. */
static const double TOLERANCE = 1e-2;

static const struct model plain[] = {
    {"bias, pairs apart", 48, 4, 24, 32, 16, 8, 12, true, false, PLAIN},
    {"no q_lora, pairs apart, YaRN", 64, 5, 0, 40, 24, 12, 16, false, false, YARN},
    {"odd sizes", 33, 3, 13, 17, 7, 2, 5, true, true, PLAIN},
};

/* DeepSeek's head and latent dimensions, with the head counts that a rank may have. */
static const struct model real[] = {
    {"V2-Lite", 128, 16, 0, 512, 128, 64, 128, false, true, PLAIN},
    {"V3, TP 8", 128, 16, 96, 512, 128, 64, 128, false, true, YARN},
    {"V3, TP 4", 128, 32, 96, 512, 128, 64, 128, false, true, YARN},
    {"V3, TP 2", 128, 64, 96, 512, 128, 64, 128, false, true, YARN},
    {"V3, TP 1", 128, 128, 96, 512, 128, 64, 128, false, true, YARN},
};

static void begin(const struct model *model, int64_t chunk_rows)
{
    struct mla_backend *backend = NULL;
    cr_assert_eq(mla_backend_cuda_create(0, &backend), MLA_OK);
    world_begin(model, backend, MLA_BF16, chunk_rows, TOLERANCE);
}

static void check(const struct model *model, int64_t chunk_rows)
{
    begin(model, chunk_rows);
    world_check_all();
    cr_expect_eq(world_graphs.mode, MLA_GRAPHS_LAZY, "%s: graphs were given up", model->name);
    world_end();
}

#define TEST_MODEL(name, model, chunk_rows)                                                        \
    Test(layer_cuda, name)                                                                         \
    {                                                                                              \
        if (mla_test_has_gpu())                                                                    \
            check(&(model), (chunk_rows));                                                         \
    }

TEST_MODEL(bias, plain[0], 64)
TEST_MODEL(no_q_lora, plain[1], 7)
TEST_MODEL(odd_sizes, plain[2], 64)
TEST_MODEL(v2_lite, real[0], 64)
TEST_MODEL(v3_16_heads, real[1], 7)
TEST_MODEL(v3_32_heads, real[2], 64)
TEST_MODEL(v3_64_heads, real[3], 64)
TEST_MODEL(v3_128_heads, real[4], 1000)

Test(layer_cuda, captured_at_the_start)
{
    if (!mla_test_has_gpu())
        return;
    begin(&real[0], 64);
    world_capture();
    world_check_all();
    cr_expect_eq(world_graphs.mode, MLA_GRAPHS_START, "graphs were given up");
    world_end();
}

Test(layer_cuda, two_open_steps_take_turns)
{
    if (!mla_test_has_gpu())
        return;
    begin(&real[0], 64);
    world_check_pair();
    world_end();
}
