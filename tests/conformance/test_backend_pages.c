/* The KV cache: writing, gathering and copying pages. */
#include "proto/limits.h"
#include "tests/conformance/device.h"

#include <criterion/criterion.h>
#include <stdlib.h>

enum { BLOCK = MLA_BLOCK_TOKENS, BLOCKS = 9, LATENT = 24, ROPE = 6, DIM = LATENT + ROPE };

static struct mla_kv_pool pool_of(const struct mla_tensor *rows)
{
    return (struct mla_kv_pool){rows->memory, rows->dtype, LATENT, ROPE};
}

static void check_write(struct mla_device *device, enum mla_dtype dtype)
{
    const int64_t block = BLOCK;
    const int64_t slots[] = {block * 3 + 63, MLA_SLOT_NONE, 0, block * BLOCKS - 1, 64};
    enum { ROWS = sizeof slots / sizeof *slots, STRIDE = DIM + 2 };
    struct mla_tensor pool = mla_tensor_make(device, dtype, (int64_t)BLOCKS * BLOCK * DIM);
    struct mla_tensor src =
        mla_tensor_make(device, device->backend->activation, (int64_t)ROWS * STRIDE);
    mla_tensor_fill(&src, 0, ROWS, STRIDE, DIM);
    mla_tensor_upload(device, &src);
    double *want = mla_wanted(&pool);
    for (int64_t row = 0; row < ROWS; row++)
        for (int64_t i = 0; slots[row] != MLA_SLOT_NONE && i < DIM; i++)
            want[slots[row] * DIM + i] = (double)src.host[row * STRIDE + i];
    MLA_RUN(device, kv_write,
            &(struct mla_kv_write){
                .pool = pool_of(&pool),
                .rows = ROWS,
                .src = src.memory,
                .src_stride = STRIDE,
                .slots = mla_device_put(device, slots, sizeof slots),
            });
    mla_expect(device, &pool, want, 0, "kv_write");
    free(want);
    mla_tensor_free(&pool);
    mla_tensor_free(&src);
}

static void write_dtypes(struct mla_device *device)
{
    check_write(device, MLA_F32);
    check_write(device, MLA_BF16);
}

Test(pages, write)
{
    mla_each_device(write_dtypes);
}

/* Three sequences, the tables of two share a block; the second has nothing in this chunk. */
static void check_gather(struct mla_device *device, enum mla_dtype dtype)
{
    enum { STRIDE = DIM + 4, ROWS = 150 + 0 + 65 };
    static const int32_t tables[] = {7, 2, 5, INT32_MAX, 8, INT32_MAX, 0, 0, 2, 4, 0, 0};
    static const int32_t table[] = {0, 1, 2}, row_first[] = {0, 1, 2, 3};
    static const int32_t kv_length[] = {190, 10, 128};
    static const int32_t begin[] = {1, 10, 63}, context_first[] = {0, 150, 150, ROWS};
    struct mla_tensor pool = mla_tensor_make(device, dtype, (int64_t)BLOCKS * BLOCK * DIM);
    struct mla_tensor dst =
        mla_tensor_make(device, device->backend->activation, (int64_t)(ROWS + 1) * STRIDE);
    mla_tensor_fill(&pool, 0, 1, pool.count, pool.count);
    mla_tensor_upload(device, &pool);
    double *want = mla_wanted(&dst);
    for (int s = 0; s < 3; s++) {
        for (int64_t row = context_first[s]; row < context_first[s + 1]; row++) {
            int64_t token = begin[s] + row - context_first[s];
            const int32_t *blocks = tables + (ptrdiff_t)s * 4;
            int64_t slot = (int64_t)blocks[token / BLOCK] * BLOCK + token % BLOCK;
            for (int64_t i = 0; i < DIM; i++)
                want[row * STRIDE + i] = (double)pool.host[slot * DIM + i];
        }
    }
    struct mla_kv_gather gather = {
        .kv = {.pool = pool_of(&pool),
               .tables = mla_device_put(device, tables, sizeof tables),
               .table_stride = 4,
               .sequences = 3,
               .table = mla_device_put(device, table, sizeof table),
               .row_first = mla_device_put(device, row_first, sizeof row_first),
               .kv_length = mla_device_put(device, kv_length, sizeof kv_length)},
        .rows = ROWS,
        .begin = mla_device_put(device, begin, sizeof begin),
        .context_first = mla_device_put(device, context_first, sizeof context_first),
        .dst = dst.memory,
        .dst_stride = STRIDE,
    };
    MLA_RUN(device, kv_gather, &gather);
    mla_expect(device, &dst, want, 0, "kv_gather");
    free(want);
    mla_tensor_free(&pool);
    mla_tensor_free(&dst);
}

static void gather_dtypes(struct mla_device *device)
{
    check_gather(device, MLA_F32);
    check_gather(device, MLA_BF16);
}

Test(pages, gather)
{
    mla_each_device(gather_dtypes);
}

static void check_copy(struct mla_device *device, enum mla_dtype dtype)
{
    enum { PAGE = BLOCK * DIM };
    static const int32_t src[] = {0, 4, 4}, dst[] = {8, 1, 2};
    struct mla_tensor pool = mla_tensor_make(device, dtype, (int64_t)BLOCKS * PAGE);
    mla_tensor_fill(&pool, 0, 6, PAGE, PAGE - 1); /* half-filled pages are copied too */
    mla_tensor_upload(device, &pool);
    double *want = mla_wanted(&pool);
    for (int64_t i = 0; i < pool.count; i++)
        want[i] = (double)pool.host[i];
    for (int i = 0; i < 3; i++)
        for (int64_t j = 0; j < PAGE; j++)
            want[(int64_t)dst[i] * PAGE + j] = (double)pool.host[(int64_t)src[i] * PAGE + j];
    MLA_RUN(device, kv_copy, &(struct mla_kv_copy){pool_of(&pool), 3, src, dst});
    mla_expect(device, &pool, want, 0, "kv_copy");
    free(want);
    mla_tensor_free(&pool);
}

static void copy_dtypes(struct mla_device *device)
{
    check_copy(device, MLA_F32);
    check_copy(device, MLA_BF16);
}

Test(pages, copy)
{
    mla_each_device(copy_dtypes);
}

static void scatter_entries(struct mla_device *device)
{
    enum { ENTRIES = 3000, CHANGES = 700 };
    static int32_t table[ENTRIES], want[ENTRIES], value[CHANGES];
    static int64_t index[CHANGES];
    for (int i = 0; i < ENTRIES; i++)
        table[i] = want[i] = -i;
    for (int i = 0; i < CHANGES; i++) {
        index[i] = (int64_t)i * 37 % ENTRIES; /* all different, in no order */
        value[i] = 1000000 + i;
        want[index[i]] = value[i];
    }
    int32_t *memory = mla_device_put(device, table, sizeof table);
    MLA_RUN(device, scatter,
            &(struct mla_scatter){.count = CHANGES,
                                  .dst = memory,
                                  .index = mla_device_put(device, index, sizeof index),
                                  .value = mla_device_put(device, value, sizeof value)});
    MLA_RUN(device, download, table, memory, sizeof table);
    mla_device_synchronize(device);
    cr_expect_arr_eq(table, want, sizeof want);
}

Test(pages, scatter)
{
    mla_each_device(scatter_entries);
}
