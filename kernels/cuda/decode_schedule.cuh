/* How decode attention shares out its work, as its kernels read it.
 *
 * Rows are cut into tiles of 64 tokens. A worker (one block, or one for every block of heads)
 * gets a range of the list of all tiles, row after row. A row that lies in the ranges of several
 * workers is split: worker w leaves its sums in partial 2 w if its part begins behind the row's
 * first tile (only its first row can), else in 2 w + 1 (only its last row can). */
#ifndef MLA_KERNELS_CUDA_DECODE_SCHEDULE_CUH
#define MLA_KERNELS_CUDA_DECODE_SCHEDULE_CUH

#include <stddef.h>
#include <stdint.h>

namespace decode
{

constexpr int TILE_TOKENS = 64;

struct __align__(16) row
{
    int32_t length, table;  /* 0 tokens: nothing to do */
    int32_t worker, splits; /* the first worker, and how many */
};

/* From tile tile_begin of row row_begin up to, and without, tile tile_end of row row_end. */
struct __align__(16) range
{
    int32_t row_begin, tile_begin, row_end, tile_end;
    row first; /* rows[row_begin]: one wait less for a kernel that begins */
};

struct schedule {
    int32_t *few, *many;   /* counts of the lists below */
    range *ranges;         /* [workers] */
    row *rows;             /* [rows_max] */
    int32_t *tiles_before; /* [rows_max + 1]: tiles of the rows before */
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
    out->rows = (row *)next;
    next += rows_max * sizeof(row);
    out->tiles_before = (int32_t *)next;
    next += (rows_max + 1) * sizeof(int32_t);
    return (size_t)(next - (char *)memory);
}

/* Heads that one block takes (some may be padding), and blocks of heads. */
__host__ inline int block_heads(int64_t heads)
{
    return heads <= 16 ? 16 : heads <= 32 ? 32 : 64;
}

__host__ inline int head_blocks(int64_t heads)
{
    return (int)((heads + block_heads(heads) - 1) / block_heads(heads));
}

__host__ inline int workers(int multiprocessors, int64_t heads)
{
    int each = multiprocessors / head_blocks(heads);
    return each > 0 ? each : 1;
}

} // namespace decode

#endif
