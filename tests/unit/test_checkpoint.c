#include "tests/lib/formula.h"
#include "tests/lib/synth.h"
#include "worker/checkpoint.h"

#include <criterion/criterion.h>
#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define TINY   MLA_TESTS_DIR "/golden/v3-tiny"
#define SINGLE "model.safetensors"
#define INDEX  "model.safetensors.index.json"
#define FIRST  "model-00001-of-00002.safetensors"
#define SECOND "model-00002-of-00002.safetensors"

static char folder[] = "/tmp/mla-test-checkpoint-XXXXXX";
static char why[MLA_SENTENCE_BYTES_MAX];

static void make_folder(void)
{
    cr_assert_not_null(mkdtemp(folder));
}

static void remove_folder(void)
{
    char path[512];
    DIR *dir = opendir(folder);
    for (struct dirent *entry; (entry = readdir(dir));) {
        snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        if (entry->d_name[0] != '.')
            unlink(path);
    }
    closedir(dir);
    rmdir(folder);
}

TestSuite(checkpoint, .init = make_folder, .fini = remove_folder);

static void synth(const char *config, size_t layer_count, size_t shards, enum mla_dtype dtype)
{
    static const uint32_t layers[] = {0, 1, 2};
    const struct mla_synth request = {.config = config,
                                      .out = folder,
                                      .layers = layers,
                                      .layer_count = layer_count,
                                      .shards = shards,
                                      .dtype = dtype};
    cr_assert_eq(mla_synth_write(&request, why), MLA_OK, "%s", why);
}

static char *path_of(const char *name)
{
    static char path[512];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

/* Replaces the first `old` in a file of the folder. */
static void edit(const char *name, const char *old, const char *new)
{
    FILE *file = fopen(path_of(name), "r+b");
    cr_assert_not_null(file);
    fseek(file, 0, SEEK_END);
    size_t bytes = (size_t)ftell(file);
    char *text = malloc(bytes);
    rewind(file);
    cr_assert_eq(fread(text, 1, bytes, file), bytes);
    char *place = memmem(text, bytes, old, strlen(old));
    cr_assert_not_null(place, "no %s in %s", old, name);
    rewind(file);
    fwrite(text, 1, (size_t)(place - text), file);
    fputs(new, file);
    place += strlen(old);
    fwrite(place, 1, bytes - (size_t)(place - text), file);
    cr_assert_eq(ftruncate(fileno(file), ftell(file)), 0);
    cr_assert_eq(fclose(file), 0);
    free(text);
}

static enum mla_status open_range(uint32_t first, uint32_t last, struct mla_checkpoint *out)
{
    *why = '\0';
    return mla_checkpoint_open(folder, first, last, out, why);
}

static void refuse(uint32_t first, uint32_t last, enum mla_status status, const char *sentence)
{
    struct mla_checkpoint checkpoint = {.layer_count = 12345};
    cr_expect_eq(open_range(first, last, &checkpoint), status, "%s", why);
    cr_expect(strstr(why, sentence), "expected \"%s\", got \"%s\"", sentence, why);
    cr_expect_eq(checkpoint.layer_count, 12345, "a refused checkpoint changed the result");
}

static void refuse_all(const char *sentence)
{
    refuse(1, 0, MLA_CHECKPOINT, sentence);
}

/* Every weight of the layer is what the formula says, which is exact in every dtype but for what
 * is too small for f16. */
static void expect_formula(const struct mla_checkpoint *checkpoint, uint32_t layer, double allowed)
{
    for (int weight = 0; weight < MLA_WEIGHT_COUNT; weight++) {
        struct mla_weight_spec spec;
        mla_weight_describe(&checkpoint->config, layer, weight, &spec);
        const struct mla_tensor *tensor = mla_checkpoint_weight(checkpoint, layer, weight);
        cr_expect_eq(tensor != NULL, spec.present, "%s", spec.name);
        if (!tensor)
            continue;
        uint64_t count = tensor->bytes / mla_dtype_bytes(tensor->dtype);
        float *wanted = malloc(count * sizeof *wanted), *found = malloc(count * sizeof *found);
        mla_formula_fill(spec.name, spec.dims, spec.shape, 0, count, wanted);
        mla_tensor_to_f32(tensor, 0, count, found);
        for (uint64_t i = 0; i < count; i++)
            cr_assert_leq(fabsf(found[i] - wanted[i]), allowed, "%s %zu", spec.name, (size_t)i);
        free(wanted);
        free(found);
    }
}

Test(checkpoint, describe)
{
    struct mla_config config;
    struct mla_weight_spec spec;
    cr_assert_eq(mla_config_read(TINY, &config, why), MLA_OK);
    mla_weight_describe(&config, 12, MLA_WEIGHT_Q_B, &spec);
    cr_expect_str_eq(spec.name, "model.layers.12.self_attn.q_b_proj.weight");
    cr_expect(spec.present && spec.dims == 2 && spec.shape[0] == 384 && spec.shape[1] == 96);
    mla_weight_describe(&config, 12, MLA_WEIGHT_KV_B, &spec);
    cr_expect(spec.present && spec.dims == 2 && spec.shape[0] == 512 && spec.shape[1] == 64);
    mla_weight_describe(&config, 12, MLA_WEIGHT_O_BIAS, &spec);
    cr_expect(!spec.present);
    config.q_lora = 0;
    mla_weight_describe(&config, 255, MLA_WEIGHT_Q_B, &spec);
    cr_expect_str_eq(spec.name, "model.layers.255.self_attn.q_proj.weight");
    cr_expect(spec.present && spec.shape[0] == 384 && spec.shape[1] == 256);
    config.attention_bias = true;
    mla_weight_describe(&config, 0, MLA_WEIGHT_KV_A_BIAS, &spec);
    cr_expect(spec.present && spec.dims == 1 && spec.shape[0] == 80);
    mla_weight_describe(&config, 0, MLA_WEIGHT_Q_A_BIAS, &spec);
    cr_expect(!spec.present, "there is no q_a_proj to have a bias");
}

Test(checkpoint, one_file)
{
    struct mla_checkpoint checkpoint;
    synth(TINY, 2, 1, MLA_BF16);
    cr_assert_eq(open_range(1, 0, &checkpoint), MLA_OK, "%s", why);
    cr_expect_eq(checkpoint.file_count, 1);
    cr_assert_eq(checkpoint.layer_count, 2);
    cr_expect(checkpoint.layers[0] == 0 && checkpoint.layers[1] == 1);
    cr_expect_eq(checkpoint.config.hidden, 256);
    expect_formula(&checkpoint, 0, 0);
    expect_formula(&checkpoint, 1, 0);
    mla_checkpoint_close(&checkpoint);
    mla_checkpoint_close(&checkpoint);
}

Test(checkpoint, shards)
{
    struct mla_checkpoint checkpoint;
    synth(TINY, 2, 1, MLA_BF16);
    synth(TINY, 2, 5, MLA_F32); /* takes the place of the one file */
    cr_assert_eq(open_range(1, 0, &checkpoint), MLA_OK, "%s", why);
    cr_expect_eq(checkpoint.file_count, 5);
    expect_formula(&checkpoint, 0, 0);
    expect_formula(&checkpoint, 1, 0);
    mla_checkpoint_close(&checkpoint);
}

Test(checkpoint, f16)
{
    struct mla_checkpoint checkpoint;
    synth(TINY, 1, 1, MLA_F16);
    cr_assert_eq(open_range(1, 0, &checkpoint), MLA_OK, "%s", why);
    expect_formula(&checkpoint, 0, 0x1p-25);
    mla_checkpoint_close(&checkpoint);
}

Test(checkpoint, biases_without_q_lora)
{
    struct mla_checkpoint checkpoint;
    synth(TINY, 1, 1, MLA_BF16);
    edit("config.json", "\"q_lora_rank\": 96", "\"q_lora_rank\": null");
    edit("config.json", "\"attention_bias\": false", "\"attention_bias\": true");
    synth(folder, 1, 1, MLA_BF16);
    cr_assert_eq(open_range(1, 0, &checkpoint), MLA_OK, "%s", why);
    cr_expect_null(mla_checkpoint_weight(&checkpoint, 0, MLA_WEIGHT_Q_A));
    cr_expect_null(mla_checkpoint_weight(&checkpoint, 0, MLA_WEIGHT_Q_A_BIAS));
    cr_expect_not_null(mla_checkpoint_weight(&checkpoint, 0, MLA_WEIGHT_KV_A_BIAS));
    expect_formula(&checkpoint, 0, 0);
    mla_checkpoint_close(&checkpoint);
}

Test(checkpoint, asked_layers)
{
    struct mla_checkpoint checkpoint;
    synth(TINY, 2, 2, MLA_BF16);
    cr_assert_eq(open_range(1, 1, &checkpoint), MLA_OK, "%s", why);
    cr_expect(checkpoint.layer_count == 1 && checkpoint.layers[0] == 1);
    mla_checkpoint_close(&checkpoint);
    cr_assert_eq(open_range(0, 1, &checkpoint), MLA_OK, "%s", why);
    cr_expect_eq(checkpoint.layer_count, 2);
    mla_checkpoint_close(&checkpoint);
    refuse(1, 2, MLA_CHECKPOINT, "tensor model.layers.2.self_attn.q_a_proj.weight is missing");
    refuse(0, MLA_LAYERS_MAX, MLA_CHECKPOINT, "layer 256");
    refuse(0, UINT32_MAX, MLA_CHECKPOINT, "layer 4294967295");
}

/* DeepSeek-V3 has one more layer than num_hidden_layers says. */
Test(checkpoint, extra_layer)
{
    struct mla_checkpoint checkpoint;
    synth(TINY, 3, 1, MLA_BF16);
    cr_assert_eq(open_range(1, 0, &checkpoint), MLA_OK, "%s", why);
    cr_expect_eq(checkpoint.layer_count, 3);
    mla_checkpoint_close(&checkpoint);
}

/* Half a layer is only a mistake where it is wanted. */
Test(checkpoint, missing_tensor)
{
    struct mla_checkpoint checkpoint;
    synth(TINY, 2, 1, MLA_BF16);
    edit(SINGLE, "layers.1.self_attn.kv_b_proj", "layers.1.self_attn.kv_x_proj");
    refuse_all("tensor model.layers.1.self_attn.kv_b_proj.weight is missing");
    cr_expect_eq(open_range(0, 0, &checkpoint), MLA_OK, "%s", why);
    mla_checkpoint_close(&checkpoint);
}

Test(checkpoint, wrong_shape)
{
    synth(TINY, 1, 1, MLA_BF16);
    edit(SINGLE, "[80,256]", "[256,80]");
    refuse_all("kv_a_proj_with_mqa.weight has 2 dimensions [256, 80], config.json asks for 2 "
               "[80, 256]");
}

Test(checkpoint, wrong_dims)
{
    synth(TINY, 1, 1, MLA_BF16);
    edit(SINGLE, "[64],", "[64,1],");
    edit(SINGLE, "} ", "}"); /* the header stays as long as it was */
    edit(SINGLE, "} ", "}");
    refuse_all("kv_a_layernorm.weight has 2 dimensions");
}

Test(checkpoint, config_of_another_model)
{
    synth(TINY, 1, 1, MLA_BF16);
    edit("config.json", "\"num_attention_heads\": 8", "\"num_attention_heads\": 4");
    refuse_all("q_b_proj.weight has 2 dimensions [384, 96], config.json asks for 2 [192, 96]");
}

Test(checkpoint, wrong_dtype)
{
    synth(TINY, 1, 1, MLA_BF16);
    edit(SINGLE, "\"BF16\"", "\"I16\" ");
    refuse_all("q_a_proj.weight is not BF16, F16 or F32");
}

/* To leave these out would be another model. */
Test(checkpoint, tensors_the_config_denies)
{
    synth(TINY, 1, 1, MLA_BF16);
    edit("config.json", "\"attention_bias\": false", "\"attention_bias\": true");
    synth(folder, 1, 1, MLA_BF16);
    edit("config.json", "\"attention_bias\": true", "\"attention_bias\": false");
    refuse_all("q_a_proj.bias is there, but");
}

Test(checkpoint, no_layers)
{
    synth(TINY, 1, 1, MLA_BF16);
    for (int i = 0; i < 7; i++)
        edit(SINGLE, ".layers.0.self_attn", ".layers.x.self_attn");
    refuse_all("no tensor is named");
}

Test(checkpoint, no_files)
{
    synth(TINY, 1, 1, MLA_BF16);
    unlink(path_of(SINGLE));
    refuse_all(INDEX);
    unlink(path_of("config.json"));
    refuse(1, 0, MLA_CONFIG, "config.json");
}

Test(checkpoint, broken_config)
{
    synth(TINY, 1, 1, MLA_BF16);
    edit("config.json", "\"qk_rope_head_dim\": 16", "\"qk_rope_head_dim\": 15");
    refuse(1, 0, MLA_CONFIG, "qk_rope_head_dim is 15");
}

Test(checkpoint, truncated)
{
    synth(TINY, 1, 1, MLA_BF16);
    cr_assert_eq(truncate(path_of(SINGLE), 100000), 0);
    refuse_all(SINGLE ": tensor");
    synth(TINY, 1, 2, MLA_BF16);
    cr_assert_eq(truncate(path_of(SECOND), 100), 0);
    refuse_all(SECOND ": a header of");
}

/* The index is as untrusted as all else. */
Test(checkpoint, broken_index)
{
    static const struct {
        const char *old, *new, *sentence;
    } edits[] = {
        {FIRST, "model-00003-of-00002.safetensors", "model-00003-of-00002.safetensors"},
        {FIRST, "../" FIRST, "not a plain file name"},
        {FIRST, "/etc/passwd", "not a plain file name"},
        {FIRST, "..", "not a plain file name"},
        {FIRST, "", "not a plain file name"},
        {FIRST, ".", "is no safetensors file"},
        {"\"" FIRST "\"", "3", "not a plain file name"},
        {FIRST, SECOND, "which lacks it"},
        {"q_a_proj.weight", "q_c_proj.weight", "which lacks it"},
        {"\"weight_map\"", "\"weights\"", "no weight_map"},
        {"\"weight_map\": {", "\"weight_map\": 3, \"more\": {", "no weight_map"},
        {"{", "[", INDEX ", line 1"},
    };
    for (size_t i = 0; i < sizeof edits / sizeof *edits; i++) {
        synth(TINY, 1, 2, MLA_BF16);
        edit(INDEX, edits[i].old, edits[i].new);
        refuse_all(edits[i].sentence);
    }
}

Test(checkpoint, tensor_in_two_files)
{
    synth(TINY, 1, 2, MLA_BF16);
    char *from = strdup(path_of(FIRST));
    cr_assert_eq(link(from, path_of("copy.safetensors")), 0);
    free(from);
    edit(INDEX, FIRST, "copy.safetensors");
    refuse_all("is in two files");
}

/* Every bit pattern, at an odd address. */
Test(conversion, halves)
{
    uint8_t *data = malloc(65536 * sizeof(uint16_t) + 1);
    float *found = malloc(65536 * sizeof *found);
    struct mla_tensor tensor = {
        .dtype = MLA_F16, .data = data + 1, .bytes = 65536 * sizeof(uint16_t)};
    for (uint32_t i = 0; i < 65536; i++)
        memcpy(data + 1 + 2 * (size_t)i, &(uint16_t){(uint16_t)i}, 2);
    mla_tensor_to_f32(&tensor, 0, 65536, found);
    for (uint32_t i = 0; i < 65536; i++) {
        uint32_t exponent = (i >> 10) & 31, fraction = i & 1023;
        double magnitude =
            exponent ? ldexp(1024.0 + fraction, (int)exponent - 25) : ldexp(fraction, -24);
        if (exponent == 31)
            magnitude = fraction ? NAN : INFINITY;
        cr_assert_eq(isnan(found[i]), isnan(magnitude), "%x", i);
        cr_assert(isnan(magnitude) || fabsf(found[i]) == magnitude, "%x: %g", i, found[i]);
        cr_assert_eq(signbit(found[i]) != 0, i >> 15, "%x", i);
    }
    tensor.dtype = MLA_BF16;
    mla_tensor_to_f32(&tensor, 0, 65536, found);
    for (uint32_t i = 0; i < 65536; i++) {
        uint32_t bits;
        memcpy(&bits, &found[i], sizeof bits);
        cr_assert_eq(bits, i << 16, "%x", i);
    }
    free(found);
    free(data);
}

Test(conversion, parts)
{
    static const float values[] = {1, -2, 0.1f, INFINITY, 0x1p-149f};
    uint8_t data[sizeof values + 1];
    float found[3] = {0};
    struct mla_tensor tensor = {.dtype = MLA_F32, .data = data + 1, .bytes = sizeof values};
    memcpy(data + 1, values, sizeof values);
    mla_tensor_to_f32(&tensor, 2, 3, found);
    for (size_t i = 0; i < 3; i++)
        cr_expect_eq(found[i], values[2 + i]);
    mla_tensor_to_f32(&tensor, 5, 0, found);
    tensor.dtype = MLA_BF16;
    tensor.bytes = 6;
    memcpy(data + 1, (uint16_t[]){0x3f80, 0x4000, 0xc040}, 6);
    mla_tensor_to_f32(&tensor, 1, 2, found);
    cr_expect(found[0] == 2 && found[1] == -3);
}

/* The f32 to f16 conversion of the synthesiser, through its only door. */
Test(checkpoint, synth_rounds_to_f16)
{
    struct mla_checkpoint checkpoint;
    synth(TINY, 1, 1, MLA_F16);
    cr_assert_eq(open_range(1, 0, &checkpoint), MLA_OK, "%s", why);
    const struct mla_tensor *tensor = mla_checkpoint_weight(&checkpoint, 0, MLA_WEIGHT_O);
    static const uint64_t shape[2] = {256, 256};
    float *wanted = malloc(65536 * sizeof *wanted), *found = malloc(65536 * sizeof *found);
    mla_formula_fill("model.layers.0.self_attn.o_proj.weight", 2, shape, 0, 65536, wanted);
    mla_tensor_to_f32(tensor, 0, 65536, found);
    uint32_t small = 0;
    for (size_t i = 0; i < 65536; i++) {
        float nearest =
            fabsf(wanted[i]) < 0x1p-14f ? rintf(wanted[i] * 0x1p24f) * 0x1p-24f : wanted[i];
        small += nearest != wanted[i];
        cr_assert_eq(found[i], nearest, "%zu: %a, not %a", i, found[i], nearest);
    }
    cr_expect_gt(small, 0, "no weight was small enough to be rounded");
    free(wanted);
    free(found);
    mla_checkpoint_close(&checkpoint);
}

Test(checkpoint, synth_refuses)
{
    static const uint32_t layers[] = {0};
    struct mla_synth request = {
        .config = TINY, .out = folder, .layers = layers, .layer_count = 1, .shards = 8};
    request.dtype = MLA_BF16;
    cr_expect_eq(mla_synth_write(&request, why), MLA_OPTION);
    request.shards = 1;
    request.config = "/nonexistent";
    cr_expect_eq(mla_synth_write(&request, why), MLA_CONFIG);
    request.config = TINY;
    request.out = "/nonexistent/folder";
    cr_expect_eq(mla_synth_write(&request, why), MLA_SYSTEM);
    cr_expect(strstr(why, "/nonexistent/folder"), "%s", why);
}
