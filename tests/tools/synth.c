/* mla-synth: a checkpoint folder with weights that are formulas, for tests and benchmarks. */
#include "tests/lib/synth.h"

#include "proto/limits.h"
#include "proto/parse.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char help[] =
    "usage: mla-synth --config FILE --layers LIST --out DIR [option ...]\n"
    "Writes a checkpoint of the attention layers of a model whose config.json is FILE.\n"
    "The weights are a formula of their names (tests/golden/golden.py).\n"
    "\n"
    "  --config FILE   a model's config.json, or the folder it is in\n"
    "  --layers LIST   layers, such as 0,1 or 0-3,7\n"
    "  --out DIR       the folder to write: config.json and model*.safetensors\n"
    "  --shards N      files to spread the tensors over (1)\n"
    "  --dtype T       bf16, f16 or f32 (bf16)\n"
    "  --help          this text\n";

enum option_id { CONFIG = 256, LAYERS, OUT, SHARDS, DTYPE, HELP };

static const struct option options[] = {
    {"config", required_argument, NULL, CONFIG},
    {"layers", required_argument, NULL, LAYERS},
    {"out", required_argument, NULL, OUT},
    {"shards", required_argument, NULL, SHARDS},
    {"dtype", required_argument, NULL, DTYPE},
    {"help", no_argument, NULL, HELP},
    {0},
};

struct progress {
    bool terminal;
    char tensor[96]; /* the last one told */
    int percent;
};

/* A bar on a terminal; a line per tensor elsewhere. */
static void show(void *context, const char *tensor, uint64_t bytes_done, uint64_t bytes_total)
{
    struct progress *progress = context;
    int percent = (int)((double)bytes_done * 100 / (double)bytes_total);
    bool other = strcmp(progress->tensor, tensor) != 0;
    if (progress->terminal && (other || percent != progress->percent)) {
        static const char bar[] = "##################################################";
        fprintf(stderr, "\r[%-50.*s] %3d%% %-60.60s", percent / 2, bar, percent, tensor);
    } else if (!progress->terminal && other) {
        fprintf(stderr, "%3d%% %s\n", percent, tensor);
    }
    if (bytes_done == bytes_total)
        fputs(progress->terminal ? "\n" : "100%\n", stderr);
    progress->percent = percent;
    snprintf(progress->tensor, sizeof progress->tensor, "%s", tensor);
}

static bool parse_number(const char **text, unsigned long max, unsigned long *out)
{
    char *end;
    if (**text < '0' || **text > '9')
        return false;
    *out = strtoul(*text, &end, 10);
    *text = end;
    return *out <= max;
}

/* "0,1" or "0-3,7"; no layer twice. */
static bool parse_layers(const char *text, uint32_t layers[MLA_LAYERS_MAX], size_t *count)
{
    bool chosen[MLA_LAYERS_MAX] = {false};
    for (;;) {
        unsigned long first, last;
        if (!parse_number(&text, MLA_LAYERS_MAX - 1, &first))
            return false;
        last = first;
        if (*text == '-' && (text++, !parse_number(&text, MLA_LAYERS_MAX - 1, &last)))
            return false;
        for (unsigned long layer = first; layer <= last; layer++) {
            if (chosen[layer])
                return false;
            chosen[layer] = true;
            layers[(*count)++] = (uint32_t)layer;
        }
        if (first > last || (*text && *text != ','))
            return false;
        if (!*text)
            return true;
        text++;
    }
}

static bool parse_dtype(const char *text, enum mla_dtype *out)
{
    static const enum mla_dtype dtypes[] = {MLA_F32, MLA_BF16, MLA_F16};
    for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; i++) {
        if (strcmp(text, mla_dtype_name(dtypes[i])) == 0) {
            *out = dtypes[i];
            return true;
        }
    }
    return false;
}

struct chosen {
    struct mla_synth synth;
    uint32_t layers[MLA_LAYERS_MAX]; /* synth.layers */
};

static bool set(void *context, int id, const char *text)
{
    struct chosen *chosen = context;
    struct mla_synth *out = &chosen->synth;
    uint64_t shards = 0;
    switch (id) {
    case CONFIG:
        out->config = text;
        return true;
    case LAYERS:
        out->layer_count = 0;
        return parse_layers(text, chosen->layers, &out->layer_count);
    case OUT:
        out->out = text;
        return true;
    case SHARDS:
        if (!mla_parse_number(text, 1, 99999, &shards))
            return false;
        out->shards = shards;
        return true;
    default:
        return parse_dtype(text, &out->dtype);
    }
}

int main(int argc, char **argv)
{
    struct progress progress = {.terminal = isatty(STDERR_FILENO)};
    struct chosen chosen = {
        .synth = {.shards = 1, .dtype = MLA_BF16, .progress = show, .context = &progress}};
    struct mla_synth *synth = &chosen.synth;
    char why[MLA_SENTENCE_BYTES_MAX];
    synth->layers = chosen.layers;
    enum mla_status status = mla_parse_options(argc, argv, options, help, set, &chosen);
    if (status != MLA_OK)
        return status == MLA_AGAIN ? 0 : mla_status_exit_code(status);
    if (!synth->config || !synth->out || synth->layer_count == 0) {
        fputs("mla-synth: --config, --layers and --out are needed; see --help\n", stderr);
        return mla_status_exit_code(MLA_OPTION);
    }
    status = mla_synth_write(synth, why);
    if (status)
        fprintf(stderr, "%smla-synth: %s\n", progress.terminal && *progress.tensor ? "\n" : "",
                why);
    return mla_status_exit_code(status);
}
