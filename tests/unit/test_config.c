#include "proto/limits.h"
#include "worker/config.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* DeepSeek-V3's own config.json, as far as it matters. Names with a dot are of the rope object. */
static const struct field {
    const char *name, *value;
} published[] = {
    {"model_type", "\"deepseek_v3\""},
    {"hidden_size", "7168"},
    {"num_attention_heads", "128"},
    {"num_hidden_layers", "61"},
    {"max_position_embeddings", "163840"},
    {"q_lora_rank", "1536"},
    {"kv_lora_rank", "512"},
    {"qk_nope_head_dim", "128"},
    {"qk_rope_head_dim", "64"},
    {"v_head_dim", "128"},
    {"attention_bias", "false"},
    {"rope_theta", "10000"},
    {".type", "\"yarn\""},
    {".factor", "40"},
    {".original_max_position_embeddings", "4096"},
    {".beta_fast", "32"},
    {".beta_slow", "1"},
    {".mscale", "1.0"},
    {".mscale_all_dim", "1.0"},
};

static char json[4096], why[MLA_SENTENCE_BYTES_MAX];

/* Writes the published config into `json`, with some fields changed, added or (NULL) left out. */
static void make(const char *rope_object, const struct field *changes, size_t count)
{
    struct field fields[48];
    size_t total = sizeof published / sizeof *published;
    memcpy(fields, published, sizeof published);
    for (size_t i = 0; i < count; i++) {
        size_t k = 0;
        while (k < total && strcmp(fields[k].name, changes[i].name) != 0)
            k++;
        fields[k] = changes[i];
        total += k == total;
    }
    char *end = json;
    for (int inside = 0; inside < 2; inside++) {
        end += inside ? sprintf(end, ",\"%s\":", rope_object) : 0;
        const char *comma = "{";
        for (size_t i = 0; i < total; i++) {
            if ((fields[i].name[0] == '.') != inside || !fields[i].value)
                continue;
            end += sprintf(end, "%s\"%s\":%s", comma, fields[i].name + inside, fields[i].value);
            comma = ",";
        }
        end += inside ? sprintf(end, "%s}}", *comma == '{' ? "{" : "") : 0;
    }
}

static enum mla_status parse(struct mla_config *out)
{
    *why = '\0';
    return mla_config_parse(json, strlen(json), out, why);
}

static void accept(const char *rope_object, const struct field *changes, size_t count,
                   struct mla_config *out)
{
    make(rope_object, changes, count);
    cr_assert_eq(parse(out), MLA_OK, "%s", why);
}

static void expect_same(const struct mla_config *a, const struct mla_config *b)
{
    const struct mla_rope_config *x = &a->rope_config, *y = &b->rope_config;
    cr_expect_str_eq(a->model_type, b->model_type);
    cr_expect(a->hidden == b->hidden && a->heads == b->heads && a->q_lora == b->q_lora &&
              a->latent == b->latent && a->nope == b->nope && a->rope == b->rope && a->v == b->v &&
              a->layers == b->layers && a->context_max == b->context_max &&
              a->attention_bias == b->attention_bias);
    cr_expect(
        x->type == y->type && x->theta == y->theta && x->interleaved == y->interleaved &&
        x->factor == y->factor && x->beta_fast == y->beta_fast && x->beta_slow == y->beta_slow &&
        x->mscale == y->mscale && x->mscale_all_dim == y->mscale_all_dim &&
        x->attention_factor == y->attention_factor && x->original_context == y->original_context);
}

Test(config, published)
{
    struct mla_config c;
    accept("rope_scaling", NULL, 0, &c);
    cr_expect_str_eq(c.model_type, "deepseek_v3");
    cr_expect_eq(c.hidden, 7168);
    cr_expect_eq(c.heads, 128);
    cr_expect_eq(c.q_lora, 1536);
    cr_expect_eq(c.latent, 512);
    cr_expect_eq(c.nope, 128);
    cr_expect_eq(c.rope, 64);
    cr_expect_eq(c.v, 128);
    cr_expect_eq(c.layers, 61);
    cr_expect_eq(c.context_max, 163840);
    cr_expect(!c.attention_bias);
    cr_expect_eq(c.rope_config.type, MLA_ROPE_YARN);
    cr_expect_eq(c.rope_config.theta, 10000);
    cr_expect(c.rope_config.interleaved);
    cr_expect_eq(c.rope_config.factor, 40);
    cr_expect_eq(c.rope_config.original_context, 4096);
    cr_expect_eq(c.rope_config.beta_fast, 32);
    cr_expect_eq(c.rope_config.beta_slow, 1);
    cr_expect_eq(c.rope_config.mscale, 1);
    cr_expect_eq(c.rope_config.mscale_all_dim, 1);
}

Test(config, both_spellings_agree)
{
    static const struct field changes[] = {
        {"rope_theta", NULL}, {".rope_theta", "10000.0"}, {".rope_type", "\"yarn\""}};
    struct mla_config old, new;
    accept("rope_scaling", NULL, 0, &old);
    accept("rope_parameters", changes, 3, &new);
    expect_same(&old, &new);
    /* theta may also stay where it was */
    accept("rope_parameters", NULL, 0, &new);
    expect_same(&old, &new);
}

Test(config, plain_rope)
{
    static const struct field null[] = {{"rope_scaling", "null"}};
    static const struct field named[] = {{".type", "\"default\""}};
    struct mla_config a, b;
    accept("unused", null, 1, &a);
    accept("rope_parameters", named, 1, &b);
    cr_expect_eq(a.rope_config.type, MLA_ROPE_PLAIN);
    cr_expect_eq(a.rope_config.theta, 10000);
    expect_same(&a, &b);
    accept("unused", NULL, 0, &b);
    expect_same(&a, &b);
}

Test(config, optional_fields)
{
    static const struct field less[] = {{"q_lora_rank", NULL}, {"attention_bias", NULL},
                                        {".beta_fast", NULL},  {".beta_slow", "null"},
                                        {".mscale", NULL},     {".mscale_all_dim", NULL}};
    static const struct field more[] = {
        {"model_type", "\"kimi_k2\""},    {"q_lora_rank", "null"},      {"attention_bias", "true"},
        {"rope_interleave", "false"},     {".attention_factor", "1.5"}, {".truncate", "true"},
        {".partial_rotary_factor", "1.0"}};
    static const struct field zero[] = {{"q_lora_rank", "0"}};
    struct mla_config c;
    accept("rope_scaling", less, 6, &c);
    cr_expect_eq(c.q_lora, 0);
    cr_expect(!c.attention_bias);
    cr_expect_eq(c.rope_config.beta_fast, 32);
    cr_expect_eq(c.rope_config.beta_slow, 1);
    cr_expect_eq(c.rope_config.mscale, 0);
    cr_expect_eq(c.rope_config.mscale_all_dim, 0);
    cr_expect_eq(c.rope_config.attention_factor, 0);
    accept("rope_scaling", more, 7, &c);
    cr_expect_str_eq(c.model_type, "kimi_k2");
    cr_expect_eq(c.q_lora, 0);
    cr_expect(c.attention_bias);
    cr_expect(!c.rope_config.interleaved);
    cr_expect_eq(c.rope_config.attention_factor, 1.5);
    accept("rope_scaling", zero, 1, &c);
    cr_expect_eq(c.q_lora, 0);
}

/* Each with what the sentence must name. */
static const struct {
    struct field change;
    const char *sentence;
} refused[] = {
    {{"model_type", NULL}, "no model_type"},
    {{"model_type", "3"}, "model_type is 3"},
    {{"model_type", "\"a_name_that_is_longer_than_31_bytes\""}, "model_type"},
    {{"hidden_size", NULL}, "no hidden_size"},
    {{"hidden_size", "null"}, "no hidden_size"},
    {{"hidden_size", "\"7168\""}, "hidden_size is \"7168\""},
    {{"hidden_size", "7168.0"}, "hidden_size is 7168.0"},
    {{"hidden_size", "-1"}, "hidden_size is -1"},
    {{"hidden_size", "32769"}, "hidden_size is 32769, not an integer from 1 to 32768"},
    {{"hidden_size", "4294974464"}, "hidden_size is 4294974464"},
    {{"num_attention_heads", "0"}, "num_attention_heads is 0"},
    {{"num_attention_heads", "1025"}, "num_attention_heads is 1025"},
    {{"num_hidden_layers", "257"}, "num_hidden_layers is 257"},
    {{"max_position_embeddings", "1048577"}, "max_position_embeddings is 1048577"},
    {{"q_lora_rank", "8193"}, "q_lora_rank is 8193"},
    {{"q_lora_rank", "true"}, "q_lora_rank is true"},
    {{"kv_lora_rank", NULL}, "no kv_lora_rank"},
    {{"kv_lora_rank", "4097"}, "kv_lora_rank is 4097"},
    {{"qk_nope_head_dim", "0"}, "qk_nope_head_dim is 0"},
    {{"qk_rope_head_dim", "0"}, "qk_rope_head_dim is 0"},
    {{"qk_rope_head_dim", "63"}, "qk_rope_head_dim is 63, not an even number"},
    {{"v_head_dim", "[128]"}, "v_head_dim is [128]"},
    {{"attention_bias", "0"}, "attention_bias is 0"},
    {{"rope_interleave", "null"}, "rope_interleave is null"},
    {{"index_topk", "2048"}, "index_topk"},
    {{"rope_theta", NULL}, "no rope_theta"},
    {{"rope_theta", "1"}, "rope_theta is 1"},
    {{"rope_theta", "1e13"}, "rope_theta is 1"},
    {{"rope_theta", "\"10000\""}, "rope_theta is \"10000\""},
    {{"rope_parameters", "{}"}, "both rope_scaling and rope_parameters"},
    {{".type", NULL}, "no rope_scaling.rope_type"},
    {{".type", "\"linear\""}, "rope_scaling.type is \"linear\""},
    {{".rope_type", "\"longrope\""}, "rope_scaling.type is \"yarn\", not the same"},
    {{".factor", NULL}, "no rope_scaling.factor"},
    {{".factor", "0.5"}, "rope_scaling.factor is 0.5, not a number of at least 1"},
    {{".factor", "true"}, "rope_scaling.factor is true"},
    {{".original_max_position_embeddings", NULL}, "original_max_position_embeddings"},
    {{".original_max_position_embeddings", "0"}, "original_max_position_embeddings is 0"},
    {{".beta_fast", "0"}, "rope_scaling.beta_fast is 0"},
    {{".beta_fast", "0.5"}, "rope_scaling.beta_fast is 0.5, less than beta_slow"},
    {{".beta_slow", "-1"}, "rope_scaling.beta_slow is -1"},
    {{".mscale", "-1"}, "rope_scaling.mscale is -1"},
    {{".mscale_all_dim", "\"1\""}, "rope_scaling.mscale_all_dim is \"1\""},
    {{".attention_factor", "0"}, "rope_scaling.attention_factor is 0"},
    {{".truncate", "false"}, "rope_scaling.truncate is false"},
    {{".partial_rotary_factor", "0.5"}, "rope_scaling.partial_rotary_factor is 0.5"},
};

Test(config, refused)
{
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        struct mla_config config = {.hidden = 12345};
        make("rope_scaling", &refused[i].change, 1);
        cr_expect_eq(parse(&config), MLA_CONFIG, "%s", json);
        cr_expect(strstr(why, refused[i].sentence), "expected \"%s\", got \"%s\"",
                  refused[i].sentence, why);
        cr_expect_eq(config.hidden, 12345, "a refused config changed the result");
    }
}

/* Not JSON, or not an object, or not one meaning. */
Test(config, refused_text)
{
    static const struct field rope_number = {"rope_parameters", "3"};
    static const struct {
        const char *text, *sentence;
    } texts[] = {
        {"", "'[' or '{' expected"},
        {"{", "string or '}' expected"},
        {"[]", "not a JSON object"},
        {"7", "'[' or '{' expected"},
        {"{\"hidden_size\": 1, \"hidden_size\": 2}", "duplicate"},
        {"{\"a\": {\"b\": 1, \"b\": 1}}", "duplicate"},
        {"{} {}", "end of file expected"},
        {"{\"a\": NaN}", "invalid token"},
        {"{\"a\": 1e999}", "real number overflow"},
        {"{\"a\": 99999999999999999999}", "too big integer"},
        {"{\"a\": \"\\u0000\"}", "\\u0000 is not allowed"},
        {"{\"a\": \"\xff\"}", "unable to decode byte"},
    };
    struct mla_config config;
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        snprintf(json, sizeof json, "%s", texts[i].text);
        cr_expect_eq(parse(&config), MLA_CONFIG, "%s", texts[i].text);
        cr_expect(strstr(why, "config.json"), "%s", why);
        cr_expect(strstr(why, texts[i].sentence), "%s: %s", texts[i].text, why);
    }
    make("unused", &rope_number, 1);
    cr_expect_eq(parse(&config), MLA_CONFIG);
    cr_expect(strstr(why, "rope_parameters is 3"), "%s", why);
    /* deeper than jansson goes */
    const size_t depth = 100000;
    char *deep = malloc(depth + 6);
    snprintf(deep, depth + 6, "{\"a\":%0*d", (int)depth, 0);
    memset(deep + 5, '[', depth);
    cr_expect_eq(mla_config_parse(deep, depth + 5, &config, why), MLA_CONFIG);
    cr_expect(strstr(why, "depth"), "%s", why);
    free(deep);
}

Test(config, sentence_is_cut)
{
    static const struct field change = {
        "model_type", "\"a sentence that names what was found must not be as long as the file, so "
                      "that it is cut off somewhere, though where does not matter here, as long as "
                      "it stays within its buffer and within the one of whoever sends it\""};
    struct mla_config config;
    make("rope_scaling", &change, 1);
    cr_assert_eq(parse(&config), MLA_CONFIG);
    cr_expect_lt(strlen(why), 160);
}

Test(config, read)
{
    char path[512];
    struct mla_config by_folder, by_file;
    snprintf(path, sizeof path, "%s/golden/v2-lite", MLA_TESTS_DIR);
    cr_assert_eq(mla_config_read(path, &by_folder, why), MLA_OK, "%s", why);
    cr_expect_str_eq(by_folder.model_type, "deepseek_v2");
    cr_expect_eq(by_folder.q_lora, 0);
    cr_expect_eq(by_folder.rope_config.mscale_all_dim, 0.707);
    snprintf(path, sizeof path, "%s/golden/v2-lite/config.json", MLA_TESTS_DIR);
    cr_assert_eq(mla_config_read(path, &by_file, why), MLA_OK, "%s", why);
    expect_same(&by_folder, &by_file);

    cr_expect_eq(mla_config_read(MLA_TESTS_DIR, &by_file, why), MLA_CONFIG);
    cr_expect(strstr(why, "config.json"), "%s", why);
    cr_expect_eq(mla_config_read("/dev/null", &by_file, why), MLA_CONFIG);
    cr_expect_eq(mla_config_read("/nonexistent", &by_file, why), MLA_CONFIG);
}

/* A file that would fill the memory is not read. */
Test(config, too_large)
{
    char path[] = "/tmp/mla-test-config-XXXXXX";
    struct mla_config config;
    int fd = mkstemp(path);
    cr_assert_geq(fd, 0);
    cr_assert_eq(ftruncate(fd, 1LL << 40), 0);
    cr_expect_eq(mla_config_read(path, &config, why), MLA_CONFIG);
    cr_expect(strstr(why, "at most"), "%s", why);
    close(fd);
    unlink(path);
}
