#include "tests/lib/case.h"

#include "tests/lib/formula.h"
#include "worker/checkpoint.h"

#include <assert.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NAME_BYTES = 64, PATH_BYTES = 4096 };

static enum mla_status refuse(char *why, enum mla_status status, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(why, MLA_SENTENCE_BYTES_MAX, format, arguments);
    va_end(arguments);
    return status;
}

/* array[i] as a number in [min, max]. */
static bool number_at(const json_t *array, size_t i, uint32_t min, uint32_t max, uint32_t *out)
{
    const json_t *value = json_array_get(array, i);
    if (!json_is_integer(value) || json_integer_value(value) < min ||
        json_integer_value(value) > max)
        return false;
    *out = (uint32_t)json_integer_value(value);
    return true;
}

static enum mla_status read_description(const json_t *json, struct mla_case *out, char *why)
{
    const json_t *layers = json_object_get(json, "layers");
    const json_t *lengths = json_object_get(json, "lengths");
    size_t layer_count = json_array_size(layers);
    size_t sequence_count = json_array_size(lengths);
    if (layer_count == 0 || layer_count > MLA_LAYERS_MAX)
        return refuse(why, MLA_CONFIG, "case.json: \"layers\" must list 1 to %u layers.",
                      MLA_LAYERS_MAX);
    if (sequence_count == 0 || sequence_count > MLA_STEP_SEQUENCES_MAX)
        return refuse(why, MLA_CONFIG, "case.json: \"lengths\" must list 1 to %u lengths.",
                      MLA_STEP_SEQUENCES_MAX);
    for (size_t i = 0; i < layer_count; i++)
        if (!number_at(layers, i, 0, UINT32_MAX - 1, &out->layers[i]))
            return refuse(why, MLA_CONFIG, "case.json: entry %zu of \"layers\" is no layer.", i);
    out->layer_count = (uint32_t)layer_count;

    out->lengths = calloc(sequence_count, sizeof *out->lengths);
    out->outputs = calloc(layer_count * sequence_count, sizeof *out->outputs);
    if (!out->lengths || !out->outputs)
        return refuse(why, MLA_MEMORY, "Out of memory.");
    out->sequence_count = (uint32_t)sequence_count;
    for (size_t i = 0; i < sequence_count; i++)
        if (!number_at(lengths, i, 1, MLA_CONTEXT_MAX, &out->lengths[i]))
            return refuse(why, MLA_CONFIG, "case.json: entry %zu of \"lengths\" is no length.", i);
    return MLA_OK;
}

/* The tensors output.LAYER.SEQUENCE and rows.LAYER.SEQUENCE. */
static enum mla_status read_output(struct mla_case *c, uint32_t layer, uint32_t sequence, char *why)
{
    struct mla_case_output *output = &c->outputs[layer * c->sequence_count + sequence];
    char name[NAME_BYTES];
    snprintf(name, sizeof name, "output.%" PRIu32 ".%" PRIu32, c->layers[layer], sequence);
    const struct mla_tensor *tensor = mla_safetensors_find(&c->golden, name);
    if (!tensor || tensor->dtype == 0 || tensor->dims != 2 || tensor->shape[0] == 0 ||
        tensor->shape[0] > c->lengths[sequence] || tensor->shape[1] != c->config.hidden)
        return refuse(why, MLA_CHECKPOINT,
                      "golden.safetensors: %s is missing or not of the shape [1 to %" PRIu32
                      ", %" PRIu32 "].",
                      name, c->lengths[sequence], c->config.hidden);
    output->tensor = tensor;

    snprintf(name, sizeof name, "rows.%" PRIu32 ".%" PRIu32, c->layers[layer], sequence);
    const struct mla_tensor *rows = mla_safetensors_find(&c->golden, name);
    size_t count = tensor->shape[0];
    if (!rows || rows->dims != 1 || rows->shape[0] != count ||
        rows->bytes != count * sizeof(uint32_t))
        return refuse(why, MLA_CHECKPOINT,
                      "golden.safetensors: %s is missing or not %zu 32-bit numbers.", name, count);
    output->rows = malloc(count * sizeof *output->rows);
    if (!output->rows)
        return refuse(why, MLA_MEMORY, "Out of memory.");
    memcpy(output->rows, rows->data, count * sizeof *output->rows);
    output->row_count = (uint32_t)count;
    for (size_t i = 0; i < count; i++)
        if (output->rows[i] >= c->lengths[sequence] ||
            (i > 0 && output->rows[i] <= output->rows[i - 1]))
            return refuse(why, MLA_CHECKPOINT,
                          "golden.safetensors: entry %zu of %s is no position, or out of order.", i,
                          name);
    return MLA_OK;
}

static enum mla_status read_all(const char *dir, struct mla_case *out, char *why)
{
    char path[PATH_BYTES];
    snprintf(path, sizeof path, "%s/config.json", dir);
    enum mla_status status = mla_config_read(path, &out->config, why);
    if (status != MLA_OK)
        return status;

    json_error_t error;
    snprintf(path, sizeof path, "%s/case.json", dir);
    json_t *json = json_load_file(path, JSON_REJECT_DUPLICATES, &error);
    if (!json)
        return refuse(why, MLA_CONFIG, "case.json: %s (line %d).", error.text, error.line);
    status = read_description(json, out, why);
    json_decref(json);
    if (status != MLA_OK)
        return status;

    snprintf(path, sizeof path, "%s/golden.safetensors", dir);
    status = mla_safetensors_open(path, &out->golden, why);
    for (uint32_t layer = 0; layer < out->layer_count && status == MLA_OK; layer++)
        for (uint32_t i = 0; i < out->sequence_count && status == MLA_OK; i++)
            status = read_output(out, layer, i, why);
    return status;
}

enum mla_status mla_case_open(const char *dir, struct mla_case *out, char *why)
{
    struct mla_case read = {0};
    enum mla_status status = read_all(dir, &read, why);
    if (status == MLA_OK)
        *out = read;
    else
        mla_case_close(&read);
    return status;
}

void mla_case_close(struct mla_case *golden_case)
{
    for (size_t i = 0; i < (size_t)golden_case->layer_count * golden_case->sequence_count; i++)
        free(golden_case->outputs[i].rows);
    free(golden_case->outputs);
    free(golden_case->lengths);
    mla_safetensors_close(&golden_case->golden);
    *golden_case = (struct mla_case){0};
}

void mla_case_input(const struct mla_case *golden_case, const char *word, uint32_t layer,
                    uint32_t sequence, uint32_t first, uint32_t count, float *dst)
{
    uint64_t hidden = golden_case->config.hidden;
    uint64_t shape[2] = {golden_case->lengths[sequence], hidden};
    char name[NAME_BYTES];
    snprintf(name, sizeof name, "%s.%" PRIu32 ".%" PRIu32, word, golden_case->layers[layer],
             sequence);
    assert((uint64_t)first + count <= shape[0]);
    mla_formula_fill(name, 2, shape, first * hidden, count * hidden, dst);
}

bool mla_case_golden(const struct mla_case *golden_case, uint32_t layer, uint32_t sequence,
                     uint32_t position, float *dst)
{
    const struct mla_case_output *output =
        &golden_case->outputs[layer * golden_case->sequence_count + sequence];
    uint32_t low = 0, high = output->row_count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (output->rows[middle] < position)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == output->row_count || output->rows[low] != position)
        return false;
    uint64_t hidden = golden_case->config.hidden;
    mla_tensor_to_f32(output->tensor, low * hidden, hidden, dst);
    return true;
}
