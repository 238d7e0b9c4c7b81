/* Parts of split items: where they lie in device memory and how, what of them a worker keeps, and
 * how those that are there are counted. decode_join.cuh joins them. */
#ifndef MLA_KERNELS_CUDA_DECODE_PARTS_CUH
#define MLA_KERNELS_CUDA_DECODE_PARTS_CUH

#include "kernels/cuda/attend_decode_launch.cuh"
#include "kernels/cuda/ptx.cuh"

namespace decode
{

/* Where part k of an item lies, counted in partials. */
__device__ __forceinline__ int64_t partial_of(const item &item, int k, const launch &launch,
                                              int head_block)
{
    return (2 * (int64_t)(item.worker + k) + (k == 0)) * launch.head_blocks + head_block;
}

/* Counts of an item's parts: one for each that is written, one more for each joiner that has read
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

/* A partial is made of pieces, of which a warp has or reads a vector of four values of two queries
 * for each lane. How they lie is as the kernels' registers lie, in two ways.
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

    /* Where the query that this lane writes of a piece goes, or NULL. */
    static __device__ __forceinline__ __nv_bfloat16 *output(const launch &launch, const item &item,
                                                            int head_block, int piece)
    {
        int query = piece / 4 % (QUERIES / 8) * 8 + threadIdx.x % 32 / 4;
        return output_of(launch, item, head_block, query);
    }

    static __device__ __forceinline__ void write(__nv_bfloat16 *out, int piece, float first,
                                                 float second, float4 sum)
    {
        /* Turned: a lane has two dimensions of one query, and two 8 further; then four of the lower
         * or of the higher 8, so that four lanes write 32 bytes side by side. */
        uint32_t low = ptx::transpose_matrix(ptx::pack_bf16(sum.x * first, sum.y * second));
        uint32_t high = ptx::transpose_matrix(ptx::pack_bf16(sum.z * first, sum.w * second));
        int lane = threadIdx.x % 32, odd = lane % 2;
        uint32_t other = __shfl_xor_sync(~0u, odd ? low : high, 1);
        if (!out)
            return;
        int dimension = piece / (QUERIES / 2) * 64 + piece % 4 * 16 + odd * 8 + lane % 4 / 2 * 4;
        *(uint2 *)(out + dimension) = odd ? make_uint2(other, high) : make_uint2(low, other);
    }

    static __device__ __forceinline__ void write(const launch &launch, const item &item,
                                                 int head_block, int piece, float first,
                                                 float second, float4 sum)
    {
        write(output(launch, item, head_block, piece), piece, first, second, sum);
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

/* A consumer's registers of O are UNITS of UNIT_VECTORS vectors. The share that a joiner keeps is
 * whole units. */
struct share {
    int begin, end;

    __device__ __forceinline__ bool has(int unit) const { return unit >= begin && unit < end; }
    __device__ __forceinline__ bool empty() const { return end <= begin; }
};

/* What the worker of part `part` keeps if it ends with the item, `last`. */
template <int UNITS>
__device__ __forceinline__ share share_of(const item &item, int part, bool last)
{
    if (!last || item.joiners > UNITS)
        return {0, 0};
    return {part * UNITS / item.joiners, (part + 1) * UNITS / item.joiners};
}

/* Leaves a part in device memory, but for the units that are kept. */
template <class CONSUMER>
__device__ __forceinline__ void write_units(const CONSUMER &consumer, float4 *to, share kept)
{
#pragma unroll
    for (int u = 0; u < CONSUMER::UNITS; u++) {
        if (kept.has(u))
            continue;
#pragma unroll
        for (int v = 0; v < CONSUMER::UNIT_VECTORS; v++)
            to[consumer.place_of(u, v)] = consumer.vector(u, v);
    }
}

/* The part of item i of the range, which is split, leaves `consumer`, but for what it keeps. */
template <int THREADS, int BARRIER, class CONSUMER>
__device__ __forceinline__ void write_part(CONSUMER &consumer, const launch &launch,
                                           const range &range, int i, const item &item,
                                           int head_block)
{
    int part = range.worker - item.worker;
    share kept = share_of<CONSUMER::UNITS>(item, part, i == range.item_end);
    consumer.write_partial(launch, partial_of(item, part, launch, head_block), kept);
    part_written<BARRIER, THREADS>(range, i);
}

} // namespace decode

#endif
