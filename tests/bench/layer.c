/* mla-bench layer: one layer in this process, next to the bare products it is made of. */
#include "proto/clock.h"
#include "proto/parse.h"
#include "tests/bench/bench.h"
#include "tests/bench/layer_ops.h"
#include "tests/bench/layer_report.h"
#include "tests/bench/layer_setup.h"

#include <getopt.h>
#include <inttypes.h>
#include <omp.h>
#include <stdio.h>
#include <string.h>

enum {
    ROUNDS_MIN = 9,
    ROUNDS_MAX = 10000,
    AUTO_NS = 2000000000, /* what the rounds of a half may take by default */
    THREADS_MAX = 1024,
};

static const char usage[] =
    "usage: mla-bench layer --config FILE [options]\n"
    "\n"
    "Runs one layer's decode and prefill on one rank, without the service, and tells the time of\n"
    "each operation next to that of the bare product of the same shape through OpenBLAS. Weights\n"
    "are made by a formula: only the config.json is needed.\n"
    "\n"
    "  --config FILE         a model's config.json, or its folder\n"
    "  --layer N             the layer whose name the weights are made from (0)\n"
    "  --decode-rows B       sequences that decode one token each (16); 0: no decode\n"
    "  --context N           tokens that each of them attends to, its own included (512)\n"
    "  --prefill-tokens N    new tokens of one sequence (512); 0: no prefill\n"
    "  --prefill-context N   cached tokens before them (0)\n"
    "  --threads N           OpenMP threads (OMP_NUM_THREADS, or all cores)\n"
    "  --backend cpu         where to compute (cpu)\n"
    "  --kv-dtype f32|bf16   KV cache (f32)\n"
    "  --repeat N            rounds of each half (as many as fit in 2 s, 9 or more)\n"
    "  --json FILE           writes the numbers there as well\n";

/* Runs the layer over `backend`. */
static enum mla_status run_on(struct mla_layer_setup *setup, struct mla_backend *backend,
                              const struct mla_microbatch *microbatch)
{
    void *out;
    setup->layer.backend = backend;
    enum mla_status status = mla_layer_run(&setup->layer, 0, microbatch, setup->x, &out);
    setup->layer.backend = setup->backend;
    return status == MLA_OK ? setup->backend->ops->synchronize(setup->backend) : status;
}

static enum mla_status measure(struct mla_layer_setup *setup, struct mla_bare *bare,
                               const struct mla_microbatch *microbatch, uint32_t repeat,
                               struct mla_layer_times *times)
{
    const struct mla_layer_weights *weights = &setup->shard.weights[0];
    struct mla_timed layer, products;
    mla_timed_init(&layer, setup->backend, weights);
    mla_timed_init(&products, &bare->base, weights);
    uint64_t started_ns = mla_now_ns();
    /* The first round warms up and isn't counted. */
    for (uint32_t round = 0;; round++) {
        memset(layer.times, 0, sizeof layer.times);
        memset(products.times, 0, sizeof products.times);
        uint64_t begin_ns = mla_now_ns();
        enum mla_status status = run_on(setup, setup->backend, microbatch);
        uint64_t whole_ns = mla_now_ns() - begin_ns;
        if (status == MLA_OK)
            status = run_on(setup, &layer.base, microbatch);
        if (status == MLA_OK)
            status = run_on(setup, &products.base, microbatch);
        if (status == MLA_OK && round > 0)
            status = mla_layer_times_add(times, whole_ns, layer.times, products.times);
        if (status != MLA_OK) {
            fprintf(stderr, "mla-bench: a run failed: %s\n", mla_status_sentence(status));
            return status;
        }
        bool enough = round >= ROUNDS_MIN && mla_now_ns() - started_ns > AUTO_NS;
        if (repeat ? round == repeat : enough || round == ROUNDS_MAX)
            return MLA_OK;
    }
}

/* The scores of one decode sequence, or of a tile of prefill queries. */
static size_t scores_max(const struct mla_layer_setup *setup,
                         const struct mla_layer_options *options)
{
    size_t decode = (size_t)setup->config.heads * options->context;
    size_t keys = (size_t)setup->layer.chunk_rows;
    if (keys < options->prefill_tokens)
        keys = options->prefill_tokens;
    size_t prefill = keys * MLA_BARE_TILE_ROWS;
    return decode > prefill ? decode : prefill;
}

static enum mla_status run(const struct mla_layer_options *options)
{
    struct mla_layer_setup setup;
    struct mla_bare bare = {0};
    struct mla_layer_times decode = {0}, prefill = {0};
    enum mla_status status = mla_layer_setup_init(&setup, options);
    if (status == MLA_OK)
        status =
            mla_bare_init(&bare, (int)options->threads, setup.keys, scores_max(&setup, options));
    if (status == MLA_OK && options->decode_rows)
        status = measure(&setup, &bare, setup.decode.microbatches, options->repeat, &decode);
    if (status == MLA_OK && options->prefill_tokens)
        status = measure(&setup, &bare, setup.prefill.microbatches, options->repeat, &prefill);
    if (status == MLA_OK)
        status = mla_layer_report(options, &setup.config, &decode, &prefill);
    mla_layer_times_fini(&decode);
    mla_layer_times_fini(&prefill);
    mla_bare_fini(&bare);
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
    OPTION_THREADS,
    OPTION_BACKEND,
    OPTION_KV_DTYPE,
    OPTION_REPEAT,
    OPTION_JSON,
    OPTION_HELP,
};

static const struct option known[] = {
    {"config", required_argument, NULL, OPTION_CONFIG},
    {"layer", required_argument, NULL, OPTION_LAYER},
    {"decode-rows", required_argument, NULL, OPTION_DECODE_ROWS},
    {"context", required_argument, NULL, OPTION_CONTEXT},
    {"prefill-tokens", required_argument, NULL, OPTION_PREFILL_TOKENS},
    {"prefill-context", required_argument, NULL, OPTION_PREFILL_CONTEXT},
    {"threads", required_argument, NULL, OPTION_THREADS},
    {"backend", required_argument, NULL, OPTION_BACKEND},
    {"kv-dtype", required_argument, NULL, OPTION_KV_DTYPE},
    {"repeat", required_argument, NULL, OPTION_REPEAT},
    {"json", required_argument, NULL, OPTION_JSON},
    {"help", no_argument, NULL, OPTION_HELP},
    {0},
};

static bool set_number(uint64_t least, uint64_t most, uint32_t *out)
{
    uint64_t value;
    if (!mla_parse_number(optarg, least, most, &value))
        return false;
    *out = (uint32_t)value;
    return true;
}

static bool set(struct mla_layer_options *out, int id)
{
    switch (id) {
    case OPTION_CONFIG:
        out->config = optarg;
        return *optarg != '\0';
    case OPTION_LAYER:
        return set_number(0, UINT16_MAX, &out->layer);
    case OPTION_DECODE_ROWS:
        return set_number(0, MLA_STEP_SEQUENCES_MAX, &out->decode_rows);
    case OPTION_CONTEXT:
        return set_number(1, MLA_CONTEXT_MAX, &out->context);
    case OPTION_PREFILL_TOKENS:
        return set_number(0, MLA_STEP_TOKENS_MAX, &out->prefill_tokens);
    case OPTION_PREFILL_CONTEXT:
        return set_number(0, MLA_CONTEXT_MAX, &out->prefill_context);
    case OPTION_THREADS:
        return set_number(1, THREADS_MAX, &out->threads);
    case OPTION_BACKEND:
        return strcmp(optarg, "cpu") == 0;
    case OPTION_KV_DTYPE:
        out->kv_dtype = strcmp(optarg, "bf16") == 0 ? MLA_BF16 : MLA_F32;
        return strcmp(optarg, mla_dtype_name(out->kv_dtype)) == 0;
    case OPTION_REPEAT:
        return set_number(1, ROUNDS_MAX, &out->repeat);
    default:
        out->json = optarg;
        return true;
    }
}

/* MLA_AGAIN: --help was asked for, and answered. */
static enum mla_status read_options(int argc, char **argv, struct mla_layer_options *out)
{
    struct mla_layer_options options = {.decode_rows = 16,
                                        .context = 512,
                                        .prefill_tokens = 512,
                                        .threads = (uint32_t)omp_get_max_threads(),
                                        .kv_dtype = MLA_F32};
    int id = 0;
    int at = 0;
    while ((id = getopt_long(argc, argv, "", known, &at)) != -1) {
        if (id == '?')
            return MLA_OPTION; /* getopt said which */
        if (id == OPTION_HELP) {
            fputs(usage, stdout);
            return MLA_AGAIN;
        }
        if (!set(&options, id)) {
            fprintf(stderr, "mla-bench: --%s: '%s' is not a value it takes\n", known[at].name,
                    optarg);
            return MLA_OPTION;
        }
    }
    if (optind != argc || !options.config || (!options.decode_rows && !options.prefill_tokens)) {
        fputs("mla-bench: --config must be given, one of decode and prefill wanted, and nothing "
              "but options (mla-bench layer --help)\n",
              stderr);
        return MLA_OPTION;
    }
    *out = options;
    return MLA_OK;
}

int mla_bench_layer(int argc, char **argv)
{
    struct mla_layer_options options;
    enum mla_status status = read_options(argc, argv, &options);
    if (status == MLA_AGAIN)
        return 0;
    if (status == MLA_OK)
        status = run(&options);
    return mla_status_exit_code(status);
}
