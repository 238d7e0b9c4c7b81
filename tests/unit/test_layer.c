/* The layer on one rank against the naive one in double precision, in models that no golden case
 * has. */
#include "tests/lib/formula.h"
#include "tests/lib/reference.h"
#include "tests/lib/synth.h"
#include "tests/unit/plans.h"
#include "worker/layer.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { LAYERS = 2, BLOCKS = 16, ROWS_MAX = 128, CONTEXT_MAX = 256 };

/* What a KV row holds that nobody wrote: a NaN, which would show in every sum it gets into. */
static const uint32_t poison_f32 = 0x7fc00badu;
static const uint16_t poison_bf16 = 0x7fc3u;

#define YARN                                                                                       \
    "\"rope_parameters\": {\"rope_type\": \"yarn\", \"rope_theta\": 1000, \"factor\": 4, "         \
    "\"original_max_position_embeddings\": 64, \"mscale\": 1.0, \"mscale_all_dim\": 0.7}"
#define PLAIN "\"rope_theta\": 10000"

struct model {
    const char *name;
    uint32_t hidden, heads, q_lora, latent, nope, rope, v;
    bool bias, interleaved;
    const char *rope_json;
};

static const struct model models[] = {
    {"bias, pairs apart", 48, 4, 24, 32, 16, 8, 12, true, false, PLAIN},
    {"bias, no q_lora", 40, 2, 0, 24, 8, 16, 24, true, true, PLAIN},
    {"no q_lora, pairs apart, YaRN", 64, 5, 0, 40, 24, 12, 16, false, false, YARN},
    {"odd sizes", 33, 3, 13, 17, 7, 2, 5, true, true, PLAIN},
    {"smallest", 2, 1, 1, 2, 1, 2, 1, false, true, PLAIN},
    {"more heads and wider rows than a tile", 72, 19, 30, 130, 20, 10, 70, true, false, YARN},
};

/* The sequences: a block table each, and the length that the steps below reach. */
static const struct {
    uint32_t length;
    uint32_t blocks[3];
} sequences[] = {{150, {11, 3, 6}}, {90, {0, 15}}, {20, {9}}};

enum { SEQUENCES = COUNT_OF(sequences) };

static char folder[] = "/tmp/mla-test-layer-XXXXXX";
static const uint32_t layer_numbers[LAYERS] = {0, 3};
static struct mla_checkpoint checkpoint;
static struct mla_backend *backend;
static struct mla_collective *collective;
static struct mla_shard shard;
static struct mla_kvcache cache;
static struct mla_layer layer;
static struct mla_step step;
static struct plan plan;
static float *inputs[LAYERS][SEQUENCES];    /* [length, hidden] */
static double *expected[LAYERS][SEQUENCES]; /* likewise */
static bool written[BLOCKS * MLA_BLOCK_TOKENS];
static double tolerance;

static void write_model(const struct model *model)
{
    char why[MLA_SENTENCE_BYTES_MAX] = "";
    char path[64];
    snprintf(path, sizeof path, "%s/source.json", folder);
    FILE *file = fopen(path, "w");
    fprintf(file,
            "{\"model_type\": \"deepseek_v3\", \"hidden_size\": %u, \"num_attention_heads\": %u, "
            "\"q_lora_rank\": %u, \"kv_lora_rank\": %u, \"qk_nope_head_dim\": %u, "
            "\"qk_rope_head_dim\": %u, \"v_head_dim\": %u, \"num_hidden_layers\": 4, "
            "\"max_position_embeddings\": %d, \"attention_bias\": %s, \"rope_interleave\": %s, %s}",
            model->hidden, model->heads, model->q_lora, model->latent, model->nope, model->rope,
            model->v, CONTEXT_MAX, model->bias ? "true" : "false",
            model->interleaved ? "true" : "false", model->rope_json);
    cr_assert_eq(fclose(file), 0);
    const struct mla_synth synth = {.config = path,
                                    .out = folder,
                                    .layers = layer_numbers,
                                    .layer_count = LAYERS,
                                    .shards = 1,
                                    .dtype = MLA_F32};
    cr_assert_eq(mla_synth_write(&synth, why), MLA_OK, "%s", why);
    cr_assert_eq(mla_checkpoint_open(folder, 1, 0, &checkpoint, why), MLA_OK, "%s", why);
}

static void remove_model(void)
{
    static const char *const names[] = {"source.json", "config.json", "model.safetensors"};
    char path[64];
    for (size_t i = 0; i < COUNT_OF(names); i++) {
        snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        unlink(path);
    }
    rmdir(folder);
}

static void make_expected(void)
{
    uint64_t hidden = shard.config.hidden;
    for (uint32_t l = 0; l < LAYERS; l++) {
        struct mla_reference *reference = NULL;
        cr_assert_eq(mla_reference_create(&shard.config, layer_numbers[l], &reference), MLA_OK);
        for (uint32_t s = 0; s < SEQUENCES; s++) {
            uint64_t shape[2] = {sequences[s].length, hidden};
            char name[64];
            snprintf(name, sizeof name, "input.%u.%u", l, s);
            inputs[l][s] = malloc(shape[0] * hidden * sizeof(float));
            expected[l][s] = malloc(shape[0] * hidden * sizeof(double));
            mla_formula_fill(name, 2, shape, 0, shape[0] * hidden, inputs[l][s]);
            cr_assert_eq(
                mla_reference_run(reference, sequences[s].length, inputs[l][s], expected[l][s]),
                MLA_OK);
        }
        mla_reference_destroy(&reference);
    }
}

static void poison(void)
{
    size_t values = (size_t)BLOCKS * MLA_BLOCK_TOKENS * (cache.latent + cache.rope);
    size_t bytes = values * mla_dtype_bytes(cache.dtype);
    uint8_t *host = malloc(bytes);
    for (size_t i = 0; i < values; i++) {
        if (cache.dtype == MLA_F32)
            memcpy(host + i * sizeof poison_f32, &poison_f32, sizeof poison_f32);
        else
            memcpy(host + i * sizeof poison_bf16, &poison_bf16, sizeof poison_bf16);
    }
    for (uint32_t l = 0; l < LAYERS; l++)
        cr_assert_eq(backend->ops->upload(backend, cache.pools[l], host, bytes), MLA_OK);
    cr_assert_eq(backend->ops->synchronize(backend), MLA_OK);
    free(host);
}

static void begin(const struct model *model, enum mla_dtype kv_dtype, int64_t chunk_rows)
{
    cr_assert_not_null(mkdtemp(folder));
    write_model(model);
    cr_assert_eq(mla_backend_cpu_create(2, &backend), MLA_OK);
    cr_assert_eq(mla_collective_mpi_create(0, 1, &collective), MLA_OK);
    cr_assert_eq(mla_shard_load(&checkpoint, 0, 1, backend, &shard), MLA_OK);
    cr_assert_eq(mla_shard_make_rope_table(&shard, backend, CONTEXT_MAX), MLA_OK);
    cr_assert_eq(mla_kvcache_init(&cache, backend, &shard.config, kv_dtype, LAYERS, BLOCKS,
                                  SEQUENCES, CONTEXT_MAX),
                 MLA_OK);
    cr_assert_eq(
        mla_layer_init(&layer, backend, collective, &shard, &cache, ROWS_MAX, ROWS_MAX, chunk_rows),
        MLA_OK);
    poison();
    make_expected();
    plan_begin(&plan, 1);
    for (uint32_t s = 0; s < SEQUENCES; s++)
        plan_table(&plan, s, 0, sequences[s].blocks, (sequences[s].length + 63) / 64);
    cr_assert_eq(mla_kvcache_apply(&cache, &plan.message), MLA_OK);
    /* Weights and sums are f32; a bf16 cache has 8 bits. */
    tolerance = kv_dtype == MLA_F32 ? 2e-6 : 3e-3;
    plan_begin(&plan, 2);
}

static void end(void)
{
    for (uint32_t l = 0; l < LAYERS; l++)
        for (uint32_t s = 0; s < SEQUENCES; s++) {
            free(inputs[l][s]);
            free(expected[l][s]);
        }
    mla_step_fini(&step, backend);
    mla_layer_fini(&layer);
    mla_kvcache_fini(&cache);
    mla_shard_free(&shard, backend);
    mla_checkpoint_close(&checkpoint);
    collective->ops->destroy(&collective);
    backend->ops->destroy(&backend);
    remove_model();
}

/* One layer of one microbatch: out [padded, hidden]. Padding rows are NaN when they come in. */
static void run(uint32_t index, uint32_t microbatch, float *out)
{
    const struct mla_plan_microbatch *mb = &plan.microbatches[microbatch];
    size_t hidden = shard.config.hidden;
    size_t bytes = mb->padded * hidden * sizeof(float);
    float *host = malloc(bytes);
    float *row = host;
    void *x = NULL;
    void *rows = NULL;
    for (uint32_t i = 0; i < mb->entry_count; i++) {
        const struct mla_plan_entry *entry = &plan.entries[mb->entry_first + i];
        memcpy(row, inputs[index][entry->table] + entry->start * hidden,
               entry->tokens * hidden * sizeof *row);
        row += entry->tokens * hidden;
    }
    while (row < host + mb->padded * hidden)
        *row++ = NAN;
    cr_assert_eq(backend->ops->alloc(backend, bytes, &x), MLA_OK);
    cr_assert_eq(backend->ops->upload(backend, x, host, bytes), MLA_OK);
    cr_assert_eq(mla_layer_run(&layer, index, &step.microbatches[microbatch], x, &rows), MLA_OK);
    cr_assert_eq(backend->ops->download(backend, out, rows, bytes), MLA_OK);
    cr_assert_eq(backend->ops->synchronize(backend), MLA_OK);
    backend->ops->free(backend, x);
    free(host);
}

/* ||out - expected|| / ||expected|| over the real rows. */
static double difference(uint32_t index, uint32_t microbatch, const float *out)
{
    const struct mla_plan_microbatch *mb = &plan.microbatches[microbatch];
    size_t hidden = shard.config.hidden;
    double error = 0;
    double norm = 0;
    for (uint32_t i = 0; i < mb->entry_count; i++) {
        const struct mla_plan_entry *entry = &plan.entries[mb->entry_first + i];
        const double *wanted = expected[index][entry->table] + entry->start * hidden;
        for (size_t k = 0; k < entry->tokens * hidden; k++, out++) {
            error += pow(*out - wanted[k], 2);
            norm += pow(wanted[k], 2);
        }
    }
    return sqrt(error / norm);
}

static void mark_written(void)
{
    for (uint32_t i = 0; i < plan.message.entry_count; i++)
        for (uint32_t k = 0; k < plan.entries[i].tokens; k++) {
            uint32_t position = plan.entries[i].start + k;
            uint32_t block = sequences[plan.entries[i].table].blocks[position / MLA_BLOCK_TOKENS];
            written[block * MLA_BLOCK_TOKENS + position % MLA_BLOCK_TOKENS] = true;
        }
}

/* Runs the plan, the layers in another order than they stand and the first one twice, and begins
 * the next. */
static void run_step(const char *what)
{
    static float out[ROWS_MAX * 128];
    static float again[ROWS_MAX * 128];
    cr_assert_leq(shard.config.hidden, 128);
    cr_assert_eq(
        mla_step_build(&step, &cache, &plan.message, (uint32_t)layer.chunk_rows, shard.heads),
        MLA_OK);
    for (uint32_t l = LAYERS; l-- > 0;)
        for (uint32_t m = 0; m < plan.message.microbatch_count; m++) {
            run(l, m, out);
            double found = difference(l, m, out);
            /* NaN is not below anything. */
            cr_expect(found < tolerance, "%s, layer %u, microbatch %u: %g", what, l, m, found);
            run(l, m, again);
            cr_expect_arr_eq(
                out, again, sizeof *out * plan.microbatches[m].rows * shard.config.hidden,
                "%s, layer %u, microbatch %u: another result the second time", what, l, m);
        }
    mark_written();
    plan_begin(&plan, plan.message.step + 1);
}

/* All rows that no token of a step stands for are as they were before the first. */
static void check_cache(void)
{
    size_t values = cache.latent + cache.rope;
    size_t element = mla_dtype_bytes(cache.dtype);
    size_t bytes = (size_t)BLOCKS * MLA_BLOCK_TOKENS * values * element;
    uint8_t *host = malloc(bytes);
    for (uint32_t l = 0; l < LAYERS; l++) {
        cr_assert_eq(backend->ops->download(backend, host, cache.pools[l], bytes), MLA_OK);
        cr_assert_eq(backend->ops->synchronize(backend), MLA_OK);
        for (size_t i = 0; i < (size_t)BLOCKS * MLA_BLOCK_TOKENS * values; i++) {
            bool poisoned = cache.dtype == MLA_F32
                                ? memcmp(host + i * element, &poison_f32, element) == 0
                                : memcmp(host + i * element, &poison_bf16, element) == 0;
            cr_assert_eq(poisoned, !written[i / values], "layer %u, slot %zu, value %zu", l,
                         i / values, i % values);
        }
    }
    free(host);
}

/* Every way through the layer: prompts with and without context, cut inside blocks, decode with
 * one row and several, in both halves of a step, with and without padding. */
static void check(const struct model *model, enum mla_dtype kv_dtype, int64_t chunk_rows)
{
    begin(model, kv_dtype, chunk_rows);

    plan_microbatch(&plan, MLA_PREFILL);
    plan_entry(&plan, 0, 0, 70);
    plan_entry(&plan, 1, 0, 3);
    plan_pad(&plan, 80);
    run_step("prefill without context");

    plan_microbatch(&plan, MLA_PREFILL);
    plan_entry(&plan, 0, 70, 30);
    plan_entry(&plan, 2, 0, 5);
    plan_entry(&plan, 1, 3, 20);
    plan_microbatch(&plan, MLA_PREFILL);
    plan_entry(&plan, 0, 100, 10);
    plan_entry(&plan, 1, 23, 40);
    plan_pad(&plan, 64);
    run_step("prefill with context");

    plan_microbatch(&plan, MLA_DECODE);
    plan_entry(&plan, 2, 5, 1);
    plan_entry(&plan, 1, 63, 3);
    plan_pad(&plan, 16);
    plan_microbatch(&plan, MLA_PREFILL);
    plan_entry(&plan, 0, 110, 37);
    run_step("decode beside prefill");

    plan_microbatch(&plan, MLA_DECODE);
    plan_entry(&plan, 0, 147, 3);
    plan_entry(&plan, 2, 6, 14);
    plan_entry(&plan, 1, 66, 1);
    run_step("decode without padding");

    plan_microbatch(&plan, MLA_DECODE);
    plan_entry(&plan, 1, 67, 1);
    plan_pad(&plan, 128);
    run_step("one row of a bucket of 128");

    check_cache();
    end();
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
        plan_microbatch(&plan, MLA_DECODE);
        plan_entry(&plan, 2, position, 1);
        plan_pad(&plan, 4);
        run_step("decode");
    }
    check_cache();
    end();
}
