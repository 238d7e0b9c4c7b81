/* The KV cache: writing, gathering and copying pages. */
#include "proto/limits.h"
#include "tests/conformance/device.h"

#include <criterion/criterion.h>
#include <stdlib.h>

enum { BLOCK = MLA_BLOCK_TOKENS, BLOCKS = 9 };

/* Rows of the pool, and the gap behind those outside of it. */
struct width {
    enum mla_dtype dtype;
    int64_t latent, rope, gap;
};

static const struct width widths[] = {
    {MLA_F32, 24, 6, 2},  {MLA_BF16, 24, 6, 2},   {MLA_BF16, 3, 2, 0},
    {MLA_F32, 64, 16, 8}, {MLA_BF16, 512, 64, 0}, {MLA_BF16, 512, 64, 1536}, /* V3's rows */
};

static void each_width(struct mla_device *device,
                       void (*check)(struct mla_device *, const struct width *))
{
    for (size_t i = 0; i < sizeof widths / sizeof *widths; i++)
        check(device, &widths[i]);
}

static void check_write(struct mla_device *device, const struct width *width)
{
    const int64_t dim = width->latent + width->rope;
    const int64_t block = BLOCK;
    const int64_t slots[] = {block * 3 + 63, MLA_SLOT_NONE, 0, block * BLOCKS - 1, 64};
    enum { ROWS = sizeof slots / sizeof *slots };
    const int64_t stride = dim + width->gap;
    struct mla_tensor pool =
        mla_tensor_make_pool(device, width->dtype, BLOCKS, width->latent, width->rope);
    struct mla_tensor src = mla_tensor_make(device, device->backend->activation, ROWS * stride);
    mla_tensor_fill(&src, 0, ROWS, stride, dim);
    mla_tensor_upload(device, &src);
    double *want = mla_wanted(&pool);
    for (int64_t row = 0; row < ROWS; row++)
        for (int64_t i = 0; slots[row] != MLA_SLOT_NONE && i < dim; i++)
            want[slots[row] * dim + i] = (double)src.host[row * stride + i];
    MLA_RUN(device, kv_write,
            &(struct mla_kv_write){
                .pool = pool.pool,
                .rows = ROWS,
                .src = src.memory,
                .src_stride = stride,
                .slots = mla_device_put(device, slots, sizeof slots),
            });
    mla_expect(device, &pool, want, 0, "kv_write");
    free(want);
    mla_tensor_free(&pool);
    mla_tensor_free(&src);
}

static void write_rows(struct mla_device *device)
{
    each_width(device, check_write);
}

Test(pages, write)
{
    mla_each_device(write_rows);
}

/* Three sequences, the tables of two share a block; the second has nothing in this chunk. */
static void check_gather(struct mla_device *device, const struct width *width)
{
    const int64_t dim = width->latent + width->rope;
    enum { ROWS = 150 + 0 + 65 };
    const int64_t stride = dim + width->gap;
    static const int32_t tables[] = {7, 2, 5, INT32_MAX, 8, INT32_MAX, 0, 0, 2, 4, 0, 0};
    static const int32_t table[] = {0, 1, 2}, row_first[] = {0, 1, 2, 3};
    static const int32_t kv_length[] = {190, 10, 128};
    static const int32_t begin[] = {1, 10, 63}, context_first[] = {0, 150, 150, ROWS};
    struct mla_tensor pool =
        mla_tensor_make_pool(device, width->dtype, BLOCKS, width->latent, width->rope);
    struct mla_tensor dst =
        mla_tensor_make(device, device->backend->activation, (ROWS + 1) * stride);
    mla_tensor_fill(&pool, 0, 1, pool.count, pool.count);
    mla_tensor_upload(device, &pool);
    double *want = mla_wanted(&dst);
    for (int s = 0; s < 3; s++) {
        for (int64_t row = context_first[s]; row < context_first[s + 1]; row++) {
            int64_t token = begin[s] + row - context_first[s];
            const int32_t *blocks = tables + (ptrdiff_t)s * 4;
            int64_t slot = (int64_t)blocks[token / BLOCK] * BLOCK + token % BLOCK;
            for (int64_t i = 0; i < dim; i++)
                want[row * stride + i] = (double)pool.host[slot * dim + i];
        }
    }
    struct mla_kv_gather gather = {
        .kv = {.pool = pool.pool,
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
        .dst_stride = stride,
    };
    MLA_RUN(device, kv_gather, &gather);
    mla_expect(device, &dst, want, 0, "kv_gather");
    free(want);
    mla_tensor_free(&pool);
    mla_tensor_free(&dst);
}

static void gather_rows(struct mla_device *device)
{
    each_width(device, check_gather);
}

Test(pages, gather)
{
    mla_each_device(gather_rows);
}

static void check_copy(struct mla_device *device, const struct width *width)
{
    const int64_t dim = width->latent + width->rope;
    const int64_t page = BLOCK * dim;
    static const int32_t src[] = {0, 4, 4}, dst[] = {8, 1, 2};
    struct mla_tensor pool =
        mla_tensor_make_pool(device, width->dtype, BLOCKS, width->latent, width->rope);
    mla_tensor_fill(&pool, 0, 6, page, page - 1); /* half-filled pages are copied too */
    mla_tensor_upload(device, &pool);
    double *want = mla_wanted(&pool);
    for (int64_t i = 0; i < pool.count; i++)
        want[i] = (double)pool.host[i];
    for (int i = 0; i < 3; i++)
        for (int64_t j = 0; j < page; j++)
            want[dst[i] * page + j] = (double)pool.host[src[i] * page + j];
    MLA_RUN(device, kv_copy, &(struct mla_kv_copy){pool.pool, 3, src, dst});
    mla_expect(device, &pool, want, 0, "kv_copy");
    free(want);
    mla_tensor_free(&pool);
}

static void copy_rows(struct mla_device *device)
{
    each_width(device, check_copy);
}

Test(pages, copy)
{
    mla_each_device(copy_rows);
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
