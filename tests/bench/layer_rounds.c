/* The layer next to the bare products that it is made of, on the CPU. */
#include "proto/clock.h"
#include "tests/bench/layer_report.h"

#include <stdio.h>

enum {
    ROUNDS_MIN = 9,
    ROUNDS_MAX = 10000,
    AUTO_NS = 2000000000, /* what the rounds of a half may take by default */
};

/* Runs the layer over `backend`. */
static enum mla_status run_on(struct mla_layer_setup *setup, struct mla_backend *backend,
                              const struct mla_microbatch *microbatch)
{
    void *out;
    setup->layer.backend = backend;
    enum mla_status status = mla_layer_run(&setup->layer, 0, microbatch, setup->x, 0, &out);
    setup->layer.backend = setup->backend;
    return status == MLA_OK ? setup->backend->ops->synchronize(setup->backend) : status;
}

/* The layer timed by operation, over the backend or over the bare products. */
static enum mla_status run_timed(struct mla_layer_setup *setup, struct mla_timed *timed,
                                 const struct mla_microbatch *microbatch)
{
    enum mla_status status = mla_timed_begin(timed);
    if (status == MLA_OK)
        status = run_on(setup, &timed->base, microbatch);
    return status == MLA_OK ? mla_timed_end(timed) : status;
}

static enum mla_status measure(struct mla_layer_setup *setup, struct mla_timed *layer,
                               struct mla_timed *products, const struct mla_microbatch *microbatch,
                               uint32_t repeat, struct mla_layer_times *times)
{
    uint64_t started_ns = mla_now_ns();
    /* The first round warms up and isn't counted. */
    for (uint32_t round = 0;; round++) {
        uint64_t begin_ns = mla_now_ns();
        enum mla_status status = run_on(setup, setup->backend, microbatch);
        uint64_t whole_ns = mla_now_ns() - begin_ns;
        if (status == MLA_OK)
            status = run_timed(setup, layer, microbatch);
        if (status == MLA_OK)
            status = run_timed(setup, products, microbatch);
        if (status == MLA_OK && round > 0)
            status = mla_layer_times_add(times, whole_ns, layer->times, products->times);
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

/* One half, if it is wanted. */
static enum mla_status measure_half(struct mla_layer_setup *setup, struct mla_bare *bare,
                                    const struct mla_step *step, uint32_t repeat,
                                    struct mla_timed_decode decode, struct mla_layer_times *times)
{
    struct mla_timed layer, products;
    if (step->microbatch_count == 0)
        return MLA_OK;
    mla_timed_init(&layer, setup->backend, setup->backend, &setup->shard.weights[0], decode);
    mla_timed_init(&products, &bare->base, setup->backend, &setup->shard.weights[0], decode);
    enum mla_status status = measure(setup, &layer, &products, step->microbatches, repeat, times);
    mla_timed_fini(&layer);
    mla_timed_fini(&products);
    return status;
}

enum mla_status mla_layer_beside_bare(struct mla_layer_setup *setup,
                                      const struct mla_layer_options *options)
{
    struct mla_bare bare = {0};
    struct mla_layer_times decode = {0}, prefill = {0};
    uint32_t repeat = options->device.repeat;
    struct mla_timed_decode lengths = {options->decode_rows, options->context};
    enum mla_status status =
        mla_bare_init(&bare, (int)options->device.threads, setup->keys, scores_max(setup, options));
    if (status == MLA_OK)
        status = measure_half(setup, &bare, &setup->decode, repeat, lengths, &decode);
    if (status == MLA_OK)
        status = measure_half(setup, &bare, &setup->prefill, repeat, lengths, &prefill);
    if (status == MLA_OK)
        status = mla_layer_report(options, &setup->config, &decode, &prefill);
    mla_layer_times_fini(&decode);
    mla_layer_times_fini(&prefill);
    mla_bare_fini(&bare);
    return status;
}
