/* mla-bench prefill: prefill attention alone, over random queries, keys and values. */
#include "proto/limits.h"
#include "proto/parse.h"
#include "tests/bench/bench.h"
#include "tests/bench/device.h"
#include "tests/bench/results.h"
#include "tests/bench/shapes.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NOPE = 128, ROPE = 64, V = 128, HEADS_MAX = 8, SEQUENCES_MAX = 1024 };

static const char usage[] =
    "usage: mla-bench prefill [options]\n"
    "\n"
    "Multi-head attention of prefill alone (keys 128 + 64, values 128): median and least time,\n"
    "achieved rate, and the share of the floor. On a GPU the operation is replayed from a graph,\n"
    "with an L2 cache that holds nothing of it.\n"
    "\n"
    "  --heads LIST          of one rank, ascending (16,128; cpu: 16)\n"
    "  --shape TOKENSxN      N sequences of so many new tokens, may be repeated (the usual ones)\n"
    "  --context N           over so many cached keys each instead, which all tokens see; without\n"
    "                        it the new tokens among themselves, causal\n" MLA_BENCH_HELP;

struct options {
    struct mla_bench_options common;
    uint32_t heads[HEADS_MAX], head_count;
    struct mla_shapes shapes;
    uint32_t context; /* 0: causal */
};

/* One shape on the device, laid out as the layer has it: keys and values of a head side by side,
 * one rope part behind a latent for all heads. */
struct problem {
    struct mla_backend *backend;
    double pairs;
    void *row_first, *key_first, *q, *expanded, *k_rope, *out, *lse;
    struct mla_attend_prefill attend;
};

static enum mla_status put_firsts(struct mla_backend *backend, uint32_t sequences, uint32_t each,
                                  void **out)
{
    int32_t *first = calloc((size_t)sequences + 1, sizeof *first);
    if (!first)
        return MLA_MEMORY;
    for (uint32_t s = 0; s < sequences; s++)
        first[s + 1] = first[s] + (int32_t)each;
    enum mla_status status = mla_bench_put(backend, first, (sequences + 1) * sizeof *first, out);
    free(first);
    return status;
}

static enum mla_status make_problem(struct problem *p, struct mla_backend *backend,
                                    const struct options *o, const struct mla_shape *shape,
                                    uint32_t heads)
{
    enum mla_dtype dtype = backend->activation;
    uint32_t each = o->context ? o->context : shape->first; /* keys of a sequence */
    int64_t rows = (int64_t)shape->first * shape->second, keys = (int64_t)each * shape->second;
    *p = (struct problem){
        .backend = backend,
        .pairs = shape->second * mla_cost_pairs(shape->first, each, o->context == 0),
    };
    enum mla_status status = put_firsts(backend, shape->second, shape->first, &p->row_first);
    if (status == MLA_OK)
        status = put_firsts(backend, shape->second, each, &p->key_first);
    if (status == MLA_OK)
        status = mla_bench_noise(backend, dtype, rows * heads * (NOPE + ROPE), &p->q);
    if (status == MLA_OK)
        status = mla_bench_noise(backend, dtype, keys * heads * (NOPE + V), &p->expanded);
    if (status == MLA_OK)
        status = mla_bench_noise(backend, dtype, keys * ROPE, &p->k_rope);
    if (status == MLA_OK)
        status = mla_bench_unwritten(backend, dtype, rows * heads * V, &p->out);
    if (status == MLA_OK)
        status = mla_bench_unwritten(backend, MLA_F32, rows * heads, &p->lse);
    p->attend = (struct mla_attend_prefill){
        .sequences = shape->second,
        .heads = heads,
        .nope = NOPE,
        .rope = ROPE,
        .v_dim = V,
        .rows = rows,
        .keys = keys,
        .rows_max = shape->first,
        .keys_max = each,
        .row_first = p->row_first,
        .key_first = p->key_first,
        .q = p->q,
        .q_row_stride = (int64_t)heads * (NOPE + ROPE),
        .q_head_stride = NOPE + ROPE,
        .k_nope = p->expanded,
        .k_row_stride = (int64_t)heads * (NOPE + V),
        .k_head_stride = NOPE + V,
        .k_rope = p->k_rope,
        .k_rope_stride = ROPE,
        .v = (char *)p->expanded + NOPE * mla_dtype_bytes(dtype),
        .v_row_stride = (int64_t)heads * (NOPE + V),
        .v_head_stride = NOPE + V,
        .out = p->out,
        .out_row_stride = (int64_t)heads * V,
        .out_head_stride = V,
        .lse = p->lse,
        .scale = 0.0722f, /* about 192^-0.5 */
        .causal = o->context == 0,
    };
    return status;
}

static void free_problem(struct problem *p)
{
    void *const memory[] = {p->row_first, p->key_first, p->q,  p->expanded,
                            p->k_rope,    p->out,       p->lse};
    for (size_t i = 0; i < sizeof memory / sizeof *memory; i++)
        p->backend->ops->free(p->backend, memory[i]);
}

static enum mla_status attend(void *context)
{
    struct problem *p = context;
    return p->backend->ops->attend_prefill(p->backend, &p->attend);
}

static enum mla_status measure(struct mla_timer *timer, const struct options *o,
                               const struct mla_shape *shape, uint32_t heads,
                               struct mla_results *results)
{
    struct mla_backend *backend = timer->backend;
    struct problem p = {.backend = backend};
    struct mla_series us = {0};
    char name[32];
    snprintf(name, sizeof name, "%" PRIu32 " x %" PRIu32, shape->first, shape->second);
    enum mla_status status = make_problem(&p, backend, o, shape, heads);
    if (status == MLA_OK)
        status = mla_timer_samples(timer, (struct mla_timer_body){attend, &p}, true,
                                   o->common.repeat, &us);
    if (status == MLA_OK)
        status = mla_bench_averages(backend, backend->activation, p.attend.rows * heads * V, p.out);
    if (status == MLA_OK) {
        struct mla_result result = {
            name, heads,
            mla_cost_attend_prefill(&p.attend, p.pairs, mla_dtype_bytes(backend->activation)), &us};
        status = mla_results_add(results, &result);
    } else {
        fprintf(stderr, "mla-bench: %s, %" PRIu32 " heads: %s\n", name, heads,
                mla_status_sentence(status));
    }
    mla_series_fini(&us);
    free_problem(&p);
    return status;
}

static enum mla_status run(struct mla_timer *timer, const void *context)
{
    const struct options *o = context;
    struct mla_results results = {0};
    struct mla_ceilings ceilings = o->common.ceilings;
    json_t *root = NULL;
    enum mla_status status =
        mla_bench_begin(timer, &o->common, "prefill attention", &ceilings, &root);
    if (status != MLA_OK)
        return status;
    if (o->context)
        printf("nope %d, rope %d, v %d; over %" PRIu32 " cached keys each\n\n", NOPE, ROPE, V,
               o->context);
    else
        printf("nope %d, rope %d, v %d; causal\n\n", NOPE, ROPE, V);
    status = mla_results_init(&results, &ceilings, "heads");
    for (uint32_t h = 0; h < o->head_count; h++)
        for (uint32_t i = 0; status == MLA_OK && i < o->shapes.count; i++)
            status = measure(timer, o, &o->shapes.at[i], o->heads[h], &results);
    json_object_set_new(root, "context", json_integer(o->context));
    return mla_bench_end(&o->common, status, root, &results);
}

enum { OPTION_HEADS = 256, OPTION_SHAPE, OPTION_CONTEXT, OPTION_HELP };

static const struct option known[] = {{"heads", required_argument, NULL, OPTION_HEADS},
                                      {"shape", required_argument, NULL, OPTION_SHAPE},
                                      {"context", required_argument, NULL, OPTION_CONTEXT},
                                      MLA_BENCH_OPTIONS,
                                      {"help", no_argument, NULL, OPTION_HELP},
                                      {0}};

static bool set(void *context, int id, const char *text)
{
    struct options *o = context;
    switch (id) {
    case OPTION_HEADS:
        return mla_parse_list(text, HEADS_MAX, o->heads, &o->head_count) && o->heads[0] > 0 &&
               o->heads[o->head_count - 1] <= MLA_HEADS_MAX;
    case OPTION_SHAPE:
        return mla_shapes_add(&o->shapes, text, MLA_STEP_TOKENS_MAX, SEQUENCES_MAX);
    case OPTION_CONTEXT:
        return mla_parse_u32(text, 1, MLA_CONTEXT_MAX, &o->context);
    default:
        return mla_bench_option_set(&o->common, id, text);
    }
}

/* What is usual on the device; on a CPU, what takes seconds. */
static void set_defaults(struct options *o)
{
    static const struct mla_shape cuda[] = {{512, 16}, {1024, 8}, {2048, 4},
                                            {4096, 2}, {8192, 1}, {16384, 1}};
    static const struct mla_shape cpu[] = {{128, 4}, {512, 1}};
    static const uint32_t heads[] = {16, 128};
    if (o->head_count == 0) {
        o->head_count = o->common.cuda ? 2 : 1;
        memcpy(o->heads, heads, sizeof heads);
    }
    if (o->shapes.count == 0) {
        o->shapes.count = o->common.cuda ? sizeof cuda / sizeof *cuda : sizeof cpu / sizeof *cpu;
        memcpy(o->shapes.at, o->common.cuda ? cuda : cpu, o->shapes.count * sizeof *cuda);
    }
}

int mla_bench_prefill(int argc, char **argv)
{
    struct options options = {.common = mla_bench_defaults()};
    enum mla_status status = mla_parse_options(argc, argv, known, usage, set, &options);
    if (status == MLA_AGAIN)
        return 0;
    set_defaults(&options);
    if (status == MLA_OK)
        status = mla_bench_on_device(&options.common, run, &options);
    return mla_status_exit_code(status);
}
