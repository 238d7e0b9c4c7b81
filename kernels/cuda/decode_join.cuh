/* Joins the parts of split items: out = sum_k 2^(max_k - max) sums_k / sum_k 2^(max_k - max) sum_k.
 *
 * The workers that end with an item join it (all that share it but the last one, if that goes on to
 * other items: it has long written its part when the others get there). Each leaves its part in
 * device memory and counts itself in, waits for the others, and joins its share of the values,
 * adding the parts in one order. Few joiners keep their own share in registers and leave the
 * others'. All blocks of the launch run at once, so that nobody waits for a block that has not
 * begun. */
#ifndef MLA_KERNELS_CUDA_DECODE_JOIN_CUH
#define MLA_KERNELS_CUDA_DECODE_JOIN_CUH

#include "kernels/cuda/decode_parts.cuh"

#include <math.h>

namespace decode
{

__device__ __forceinline__ void wait_for_parts(const uint32_t *count, const item &item)
{
    while (ptx::load_acquire(count) < (uint32_t)item.splits) {}
}

__device__ __forceinline__ void count_reader(uint32_t *count, const item &item)
{
    if (atomicAdd(count, 1) == (uint32_t)(item.splits + item.joiners) - 1)
        *count = 0;
}

/* THREADS threads' work on one item of a block's queries, which meet at named barrier BARRIER.
 * memory: shared, (4 THREADS * 16 + THREADS * 4 + splits * QUERIES * 8) bytes, aligned to 16, free
 * once all threads are here. */
template <class LAYOUT, int THREADS, int BARRIER> struct joiner {
    static constexpr int QUERIES = LAYOUT::QUERIES;
    static constexpr int WARPS = THREADS / 32;
    static constexpr int PIECES = partial_vectors(QUERIES) / 32;
    static constexpr int TOGETHER = 4; /* pieces, where warps share out the parts */

    const launch &launch;
    const item &item;
    const int head_block, part;
    float4 *sums;   /* [TOGETHER, THREADS], shared */
    float *slices;  /* [SLICES, QUERIES], shared */
    float *weights; /* [splits, QUERIES], shared */

    /* A thread stays with one query, and a slice of the parts. */
    static constexpr int SLICES = THREADS / QUERIES;

    __device__ __forceinline__ joiner(const decode::launch &of, const decode::item &which,
                                      int heads, int part_mine, void *memory)
        : launch(of), item(which), head_block(heads), part(part_mine), sums((float4 *)memory),
          slices((float *)(sums + TOGETHER * THREADS)), weights(slices + THREADS)
    {
    }

    __device__ __forceinline__ const float4 *partial(int k) const
    {
        return launch.partial + partial_of(item, k, launch, head_block) * partial_vectors(QUERIES);
    }

    /* All parts are there; their weights for each query, and the slices of the weights' sum. */
    __device__ __forceinline__ void begin()
    {
        if (threadIdx.x == 0)
            wait_for_parts(count_of(item, launch, head_block), item);
        ptx::named_sync(BARRIER, THREADS);
        float *part_sums = weights + item.splits * QUERIES;
        int query = threadIdx.x % QUERIES, slice = threadIdx.x / QUERIES;
        float most = -INFINITY, sum = 0;
#pragma unroll 8
        for (int k = slice; k < item.splits; k += SLICES) {
            float2 part = __ldcg(launch.statistics +
                                 partial_of(item, k, launch, head_block) * QUERIES + query);
            weights[k * QUERIES + query] = part.x;
            part_sums[k * QUERIES + query] = part.y;
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
            sum += weight * part_sums[k * QUERIES + query];
        }
        slices[threadIdx.x] = sum;
        ptx::named_sync(BARRIER, THREADS);
    }

    /* This thread has read what it needs. */
    __device__ __forceinline__ void end()
    {
        ptx::named_sync(BARRIER, THREADS);
        if (threadIdx.x == 0)
            count_reader(count_of(item, launch, head_block), item);
    }

    __device__ __forceinline__ float inverse_of(int query) const
    {
        float sum = 0;
#pragma unroll
        for (int i = 0; i < SLICES; i++)
            sum += slices[i * QUERIES + query];
        return 1 / sum;
    }

    /* The units that this worker kept: its own part, then the others, the next one always on its
     * way. */
    template <class CONSUMER>
    __device__ __forceinline__ void join_kept(CONSUMER &consumer, share kept)
    {
        constexpr int UNIT_VECTORS = CONSUMER::UNIT_VECTORS;
        float4 next[UNIT_VECTORS];
        auto load = [&](int unit, int other) {
            const float4 *from = partial(other + (other >= part));
#pragma unroll
            for (int v = 0; v < UNIT_VECTORS; v++)
                next[v] = __ldcg(from + consumer.place_of(unit, v));
        };
        int others = item.splits - 1;
        load(kept.begin, 0);
#pragma unroll
        for (int u = 0; u < CONSUMER::UNITS; u++) {
            if (!kept.has(u))
                continue;
            float4 sum[UNIT_VECTORS];
#pragma unroll
            for (int v = 0; v < UNIT_VECTORS; v++) {
                const float *weight = weights + part * QUERIES;
                sum[v] = make_float4(0, 0, 0, 0);
                LAYOUT::add(sum[v], weight[consumer.first_query(v)],
                            weight[consumer.second_query(v)], consumer.vector(u, v));
            }
            for (int other = 0; other < others; other++) {
                float4 now[UNIT_VECTORS];
#pragma unroll
                for (int v = 0; v < UNIT_VECTORS; v++)
                    now[v] = next[v];
                if (other + 1 < others)
                    load(u, other + 1);
                else if (u + 1 < kept.end)
                    load(u + 1, 0);
                const float *weight = weights + (other + (other >= part)) * QUERIES;
#pragma unroll
                for (int v = 0; v < UNIT_VECTORS; v++)
                    LAYOUT::add(sum[v], weight[consumer.first_query(v)],
                                weight[consumer.second_query(v)], now[v]);
            }
#pragma unroll
            for (int v = 0; v < UNIT_VECTORS; v++)
                consumer.set_vector(u, v, sum[v]);
        }
    }

    /* Of up to MANY pieces, piece_step apart, the weighted sums of parts k, k + k_step, ..., with
     * MANY * DEEP loads in flight. */
    template <int MANY, int DEEP>
    __device__ __forceinline__ void add_parts(float4 (&sum)[MANY], int piece, int piece_step, int k,
                                              int k_step)
    {
        int lane = threadIdx.x % 32;
#pragma unroll
        for (int m = 0; m < MANY; m++)
            sum[m] = make_float4(0, 0, 0, 0);
        for (; k < item.splits; k += DEEP * k_step) {
            float4 loaded[DEEP][MANY];
#pragma unroll
            for (int i = 0; i < DEEP; i++) {
#pragma unroll
                for (int m = 0; m < MANY; m++) {
                    int p = piece + m * piece_step;
                    if (k + i * k_step < item.splits && p < PIECES)
                        loaded[i][m] = __ldcg(partial(k + i * k_step) + p * 32 + lane);
                }
            }
#pragma unroll
            for (int i = 0; i < DEEP; i++) {
#pragma unroll
                for (int m = 0; m < MANY; m++) {
                    int p = piece + m * piece_step;
                    if (k + i * k_step < item.splits && p < PIECES) {
                        const float *weight = weights + (k + i * k_step) * QUERIES;
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
    template <int MANY, int DEEP> __device__ void join_by_warps()
    {
        int step = item.joiners * WARPS;
        for (int piece = part * WARPS + threadIdx.x / 32; piece < PIECES; piece += MANY * step) {
            float4 sum[MANY];
            add_parts<MANY, DEEP>(sum, piece, step, 0, 1);
#pragma unroll
            for (int m = 0; m < MANY; m++) {
                if (piece + m * step < PIECES)
                    write_piece(piece + m * step, sum[m]);
            }
        }
    }

    /* Fewer pieces than warps: the warps share out the parts of some pieces. */
    template <int MANY, int DEEP> __device__ void join_by_parts()
    {
        static_assert(MANY <= TOGETHER && MANY <= WARPS, "room in sums, and who writes");
        int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        for (int piece = part; piece < PIECES; piece += MANY * item.joiners) {
            float4 sum[MANY];
            add_parts<MANY, DEEP>(sum, piece, item.joiners, warp, WARPS);
#pragma unroll
            for (int m = 0; m < MANY; m++)
                sums[m * THREADS + threadIdx.x] = sum[m];
            ptx::named_sync(BARRIER, THREADS);
            int mine = piece + warp * item.joiners;
            if (warp < MANY && mine < PIECES) {
                float4 all = make_float4(0, 0, 0, 0);
#pragma unroll
                for (int w = 0; w < WARPS; w++) {
                    float4 one = sums[warp * THREADS + w * 32 + lane];
                    all.x += one.x;
                    all.y += one.y;
                    all.z += one.z;
                    all.w += one.w;
                }
                write_piece(mine, all);
            }
            ptx::named_sync(BARRIER, THREADS);
        }
    }

    /* All from device memory, this worker's part too. */
    __device__ void join_written()
    {
        int pieces = PIECES / item.joiners;
        if (pieces > 2 * WARPS)
            join_by_warps<4, 4>();
        else if (pieces >= WARPS)
            join_by_warps<1, 16>();
        else if (pieces > 2)
            join_by_parts<4, 4>();
        else if (pieces > 1)
            join_by_parts<2, 8>();
        else
            join_by_parts<1, 16>();
    }
};

/* Joins this worker's share of the item that its range ends with. */
template <int THREADS, int BARRIER, class CONSUMER>
__device__ __forceinline__ void join_last(CONSUMER &consumer, const launch &launch,
                                          const range &range, int head_block, void *memory)
{
    if (range.item_end < range.item_begin)
        return;
    const item item = segment(range, launch.schedule, range.item_end).item;
    if (item.splits == 1)
        return;
    int part = range.worker - item.worker;
    share kept = share_of<CONSUMER::UNITS>(item, part, true);
    joiner<typename CONSUMER::layout, THREADS, BARRIER> joiner(launch, item, head_block, part,
                                                               memory);
    joiner.begin();
    if (kept.empty()) {
        joiner.join_written();
    } else {
        joiner.join_kept(consumer, kept);
        consumer.write_joined(launch, item, head_block, kept, joiner);
    }
    joiner.end();
}

} // namespace decode

#endif
