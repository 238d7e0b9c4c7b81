/* mla-bench layer: one layer in this process, next to the bare products it is made of or to what
 * the device could do at best. */
#include "proto/parse.h"
#include "tests/bench/bench.h"
#include "tests/bench/layer_report.h"

#include <omp.h>
#include <stdio.h>
#include <string.h>

static const char usage[] =
    "usage: mla-bench layer --config FILE [options]\n"
    "\n"
    "Runs one layer's decode and prefill on one rank, without the service, and tells the time of\n"
    "each operation next to what it is compared with. Decode is replayed from a graph where the\n"
    "backend has them; single operations and prefill run eagerly, between fences. Weights are "
    "made\n"
    "by a formula: only the config.json is needed.\n"
    "\n"
    "  --config FILE         a model's config.json, or its folder\n"
    "  --layer N             the layer whose name the weights are made from (0)\n"
    "  --compare bare|floor  with the bare products of the same shapes through OpenBLAS (cpu), or\n"
    "                        with the floor of bytes and operations (cuda)\n"
    "  --ranks N             the work of rank 0 of N, without collectives (1)\n"
    "  --heads N             instead of the config's\n"
    "  --decode-rows B       sequences that decode one token each (16); 0: no decode\n"
    "  --context N           tokens that each of them attends to, its own included (512)\n"
    "  --prefill-tokens N    new tokens of one sequence (512); 0: no prefill\n"
    "  --prefill-context N   cached tokens before them (0)\n"
    "  --kv-dtype f32|bf16   KV cache (cpu: f32, cuda: bf16)\n" MLA_BENCH_HELP
    "With bare products --repeat is the rounds of each half (as many as fit in 2 s, 9 or more).\n";

static enum mla_status run(struct mla_timer *timer, const void *context)
{
    const struct mla_layer_options *options = context;
    struct mla_layer_setup setup;
    enum mla_status status = mla_layer_setup_init(&setup, timer->backend, options);
    if (status == MLA_OK)
        status = options->bare ? mla_layer_beside_bare(&setup, options)
                               : mla_layer_beside_floor(&setup, timer, options);
    mla_layer_setup_fini(&setup);
    return status;
}

enum option_id {
    OPTION_CONFIG = 256,
    OPTION_LAYER,
    OPTION_DECODE_ROWS,
    OPTION_CONTEXT,
    OPTION_PREFILL_TOKENS,
    OPTION_PREFILL_CONTEXT,
    OPTION_KV_DTYPE,
    OPTION_COMPARE,
    OPTION_RANKS,
    OPTION_HEADS,
    OPTION_HELP,
};

static const struct option known[] = {
    {"config", required_argument, NULL, OPTION_CONFIG},
    {"layer", required_argument, NULL, OPTION_LAYER},
    {"decode-rows", required_argument, NULL, OPTION_DECODE_ROWS},
    {"context", required_argument, NULL, OPTION_CONTEXT},
    {"prefill-tokens", required_argument, NULL, OPTION_PREFILL_TOKENS},
    {"prefill-context", required_argument, NULL, OPTION_PREFILL_CONTEXT},
    {"kv-dtype", required_argument, NULL, OPTION_KV_DTYPE},
    {"compare", required_argument, NULL, OPTION_COMPARE},
    {"ranks", required_argument, NULL, OPTION_RANKS},
    {"heads", required_argument, NULL, OPTION_HEADS},
    MLA_BENCH_OPTIONS,
    {"help", no_argument, NULL, OPTION_HELP},
    {0},
};

static bool set(void *context, int id, const char *text)
{
    struct mla_layer_options *out = context;
    switch (id) {
    case OPTION_CONFIG:
        out->config = text;
        return *text != '\0';
    case OPTION_LAYER:
        return mla_parse_u32(text, 0, UINT16_MAX, &out->layer);
    case OPTION_DECODE_ROWS:
        return mla_parse_u32(text, 0, MLA_STEP_SEQUENCES_MAX, &out->decode_rows);
    case OPTION_CONTEXT:
        return mla_parse_u32(text, 1, MLA_CONTEXT_MAX, &out->context);
    case OPTION_PREFILL_TOKENS:
        return mla_parse_u32(text, 0, MLA_STEP_TOKENS_MAX, &out->prefill_tokens);
    case OPTION_PREFILL_CONTEXT:
        return mla_parse_u32(text, 0, MLA_CONTEXT_MAX, &out->prefill_context);
    case OPTION_KV_DTYPE:
        out->kv_given = true;
        out->kv_dtype = strcmp(text, "bf16") == 0 ? MLA_BF16 : MLA_F32;
        return strcmp(text, mla_dtype_name(out->kv_dtype)) == 0;
    case OPTION_COMPARE:
        out->compare_given = true;
        out->bare = strcmp(text, "bare") == 0;
        return out->bare || strcmp(text, "floor") == 0;
    case OPTION_RANKS:
        return mla_parse_u32(text, 1, MLA_RANKS_MAX, &out->ranks);
    case OPTION_HEADS:
        return mla_parse_u32(text, 1, MLA_HEADS_MAX, &out->heads);
    default:
        return mla_bench_option_set(&out->device, id, text);
    }
}

/* What follows from the backend, and what doesn't go together. */
static enum mla_status complete(struct mla_layer_options *o)
{
    const char *wrong = NULL;
    if (!o->device.threads)
        o->device.threads = (uint32_t)omp_get_max_threads();
    if (!o->kv_given)
        o->kv_dtype = o->device.cuda ? MLA_BF16 : MLA_F32;
    if (!o->compare_given)
        o->bare = !o->device.cuda && o->ranks == 1;
    if (!o->config)
        wrong = "--config is missing";
    else if (!o->decode_rows && !o->prefill_tokens)
        wrong = "neither decode nor prefill is wanted";
    else if (o->bare && (o->device.cuda || o->ranks > 1))
        wrong = "bare products are those of one rank on the CPU";
    else if (o->device.cuda && o->kv_dtype != MLA_BF16)
        wrong = "the KV cache of a GPU is bf16";
    if (!wrong)
        return MLA_OK;
    fprintf(stderr, "mla-bench: %s (mla-bench layer --help)\n", wrong);
    return MLA_OPTION;
}

int mla_bench_layer(int argc, char **argv)
{
    struct mla_layer_options options = {.device = mla_bench_defaults(),
                                        .ranks = 1,
                                        .decode_rows = 16,
                                        .context = 512,
                                        .prefill_tokens = 512};
    options.device.repeat = 0;
    enum mla_status status = mla_parse_options(argc, argv, known, usage, set, &options);
    if (status == MLA_AGAIN)
        return 0;
    if (status == MLA_OK)
        status = complete(&options);
    if (status == MLA_OK)
        status = mla_bench_on_device(&options.device, run, &options);
    return mla_status_exit_code(status);
}
