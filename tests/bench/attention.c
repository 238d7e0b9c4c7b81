/* mla-bench attention: decode attention alone, over a cache of random rows in shuffled pages. */
#include "proto/limits.h"
#include "proto/parse.h"
#include "tests/bench/bench.h"
#include "tests/bench/device.h"
#include "tests/bench/lengths.h"
#include "tests/bench/results.h"
#include "tests/bench/shapes.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LATENT = 512, ROPE = 64, HEADS_MAX = 8, SEQUENCES_MAX = 1024, CONTEXT_MAX = 1 << 20 };

static const char usage[] =
    "usage: mla-bench attention [options]\n"
    "\n"
    "Absorbed attention of decode alone (latent 512, rope 64, pages of 64 tokens in shuffled\n"
    "order): median and least time, achieved bandwidth and rate, and the share of the floor. "
    "Bytes\n"
    "are each cached row once, queries and outputs. On a GPU the operation is replayed from a\n"
    "graph, with an L2 cache that holds nothing of it.\n"
    "\n"
    "  --heads LIST          of one rank, ascending (16,32,64,128; cpu: 16)\n"
    "  --shape BxCONTEXT     sequences and cached tokens, may be repeated (the usual ones)\n"
    "  --rows-per-sequence N new tokens of each sequence (1)\n"
    "  --lengths unequal,SEED  lengths between those tokens and twice the context, the same "
    "sum\n" MLA_BENCH_HELP;

struct options {
    struct mla_bench_options common;
    uint32_t heads[HEADS_MAX], head_count;
    struct mla_shapes shapes;
    uint32_t rows; /* of a sequence */
    bool unequal;
    uint64_t seed;
};

/* One shape on the device. */
struct problem {
    struct mla_backend *backend;
    int64_t rows;
    double keys, pairs;
    void *pool, *tables, *table, *row_first, *kv_length, *q, *out, *schedule;
    struct mla_attend_decode attend;
};

static enum mla_status put_lengths(struct problem *p, const struct options *o,
                                   const struct mla_shape *shape, int32_t *lengths)
{
    uint32_t count = shape->first;
    int32_t *table = calloc((size_t)2 * count + 1, sizeof *table);
    if (!table)
        return MLA_MEMORY;
    int32_t *row_first = table + count;
    mla_lengths_unequal(o->seed, count, shape->second, o->unequal ? o->rows : shape->second,
                        lengths);
    for (uint32_t s = 0; s < count; s++) {
        table[s] = (int32_t)s;
        row_first[s + 1] = row_first[s] + (int32_t)o->rows;
        p->keys += lengths[s];
        p->pairs += mla_cost_pairs(o->rows, lengths[s], true);
    }
    enum mla_status status = mla_bench_put(p->backend, table, count * sizeof *table, &p->table);
    if (status == MLA_OK)
        status =
            mla_bench_put(p->backend, row_first, (count + 1) * sizeof *row_first, &p->row_first);
    if (status == MLA_OK)
        status = mla_bench_put(p->backend, lengths, count * sizeof *lengths, &p->kv_length);
    free(table);
    return status;
}

/* Every page has one owner; which one is random. */
static enum mla_status put_tables(struct problem *p, uint32_t count, const int32_t *lengths,
                                  uint32_t *pages, uint32_t *stride)
{
    *pages = 0;
    *stride = 0;
    for (uint32_t s = 0; s < count; s++) {
        uint32_t own = ((uint32_t)lengths[s] + MLA_BLOCK_TOKENS - 1) / MLA_BLOCK_TOKENS;
        *pages += own;
        *stride = own > *stride ? own : *stride;
    }
    int32_t *order = calloc((size_t)*pages + 1, sizeof *order);
    int32_t *tables = calloc((size_t)count * *stride + 1, sizeof *tables);
    enum mla_status status = order && tables ? MLA_OK : MLA_MEMORY;
    if (status == MLA_OK) {
        uint32_t next = 0;
        mla_shuffled(2, *pages, order);
        for (uint32_t s = 0; s < count; s++)
            for (uint32_t page = 0; page * MLA_BLOCK_TOKENS < (uint32_t)lengths[s]; page++)
                tables[(size_t)s * *stride + page] = order[next++];
        status =
            mla_bench_put(p->backend, tables, (size_t)count * *stride * sizeof *tables, &p->tables);
    }
    free(order);
    free(tables);
    return status;
}

static enum mla_status make_problem(struct problem *p, struct mla_backend *backend,
                                    const struct options *o, const struct mla_shape *shape,
                                    uint32_t heads)
{
    const struct mla_backend_ops *ops = backend->ops;
    enum mla_dtype dtype = backend->activation;
    uint32_t pages = 0, stride = 0;
    int32_t *lengths = calloc(shape->first, sizeof *lengths);
    if (!lengths)
        return MLA_MEMORY;
    *p = (struct problem){.backend = backend, .rows = (int64_t)shape->first * o->rows};
    enum mla_status status = put_lengths(p, o, shape, lengths);
    if (status == MLA_OK)
        status = put_tables(p, shape->first, lengths, &pages, &stride);
    free(lengths);
    int64_t width = LATENT + ROPE;
    if (status == MLA_OK)
        status =
            mla_bench_noise(backend, dtype, (int64_t)pages * MLA_BLOCK_TOKENS * width, &p->pool);
    if (status == MLA_OK)
        status = mla_bench_noise(backend, dtype, p->rows * heads * width, &p->q);
    if (status == MLA_OK)
        status = mla_bench_unwritten(backend, dtype, p->rows * heads * LATENT, &p->out);
    size_t bytes = ops->decode_schedule_bytes(backend, p->rows, heads);
    if (status == MLA_OK && bytes)
        status = ops->alloc(backend, bytes, &p->schedule);
    p->attend = (struct mla_attend_decode){
        .kv = {.pool = mla_kv_pool_of(backend, p->pool, dtype, LATENT, ROPE),
               .tables = p->tables,
               .table_stride = stride,
               .sequences = shape->first,
               .tokens_max = o->rows,
               .table = p->table,
               .row_first = p->row_first,
               .kv_length = p->kv_length},
        .rows_max = p->rows,
        .heads = heads,
        .q = p->q,
        .q_row_stride = heads * width,
        .q_head_stride = width,
        .out = p->out,
        .out_row_stride = (int64_t)heads * LATENT,
        .out_head_stride = LATENT,
        .scale = 0.0722f, /* about 192^-0.5 */
        .schedule = p->schedule};
    return status == MLA_OK ? ops->schedule_decode(backend, &p->attend, p->schedule) : status;
}

static void free_problem(struct problem *p)
{
    void *const memory[] = {p->pool,      p->tables, p->table, p->row_first,
                            p->kv_length, p->q,      p->out,   p->schedule};
    for (size_t i = 0; i < sizeof memory / sizeof *memory; i++)
        p->backend->ops->free(p->backend, memory[i]);
}

static enum mla_status attend(void *context)
{
    struct problem *p = context;
    return p->backend->ops->attend_decode(p->backend, &p->attend);
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
        status = mla_bench_averages(backend, backend->activation, p.rows * heads * LATENT, p.out);
    if (status == MLA_OK) {
        struct mla_result result = {name, heads,
                                    mla_cost_attend_decode(&p.attend, p.rows, p.keys, p.pairs,
                                                           mla_dtype_bytes(backend->activation)),
                                    &us};
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
        mla_bench_begin(timer, &o->common, "decode attention", &ceilings, &root);
    if (status != MLA_OK)
        return status;
    printf("latent %d, rope %d; %" PRIu32 " rows a sequence; %s lengths\n\n", LATENT, ROPE, o->rows,
           o->unequal ? "unequal" : "equal");
    status = mla_results_init(&results, &ceilings, "heads");
    for (uint32_t i = 0; i < o->shapes.count; i++)
        for (uint32_t h = 0; status == MLA_OK && h < o->head_count; h++)
            status = measure(timer, o, &o->shapes.at[i], o->heads[h], &results);
    json_object_set_new(root, "rows_per_sequence", json_integer(o->rows));
    json_object_set_new(root, "unequal", json_boolean(o->unequal));
    json_object_set_new(root, "seed", json_integer((json_int_t)o->seed));
    return mla_bench_end(&o->common, status, root, &results);
}

enum { OPTION_HEADS = 256, OPTION_SHAPE, OPTION_ROWS, OPTION_LENGTHS, OPTION_HELP };

static const struct option known[] = {{"heads", required_argument, NULL, OPTION_HEADS},
                                      {"shape", required_argument, NULL, OPTION_SHAPE},
                                      {"rows-per-sequence", required_argument, NULL, OPTION_ROWS},
                                      {"lengths", required_argument, NULL, OPTION_LENGTHS},
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
        return mla_shapes_add(&o->shapes, text, SEQUENCES_MAX, CONTEXT_MAX);
    case OPTION_ROWS:
        return mla_parse_u32(text, 1, 64, &o->rows);
    case OPTION_LENGTHS:
        o->unequal = true;
        return strncmp(text, "unequal,", 8) == 0 &&
               mla_parse_number(text + 8, 0, UINT32_MAX, &o->seed);
    default:
        return mla_bench_option_set(&o->common, id, text);
    }
}

/* What is usual on the device; on a CPU, what takes seconds. */
static void set_defaults(struct options *o)
{
    static const struct mla_shape cuda[] = {{1, 4096},   {1, 32768},  {16, 4096}, {64, 4096},
                                            {128, 1024}, {128, 4096}, {128, 8192}};
    static const struct mla_shape cpu[] = {{1, 4096}, {16, 512}};
    static const uint32_t heads[] = {16, 32, 64, 128};
    if (o->head_count == 0) {
        o->head_count = o->common.cuda ? 4 : 1;
        memcpy(o->heads, heads, sizeof heads);
    }
    if (o->shapes.count == 0) {
        o->shapes.count = o->common.cuda ? sizeof cuda / sizeof *cuda : sizeof cpu / sizeof *cpu;
        memcpy(o->shapes.at, o->common.cuda ? cuda : cpu, o->shapes.count * sizeof *cuda);
    }
}

int mla_bench_attention(int argc, char **argv)
{
    struct options options = {.common = mla_bench_defaults(), .rows = 1};
    enum mla_status status = mla_parse_options(argc, argv, known, usage, set, &options);
    if (status == MLA_AGAIN)
        return 0;
    if (status == MLA_OK) {
        set_defaults(&options);
        for (uint32_t i = 0; i < options.shapes.count; i++)
            if (options.shapes.at[i].second < options.rows) {
                fputs("mla-bench: a context is shorter than --rows-per-sequence\n", stderr);
                status = MLA_OPTION;
            }
    }
    if (status == MLA_OK)
        status = mla_bench_on_device(&options.common, run, &options);
    return mla_status_exit_code(status);
}
