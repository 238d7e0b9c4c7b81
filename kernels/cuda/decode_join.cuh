/* Joins the parts of split items: out = sum_k 2^(max_k - max) sums_k / sum_k 2^(max_k - max) sum_k.
 *
 * The workers of a split item do it together at their end: each leaves its part in device memory
 * and counts itself in, waits for the others, and joins its share of the item's pieces, adding
 * the parts in their order. All blocks of the launch run at once, so that nobody waits for a
 * block that has not begun. */
#ifndef MLA_KERNELS_CUDA_DECODE_JOIN_CUH
#define MLA_KERNELS_CUDA_DECODE_JOIN_CUH

#include "kernels/cuda/attend_decode_launch.cuh"
#include "kernels/cuda/ptx.cuh"

#include <math.h>

namespace decode
{

/* Where part k of an item lies, counted in partials. */
__device__ __forceinline__ int64_t partial_of(const item &item, int k, const launch &launch,
                                              int head_block)
{
    return (2 * (int64_t)(item.worker + k) + (k == 0)) * launch.head_blocks + head_block;
}

/* Counts of an item's parts: one for each that is written, one more for each worker that has read
 * what it needs of the others'. The last of those leaves 0 for the next launch. */
__device__ __forceinline__ uint32_t *count_of(const item &item, const launch &launch,
                                              int head_block)
{
    return launch.counts + item.worker * launch.head_blocks + head_block;
}

/* A part is counted by a warp that has nothing else to do, so that those that wrote it don't wait
 * until it is in memory: they arrive at one of two named barriers, BARRIER of the worker's first
 * item and the next of its last; each is used once. */
template <int BARRIER, int THREADS>
__device__ __forceinline__ void part_written(const range &range, int i)
{
    ptx::named_arrive(BARRIER + (i != range.item_begin), THREADS + 32);
}

template <int BARRIER, int THREADS>
__device__ void count_parts(const launch &launch, const range &range, int head_block)
{
    for (int i = range.item_begin; i <= range.item_end;
         i += max(1, range.item_end - range.item_begin)) {
        segment segment(range, launch.schedule, i);
        if (!segment.split())
            continue;
        ptx::named_sync(BARRIER + (i != range.item_begin), THREADS + 32);
        if (threadIdx.x % 32 == 0) {
            __threadfence();
            atomicAdd(count_of(segment.item, launch, head_block), 1);
        }
        __syncwarp();
    }
}

__device__ __forceinline__ void wait_for_parts(const uint32_t *count, int splits)
{
    while (ptx::load_acquire(count) < (uint32_t)splits) {}
}

__device__ __forceinline__ void count_reader(uint32_t *count, int splits)
{
    if (atomicAdd(count, 1) == 2 * (uint32_t)splits - 1)
        *count = 0;
}

/* A partial is made of pieces, of which a warp reads one at a time, a vector of four values of two
 * queries for each lane. How they lie is as the kernels' registers lie, in two ways.
 *
 * Where products have tokens or latent dimensions as rows and queries as columns: a piece is 16
 * dimensions of 8 queries. */
template <int COLUMNS> struct queries_as_columns {
    static constexpr int QUERIES = COLUMNS;

    static __device__ __forceinline__ int first_query(int piece)
    {
        return piece / 4 % (QUERIES / 8) * 8 + threadIdx.x % 4 * 2;
    }
    static __device__ __forceinline__ int second_query(int piece) { return first_query(piece) + 1; }

    /* sum += (vector's values, each times its query's weight). */
    static __device__ __forceinline__ void add(float4 &sum, float first, float second, float4 v)
    {
        sum.x = fmaf(first, v.x, sum.x);
        sum.y = fmaf(second, v.y, sum.y);
        sum.z = fmaf(first, v.z, sum.z);
        sum.w = fmaf(second, v.w, sum.w);
    }

    static __device__ __forceinline__ void write(const launch &launch, const item &item,
                                                 int head_block, int piece, float first,
                                                 float second, float4 sum)
    {
        /* Turned: a lane has two dimensions of one query, four lanes 16 bytes of it. */
        uint32_t low = ptx::transpose_matrix(ptx::pack_bf16(sum.x * first, sum.y * second));
        uint32_t high = ptx::transpose_matrix(ptx::pack_bf16(sum.z * first, sum.w * second));
        int lane = threadIdx.x % 32;
        __nv_bfloat16 *out =
            output_of(launch, item, head_block, piece / 4 % (QUERIES / 8) * 8 + lane / 4);
        if (!out)
            return;
        uint32_t *to = (uint32_t *)(out + piece / (QUERIES / 2) * 64 + piece % 4 * 16) + lane % 4;
        to[0] = low;
        to[4] = high;
    }
};

/* Where queries are the rows: a piece is 8 dimensions of 16 queries. */
struct queries_as_rows {
    static constexpr int QUERIES = WIDE_QUERIES;

    static __device__ __forceinline__ int first_query(int piece)
    {
        return piece % 4 * 16 + threadIdx.x % 32 / 4;
    }
    static __device__ __forceinline__ int second_query(int piece) { return first_query(piece) + 8; }

    static __device__ __forceinline__ void add(float4 &sum, float first, float second, float4 v)
    {
        sum.x = fmaf(first, v.x, sum.x);
        sum.y = fmaf(first, v.y, sum.y);
        sum.z = fmaf(second, v.z, sum.z);
        sum.w = fmaf(second, v.w, sum.w);
    }

    static __device__ __forceinline__ void write(const launch &launch, const item &item,
                                                 int head_block, int piece, float first,
                                                 float second, float4 sum)
    {
        int dimension = piece / 4 * 8 + threadIdx.x % 4 * 2;
        __nv_bfloat16 *out = output_of(launch, item, head_block, first_query(piece));
        if (out)
            *(uint32_t *)(out + dimension) = ptx::pack_bf16(sum.x * first, sum.y * first);
        out = output_of(launch, item, head_block, second_query(piece));
        if (out)
            *(uint32_t *)(out + dimension) = ptx::pack_bf16(sum.z * second, sum.w * second);
    }
};

/* THREADS threads' work on one item of a block's queries, which meet at named barrier BARRIER. */
template <class LAYOUT, int THREADS, int BARRIER> struct joiner {
    static constexpr int QUERIES = LAYOUT::QUERIES;
    static constexpr int WARPS = THREADS / 32;
    static constexpr int PIECES = partial_vectors(QUERIES) / 32;

    const launch &launch;
    const item &item;
    const int head_block;
    float *weights; /* [splits, QUERIES], shared */
    float *slices;  /* [SLICES, QUERIES], shared */

    /* A thread stays with one query, and a slice of the parts. */
    static constexpr int SLICES = THREADS / QUERIES;

    /* Each part's weight for each query, over the weights' sum. */
    __device__ void weigh_parts(float *sums)
    {
        int query = threadIdx.x % QUERIES, slice = threadIdx.x / QUERIES;
        float most = -INFINITY, sum = 0;
#pragma unroll 8
        for (int k = slice; k < item.splits; k += SLICES) {
            float2 part = __ldcg(launch.statistics +
                                 partial_of(item, k, launch, head_block) * QUERIES + query);
            weights[k * QUERIES + query] = part.x;
            sums[k * QUERIES + query] = part.y;
            most = fmaxf(most, part.x);
        }
        slices[threadIdx.x] = most;
        ptx::named_sync(BARRIER, THREADS);
#pragma unroll
        for (int i = 0; i < SLICES; i++)
            most = fmaxf(most, slices[i * QUERIES + query]);
        ptx::named_sync(BARRIER, THREADS);
#pragma unroll 4
        for (int k = slice; k < item.splits; k += SLICES) {
            float weight = ptx::exp2_fast(weights[k * QUERIES + query] - most);
            weights[k * QUERIES + query] = weight;
            sum += weight * sums[k * QUERIES + query];
        }
        slices[threadIdx.x] = sum;
        ptx::named_sync(BARRIER, THREADS);
    }

    __device__ __forceinline__ float inverse_of(int query) const
    {
        float sum = 0;
#pragma unroll
        for (int i = 0; i < SLICES; i++)
            sum += slices[i * QUERIES + query];
        return 1 / sum;
    }

    /* Of up to MANY pieces, piece_step apart, the weighted sums of parts part, part + part_step,
     * ..., with MANY * DEEP loads in flight. */
    template <int MANY, int DEEP>
    __device__ __forceinline__ void add_parts(float4 (&sum)[MANY], int piece, int piece_step,
                                              int part, int part_step)
    {
        int lane = threadIdx.x % 32;
#pragma unroll
        for (int m = 0; m < MANY; m++)
            sum[m] = make_float4(0, 0, 0, 0);
        for (; part < item.splits; part += DEEP * part_step) {
            float4 loaded[DEEP][MANY];
#pragma unroll
            for (int i = 0; i < DEEP; i++) {
                int k = part + i * part_step;
                const float4 *from =
                    launch.partial + lane +
                    partial_of(item, k, launch, head_block) * partial_vectors(QUERIES);
#pragma unroll
                for (int m = 0; m < MANY; m++) {
                    int p = piece + m * piece_step;
                    if (k < item.splits && p < PIECES)
                        loaded[i][m] = __ldcg(from + p * 32);
                }
            }
#pragma unroll
            for (int i = 0; i < DEEP; i++) {
                int k = part + i * part_step;
#pragma unroll
                for (int m = 0; m < MANY; m++) {
                    int p = piece + m * piece_step;
                    if (k < item.splits && p < PIECES) {
                        const float *weight = weights + k * QUERIES;
                        LAYOUT::add(sum[m], weight[LAYOUT::first_query(p)],
                                    weight[LAYOUT::second_query(p)], loaded[i][m]);
                    }
                }
            }
        }
    }

    __device__ __forceinline__ void write_piece(int piece, float4 sum)
    {
        LAYOUT::write(launch, item, head_block, piece, inverse_of(LAYOUT::first_query(piece)),
                      inverse_of(LAYOUT::second_query(piece)), sum);
    }

    /* Pieces for each warp: its own, all parts of them. */
    template <int MANY, int DEEP> __device__ void join_by_warps(int mine)
    {
        int step = item.splits * WARPS, warp = threadIdx.x / 32;
        for (int piece = mine * WARPS + warp; piece < PIECES; piece += MANY * step) {
            float4 sum[MANY];
            add_parts<MANY, DEEP>(sum, piece, step, 0, 1);
#pragma unroll
            for (int m = 0; m < MANY; m++) {
                if (piece + m * step < PIECES)
                    write_piece(piece + m * step, sum[m]);
            }
        }
    }

    /* Fewer pieces than warps: a worker's warps share out the parts of a piece. `sums`: shared,
     * [WARPS, 32]. */
    __device__ void join_by_parts(int mine, float4 *sums)
    {
        int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        for (int piece = mine; piece < PIECES; piece += item.splits) {
            float4 sum[1];
            add_parts<1, 16>(sum, piece, 0, warp, WARPS);
            sums[warp * 32 + lane] = sum[0];
            ptx::named_sync(BARRIER, THREADS);
            if (warp == 0) {
#pragma unroll
                for (int w = 1; w < WARPS; w++) {
                    float4 other = sums[w * 32 + lane];
                    sum[0].x += other.x;
                    sum[0].y += other.y;
                    sum[0].z += other.z;
                    sum[0].w += other.w;
                }
                write_piece(piece, sum[0]);
            }
            ptx::named_sync(BARRIER, THREADS);
        }
    }
};

/* memory: shared, THREADS * 20 + splits * QUERIES * 8 bytes, aligned to 16. */
template <class LAYOUT, int THREADS, int BARRIER>
__device__ void join_item(const launch &launch, const item &item, int worker, int head_block,
                          void *memory)
{
    float4 *sums = (float4 *)memory;
    float *slices = (float *)(sums + THREADS), *weights = slices + THREADS;
    joiner<LAYOUT, THREADS, BARRIER> joiner = {launch, item, head_block, weights, slices};
    uint32_t *count = count_of(item, launch, head_block);
    int mine = worker - item.worker;

    if (threadIdx.x == 0)
        wait_for_parts(count, item.splits);
    ptx::named_sync(BARRIER, THREADS);
    joiner.weigh_parts(weights + item.splits * LAYOUT::QUERIES);
    int pieces_each = joiner.PIECES / joiner.WARPS / item.splits;
    if (pieces_each > 2)
        joiner.template join_by_warps<8, 2>(mine);
    else if (pieces_each > 0)
        joiner.template join_by_warps<1, 16>(mine);
    else
        joiner.join_by_parts(mine, sums);
    ptx::named_sync(BARRIER, THREADS);
    if (threadIdx.x == 0)
        count_reader(count, item.splits);
}

/* All that a worker shares with others: only the first and the last item of a range can be split.
 */
template <class LAYOUT, int THREADS, int BARRIER>
__device__ void join_items(const launch &launch, const range &range, int head_block, void *memory)
{
    for (int i = range.item_begin; i <= range.item_end;
         i += max(1, range.item_end - range.item_begin)) {
        segment segment(range, launch.schedule, i);
        if (segment.split())
            join_item<LAYOUT, THREADS, BARRIER>(launch, segment.item, range.worker, head_block,
                                                memory);
    }
}

} // namespace decode

#endif
