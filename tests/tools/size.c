/* mla-size: how much of a GPU's memory weights, KV cache and workspaces take, and what batch and
 * context are left. Counted by the worker's and the coordinator's own code. */
#include "tests/tools/size.h"

#include "proto/parse.h"
#include "worker/options.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char help[] =
    "usage: mla-size --config FILE [option ...]\n"
    "Says how the memory of each GPU is shared out, and the largest batch and context that fit.\n"
    "\n"
    "  --config FILE         a model's config.json, or the folder it is in\n"
    "  --gpus N              GPUs of all groups together (1)\n"
    "  --groups G            groups they are in, each with its own weights and KV cache (1)\n"
    "  --gpu-memory BYTES    what a rank finds free on its GPU; K, M, G, T are understood.\n"
    "                        With --backend cpu: what is free on the host\n"
    "  --context C           tokens of a sequence: says how many sequences fit\n"
    "  --batch B             sequences at a time: says how many tokens of each fit\n"
    "  --layers A-B          layers to serve (all)\n"
    "  --backend cuda|cpu    activations and weights in bf16, or in f32 (cuda)\n"
    "  --json                the same for programs, in bytes\n"
    "\n"
    "As mla-worker has them:\n"
    "  --kv-dtype f32|bf16, --kv-memory BYTES, --kv-memory-fraction F, --context-chunk N\n"
    "As mla-coordinator has them:\n"
    "  --prefill-tokens-max N, --buckets LIST, --sequences-max N, --context-max N,\n"
    "  --steps-open-max N, --step-tokens-max N, --credits N\n"
    "\n"
    "exit codes: 0 it fits, or nothing was said of memory; 2 wrong option, 3 config.json,\n"
    "6 it does not fit\n";

enum option_id {
    OPTION_CONFIG = 256,
    OPTION_MEMORY,
    OPTION_LAYERS,
    OPTION_BACKEND,
    OPTION_JSON,
    OPTION_KV_DTYPE,
    OPTION_KV_MEMORY,
    OPTION_KV_FRACTION,
    OPTION_BUCKETS,
    OPTION_HELP,
    OPTION_NUMBER, /* the first of those in set_number */
};

static const struct option options[] = {
    {"config", required_argument, NULL, OPTION_CONFIG},
    {"gpu-memory", required_argument, NULL, OPTION_MEMORY},
    {"layers", required_argument, NULL, OPTION_LAYERS},
    {"backend", required_argument, NULL, OPTION_BACKEND},
    {"json", no_argument, NULL, OPTION_JSON},
    {"kv-dtype", required_argument, NULL, OPTION_KV_DTYPE},
    {"kv-memory", required_argument, NULL, OPTION_KV_MEMORY},
    {"kv-memory-fraction", required_argument, NULL, OPTION_KV_FRACTION},
    {"buckets", required_argument, NULL, OPTION_BUCKETS},
    {"help", no_argument, NULL, OPTION_HELP},
    {"gpus", required_argument, NULL, OPTION_NUMBER},
    {"groups", required_argument, NULL, OPTION_NUMBER + 1},
    {"context", required_argument, NULL, OPTION_NUMBER + 2},
    {"batch", required_argument, NULL, OPTION_NUMBER + 3},
    {"context-chunk", required_argument, NULL, OPTION_NUMBER + 4},
    {"prefill-tokens-max", required_argument, NULL, OPTION_NUMBER + 5},
    {"sequences-max", required_argument, NULL, OPTION_NUMBER + 6},
    {"context-max", required_argument, NULL, OPTION_NUMBER + 7},
    {"steps-open-max", required_argument, NULL, OPTION_NUMBER + 8},
    {"step-tokens-max", required_argument, NULL, OPTION_NUMBER + 9},
    {"credits", required_argument, NULL, OPTION_NUMBER + 10},
    {0},
};

static bool set_number(struct sizing *out, int number, const char *text)
{
    const struct {
        uint32_t *field;
        uint32_t most;
    } numbers[] = {
        {&out->gpus, MLA_RANKS_MAX * MLA_GROUPS_MAX},
        {&out->groups, MLA_GROUPS_MAX},
        {&out->context, MLA_CONTEXT_MAX},
        {&out->batch, MLA_SEQUENCES_MAX * MLA_GROUPS_MAX},
        {&out->chunk_rows, MLA_CONTEXT_MAX},
        {&out->core.plan.prefill_tokens_max, UINT32_MAX},
        {&out->core.sequences_max, UINT32_MAX},
        {&out->core.context_max, UINT32_MAX},
        {&out->core.steps_open_max, UINT32_MAX},
        {&out->core.step_tokens_max, UINT32_MAX},
        {&out->core.credits, UINT32_MAX},
    };
    return mla_parse_u32(text, 1, numbers[number].most, numbers[number].field);
}

static bool set_kv_dtype(struct sizing *out, const char *text)
{
    out->kv_dtype = strcmp(text, "bf16") == 0 ? MLA_BF16 : MLA_F32;
    return strcmp(text, mla_dtype_name(out->kv_dtype)) == 0;
}

static bool set_backend(struct sizing *out, const char *text)
{
    out->cpu = strcmp(text, "cpu") == 0;
    return out->cpu || strcmp(text, "cuda") == 0;
}

static bool set(void *context, int id, const char *text)
{
    struct sizing *out = context;
    struct mla_plan_options *plan = &out->core.plan;
    switch (id) {
    case OPTION_CONFIG:
        out->path = text;
        return *text != '\0';
    case OPTION_MEMORY:
        return mla_parse_bytes(text, &out->memory) && out->memory > 0;
    case OPTION_LAYERS:
        return mla_parse_range(text, MLA_LAYERS_MAX - 1, &out->layer_first, &out->layer_last);
    case OPTION_BACKEND:
        return set_backend(out, text);
    case OPTION_JSON:
        out->json = true;
        return true;
    case OPTION_KV_DTYPE:
        return set_kv_dtype(out, text);
    case OPTION_KV_MEMORY:
        return mla_parse_bytes(text, &out->kv_memory) && out->kv_memory > 0;
    case OPTION_KV_FRACTION:
        return mla_parse_fraction(text, &out->kv_fraction);
    case OPTION_BUCKETS:
        return mla_parse_list(text, MLA_DECODE_BUCKETS_MAX, plan->buckets, &plan->bucket_count);
    default:
        return set_number(out, id - OPTION_NUMBER, text);
    }
}

static enum mla_status refuse(const char *why)
{
    fprintf(stderr, "mla-size: %s\n", why);
    return MLA_OPTION;
}

static enum mla_status parse(int argc, char **argv, struct sizing *out)
{
    char why[MLA_SENTENCE_BYTES_MAX];
    enum mla_status status = mla_parse_options(argc, argv, options, help, set, out);
    if (status != MLA_OK)
        return status;
    if (!out->path)
        return refuse("--config is missing; see --help");
    if (out->gpus % out->groups != 0)
        return refuse("--gpus can't be shared out to --groups");
    out->core.groups = out->groups;
    if (mla_core_options_check(&out->core, why) != MLA_OK)
        return refuse(why);
    if ((status = mla_config_read(out->path, &out->config, why)) != MLA_OK) {
        fprintf(stderr, "mla-size: %s\n", why);
        return status;
    }
    out->layer_count = out->config.layers;
    if (out->layer_first <= out->layer_last) {
        if (out->layer_last >= out->config.layers)
            return refuse("the model does not have the layers asked for");
        out->layer_count = out->layer_last - out->layer_first + 1;
    }
    return MLA_OK;
}

static enum mla_status find(struct sizing *sizing)
{
    char why[MLA_SENTENCE_BYTES_MAX];
    struct mla_adopt sizes = mla_core_sizes(&sizing->core, sizing->config.context_max);
    sizing->ranks = sizing->gpus / sizing->groups;
    sizing->context_max = sizes.context_max;
    sizing->activation = sizing->cpu ? MLA_F32 : MLA_BF16;
    if (sizing->kv_dtype == 0)
        sizing->kv_dtype = sizing->activation;
    const struct mla_size_options counted = {.ranks = sizing->ranks,
                                             .layer_count = sizing->layer_count,
                                             .activation = sizing->activation,
                                             .kv_dtype = sizing->kv_dtype,
                                             .chunk_rows = sizing->chunk_rows,
                                             .sizes = &sizes};
    enum mla_status status = mla_size_count(&sizing->config, &counted, &sizing->size, why);
    if (status != MLA_OK) {
        fprintf(stderr, "mla-size: %s\n", why);
        return status;
    }
    uint32_t sharers = sizing->cpu ? sizing->gpus : 1; /* of one memory */
    uint64_t others = (sizing->size.weights + sizing->size.workspaces) * sharers;
    uint64_t unused = sizing->memory > others ? sizing->memory - others : 0;
    if (sizing->kv_memory == 0)
        sizing->kv_memory = mla_size_kv_memory(unused, sizing->kv_fraction, sizing->cpu, sharers);
    sizing->known = sizing->kv_memory > 0 || sizing->memory > 0;
    sizing->blocks = mla_size_kv_blocks(sizing->kv_memory, sizing->size.block);
    uint64_t taken =
        sizing->size.weights + sizing->blocks * sizing->size.block + sizing->size.workspaces;
    sizing->left = (int64_t)(sizing->memory / sharers) - (int64_t)taken;
    sizing->fits =
        !sizing->known || (sizing->blocks > 0 && (sizing->memory == 0 || sizing->left >= 0));
    if (sizing->known && sizing->context && sizing->batch)
        sizing->fits = sizing->fits && sizing_batch_max(sizing, sizing->context) >= sizing->batch;
    return MLA_OK;
}

int main(int argc, char **argv)
{
    static struct sizing sizing = {
        .gpus = 1, .groups = 1, .layer_first = 1, .chunk_rows = MLA_CONTEXT_CHUNK};
    mla_core_options_default(&sizing.core);
    enum mla_status status = parse(argc, argv, &sizing);
    if (status == MLA_OK)
        status = find(&sizing);
    if (status != MLA_OK)
        return status == MLA_AGAIN ? 0 : mla_status_exit_code(status);
    if (sizing.json)
        status = sizing_print_json(&sizing);
    else
        sizing_print(&sizing);
    if (status == MLA_OK && !sizing.fits)
        status = MLA_MEMORY;
    return mla_status_exit_code(status);
}
