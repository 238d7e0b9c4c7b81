/* mla-bench collectives: the two collectives of a layer, between the ranks of an MPI job. */
#include "comm/bootstrap.h"
#include "comm/collective.h"
#include "proto/parse.h"
#include "tests/bench/bench.h"
#include "tests/bench/device.h"
#include "tests/bench/results.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum { SIZES_MAX = 16, CHAIN = 20, WIDTH_MAX = 1 << 20, ROWS_MAX = 1 << 16 };

static const char usage[] =
    "usage: mpirun -n N mla-bench collectives [options]\n"
    "\n"
    "Time of a layer's all-gather of latents and reduce-scatter of outputs: the median of samples\n"
    "of 20 in a row, on a GPU replayed from a graph; of the slowest rank. NCCL between GPUs, with\n"
    "memory as it is (plain) and in windows of its symmetric memory (0: this NCCL has them "
    "wrong);\n"
    "MPI between CPUs.\n"
    "\n"
    "  --rows LIST           rows of a microbatch, ascending; padded to the ranks\n"
    "                        (1,16,64,128,256,512)\n"
    "  --gather N            values of a row that are gathered (2112: V3)\n"
    "  --reduce N            values of a row that are summed (7168: V3)\n"
    "  --backend cpu|cuda    where to compute (cuda where there is a GPU for each rank)\n"
    "  --repeat N            samples of each time (30)\n"
    "  --json FILE           writes the numbers there as well\n";

struct options {
    struct mla_bench_options common;
    bool backend_given;
    uint32_t rows[SIZES_MAX], row_count, gather, reduce;
    uint32_t rank, ranks;
};

/* One collective, in memory of its own. */
struct chain {
    struct mla_collective *collective;
    void *data;
    size_t count;
    bool sums;
};

static enum mla_status run_chain(void *context)
{
    struct chain *chain = context;
    struct mla_collective *collective = chain->collective;
    enum mla_status status = MLA_OK;
    void *part = NULL;
    for (int i = 0; status == MLA_OK && i < CHAIN; i++)
        status = chain->sums
                     ? collective->ops->reduce_scatter(collective, chain->data, chain->count, &part)
                     : collective->ops->all_gather(collective, chain->data, chain->count);
    return status;
}

/* The slowest rank's median of one collective, in microseconds. */
static enum mla_status measure(struct mla_timer *timer, const struct options *o,
                               struct mla_collective *collective, size_t count, bool sums,
                               double *us)
{
    struct chain chain = {.collective = collective, .count = count, .sums = sums};
    struct mla_series samples = {0};
    struct mla_summary summary;
    size_t values = count * o->ranks;
    enum mla_dtype dtype = timer->backend->activation;
    enum mla_status status =
        collective->ops->alloc(collective, values * mla_dtype_bytes(dtype), &chain.data);
    if (status == MLA_OK)
        status = mla_bench_fill(timer->backend, dtype, (int64_t)values, chain.data);
    if (status == MLA_OK)
        status = mla_timer_samples(timer, (struct mla_timer_body){run_chain, &chain}, true,
                                   o->common.repeat, &samples);
    mla_series_summarize(&samples, &summary);
    mla_series_fini(&samples);
    collective->ops->free(collective, chain.data);
    uint64_t ns = (uint64_t)(summary.median * 1e3);
    if (status == MLA_OK)
        status = mla_bootstrap_max(&ns);
    *us = (double)ns / 1e3 / CHAIN;
    return status;
}

/* The collectives there are: plain, and symmetric where there are windows. */
static enum mla_status create(const struct options *o, struct mla_backend *backend,
                              struct mla_collective *out[2])
{
#if MLA_HAVE_CUDA
    if (!backend->unified) {
        void *stream = mla_backend_cuda_stream(backend);
        enum mla_status status =
            mla_collective_nccl_create_flags(o->rank, o->ranks, stream, MLA_NCCL_ALONE, &out[0]);
        if (status == MLA_OK)
            status = mla_collective_nccl_create_flags(o->rank, o->ranks, stream,
                                                      MLA_NCCL_ALONE | MLA_NCCL_SYMMETRIC, &out[1]);
        return status;
    }
#endif
    (void)backend;
    return mla_collective_mpi_create(o->rank, o->ranks, &out[0]);
}

/* Whether there is a collective of this kind, 1: with windows. */
static bool exists(const struct mla_collective *collective, int kind, bool sums, size_t count)
{
#if MLA_HAVE_CUDA
    if (collective && kind == 1)
        return mla_collective_nccl_has_windows(collective, sums, count);
#endif
    (void)kind, (void)sums, (void)count;
    return collective;
}

static enum mla_status measure_rows(struct mla_timer *timer, const struct options *o,
                                    struct mla_collective *const collectives[2], uint32_t rows,
                                    json_t *list)
{
    double us[2][2] = {{0}};
    size_t own = (rows + o->ranks - 1) / o->ranks;
    enum mla_status status = MLA_OK;
    for (int sums = 0; sums < 2; sums++) {
        size_t count = own * (sums ? o->reduce : o->gather);
        for (int kind = 0; status == MLA_OK && kind < 2; kind++)
            if (exists(collectives[kind], kind, sums, count))
                status = measure(timer, o, collectives[kind], count, sums, &us[sums][kind]);
    }
    if (status != MLA_OK || o->rank > 0)
        return status;
    printf("%6" PRIu32 " %12.2f %12.2f %12.2f %12.2f\n", rows, us[0][0], us[0][1], us[1][0],
           us[1][1]);
    fflush(stdout);
    json_t *row = json_pack("{s:i, s:f, s:f, s:f, s:f}", "rows", (int)rows, "all_gather_us",
                            us[0][0], "all_gather_symmetric_us", us[0][1], "reduce_scatter_us",
                            us[1][0], "reduce_scatter_symmetric_us", us[1][1]);
    return json_array_append_new(list, row) == 0 ? MLA_OK : MLA_MEMORY;
}

static enum mla_status run(struct mla_timer *timer, const void *context)
{
    const struct options *o = context;
    struct mla_collective *collectives[2] = {NULL, NULL};
    json_t *list = json_array();
    char device[128];
    mla_bench_device_name(&o->common, device, sizeof device);
    enum mla_status status = list ? create(o, timer->backend, collectives) : MLA_MEMORY;
    if (status == MLA_OK && o->rank == 0)
        printf(
            "%" PRIu32 " ranks, %s: %s; %s; microseconds\n%6s %25s %25s\n%6s %12s %12s %12s %12s\n",
            o->ranks, collectives[0]->ops->name, device, mla_dtype_name(timer->backend->activation),
            "", "all-gather", "reduce-scatter", "rows", "plain", "symmetric", "plain", "symmetric");
    for (uint32_t i = 0; status == MLA_OK && i < o->row_count; i++)
        status = measure_rows(timer, o, collectives, o->rows[i], list);
    for (int kind = 0; kind < 2; kind++)
        if (collectives[kind])
            collectives[kind]->ops->destroy(&collectives[kind]);
    if (status != MLA_OK || o->rank > 0) {
        json_decref(list);
        return status;
    }
    json_t *root = json_pack("{s:s, s:s, s:i, s:i, s:i, s:o}", "bench", "collectives", "device",
                             device, "ranks", (int)o->ranks, "gather", (int)o->gather, "reduce",
                             (int)o->reduce, "results", list);
    return root ? mla_bench_write(o->common.json, root) : MLA_MEMORY;
}

enum { OPTION_ROWS = 256, OPTION_GATHER, OPTION_REDUCE, OPTION_HELP };

static const struct option known[] = {{"rows", required_argument, NULL, OPTION_ROWS},
                                      {"gather", required_argument, NULL, OPTION_GATHER},
                                      {"reduce", required_argument, NULL, OPTION_REDUCE},
                                      {"backend", required_argument, NULL, MLA_BENCH_BACKEND},
                                      {"repeat", required_argument, NULL, MLA_BENCH_REPEAT},
                                      {"json", required_argument, NULL, MLA_BENCH_JSON},
                                      {"help", no_argument, NULL, OPTION_HELP},
                                      {0}};

static bool set(void *context, int id, const char *text)
{
    struct options *o = context;
    switch (id) {
    case OPTION_ROWS:
        return mla_parse_list(text, SIZES_MAX, o->rows, &o->row_count) && o->rows[0] > 0 &&
               o->rows[o->row_count - 1] <= ROWS_MAX;
    case OPTION_GATHER:
    case OPTION_REDUCE:
        return mla_parse_u32(text, 1, WIDTH_MAX, id == OPTION_GATHER ? &o->gather : &o->reduce);
    default:
        o->backend_given = o->backend_given || id == MLA_BENCH_BACKEND;
        return mla_bench_option_set(&o->common, id, text);
    }
}

/* A GPU for each rank of the host, or none. */
static enum mla_status choose_device(struct options *o)
{
    uint32_t local_ranks = 1;
    enum mla_status status = mla_bootstrap_local(&o->common.device, &local_ranks);
    uint64_t enough = (uint64_t)mla_backend_cuda_count() >= local_ranks;
    if (status == MLA_OK)
        status = mla_bootstrap_min(&enough);
    if (status != MLA_OK)
        return status;
    if (!o->backend_given)
        o->common.cuda = enough;
    if (!o->common.cuda || enough)
        return MLA_OK;
    fprintf(stderr, "mla-bench: %d GPUs here for %" PRIu32 " ranks\n", mla_backend_cuda_count(),
            local_ranks);
    return MLA_OPTION;
}

int mla_bench_collectives(int argc, char **argv)
{
    static const uint32_t rows[] = {1, 16, 64, 128, 256, 512};
    struct options options = {
        .common = mla_bench_defaults(), .row_count = 6, .gather = 2112, .reduce = 7168};
    memcpy(options.rows, rows, sizeof rows);
    enum mla_status status = mla_parse_options(argc, argv, known, usage, set, &options);
    if (status != MLA_OK)
        return status == MLA_AGAIN ? 0 : mla_status_exit_code(status);
    status = mla_bootstrap_init(&argc, &argv, &options.rank, &options.ranks);
    if (status == MLA_OK)
        status = choose_device(&options);
    if (status == MLA_OK)
        status = mla_bench_on_device(&options.common, run, &options);
    /* The others may be inside a collective. */
    if (status != MLA_OK)
        mla_bootstrap_abort(mla_status_exit_code(status));
    mla_bootstrap_fini();
    return 0;
}
