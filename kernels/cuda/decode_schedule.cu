#include "kernels/cuda/attend_decode.h"
#include "kernels/cuda/decode_schedule.cuh"

namespace
{

using namespace decode;

constexpr int THREADS = 1024;
/* What beginning an item costs, in tiles: its queries, its output, its share in joining. */
constexpr int ITEM_COST = 3;

struct arguments {
    schedule to;
    const int32_t *table, *row_first, *kv_length;
    int sequences, rows_each, workers;
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

/* A division of all tiles among workers. An item costs its tiles, and item_cost for its beginning;
 * worker w's range of costs begins at w * total / workers, rounded down. */
struct division {
    const int32_t *tiles_before; /* of each item */
    int items, item_cost;
    int64_t total, workers;

    __device__ int64_t cost_before(int item) const
    {
        return tiles_before[item] + (int64_t)item * item_cost;
    }

    __device__ int worker_at(int64_t cost) const
    {
        return (int)(((cost + 1) * workers - 1) / total);
    }

    /* The last item whose costs begin at or before `cost`. */
    __device__ int item_at(int64_t cost) const
    {
        int low = 0, high = items - 1;
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
    __device__ void begin_of(int worker, int32_t *item, int32_t *tile) const
    {
        int64_t cost = worker * total / workers;
        *item = item_at(cost);
        int64_t behind = cost - cost_before(*item) - item_cost;
        *tile = behind > 0 ? (int32_t)behind : 0;
    }

    __device__ int tiles_in(int item) const { return tiles_before[item + 1] - tiles_before[item]; }

    /* Whether the worker that has the item's last tile has none of the next item. */
    __device__ bool ends_with(int worker, int item) const
    {
        return (worker + 1) * total / workers - cost_before(item + 1) <= item_cost;
    }

    __device__ range range_of(int worker) const
    {
        range range = {};
        begin_of(worker, &range.item_begin, &range.tile_begin);
        begin_of(worker + 1, &range.item_end, &range.tile_end);
        if (range.tile_end == 0) { /* nothing of that item; of one alone, nothing at all */
            range.item_end--;
            range.tile_end = range.item_end < range.item_begin ? 0 : tiles_in(range.item_end);
        }
        return range;
    }
};

/* Of the ranges of `workers`, which one block w takes. A list of the nth items of all sequences is
 * about as long as the list of their first items. */
__device__ int worker_of(int w, int workers, int per_sequence)
{
    int each = workers / per_sequence;
    return w < each * per_sequence ? w % per_sequence * each + w / per_sequence : w;
}

/* Fills `items`; returns how many, and how many a sequence has at most. */
__device__ int find_items(const arguments &arguments, int *sums, int *per_sequence)
{
    int found = 0;
    bool more = true;
    *per_sequence = 0;
    for (int begin = 0; more; begin += arguments.rows_each) { /* the items' first row */
        more = false;
        ++*per_sequence;
        for (int s0 = 0; s0 < arguments.sequences; s0 += THREADS) {
            int s = s0 + threadIdx.x, total;
            int first = s < arguments.sequences ? arguments.row_first[s] : 0;
            int rows = s < arguments.sequences ? arguments.row_first[s + 1] - first : 0;
            int here = found + scan(rows > begin, sums, &total);
            if (rows > begin) {
                int end = min(rows, begin + arguments.rows_each);
                int length = arguments.kv_length[s] - (rows - end);
                arguments.to.items[here] = {max(length, 1), arguments.table[s], 0, 0,
                                            first + begin,  end - begin,        0, 0};
            }
            found += total;
            more |= rows > begin + arguments.rows_each;
        }
        more = __syncthreads_or(more);
    }
    return found;
}

/* Fills `tiles_before`; returns the sum. */
__device__ int sum_tiles(const arguments &arguments, int items, int *sums)
{
    int before = 0;
    for (int first = 0; first < items; first += THREADS) {
        int i = first + threadIdx.x, total;
        int tiles = i < items ? (int)tiles_of(arguments.to.items[i].length) : 0;
        int here = before + scan(tiles, sums, &total);
        if (i < items)
            arguments.to.tiles_before[i] = here;
        before += total;
    }
    if (threadIdx.x == 0)
        arguments.to.tiles_before[items] = before;
    return before;
}

/* Whether a worker has a part of an item beside another item. */
__device__ bool is_mixed(const division &division, int worker)
{
    range range = division.range_of(worker);
    return range.item_begin < range.item_end &&
           (range.tile_begin > 0 || range.tile_end < division.tiles_in(range.item_end));
}

/* With a cost of at least 1 for each, no worker between two parts of an item has none. All of them
 * get something, or a few less where that leaves each with whole items or a part of one: each
 * begins the same number of items or none is split, so that only tiles count. */
__device__ void divide(division *division, int tiles, int workers)
{
    int most = min(tiles, workers);
    division->item_cost = 0;
    division->total = tiles;
    for (int fewer = 0; fewer <= most / 16; fewer++) {
        division->workers = most - fewer;
        bool mixed = false;
        for (int w = threadIdx.x; w < division->workers; w += THREADS)
            mixed |= is_mixed(*division, w);
        if (!__syncthreads_or(mixed))
            return;
    }
    division->item_cost = ITEM_COST;
    division->total = tiles + (int64_t)division->items * ITEM_COST;
    division->workers = min(division->total, (int64_t)workers);
}

__global__ void __launch_bounds__(THREADS) schedule_items(const arguments arguments)
{
    __shared__ int sums[THREADS / 32];
    int per_sequence;
    int items = find_items(arguments, sums, &per_sequence);
    division division = {arguments.to.tiles_before, items, 0, 0, 0};
    __syncthreads();
    int tiles = sum_tiles(arguments, items, sums);
    __syncthreads();
    divide(&division, tiles, arguments.workers);

    for (int i = threadIdx.x; i < items; i += THREADS) {
        int first = division.worker_at(division.cost_before(i) + division.item_cost);
        int last = division.worker_at(division.cost_before(i + 1) - 1);
        arguments.to.items[i].worker = first;
        arguments.to.items[i].splits = last - first + 1;
        arguments.to.items[i].joiners = last - first + division.ends_with(last, i);
    }
    __syncthreads();
    for (int w = threadIdx.x; w < arguments.workers; w += THREADS) {
        range range = {0, 0, -1, 0, {}, 0, 0, {}};
        if (w < division.workers) {
            int worker = worker_of(w, (int)division.workers, per_sequence);
            range = division.range_of(worker);
            range.worker = worker;
            range.tiles = tiles;
            range.first = arguments.to.items[range.item_begin];
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
    blocking blocking = blocking_of(attend);
    arguments.rows_each = blocking.rows;
    arguments.workers = workers(decode->multiprocessors, blocking);
    schedule_layout(schedule, arguments.workers, attend->rows_max, &arguments.to);
    arguments.table = attend->kv.table;
    arguments.row_first = attend->kv.row_first;
    arguments.kv_length = attend->kv.kv_length;
    arguments.sequences = (int)attend->kv.sequences;
    schedule_items<<<1, THREADS, 0, stream>>>(arguments);
    return cudaGetLastError();
}
