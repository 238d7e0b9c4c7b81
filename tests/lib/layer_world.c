#include "tests/lib/layer_world.h"

#include "tests/lib/alone.h"
#include "tests/lib/formula.h"
#include "tests/lib/reference.h"
#include "tests/lib/synth.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { LAYERS = 2, BLOCKS = 16, ROWS_MAX = 128, HIDDEN_MAX = 256, CONTEXT_MAX = 256 };

/* What a KV row holds that nobody wrote: a NaN, which would show in every sum it gets into. */
static const uint32_t poison_f32 = 0x7fc00badu;
static const uint16_t poison_bf16 = 0x7fc3u;

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
static struct mla_alone alone;
static struct mla_shard shard;
static struct mla_kvcache cache;
static struct mla_layer layer;
static struct mla_step steps[2]; /* open at the same time */
struct plan world_plan;
struct mla_graphs world_graphs;
static void *x[MLA_TURNS];                  /* [ROWS_MAX, hidden] activation */
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

static const uint32_t buckets[] = {4, 16, 128};

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

void world_begin(const struct model *model, struct mla_backend *given, enum mla_dtype kv_dtype,
                 int64_t chunk_rows, double allowed)
{
    backend = given;
    tolerance = allowed;
    cr_assert_not_null(mkdtemp(folder));
    write_model(model);
    mla_alone_init(&alone, backend, 1);
    cr_assert_eq(mla_shard_load(&checkpoint, 0, 1, backend, &shard), MLA_OK);
    cr_assert_eq(mla_shard_make_rope_table(&shard, backend, CONTEXT_MAX), MLA_OK);
    cr_assert_eq(mla_kvcache_init(&cache, backend, &shard.config, kv_dtype, LAYERS, BLOCKS,
                                  SEQUENCES, CONTEXT_MAX),
                 MLA_OK);
    cr_assert_eq(mla_layer_init(&layer, backend, &alone.base, &shard, &cache, ROWS_MAX, ROWS_MAX,
                                chunk_rows),
                 MLA_OK);
    cr_assert_leq(shard.config.hidden, HIDDEN_MAX);
    for (uint32_t i = 0; i < mla_turns(backend); i++)
        cr_assert_eq(backend->ops->alloc(backend, sizeof(float) * ROWS_MAX * HIDDEN_MAX, &x[i]),
                     MLA_OK);
    poison();
    make_expected();
    plan_begin(&world_plan, 1);
    for (uint32_t s = 0; s < SEQUENCES; s++)
        plan_table(&world_plan, s, 0, sequences[s].blocks, (sequences[s].length + 63) / 64);
    cr_assert_eq(mla_kvcache_apply(&cache, &world_plan.message), MLA_OK);
    cr_assert_eq(
        mla_graphs_init(&world_graphs, &layer, x, MLA_GRAPHS_LAZY, buckets, COUNT_OF(buckets)),
        MLA_OK);
    plan_begin(&world_plan, 2);
}

void world_capture(void)
{
    mla_graphs_fini(&world_graphs);
    cr_assert_eq(mla_kvcache_resize(&cache, 1), MLA_OK);
    cr_assert_eq(
        mla_graphs_init(&world_graphs, &layer, x, MLA_GRAPHS_START, buckets, COUNT_OF(buckets)),
        MLA_OK);
    cr_assert_eq(mla_kvcache_resize(&cache, BLOCKS), MLA_OK);
    poison();
    cr_assert_eq(mla_graphs_capture(&world_graphs), MLA_OK);
}

void world_end(void)
{
    for (uint32_t l = 0; l < LAYERS; l++)
        for (uint32_t s = 0; s < SEQUENCES; s++) {
            free(inputs[l][s]);
            free(expected[l][s]);
        }
    mla_step_fini(&steps[0], backend);
    mla_step_fini(&steps[1], backend);
    mla_graphs_fini(&world_graphs);
    for (uint32_t i = 0; i < MLA_TURNS; i++)
        backend->ops->free(backend, x[i]);
    mla_layer_fini(&layer);
    mla_kvcache_fini(&cache);
    mla_shard_free(&shard, backend);
    mla_checkpoint_close(&checkpoint);
    backend->ops->destroy(&backend);
    remove_model();
}

static void convert(const float *from, uint16_t *to, size_t count)
{
    for (size_t i = 0; i < count; i++)
        to[i] = mla_f32_to_bf16(from[i]);
}

/* The microbatch's rows to the turn's x. Padding rows are NaN when they come in. */
static void load_x(uint32_t index, const struct plan *plan, const struct mla_plan_microbatch *mb,
                   uint32_t turn)
{
    size_t hidden = shard.config.hidden;
    size_t count = mb->padded * hidden;
    float *host = malloc(count * (sizeof(float) + sizeof(uint16_t)));
    float *row = host;
    for (uint32_t i = 0; i < mb->entry_count; i++) {
        const struct mla_plan_entry *entry = &plan->entries[mb->entry_first + i];
        memcpy(row, inputs[index][entry->table] + entry->start * hidden,
               entry->tokens * hidden * sizeof *row);
        row += entry->tokens * hidden;
    }
    while (row < host + count)
        *row++ = NAN;
    const void *from = host;
    if (backend->activation == MLA_BF16) {
        convert(host, (uint16_t *)(host + count), count);
        from = host + count;
    }
    cr_assert_eq(
        backend->ops->upload(backend, x[turn], from, count * mla_dtype_bytes(backend->activation)),
        MLA_OK);
    cr_assert_eq(backend->ops->synchronize(backend), MLA_OK);
    free(host);
}

/* One layer of one microbatch of an open step: out [padded, hidden], f32. */
static void run(const struct plan *plan, const struct mla_step *step, uint32_t index,
                uint32_t microbatch, uint32_t turn, bool eager, float *out)
{
    const struct mla_plan_microbatch *mb = &plan->microbatches[microbatch];
    size_t count = (size_t)mb->padded * shard.config.hidden;
    void *rows = NULL;
    load_x(index, plan, mb, turn);
    if (eager)
        cr_assert_eq(
            mla_layer_run(&layer, index, &step->microbatches[microbatch], x[turn], turn, &rows),
            MLA_OK);
    else
        cr_assert_eq(mla_graphs_run(&world_graphs, index, step, microbatch, turn, &rows), MLA_OK);
    cr_assert_eq(
        backend->ops->download(backend, out, rows, count * mla_dtype_bytes(backend->activation)),
        MLA_OK);
    cr_assert_eq(backend->ops->synchronize(backend), MLA_OK);
    for (size_t i = count; backend->activation == MLA_BF16 && i-- > 0;) {
        uint16_t bits;
        memcpy(&bits, (const char *)out + i * sizeof bits, sizeof bits);
        out[i] = mla_bf16_to_f32(bits);
    }
}

/* ||out - expected|| / ||expected|| over the real rows. */
static double difference(const struct plan *plan, uint32_t index, uint32_t microbatch,
                         const float *out)
{
    const struct mla_plan_microbatch *mb = &plan->microbatches[microbatch];
    size_t hidden = shard.config.hidden;
    double error = 0;
    double norm = 0;
    for (uint32_t i = 0; i < mb->entry_count; i++) {
        const struct mla_plan_entry *entry = &plan->entries[mb->entry_first + i];
        const double *wanted = expected[index][entry->table] + entry->start * hidden;
        for (size_t k = 0; k < entry->tokens * hidden; k++, out++) {
            error += pow(*out - wanted[k], 2);
            norm += pow(wanted[k], 2);
        }
    }
    return sqrt(error / norm);
}

static void mark_written(const struct plan *plan)
{
    for (uint32_t i = 0; i < plan->message.entry_count; i++)
        for (uint32_t k = 0; k < plan->entries[i].tokens; k++) {
            uint32_t position = plan->entries[i].start + k;
            uint32_t block = sequences[plan->entries[i].table].blocks[position / MLA_BLOCK_TOKENS];
            written[block * MLA_BLOCK_TOKENS + position % MLA_BLOCK_TOKENS] = true;
        }
}

static void build(const struct plan *plan, struct mla_step *step)
{
    cr_assert_eq(
        mla_step_build(step, &cache, &plan->message, (uint32_t)layer.chunk_rows, shard.heads),
        MLA_OK);
}

static float *eager_run(const struct plan *plan, const struct mla_step *step, uint32_t index,
                        uint32_t microbatch, const char *what)
{
    float *out = malloc(sizeof *out * ROWS_MAX * HIDDEN_MAX);
    run(plan, step, index, microbatch, 0, true, out);
    double found = difference(plan, index, microbatch, out);
    /* NaN is not below anything. */
    cr_expect(found < tolerance, "%s, layer %u, microbatch %u: %g", what, index, microbatch, found);
    return out;
}

static void expect_again(const struct plan *plan, const struct mla_step *step, uint32_t index,
                         uint32_t microbatch, uint32_t turn, const float *out, const char *what)
{
    static float again[ROWS_MAX * HIDDEN_MAX];
    run(plan, step, index, microbatch, turn, false, again);
    cr_expect_arr_eq(
        out, again, sizeof *out * plan->microbatches[microbatch].rows * shard.config.hidden,
        "%s, layer %u, microbatch %u: another result the second time", what, index, microbatch);
}

void world_run_step(const char *what)
{
    const uint32_t turns = mla_turns(backend);
    build(&world_plan, &steps[0]);
    for (uint32_t l = LAYERS; l-- > 0;)
        for (uint32_t m = 0; m < world_plan.message.microbatch_count; m++) {
            float *out = eager_run(&world_plan, &steps[0], l, m, what);
            for (uint32_t i = 0; i < 2 * turns; i++)
                expect_again(&world_plan, &steps[0], l, m, i % turns, out, what);
            free(out);
        }
    mark_written(&world_plan);
    plan_begin(&world_plan, world_plan.message.step + 1);
}

static void run_pair(const struct plan *other, const char *what)
{
    const uint32_t turns = mla_turns(backend);
    build(&world_plan, &steps[0]);
    build(other, &steps[1]);
    for (uint32_t l = 0; l < LAYERS; l++) {
        float *one = eager_run(&world_plan, &steps[0], l, 0, what);
        float *two = eager_run(other, &steps[1], l, 0, what);
        for (uint32_t i = 0; i < 3 * turns; i++) {
            expect_again(&world_plan, &steps[0], l, 0, i % turns, one, what);
            expect_again(other, &steps[1], l, 0, i % turns, two, what);
        }
        free(one);
        free(two);
    }
    mark_written(&world_plan);
    mark_written(other);
    plan_begin(&world_plan, other->message.step + 1);
}

void world_check_cache(void)
{
    size_t values = cache.latent + cache.rope;
    size_t element = mla_dtype_bytes(cache.dtype);
    size_t bytes = (size_t)BLOCKS * MLA_BLOCK_TOKENS * values * element;
    uint8_t *host = malloc(bytes);
    for (uint32_t l = 0; l < LAYERS; l++) {
        cr_assert_eq(backend->ops->download(backend, host, cache.pools[l], bytes), MLA_OK);
        cr_assert_eq(backend->ops->synchronize(backend), MLA_OK);
        enum mla_kv_layout layout = mla_kvcache_pool(&cache, l).layout;
        for (size_t i = 0; i < (size_t)BLOCKS * MLA_BLOCK_TOKENS * values; i++) {
            size_t at = (size_t)mla_kv_place(layout, (int64_t)values, (int64_t)(i / values),
                                             (int64_t)(i % values));
            bool poisoned = cache.dtype == MLA_F32
                                ? memcmp(host + at * element, &poison_f32, element) == 0
                                : memcmp(host + at * element, &poison_bf16, element) == 0;
            cr_assert_eq(poisoned, !written[i / values], "layer %u, slot %zu, value %zu", l,
                         i / values, i % values);
        }
    }
    free(host);
}

void world_check_all(void)
{
    plan_microbatch(&world_plan, MLA_PREFILL);
    plan_entry(&world_plan, 0, 0, 70);
    plan_entry(&world_plan, 1, 0, 3);
    plan_pad(&world_plan, 80);
    world_run_step("prefill without context");

    plan_microbatch(&world_plan, MLA_PREFILL);
    plan_entry(&world_plan, 0, 70, 30);
    plan_entry(&world_plan, 2, 0, 5);
    plan_entry(&world_plan, 1, 3, 20);
    plan_microbatch(&world_plan, MLA_PREFILL);
    plan_entry(&world_plan, 0, 100, 10);
    plan_entry(&world_plan, 1, 23, 40);
    plan_pad(&world_plan, 64);
    world_run_step("prefill with context");

    plan_microbatch(&world_plan, MLA_DECODE);
    plan_entry(&world_plan, 2, 5, 1);
    plan_entry(&world_plan, 1, 63, 3);
    plan_pad(&world_plan, 16);
    plan_microbatch(&world_plan, MLA_PREFILL);
    plan_entry(&world_plan, 0, 110, 37);
    world_run_step("decode beside prefill");

    plan_microbatch(&world_plan, MLA_DECODE);
    plan_entry(&world_plan, 0, 147, 3);
    plan_entry(&world_plan, 2, 6, 14);
    plan_entry(&world_plan, 1, 66, 1);
    world_run_step("decode without padding");

    plan_microbatch(&world_plan, MLA_DECODE);
    plan_entry(&world_plan, 1, 67, 1);
    plan_pad(&world_plan, 128);
    world_run_step("one row of a bucket of 128");

    world_check_cache();
}

void world_check_pair(void)
{
    struct plan other;
    plan_microbatch(&world_plan, MLA_PREFILL);
    plan_entry(&world_plan, 0, 0, 70);
    plan_entry(&world_plan, 1, 0, 30);
    world_run_step("prefill");

    plan_begin(&other, world_plan.message.step + 1);
    plan_microbatch(&world_plan, MLA_DECODE);
    plan_entry(&world_plan, 0, 70, 3);
    plan_pad(&world_plan, 4);
    plan_microbatch(&other, MLA_DECODE);
    plan_entry(&other, 2, 0, 1);
    plan_entry(&other, 1, 30, 2);
    plan_pad(&other, 4);
    run_pair(&other, "two open");
    world_check_cache();
}
