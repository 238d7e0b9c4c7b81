/* Kernels that start before the one in front has ended: in chains whose first kernel takes long and
 * whose input changes from run to run, each operation must use what this run has written. */
#include "tests/conformance/device.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

/* The first kernel is a product of DEPTH, all of whose blocks run from the start and store at their
 * end; so few rows that our own kernel does it. */
enum { DEPTH = 65536, WIDTH = 512, ROWS = 32, N = 256, ROPE = 64, RUNS = 24, INPUTS = 2 };
enum { OUT_BYTES = ROWS * N * (int)sizeof(float) };

struct chain {
    struct mla_device *device;
    struct mla_backend *backend;
    void *from[INPUTS], *slow_weights; /* [ROWS, DEPTH], [WIDTH, DEPTH] */
    void *slow;                        /* [ROWS, WIDTH]: their product */
    void *weights;                     /* [N, WIDTH] */
    void *norm, *table, *positions, *slots, *pool;
    void *aside, *aside_weights, *aside_out; /* what has nothing to do with the rest */
    void *out;                               /* [ROWS, N] */
    void *outs;                              /* [RUNS, ROWS, N] */
};

static void *random_values(struct mla_device *device, enum mla_dtype dtype, int64_t count)
{
    struct mla_tensor tensor = mla_tensor_make(device, dtype, count);
    mla_tensor_fill(&tensor, 0, 1, count, count);
    void *memory = tensor.memory;
    mla_tensor_upload(device, &tensor);
    mla_tensor_free(&tensor);
    return memory;
}

static void chain_init(struct chain *chain, struct mla_device *device)
{
    const enum mla_dtype dtype = device->backend->activation;
    int32_t positions[ROWS];
    int64_t slots[ROWS];
    for (int row = 0; row < ROWS; row++) {
        positions[row] = row;
        slots[row] = row;
    }
    *chain = (struct chain){.device = device, .backend = device->backend};
    for (int i = 0; i < INPUTS; i++)
        chain->from[i] = random_values(device, dtype, (int64_t)ROWS * DEPTH);
    chain->slow_weights = random_values(device, dtype, (int64_t)WIDTH * DEPTH);
    chain->slow = random_values(device, dtype, (int64_t)ROWS * WIDTH);
    chain->weights = random_values(device, dtype, (int64_t)WIDTH * N);
    chain->norm = random_values(device, dtype, WIDTH);
    chain->table = random_values(device, MLA_F32, (int64_t)ROWS * ROPE);
    chain->positions = mla_device_put(device, positions, sizeof positions);
    chain->slots = mla_device_put(device, slots, sizeof slots);
    chain->pool = random_values(device, MLA_BF16, (int64_t)ROWS * WIDTH);
    chain->aside = random_values(device, dtype, (int64_t)ROWS * WIDTH);
    chain->aside_weights = random_values(device, dtype, (int64_t)WIDTH * N);
    chain->aside_out = random_values(device, dtype, (int64_t)ROWS * WIDTH);
    chain->out = random_values(device, dtype, (int64_t)ROWS * N);
    chain->outs = mla_device_make(device, (size_t)RUNS * OUT_BYTES);
}

static struct mla_copy copy_of(const struct chain *chain, const void *src, void *dst)
{
    const enum mla_dtype dtype = chain->backend->activation;
    return (struct mla_copy){ROWS, WIDTH, src, WIDTH, dtype, dst, WIDTH, dtype};
}

static struct mla_gemm gemm_of(int64_t n, int64_t k, const void *a, const void *weights, void *out)
{
    return (struct mla_gemm){.m = ROWS,
                             .n = n,
                             .k = k,
                             .batch = 1,
                             .a = a,
                             .lda = k,
                             .b = weights,
                             .ldb = k,
                             .b_transposed = true,
                             .c = out,
                             .ldc = n};
}

static struct mla_latents latents_of(const struct chain *chain, void *rows)
{
    return (struct mla_latents){.rows = ROWS,
                                .stride = WIDTH,
                                .ckv = rows,
                                .latent = WIDTH - ROPE,
                                .rope = ROPE,
                                .kv_norm = chain->norm,
                                .eps = 1e-6f,
                                .positions = chain->positions,
                                .table = chain->table,
                                .interleaved = true};
}

static struct mla_rope rope_of(const struct chain *chain, void *rows)
{
    return (struct mla_rope){.rows = ROWS,
                             .heads = WIDTH / ROPE,
                             .dim = ROPE,
                             .src = rows,
                             .src_row_stride = WIDTH,
                             .src_head_stride = ROPE,
                             .dst = rows,
                             .dst_row_stride = WIDTH,
                             .dst_head_stride = ROPE,
                             .positions = chain->positions,
                             .table = chain->table,
                             .interleaved = true};
}

static struct mla_kv_write kv_write_of(const struct chain *chain, const void *rows)
{
    return (struct mla_kv_write){.pool = {chain->pool, MLA_BF16, WIDTH - ROPE, ROPE},
                                 .rows = ROWS,
                                 .src = rows,
                                 .src_stride = WIDTH,
                                 .slots = chain->slots};
}

/* What stands between the slow product and the one that uses it. */
enum between {
    NOTHING,
    LATENTS,
    ROPE_OF_HEADS,
    COPY,
    KV_WRITE, /* the product is of the cache's rows where they have the activation's dtype */
    GEMM,
    ASIDE_LATENTS, /* of other memory: its own wait is the only one for the slow product */
    ASIDE_ROPE,
    ASIDE_COPY,
    ASIDE_KV_WRITE,
    ASIDE_GEMM,
    BETWEEN_COUNT
};

static const void *run_between(struct chain *chain, enum between between)
{
    struct mla_device *device = chain->device;
    void *rows = between >= ASIDE_LATENTS ? chain->aside : chain->slow;
    const struct mla_latents latents = latents_of(chain, rows);
    const struct mla_rope rope = rope_of(chain, rows);
    const struct mla_copy copy = copy_of(chain, rows, chain->aside_out);
    const struct mla_kv_write kv_write = kv_write_of(chain, rows);
    const struct mla_gemm gemm = gemm_of(N, WIDTH, rows, chain->aside_weights, chain->aside_out);
    switch (between) {
    case NOTHING:
    case BETWEEN_COUNT:
        break;
    case LATENTS:
    case ASIDE_LATENTS:
        MLA_RUN(device, latents, &latents);
        break;
    case ROPE_OF_HEADS:
    case ASIDE_ROPE:
        MLA_RUN(device, rope, &rope);
        break;
    case COPY:
        MLA_RUN(device, copy, &copy);
        return chain->aside_out;
    case ASIDE_COPY:
        MLA_RUN(device, copy, &copy);
        break;
    case KV_WRITE:
        MLA_RUN(device, kv_write, &kv_write);
        return chain->backend->activation == MLA_BF16 ? chain->pool : rows;
    case ASIDE_KV_WRITE:
        MLA_RUN(device, kv_write, &kv_write);
        break;
    case GEMM:
    case ASIDE_GEMM:
        MLA_RUN(device, gemm, &gemm);
        break;
    }
    return chain->slow;
}

/* One chain; `alone`: each operation ends before the next is queued. */
static void run_chain(struct chain *chain, enum between between, int run, bool alone)
{
    struct mla_device *device = chain->device;
    const struct mla_gemm slow =
        gemm_of(WIDTH, DEPTH, chain->from[run % INPUTS], chain->slow_weights, chain->slow);
    MLA_RUN(device, gemm, &slow);
    if (alone)
        mla_device_synchronize(device);
    const struct mla_gemm gemm =
        gemm_of(N, WIDTH, run_between(chain, between), chain->weights, chain->out);
    if (alone)
        mla_device_synchronize(device);
    MLA_RUN(device, gemm, &gemm);
    if (alone)
        mla_device_synchronize(device);
    const size_t bytes = (size_t)ROWS * N * mla_dtype_bytes(chain->backend->activation);
    const struct mla_copy keep = {.rows = ROWS,
                                  .n = N,
                                  .src = chain->out,
                                  .src_stride = N,
                                  .src_dtype = chain->backend->activation,
                                  .dst = (char *)chain->outs + (size_t)run * bytes,
                                  .dst_stride = N,
                                  .dst_dtype = chain->backend->activation};
    MLA_RUN(device, copy, &keep);
    if (alone)
        mla_device_synchronize(device);
}

/* What other memory the chain changes in place begins each time as it began before. */
static void run_chains(struct chain *chain, enum between between, bool alone, void *outs,
                       const void *aside)
{
    struct mla_device *device = chain->device;
    const size_t element = mla_dtype_bytes(chain->backend->activation);
    MLA_RUN(device, upload, chain->aside, aside, (size_t)ROWS * WIDTH * element);
    mla_device_synchronize(device);
    for (int run = 0; run < RUNS; run++)
        run_chain(chain, between, run, alone);
    MLA_RUN(device, download, outs, chain->outs, (size_t)RUNS * ROWS * N * element);
    mla_device_synchronize(device);
}

static void chains(struct mla_device *device)
{
    struct chain chain;
    if (strcmp(device->backend->ops->name, "cuda") != 0)
        return;
    chain_init(&chain, device);
    const size_t element = mla_dtype_bytes(device->backend->activation);
    const size_t bytes = (size_t)RUNS * ROWS * N * element;
    char *want = malloc(bytes), *got = malloc(bytes);
    void *aside = malloc((size_t)ROWS * WIDTH * element);
    cr_assert(want && got && aside);
    MLA_RUN(device, download, aside, chain.aside, (size_t)ROWS * WIDTH * element);
    mla_device_synchronize(device);
    for (enum between between = NOTHING; between < BETWEEN_COUNT; between++) {
        run_chains(&chain, between, true, want, aside);
        cr_assert_neq(memcmp(want, want + bytes / RUNS, bytes / RUNS), 0);
        run_chains(&chain, between, false, got, aside);
        for (int run = 0; run < RUNS; run++)
            cr_expect_eq(memcmp(want + (size_t)run * bytes / RUNS, got + (size_t)run * bytes / RUNS,
                                bytes / RUNS),
                         0, "chain %d, run %d used what an earlier run wrote", (int)between, run);
    }
    free(want);
    free(got);
    free(aside);
}

Test(depend, chains)
{
    mla_each_device(chains);
}
