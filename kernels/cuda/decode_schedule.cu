#include "kernels/cuda/attend_decode.h"
#include "kernels/cuda/decode_schedule.cuh"

namespace
{

using namespace decode;

constexpr int THREADS = 1024;
/* What beginning a row costs, in tiles: its queries, its output, its share in joining. */
constexpr int ROW_COST = 3;

struct arguments {
    schedule to;
    const int32_t *table, *row_first, *kv_length;
    int sequences, rows_max, workers;
};

/* The sum of `value` over the threads before this one; `total` gets that over all. */
__device__ int scan(int value, int *sums, int *total)
{
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int inclusive = value;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        int before = __shfl_up_sync(~0u, inclusive, step);
        inclusive += lane >= step ? before : 0;
    }
    __syncthreads();
    if (lane == 31)
        sums[warp] = inclusive;
    __syncthreads();
    int warps_before = 0, all = 0;
    for (int w = 0; w < THREADS / 32; w++) {
        warps_before += w < warp ? sums[w] : 0;
        all += sums[w];
    }
    *total = all;
    return warps_before + inclusive - value;
}

/* A division of all tiles among workers. A row costs its tiles, and row_cost for its beginning;
 * worker w's range of costs begins at w * total / workers, rounded down. */
struct division {
    const int32_t *tiles_before; /* of each row */
    int rows, row_cost;
    int64_t total, workers;

    __device__ int64_t cost_before(int row) const
    {
        return tiles_before[row] + (int64_t)row * row_cost;
    }

    __device__ int worker_at(int64_t cost) const
    {
        return (int)(((cost + 1) * workers - 1) / total);
    }

    /* The last row whose costs begin at or before `cost`. */
    __device__ int row_at(int64_t cost) const
    {
        int low = 0, high = rows - 1;
        while (low < high) {
            int middle = (low + high + 1) / 2;
            if (cost_before(middle) <= cost)
                low = middle;
            else
                high = middle - 1;
        }
        return low;
    }

    /* The tile that is next where a worker's costs begin. */
    __device__ void begin_of(int worker, int32_t *row, int32_t *tile) const
    {
        int64_t cost = worker * total / workers;
        *row = row_at(cost);
        int64_t behind = cost - cost_before(*row) - row_cost;
        *tile = behind > 0 ? (int32_t)behind : 0;
    }

    __device__ int tiles_in(int row) const { return tiles_before[row + 1] - tiles_before[row]; }

    __device__ range range_of(int worker) const
    {
        range range = {};
        begin_of(worker, &range.row_begin, &range.tile_begin);
        begin_of(worker + 1, &range.row_end, &range.tile_end);
        if (range.tile_end == 0 && range.row_end > range.row_begin) {
            range.row_end--;
            range.tile_end = tiles_in(range.row_end);
        }
        return range;
    }
};

__device__ void find_rows(const arguments &arguments, int rows)
{
    for (int s = threadIdx.x; s < arguments.sequences; s += THREADS) {
        int first = arguments.row_first[s], end = arguments.row_first[s + 1];
        for (int r = first; r < end; r++) {
            int length = arguments.kv_length[s] - (end - 1 - r);
            arguments.to.rows[r] = {length > 1 ? length : 1, arguments.table[s], 0, 0};
        }
    }
    for (int r = rows + threadIdx.x; r < arguments.rows_max; r += THREADS)
        arguments.to.rows[r] = {0, 0, 0, 0};
}

/* Fills `tiles_before`; returns the sum. */
__device__ int sum_tiles(const arguments &arguments, int rows, int *sums)
{
    int before = 0;
    for (int first = 0; first < rows; first += THREADS) {
        int r = first + threadIdx.x, total;
        int tiles = r < rows ? (int)tiles_of(arguments.to.rows[r].length) : 0;
        int here = before + scan(tiles, sums, &total);
        if (r < rows)
            arguments.to.tiles_before[r] = here;
        before += total;
    }
    if (threadIdx.x == 0)
        arguments.to.tiles_before[rows] = before;
    return before;
}

/* Whether a worker has a part of a row beside another row. */
__device__ bool is_mixed(const division &division, int worker)
{
    range range = division.range_of(worker);
    return range.row_begin < range.row_end &&
           (range.tile_begin > 0 || range.tile_end < division.tiles_in(range.row_end));
}

/* With a cost of at least 1 for each, no worker between two parts of a row has none. All of them
 * get something, or a few less where that leaves each with whole rows or a part of one: each
 * begins the same number of rows or none is split, so that only tiles count. */
__device__ void divide(division *division, int tiles, int workers)
{
    int most = min(tiles, workers);
    division->row_cost = 0;
    division->total = tiles;
    for (int fewer = 0; fewer <= most / 16; fewer++) {
        division->workers = most - fewer;
        bool mixed = false;
        for (int w = threadIdx.x; w < division->workers; w += THREADS)
            mixed |= is_mixed(*division, w);
        if (!__syncthreads_or(mixed))
            return;
    }
    division->row_cost = ROW_COST;
    division->total = tiles + (int64_t)division->rows * ROW_COST;
    division->workers = min(division->total, (int64_t)workers);
}

__global__ void __launch_bounds__(THREADS) schedule_rows(const arguments arguments)
{
    __shared__ int sums[THREADS / 32];
    int rows = arguments.row_first[arguments.sequences];
    division division = {arguments.to.tiles_before, rows, 0, 0, 0};
    find_rows(arguments, rows);
    __syncthreads();
    int tiles = sum_tiles(arguments, rows, sums);
    __syncthreads();
    divide(&division, tiles, arguments.workers);

    for (int r = threadIdx.x; r < rows; r += THREADS) {
        int first = division.worker_at(division.cost_before(r) + division.row_cost);
        int last = division.worker_at(division.cost_before(r + 1) - 1);
        arguments.to.rows[r].worker = first;
        arguments.to.rows[r].splits = last - first + 1;
    }
    __syncthreads();
    for (int w = threadIdx.x; w < arguments.workers; w += THREADS) {
        range range = {0, 0, -1, 0, {}};
        if (w < division.workers) {
            range = division.range_of(w);
            range.first = arguments.to.rows[range.row_begin];
        }
        arguments.to.ranges[w] = range;
    }
}

} // namespace

extern "C" size_t mla_cuda_decode_schedule_bytes(int multiprocessors, int64_t rows_max)
{
    schedule schedule;
    return schedule_layout(NULL, multiprocessors, rows_max, &schedule);
}

extern "C" cudaError_t mla_cuda_decode_schedule(const struct mla_cuda_decode *decode,
                                                const struct mla_attend_decode *attend,
                                                void *schedule, cudaStream_t stream)
{
    arguments arguments = {};
    arguments.workers = workers(decode->multiprocessors, attend->heads);
    schedule_layout(schedule, arguments.workers, attend->rows_max, &arguments.to);
    arguments.table = attend->kv.table;
    arguments.row_first = attend->kv.row_first;
    arguments.kv_length = attend->kv.kv_length;
    arguments.sequences = (int)attend->kv.sequences;
    arguments.rows_max = (int)attend->rows_max;
    schedule_rows<<<1, THREADS, 0, stream>>>(arguments);
    return cudaGetLastError();
}
