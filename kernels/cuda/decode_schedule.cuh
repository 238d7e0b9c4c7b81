/* How decode attention shares out its work, as its kernels read it.
 *
 * An item is what a block attends to at a time: a row, or a few rows of one sequence, whose queries
 * read the same cached tokens. Items are cut into tiles of 64 tokens. A worker (one block, or one
 * for every block of heads) gets a range of the list of all tiles, item after item. An item that
 * lies in the ranges of several workers is split: worker w leaves its sums in partial 2 w if its
 * part begins behind the item's first tile (only its first item can), else in 2 w + 1 (only its
 * last item can).
 *
 * The list has the first item of every sequence, then the second ones, and so on: what several
 * items of a sequence read, workers then read at the same time, and from the L2 cache. */
#ifndef MLA_KERNELS_CUDA_DECODE_SCHEDULE_CUH
#define MLA_KERNELS_CUDA_DECODE_SCHEDULE_CUH

#include "kernels/backend.h"

#include <stddef.h>
#include <stdint.h>

namespace decode
{

constexpr int TILE_TOKENS = 64;
constexpr int WIDE_QUERIES = 64; /* of a block of the wide kernel */

struct __align__(16) item
{
    int32_t length, table;  /* cached tokens that the last row sees */
    int32_t worker, splits; /* the first worker, and how many */
    int32_t row, rows;      /* of the batch: each row sees one token less than the next */
    int32_t joiners;        /* workers that end with it: all that share it, or all but the last */
    int32_t unused;
};

/* From tile tile_begin of item item_begin up to, and without, tile tile_end of item item_end; at
 * least a tile of each. Nothing if item_end is before item_begin. */
struct __align__(16) range
{
    int32_t item_begin, tile_begin, item_end, tile_end;
    item first;     /* items[item_begin]: one wait less for a kernel that begins */
    int32_t worker; /* which of the ranges this is, counted along the list */
    int32_t tiles;  /* of the whole list */
    int32_t unused[2];
};

struct schedule {
    range *ranges;         /* [workers], in the order of blocks */
    item *items;           /* [rows_max] */
    int32_t *tiles_before; /* [rows_max + 1]: tiles of the items before */
};

__host__ __device__ inline int64_t tiles_of(int64_t length)
{
    return (length + TILE_TOKENS - 1) / TILE_TOKENS;
}

/* Where the parts lie in a schedule's memory; returns its bytes. */
__host__ inline size_t schedule_layout(void *memory, int64_t workers, int64_t rows_max,
                                       schedule *out)
{
    char *next = (char *)memory;
    out->ranges = (range *)next;
    next += workers * sizeof(range);
    out->items = (item *)next;
    next += rows_max * sizeof(item);
    out->tiles_before = (int32_t *)next;
    next += (rows_max + 1) * sizeof(int32_t);
    return (size_t)(next - (char *)memory);
}

/* How queries make blocks. */
struct blocking {
    bool wide;  /* the kernel that has 64 queries as the rows of its products */
    int heads;  /* that one block takes; some may be padding */
    int rows;   /* of an item, at most */
    int blocks; /* of heads */
    int items;  /* of a sequence: with the blocks of each, how many read the same tiles */
};

/* What was fastest on an H100 and an H200 (NOTES.md). Queries as columns cost what they are, and
 * the first tile comes sooner; as rows 64 cost little more than 32, and several blocks of them far
 * less. An item has all tokens of a sequence that fit in 64 queries: they read its tiles once. */
__host__ inline blocking blocking_of(const struct mla_attend_decode *attend)
{
    constexpr int few_rows = 16;
    int64_t tokens = attend->kv.tokens_max > 1 ? attend->kv.tokens_max : 1;
    blocking b = {false, 64, 1, (int)((attend->heads + 63) / 64), 1};
    if (attend->heads <= 16) {
        b.heads = 16;
        b.rows = tokens > 2 ? 4 : (int)tokens;
    } else if (attend->heads <= 32) {
        b.heads = 32;
        b.rows = tokens > 1 ? 2 : 1;
        b.wide = tokens > 2;
    } else {
        b.wide = tokens > 1 || (b.blocks > 1 && attend->rows_max > few_rows);
    }
    b.items = (int)((tokens + b.rows - 1) / b.rows);
    return b;
}

__host__ inline int workers(int multiprocessors, const blocking &blocking)
{
    int each = multiprocessors / blocking.blocks;
    return each > 0 ? each : 1;
}

} // namespace decode

#endif
