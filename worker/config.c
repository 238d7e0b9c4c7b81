#include "worker/config.h"

#include "proto/limits.h"
#include "worker/input.h"

#include <float.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#define CONFIG_BYTES_MAX (4u << 20)
#define NUMBER_MAX       1e12 /* beyond it, products of these would leave the range of f32 */

/* One JSON object and how its fields are called in a sentence. */
struct fields {
    const json_t *object;
    const char *prefix; /* "" or "rope_scaling." */
    char *why;
};

static enum mla_status refuse_missing(const struct fields *fields, const char *name)
{
    return mla_refuse(MLA_CONFIG, fields->why, "config.json has no %s%s", fields->prefix, name);
}

static enum mla_status refuse_value(const struct fields *fields, const char *name,
                                    const json_t *value, const char *expected)
{
    char *text = json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT);
    enum mla_status status =
        mla_refuse(MLA_CONFIG, fields->why, "config.json: %s%s is %.60s, not %s", fields->prefix,
                   name, text ? text : "unreadable", expected);
    free(text);
    return status;
}

/* The field, NULL where it is missing or null. */
static const json_t *find(const struct fields *fields, const char *name)
{
    const json_t *value = json_object_get(fields->object, name);
    return json_is_null(value) ? NULL : value;
}

static enum mla_status read_count(const struct fields *fields, const char *name, uint32_t min,
                                  uint32_t max, uint32_t *out)
{
    const json_t *value = find(fields, name);
    if (!value)
        return refuse_missing(fields, name);
    json_int_t count = json_integer_value(value);
    if (!json_is_integer(value) || count < min || count > max) {
        char expected[64];
        snprintf(expected, sizeof expected, "an integer from %u to %u", min, max);
        return refuse_value(fields, name, value, expected);
    }
    *out = (uint32_t)count;
    return MLA_OK;
}

/* A number in [min, NUMBER_MAX]; *out stays where the field is missing. */
static enum mla_status read_number(const struct fields *fields, const char *name, double min,
                                   const char *expected, double *out)
{
    const json_t *value = find(fields, name);
    if (!value)
        return MLA_OK;
    double number = json_number_value(value);
    if (!json_is_number(value) || number < min || number > NUMBER_MAX)
        return refuse_value(fields, name, value, expected);
    *out = number;
    return MLA_OK;
}

static enum mla_status read_bool(const struct fields *fields, const char *name, bool otherwise,
                                 bool *out)
{
    const json_t *value = json_object_get(fields->object, name);
    if (value && !json_is_boolean(value))
        return refuse_value(fields, name, value, "true or false");
    *out = value ? json_is_true(value) : otherwise;
    return MLA_OK;
}

/* rope_type, or type as it was called before, or both if they agree. */
static enum mla_status read_rope_type(const struct fields *fields, enum mla_rope_type *out)
{
    const json_t *type = find(fields, "rope_type"), *old = find(fields, "type");
    const char *name = type ? "rope_type" : "type";
    if (type && old && !json_equal(type, old))
        return refuse_value(fields, "type", old, "the same as rope_type");
    if (!type)
        type = old;
    if (!type)
        return refuse_missing(fields, "rope_type");
    const char *text = json_string_value(type);
    if (text && strcmp(text, "yarn") == 0)
        *out = MLA_ROPE_YARN;
    else if (text && strcmp(text, "default") == 0)
        *out = MLA_ROPE_PLAIN;
    else
        return refuse_value(fields, name, type, "\"default\" or \"yarn\", the types served here");
    return MLA_OK;
}

static enum mla_status read_yarn(const struct fields *fields, struct mla_rope_config *out)
{
    static const char *const positive = "a number above 0";
    enum mla_status status;
    bool truncate = true;
    out->beta_fast = 32;
    out->beta_slow = 1;
    if (!find(fields, "factor"))
        return refuse_missing(fields, "factor");
    if ((status = read_number(fields, "factor", 1, "a number of at least 1", &out->factor)) ||
        (status = read_count(fields, "original_max_position_embeddings", 1, MLA_CONTEXT_MAX,
                             &out->original_context)) ||
        (status = read_number(fields, "beta_fast", DBL_MIN, positive, &out->beta_fast)) ||
        (status = read_number(fields, "beta_slow", DBL_MIN, positive, &out->beta_slow)) ||
        (status = read_number(fields, "mscale", 0, "a number from 0 on", &out->mscale)) ||
        (status = read_number(fields, "mscale_all_dim", 0, "a number from 0 on",
                              &out->mscale_all_dim)) ||
        (status =
             read_number(fields, "attention_factor", DBL_MIN, positive, &out->attention_factor)) ||
        (status = read_bool(fields, "truncate", true, &truncate)))
        return status;
    if (out->beta_fast < out->beta_slow)
        return mla_refuse(MLA_CONFIG, fields->why,
                          "config.json: %sbeta_fast is %g, less than beta_slow, which is %g",
                          fields->prefix, out->beta_fast, out->beta_slow);
    if (!truncate)
        return mla_refuse(MLA_CONFIG, fields->why,
                          "config.json: %struncate is false, which is not served here",
                          fields->prefix);
    return MLA_OK;
}

/* The two spellings differ in where theta is and in the name of the object. */
static enum mla_status read_rope(const struct fields *root, struct mla_rope_config *out)
{
    const json_t *scaling = find(root, "rope_scaling");
    const json_t *parameters = find(root, "rope_parameters");
    struct fields fields = {.why = root->why};
    enum mla_status status;
    if (scaling && parameters)
        return mla_refuse(MLA_CONFIG, root->why,
                          "config.json has both rope_scaling and rope_parameters: keep one");
    fields.prefix = parameters ? "rope_parameters." : "rope_scaling.";
    fields.object = parameters ? parameters : scaling;
    if (fields.object && !json_is_object(fields.object))
        return refuse_value(root, parameters ? "rope_parameters" : "rope_scaling", fields.object,
                            "an object");

    const struct fields *theta = find(&fields, "rope_theta") ? &fields : root;
    if (!find(theta, "rope_theta"))
        return refuse_missing(parameters ? &fields : root, "rope_theta");
    /* YaRN divides by ln(theta). */
    if ((status =
             read_number(theta, "rope_theta", 1 + DBL_EPSILON, "a number above 1", &out->theta)) ||
        (status = read_bool(root, "rope_interleave", true, &out->interleaved)))
        return status;
    if (!fields.object)
        return MLA_OK;

    double partial = 1;
    if ((status = read_number(&fields, "partial_rotary_factor", 0, "a number", &partial)) ||
        (status = read_rope_type(&fields, &out->type)))
        return status;
    if (partial != 1)
        return refuse_value(&fields, "partial_rotary_factor",
                            find(&fields, "partial_rotary_factor"),
                            "1: all of qk_rope_head_dim is rotated");
    return out->type == MLA_ROPE_YARN ? read_yarn(&fields, out) : MLA_OK;
}

static enum mla_status read_dims(const struct fields *root, struct mla_config *out)
{
    const struct {
        const char *name;
        uint32_t max;
        uint32_t *out;
    } counts[] = {
        {"hidden_size", MLA_HIDDEN_MAX, &out->hidden},
        {"num_attention_heads", MLA_HEADS_MAX, &out->heads},
        {"kv_lora_rank", MLA_LATENT_MAX, &out->latent},
        {"qk_nope_head_dim", MLA_HEAD_DIM_MAX, &out->nope},
        {"qk_rope_head_dim", MLA_HEAD_DIM_MAX, &out->rope},
        {"v_head_dim", MLA_HEAD_DIM_MAX, &out->v},
        {"num_hidden_layers", MLA_LAYERS_MAX, &out->layers},
        {"max_position_embeddings", MLA_CONTEXT_MAX, &out->context_max},
    };
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        enum mla_status status = read_count(root, counts[i].name, 1, counts[i].max, counts[i].out);
        if (status)
            return status;
    }
    if (out->rope % 2 != 0)
        return mla_refuse(MLA_CONFIG, root->why,
                          "config.json: qk_rope_head_dim is %u, not an even number", out->rope);
    if (find(root, "q_lora_rank"))
        return read_count(root, "q_lora_rank", 0, MLA_Q_LORA_MAX, &out->q_lora);
    return MLA_OK;
}

static enum mla_status read_config(const struct fields *root, struct mla_config *out)
{
    const json_t *type = find(root, "model_type");
    const char *text = json_string_value(type);
    enum mla_status status;
    if (!type)
        return refuse_missing(root, "model_type");
    if (!text || strlen(text) >= sizeof out->model_type)
        return refuse_value(root, "model_type", type, "a name of at most 31 bytes");
    memcpy(out->model_type, text, strlen(text));
    if ((status = read_dims(root, out)) ||
        (status = read_bool(root, "attention_bias", false, &out->attention_bias)) ||
        (status = read_rope(root, &out->rope_config)))
        return status;
    /* DeepSeek-V3.2 and its kin attend to chosen tokens only; all tokens would be another model. */
    if (find(root, "index_topk"))
        return mla_refuse(MLA_CONFIG, root->why,
                          "config.json has index_topk: sparse attention is not served here");
    return MLA_OK;
}

enum mla_status mla_config_parse(const char *json, size_t bytes, struct mla_config *out, char *why)
{
    json_t *object;
    enum mla_status status = mla_json_parse(json, bytes, "config.json", MLA_CONFIG, &object, why);
    if (status)
        return status;
    struct mla_config config = {0};
    status = read_config(&(struct fields){.object = object, .prefix = "", .why = why}, &config);
    json_decref(object);
    if (status)
        return status;
    *out = config;
    return MLA_OK;
}

enum mla_status mla_config_read(const char *path, struct mla_config *out, char *why)
{
    char *json;
    size_t bytes;
    enum mla_status status =
        mla_file_read(path, "config.json", CONFIG_BYTES_MAX, &json, &bytes, why);
    if (status)
        return status == MLA_MEMORY ? status : MLA_CONFIG;
    status = mla_config_parse(json, bytes, out, why);
    free(json);
    return status;
}
