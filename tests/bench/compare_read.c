/* Rows from mla-bench's own JSON, and from CSV that people write. */
#include "tests/bench/compare_rows.h"

#include "proto/limits.h"
#include "proto/parse.h"
#include "worker/input.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LINE_BYTES_MAX = 512, COLUMNS_MAX = 16, SHAPE_MAX = 1 << 20 };

static bool put_text(char *out, size_t bytes, const char *text)
{
    size_t length = strlen(text);
    if (length >= bytes)
        return false;
    memcpy(out, text, length + 1);
    return true;
}

static bool put_positive(const char *text, double *out)
{
    char *end = NULL;
    double value = strtod(text, &end);
    if (end == text || *end != '\0' || !isfinite(value) || value <= 0)
        return false;
    *out = value;
    return true;
}

/* "128x4096", or as mla-bench prints it, "128 x 4096". */
static bool put_shape(const char *text, struct mla_row_key *key)
{
    char first[16];
    size_t length = strspn(text, "0123456789");
    const char *rest = text + length + strspn(text + length, " ");
    if (length >= sizeof first || *rest != 'x')
        return false;
    snprintf(first, sizeof first, "%.*s", (int)length, text);
    rest += 1 + strspn(rest + 1, " ");
    return mla_parse_u32(first, 1, SHAPE_MAX, &key->first) &&
           mla_parse_u32(rest, 1, SHAPE_MAX, &key->second);
}

/* One row, from either kind of file. */
struct draft {
    struct mla_row row;
    double tflops; /* 0: us is given */
};

static void begin(struct draft *draft)
{
    memset(draft, 0, sizeof *draft); /* padding too */
    draft->row.key.rows = 1;
    draft->row.key.unequal_seed = -1;
}

static enum mla_status finish(struct draft *draft, struct mla_rows *rows, const char *where,
                              char *why)
{
    struct mla_row *row = &draft->row;
    const struct mla_row_key *key = &row->key;
    bool layer = strcmp(key->bench, "layer") == 0;
    bool attention = strcmp(key->bench, "attention") == 0;
    if (!layer && !attention && strcmp(key->bench, "prefill") != 0)
        return mla_refuse(MLA_OPTION, why, "%s: bench is attention, prefill or layer", where);
    if (key->heads == 0 || key->first == 0)
        return mla_refuse(MLA_OPTION, why, "%s: heads or shape is missing", where);
    if (layer && key->model[0] == '\0')
        return mla_refuse(MLA_OPTION, why, "%s: a layer has a model", where);
    if (attention && key->rows > key->second)
        return mla_refuse(MLA_OPTION, why, "%s: a context is shorter than its new tokens", where);
    if (row->cost.bytes <= 0)
        row->cost = mla_row_cost(key);
    if (draft->tflops > 0 && row->us > 0)
        return mla_refuse(MLA_OPTION, why, "%s: us and tflops are both given", where);
    if (draft->tflops > 0 && row->cost.flops > 0)
        row->us = row->cost.flops / draft->tflops / 1e6;
    if (row->us <= 0)
        return mla_refuse(MLA_OPTION, why, "%s: there is no time", where);
    enum mla_status status = mla_rows_add(rows, row);
    return status == MLA_OPTION
               ? mla_refuse(MLA_OPTION, why, "%s: this shape is there already", where)
               : status;
}

/* ---- CSV */

struct csv {
    const char *path;
    uint32_t line;
    uint32_t column_count;
    char columns[COLUMNS_MAX][16];
};

static bool set_field(struct draft *draft, const char *column, const char *text)
{
    struct mla_row_key *key = &draft->row.key;
    uint32_t seed = 0;
    if (*text == '\0')
        return true;
    if (strcmp(column, "bench") == 0)
        return put_text(key->bench, sizeof key->bench, text);
    if (strcmp(column, "model") == 0)
        return put_text(key->model, sizeof key->model, text);
    if (strcmp(column, "shape") == 0)
        return put_shape(text, key);
    if (strcmp(column, "heads") == 0)
        return mla_parse_u32(text, 1, MLA_HEADS_MAX, &key->heads);
    if (strcmp(column, "rows") == 0)
        return mla_parse_u32(text, 1, SHAPE_MAX, &key->rows);
    if (strcmp(column, "context") == 0)
        return mla_parse_u32(text, 0, MLA_CONTEXT_MAX, &key->context);
    if (strcmp(column, "us") == 0)
        return put_positive(text, &draft->row.us);
    if (strcmp(column, "tflops") == 0)
        return put_positive(text, &draft->tflops);
    if (strcmp(column, "bytes") == 0)
        return put_positive(text, &draft->row.cost.bytes);
    if (strcmp(column, "flops") == 0)
        return put_positive(text, &draft->row.cost.flops);
    if (strcmp(column, "unequal_seed") != 0 || !mla_parse_u32(text, 0, UINT32_MAX, &seed))
        return false;
    key->unequal_seed = seed;
    return true;
}

static bool is_column(const char *name)
{
    static const char *const known[] = {"bench",  "model",   "heads",       "shape",
                                        "rows",   "context", "us",          "bytes",
                                        "tflops", "flops",   "unequal_seed"};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(name, known[i]) == 0)
            return true;
    return false;
}

/* The next field of a line; *rest is NULL after the last. */
static char *next_field(char **rest)
{
    char *field = *rest + strspn(*rest, " \t");
    char *comma = strchr(field, ',');
    *rest = comma ? comma + 1 : NULL;
    char *end = comma ? comma : field + strlen(field);
    while (end > field && (end[-1] == ' ' || end[-1] == '\t'))
        end--;
    *end = '\0';
    return field;
}

static enum mla_status read_header(struct csv *csv, char *line, char *why)
{
    for (char *rest = line; rest;) {
        const char *name = next_field(&rest);
        if (csv->column_count == COLUMNS_MAX || !is_column(name))
            return mla_refuse(MLA_OPTION, why, "%s:%u: there is no column '%s'", csv->path,
                              csv->line, name);
        for (uint32_t i = 0; i < csv->column_count; i++)
            if (strcmp(csv->columns[i], name) == 0)
                return mla_refuse(MLA_OPTION, why, "%s:%u: column '%s' twice", csv->path, csv->line,
                                  name);
        (void)put_text(csv->columns[csv->column_count++], sizeof csv->columns[0], name);
    }
    return MLA_OK;
}

static enum mla_status read_line(struct csv *csv, char *line, struct mla_rows *rows, char *why)
{
    struct draft draft;
    uint32_t count = 0;
    char where[MLA_SENTENCE_BYTES_MAX / 2];
    snprintf(where, sizeof where, "%s:%u", csv->path, csv->line);
    begin(&draft);
    for (char *rest = line; rest; count++) {
        const char *text = next_field(&rest);
        if (count == csv->column_count)
            return mla_refuse(MLA_OPTION, why, "%s: more fields than columns", where);
        if (!set_field(&draft, csv->columns[count], text))
            return mla_refuse(MLA_OPTION, why, "%s: wrong %s: '%.40s'", where, csv->columns[count],
                              text);
    }
    return finish(&draft, rows, where, why);
}

/* "# device: NVIDIA H100 80GB HBM3"; other comments are for people. */
static void read_comment(char *text, struct mla_rows *rows)
{
    static const double GIGA = 1e9, TERA = 1e12;
    double value = 0;
    text += strspn(text, "# \t");
    char *colon = strchr(text, ':');
    if (!colon)
        return;
    const char *what = colon + 1 + strspn(colon + 1, " \t");
    *colon = '\0';
    if (strcmp(text, "name") == 0)
        (void)put_text(rows->name, sizeof rows->name, what);
    else if (strcmp(text, "device") == 0)
        (void)put_text(rows->device, sizeof rows->device, what);
    else if (strcmp(text, "when") == 0)
        (void)put_text(rows->when, sizeof rows->when, what);
    else if (strcmp(text, "bandwidth") == 0 && put_positive(what, &value))
        rows->ceilings.bytes_per_s = value * GIGA;
    else if (strcmp(text, "peak") == 0 && put_positive(what, &value))
        rows->ceilings.flops_per_s = value * TERA;
}

static enum mla_status read_csv(FILE *file, const char *path, struct mla_rows *rows, char *why)
{
    struct csv csv = {.path = path};
    char line[LINE_BYTES_MAX];
    enum mla_status status = MLA_OK;
    while (status == MLA_OK && fgets(line, sizeof line, file)) {
        csv.line++;
        if (strlen(line) == sizeof line - 1)
            return mla_refuse(MLA_OPTION, why, "%s:%u: too long a line", path, csv.line);
        line[strcspn(line, "\r\n")] = '\0';
        if (line[0] == '#')
            read_comment(line, rows);
        else if (line[strspn(line, " \t")] == '\0')
            continue;
        else if (csv.column_count == 0)
            status = read_header(&csv, line, why);
        else
            status = read_line(&csv, line, rows, why);
    }
    if (status == MLA_OK && csv.column_count == 0)
        return mla_refuse(MLA_OPTION, why, "%s: there is no line of columns", path);
    return status;
}

/* ---- JSON */

static double real(const json_t *object, const char *name)
{
    return json_number_value(json_object_get(object, name));
}

static uint32_t whole(const json_t *object, const char *name)
{
    json_int_t value = json_integer_value(json_object_get(object, name));
    return value > 0 && value <= SHAPE_MAX ? (uint32_t)value : 0;
}

static const char *text(const json_t *object, const char *name)
{
    const char *found = json_string_value(json_object_get(object, name));
    return found ? found : "";
}

/* The folder of ".../v3/config.json", or of ".../v3". */
static void model_name(const char *config, char *out, size_t bytes)
{
    static const char file[] = "/config.json";
    size_t length = strlen(config);
    if (length > strlen(file) && strcmp(config + length - strlen(file), file) == 0)
        length -= strlen(file);
    while (length > 1 && config[length - 1] == '/')
        length--;
    size_t at = length;
    while (at > 0 && config[at - 1] != '/')
        at--;
    snprintf(out, bytes, "%.*s", (int)(length - at), config + at);
}

static void take_result(struct draft *draft, const json_t *result)
{
    draft->row.us = real(result, "median_us");
    draft->row.cost = (struct mla_cost){real(result, "bytes"), real(result, "flops")};
}

/* Decode of a layer: one row. */
static enum mla_status read_layer(const json_t *root, const char *path, struct mla_rows *rows,
                                  char *why)
{
    size_t index = 0;
    const json_t *result = NULL;
    json_array_foreach(json_object_get(root, "decode"), index, result)
    {
        struct draft draft;
        if (strcmp(text(result, "name"), "whole layer") != 0)
            continue;
        begin(&draft);
        struct mla_row_key *key = &draft.row.key;
        (void)put_text(key->bench, sizeof key->bench, "layer");
        model_name(text(root, "config"), key->model, sizeof key->model);
        key->heads = whole(root, "heads");
        key->first = whole(root, "decode_rows");
        key->second = whole(root, "context");
        take_result(&draft, result);
        return finish(&draft, rows, path, why);
    }
    return mla_refuse(MLA_OPTION, why, "%s: no decode of a whole layer", path);
}

static enum mla_status read_results(const json_t *root, const char *bench, const char *path,
                                    struct mla_rows *rows, char *why)
{
    size_t index = 0;
    const json_t *result = NULL;
    enum mla_status status = MLA_OK;
    json_array_foreach(json_object_get(root, "results"), index, result)
    {
        struct draft draft;
        begin(&draft);
        struct mla_row_key *key = &draft.row.key;
        (void)put_text(key->bench, sizeof key->bench, bench);
        key->heads = whole(result, "heads");
        key->context = whole(root, "context");
        if (json_object_get(root, "rows_per_sequence"))
            key->rows = whole(root, "rows_per_sequence");
        if (json_is_true(json_object_get(root, "unequal")))
            key->unequal_seed = json_integer_value(json_object_get(root, "seed"));
        if (!put_shape(text(result, "name"), key))
            return mla_refuse(MLA_OPTION, why, "%s: no shape: '%.40s'", path, text(result, "name"));
        take_result(&draft, result);
        if ((status = finish(&draft, rows, path, why)) != MLA_OK)
            return status;
    }
    return status;
}

static enum mla_status read_json(FILE *file, const char *path, struct mla_rows *rows, char *why)
{
    json_error_t error;
    json_t *root = json_loadf(file, JSON_REJECT_DUPLICATES, &error);
    if (!root)
        return mla_refuse(MLA_OPTION, why, "%.100s:%d: %.100s", path, error.line, error.text);
    const char *bench = text(root, "bench");
    (void)put_text(rows->device, sizeof rows->device, text(root, "device"));
    rows->ceilings.bytes_per_s = real(root, "bandwidth_bytes_s");
    rows->ceilings.flops_per_s = real(root, "peak_flops_s");
    enum mla_status status = MLA_OK;
    if (strcmp(bench, "layer") == 0)
        status = read_layer(root, path, rows, why);
    else if (strcmp(bench, "decode attention") == 0)
        status = read_results(root, "attention", path, rows, why);
    else if (strcmp(bench, "prefill attention") == 0)
        status = read_results(root, "prefill", path, rows, why);
    else
        status =
            mla_refuse(MLA_OPTION, why, "%s: not the JSON of attention, prefill or layer", path);
    json_decref(root);
    return status;
}

enum mla_status mla_rows_read(const char *path, struct mla_rows *rows, char *why)
{
    FILE *file = fopen(path, "r");
    if (!file)
        return mla_refuse(MLA_OPTION, why, "%s: %s", path, strerror(errno));
    int first = getc(file);
    ungetc(first, file);
    uint32_t before = rows->count;
    enum mla_status status =
        first == '{' ? read_json(file, path, rows, why) : read_csv(file, path, rows, why);
    if (status == MLA_OK && ferror(file))
        status = mla_refuse(MLA_OPTION, why, "%s: %s", path, strerror(errno));
    if (status == MLA_OK && rows->count == before)
        status = mla_refuse(MLA_OPTION, why, "%s: there are no rows", path);
    fclose(file);
    if (status == MLA_MEMORY)
        snprintf(why, MLA_SENTENCE_BYTES_MAX, "%s", mla_status_sentence(status));
    return status;
}
