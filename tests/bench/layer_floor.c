/* The layer next to what the device could do at best. */
#include "tests/bench/layer_report.h"
#include "tests/bench/results.h"

#include <inttypes.h>
#include <stdio.h>

enum { REPEAT = 30 };

/* A half of the step, and what is measured of it. */
struct half {
    struct mla_layer_setup *setup;
    struct mla_timer *timer;
    const struct mla_microbatch *microbatch;
    uint32_t repeat;
    struct mla_timed timed;
    struct mla_series whole, roles[MLA_ROLE_COUNT];
};

static enum mla_status run_layer(void *context)
{
    struct half *half = context;
    void *out;
    return mla_layer_run(&half->setup->layer, 0, half->microbatch, half->setup->x, 0, &out);
}

/* Operation by operation, eagerly. Each reads weights that were not read before, so that one
 * cool cache is enough for all of them. */
static enum mla_status measure_roles(struct half *half)
{
    struct mla_layer *layer = &half->setup->layer;
    struct mla_timed *timed = &half->timed;
    enum mla_status status = MLA_OK;
    for (uint32_t i = 0; status == MLA_OK && i < half->repeat; i++) {
        status = mla_timer_cool(half->timer, MLA_TIMER_EAGER_COOLS);
        if (status == MLA_OK)
            status = mla_timed_begin(timed);
        layer->backend = &timed->base;
        if (status == MLA_OK)
            status = run_layer(half);
        layer->backend = half->setup->backend;
        if (status == MLA_OK)
            status = mla_timed_end(timed);
        for (int role = 0; status == MLA_OK && role < MLA_ROLE_COUNT; role++)
            if (timed->times[role].calls)
                status = mla_series_add(&half->roles[role], (double)timed->times[role].ns / 1e3);
    }
    return status;
}

/* Of the whole layer. The operations' own bytes count intermediate results, which need not leave
 * the cache; its floor doesn't. */
static struct mla_cost cost_of(const struct half *half, const struct mla_layer_options *options)
{
    const struct mla_config *c = &half->setup->config;
    const struct mla_microbatch *mb = half->microbatch;
    bool decode = mb->kind == MLA_DECODE;
    struct mla_cost_layer layer = {
        .hidden = c->hidden,
        .q_lora = c->q_lora,
        .latent = c->latent,
        .rope = c->rope,
        .nope = c->nope,
        .v = c->v,
        .heads = c->heads,
        .own_rows = (double)mb->padded / options->ranks,
        .rows = (double)mb->rows,
        .cached = decode ? (double)mb->rows * options->context : options->prefill_context,
        .element = mla_dtype_bytes(half->setup->backend->activation),
        .kv_element = mla_dtype_bytes(options->kv_dtype),
    };
    struct mla_cost cost = {.bytes = mla_cost_layer_bytes(&layer)};
    for (int role = 0; role < MLA_ROLE_COUNT; role++)
        cost.flops += half->timed.times[role].cost.flops;
    return cost;
}

static enum mla_status report(struct half *half, const struct mla_layer_options *options,
                              const struct mla_ceilings *ceilings, const char *name, json_t *root)
{
    struct mla_results results;
    enum mla_status status = mla_results_init(&results, ceilings, "calls");
    for (int role = 0; status == MLA_OK && role < MLA_ROLE_COUNT; role++) {
        const struct mla_role_time *time = &half->timed.times[role];
        struct mla_result result = {mla_role_name(role), time->calls, time->cost,
                                    &half->roles[role]};
        if (time->calls)
            status = mla_results_add(&results, &result);
    }
    struct mla_result whole = {"whole layer", 1, cost_of(half, options), &half->whole};
    if (status == MLA_OK)
        status = mla_results_add(&results, &whole);
    if (status == MLA_OK && json_object_set(root, name, results.rows) != 0)
        status = MLA_MEMORY;
    mla_results_fini(&results);
    return status;
}

static enum mla_status measure(struct mla_layer_setup *setup, struct mla_timer *timer,
                               const struct mla_layer_options *options, const struct mla_step *step,
                               const struct mla_ceilings *ceilings, const char *name, json_t *root)
{
    struct half half = {.setup = setup,
                        .timer = timer,
                        .microbatch = step->microbatches,
                        .repeat = options->device.repeat ? options->device.repeat : REPEAT};
    if (step->microbatch_count == 0)
        return MLA_OK;
    bool graph = half.microbatch->kind == MLA_DECODE && setup->backend->graphs;
    mla_timed_init(&half.timed, setup->backend, setup->backend, &setup->shard.weights[0],
                   (struct mla_timed_decode){options->decode_rows, options->context});
    enum mla_status status = mla_timer_samples(timer, (struct mla_timer_body){run_layer, &half},
                                               graph, half.repeat, &half.whole);
    if (status == MLA_OK)
        status = measure_roles(&half);
    if (status == MLA_OK) {
        if (half.microbatch->kind == MLA_DECODE)
            printf("\nDecode of %" PRIu32 " sequences, %" PRIu32 " tokens of context",
                   options->decode_rows, options->context);
        else
            printf("\nPrefill of %" PRIu32 " tokens after %" PRIu32 " cached ones",
                   options->prefill_tokens, options->prefill_context);
        printf("; the whole layer %s; %" PRIu32 " samples\n",
               graph ? "replayed from a graph" : "run eagerly", half.repeat);
        status = report(&half, options, ceilings, name, root);
    } else {
        fprintf(stderr, "mla-bench: a run failed: %s\n", mla_status_sentence(status));
    }
    mla_timed_fini(&half.timed);
    mla_series_fini(&half.whole);
    for (int role = 0; role < MLA_ROLE_COUNT; role++)
        mla_series_fini(&half.roles[role]);
    return status;
}

enum mla_status mla_layer_beside_floor(struct mla_layer_setup *setup, struct mla_timer *timer,
                                       const struct mla_layer_options *options)
{
    const struct mla_config *c = &setup->config;
    struct mla_ceilings ceilings = options->device.ceilings;
    json_t *root = NULL;
    enum mla_status status = mla_bench_begin(timer, &options->device, "layer", &ceilings, &root);
    if (status != MLA_OK)
        return status;
    printf("%s: hidden %" PRIu32 ", %" PRIu32 " heads, q_lora %" PRIu32 ", latent %" PRIu32
           ", nope %" PRIu32 ", rope %" PRIu32 ", v %" PRIu32 "; KV %s; rank 0 of %" PRIu32 "\n",
           options->config, c->hidden, c->heads, c->q_lora, c->latent, c->nope, c->rope, c->v,
           mla_dtype_name(options->kv_dtype), options->ranks);
    status = measure(setup, timer, options, &setup->decode, &ceilings, "decode", root);
    if (status == MLA_OK)
        status = measure(setup, timer, options, &setup->prefill, &ceilings, "prefill", root);
    json_object_set_new(root, "config", json_string(options->config));
    json_object_set_new(root, "ranks", json_integer(options->ranks));
    json_object_set_new(root, "heads", json_integer(c->heads));
    json_object_set_new(root, "decode_rows", json_integer(options->decode_rows));
    json_object_set_new(root, "context", json_integer(options->context));
    json_object_set_new(root, "prefill_tokens", json_integer(options->prefill_tokens));
    json_object_set_new(root, "prefill_context", json_integer(options->prefill_context));
    if (status == MLA_OK)
        return mla_bench_write(options->device.json, root);
    json_decref(root);
    return status;
}
