/* What a group of consumers (a warpgroup) does with the tiles of an item, and with its output. */
#ifndef MLA_KERNELS_CUDA_ATTEND_DECODE_CONSUMER_CUH
#define MLA_KERNELS_CUDA_ATTEND_DECODE_CONSUMER_CUH

#include "kernels/cuda/attend_decode_ring.cuh"
#include "kernels/cuda/decode_parts.cuh"

#include <math.h>

namespace decode
{

/* A thread's columns (queries) of any product are
 * 8 i + 2 (lane % 4) and that + 1; arrays of columns hold them in that order. */
template <int QUERIES> struct consumer {
    using shape = decode::shape<QUERIES>;
    static constexpr int QUERIES_EACH = shape::QUERIES_EACH;
    static constexpr int COLUMNS = QUERIES_EACH / 4; /* a thread's, of the scores */
    using layout = queries_as_columns<QUERIES>;
    static constexpr int PANEL_VECTORS = QUERIES / 8; /* a thread's, of O; decode_parts.cuh */
    static constexpr int UNIT_VECTORS = QUERIES == 16 ? 4 : 8;
    static constexpr int UNIT_PANELS = UNIT_VECTORS / PANEL_VECTORS;
    static constexpr int UNITS = shape::PANELS_EACH / UNIT_PANELS;

    shared<QUERIES> &shared;
    const float scale;
    const int group, warp, lane; /* of the group's four */
    cursor at = {0, 0};
    uint32_t q_phase = 1; /* of this item's Q */
    float o[shape::PANELS_EACH][QUERIES / 2];
    float scores[QUERIES_EACH / 2];
    float high[COLUMNS], sum[COLUMNS]; /* the subtracted maximum; of this thread's tokens */

    __device__ __forceinline__ consumer(decode::shared<QUERIES> &to, float scale_log2)
        : shared(to), scale(scale_log2), group(threadIdx.x / GROUP_THREADS),
          warp(threadIdx.x / 32 % 4), lane(threadIdx.x % 32)
    {
    }

    /* Panels that this group sums, counted from 0. */
    __device__ __forceinline__ int panel_of(int d) const { return d * shape::GROUPS + group; }

    /* The query of a thread's column of the scores. */
    __device__ __forceinline__ int query_of(int column) const
    {
        return group * QUERIES_EACH + column / 2 * 8 + lane % 4 * 2 + column % 2;
    }

    /* By each warp, once it has read what it needs. */
    __device__ __forceinline__ void release(uint64_t *barrier)
    {
        if (RACECHECK || lane == 0)
            ptx::barrier_arrive(barrier);
    }

    __device__ __forceinline__ void begin()
    {
        q_phase ^= 1;
        ptx::barrier_wait(&shared.q_full, q_phase);
#pragma unroll
        for (int d = 0; d < shape::PANELS_EACH; d++) {
#pragma unroll
            for (int i = 0; i < QUERIES / 2; i++)
                o[d][i] = 0;
        }
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
            high[c] = NO_SCORE;
            sum[c] = 0;
        }
    }

    __device__ __forceinline__ void score(bool last)
    {
        ptx::wgmma_pin(scores);
#pragma unroll
        for (int p = 0; p < PANELS; p++) {
            ptx::barrier_wait(&shared.full[at.slot][p], at.phase);
            ptx::wgmma_fence();
            uint64_t k = ptx::panel_descriptor(shared.kv[at.slot][p]);
            uint64_t q =
                ptx::panel_descriptor(shared.q[p] + group * QUERIES_EACH * ptx::PANEL_ROW_BYTES);
#pragma unroll
            for (int step = 0; step < 4; step++)
                ptx::wgmma<0>(scores, k + step * ptx::STEP_ALONG, q + step * ptx::STEP_ALONG,
                              p + step > 0);
            ptx::wgmma_commit();
        }
        ptx::wgmma_wait<0>();
        ptx::wgmma_pin(scores);
        release(&shared.empty[at.slot][LATENT_PANELS]);
        if (last)
            release(&shared.q_empty);
    }

    /* A query sees one token less than the same head's of the item's next row. What it doesn't see
     * may be anything. */
    __device__ __forceinline__ void mask(const item &item, int tile, int block_heads)
    {
#pragma unroll
        for (int i = 0; i < QUERIES_EACH / 2; i++) {
            int seen = seen_by(item, tile, query_of(i / 4 * 2 + i % 2) / block_heads);
            if (warp * 16 + lane / 4 + i / 2 % 2 * 8 >= seen)
                scores[i] = -INFINITY;
        }
        for (int d = 0; d < shape::PANELS_EACH; d++)
            clear_values(shared.kv[at.slot][panel_of(d)], seen_by_all(item, tile),
                         seen_by_any(item, tile), warp * 32 + lane, GROUP_THREADS);
    }

    /* Subtracts from now on the exact maximum so far, and scales what was summed. */
    __device__ __forceinline__ void raise()
    {
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
            int i = c / 2 * 4 + c % 2;
            float most = fmaxf(scores[i], scores[i + 2]);
#pragma unroll
            for (int step = 4; step < 32; step *= 2)
                most = fmaxf(most, __shfl_xor_sync(~0u, most, step));
            if (lane < 4)
                shared.warp_value[warp][query_of(c)] = most * scale;
        }
        ptx::named_sync(ALL, shape::CONSUMERS);
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
            int query = query_of(c);
            float before = high[c];
#pragma unroll
            for (int w = 0; w < 4; w++)
                high[c] = fmaxf(high[c], shared.warp_value[w][query]);
            float factor = ptx::exp2_fast(before - high[c]);
            sum[c] *= factor;
            if (warp == 0 && lane < 4)
                shared.factor[query] = factor;
        }
        ptx::named_sync(ALL, shape::CONSUMERS);
#pragma unroll
        for (int c = 0; c < QUERIES / 4; c++) {
            float factor = shared.factor[c / 2 * 8 + lane % 4 * 2 + c % 2];
            int i = c / 2 * 4 + c % 2;
#pragma unroll
            for (int d = 0; d < shape::PANELS_EACH; d++) {
                o[d][i] *= factor;
                o[d][i + 2] *= factor;
            }
        }
    }

    /* Half a product's registers or all, [64, QUERIES_EACH] of this group, as bf16 to a panel
     * [QUERIES_EACH, 64]. */
    __device__ __forceinline__ void store_transposed(const float *values, unsigned char *panel)
    {
        int half = lane / 8 % 2, below = lane / 16; /* of the matrix whose row this lane names */
        uint32_t to = ptx::shared_address(panel);
#pragma unroll
        for (int i = 0; i < QUERIES_EACH / 8; i += 2) {
            const float *v = values + i * 4;
            int query = (i + below) * 8 + lane % 8;
            ptx::store_matrices_transposed(to + ptx::panel_offset(query, warp * 2 + half),
                                           ptx::pack_bf16(v[0], v[1]), ptx::pack_bf16(v[2], v[3]),
                                           ptx::pack_bf16(v[4], v[5]), ptx::pack_bf16(v[6], v[7]));
        }
    }

    /* Weights of the tile's tokens; leaves P, and the values, ready for the products. */
    __device__ __forceinline__ void weigh()
    {
        bool above = false;
#pragma unroll
        for (int i = 0; i < QUERIES_EACH / 2; i++)
            above |= fmaf(scores[i], scale, -high[i / 4 * 2 + i % 2]) > RAISE;
        if (ptx::named_any(ALL, shape::CONSUMERS, above))
            raise();
#pragma unroll
        for (int i = 0; i < QUERIES_EACH / 2; i++) {
            int c = i / 4 * 2 + i % 2;
            scores[i] = ptx::exp2_fast(fmaf(scores[i], scale, -high[c]));
            sum[c] += scores[i];
        }
        store_transposed(scores, shared.p + group * QUERIES_EACH * ptx::PANEL_ROW_BYTES);
        ptx::fence_async_shared();
        ptx::named_sync(ALL, shape::CONSUMERS);
    }

    /* Waits for the sums of panel D and on, each a group of its own, and gives back what they read.
     */
    template <int D> __device__ __forceinline__ void release_values()
    {
        if constexpr (D < shape::PANELS_EACH) {
            ptx::wgmma_wait<shape::PANELS_EACH - 1 - D>();
            release(&shared.empty[at.slot][panel_of(D)]);
            release_values<D + 1>();
        }
    }

    __device__ __forceinline__ void add_values()
    {
        uint64_t p = ptx::panel_descriptor(shared.p);
#pragma unroll
        for (int d = 0; d < shape::PANELS_EACH; d++)
            ptx::wgmma_pin(o[d]);
        ptx::wgmma_fence();
#pragma unroll
        for (int d = 0; d < shape::PANELS_EACH; d++) {
            uint64_t v = ptx::panel_descriptor(shared.kv[at.slot][panel_of(d)]);
#pragma unroll
            for (int step = 0; step < STEPS; step++)
                ptx::wgmma<1>(o[d], v + step * ptx::STEP_DOWN, p + step * ptx::STEP_ALONG, true);
            ptx::wgmma_commit();
        }
        release_values<0>();
#pragma unroll
        for (int d = 0; d < shape::PANELS_EACH; d++)
            ptx::wgmma_pin(o[d]);
        at.next();
    }

    /* All of a column's weights, over the group's threads, in the order of O's columns. */
    __device__ __forceinline__ void sum_weights(float (&total)[QUERIES / 4])
    {
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
#pragma unroll
            for (int step = 4; step < 32; step *= 2)
                sum[c] += __shfl_xor_sync(~0u, sum[c], step);
            if (lane < 4)
                shared.warp_value[warp][query_of(c)] = sum[c];
        }
        ptx::named_sync(ALL, shape::CONSUMERS);
#pragma unroll
        for (int c = 0; c < QUERIES / 4; c++) {
            int query = c / 2 * 8 + lane % 4 * 2 + c % 2;
            total[c] = 0;
#pragma unroll
            for (int w = 0; w < 4; w++)
                total[c] += shared.warp_value[w][query];
        }
    }

    /* Output of some units. */
    __device__ __forceinline__ void write_panels(const launch &launch, const item &item,
                                                 int head_block, share units,
                                                 const float (&factor)[QUERIES / 4])
    {
#pragma unroll
        for (int i = 0; i < PANEL_VECTORS; i++) {
            __nv_bfloat16 *out = layout::output(launch, item, head_block, 4 * i);
#pragma unroll
            for (int d = 0; d < shape::PANELS_EACH; d++) {
                int piece = (panel_of(d) * PANEL_VECTORS + i) * 4 + warp;
                const float *v = o[d] + 4 * i;
                if (units.has(d / UNIT_PANELS))
                    layout::write(out, piece, factor[2 * i], factor[2 * i + 1],
                                  make_float4(v[0], v[1], v[2], v[3]));
            }
        }
    }

    __device__ __forceinline__ void write_item(const launch &launch, const item &item,
                                               int head_block)
    {
        float total[QUERIES / 4];
        sum_weights(total);
#pragma unroll
        for (int c = 0; c < QUERIES / 4; c++)
            total[c] = 1 / total[c];
        write_panels(launch, item, head_block, {0, UNITS}, total);
    }

    template <class JOINER>
    __device__ __forceinline__ void write_joined(const launch &launch, const item &item,
                                                 int head_block, share units, const JOINER &joiner)
    {
        float factor[QUERIES / 4];
#pragma unroll
        for (int c = 0; c < QUERIES / 4; c++)
            factor[c] = joiner.inverse_of(first_query(c / 2) + c % 2);
        write_panels(launch, item, head_block, units, factor);
    }

    /* A part as decode_parts.cuh has it: of a unit's vector, its registers, its place in a partial,
     * and whose it is. */
    __device__ __forceinline__ float4 vector(int unit, int v) const
    {
        const float *from = o[unit * UNIT_PANELS + v / PANEL_VECTORS] + v % PANEL_VECTORS * 4;
        return make_float4(from[0], from[1], from[2], from[3]);
    }
    __device__ __forceinline__ void set_vector(int unit, int v, float4 to)
    {
        float *at = o[unit * UNIT_PANELS + v / PANEL_VECTORS] + v % PANEL_VECTORS * 4;
        at[0] = to.x;
        at[1] = to.y;
        at[2] = to.z;
        at[3] = to.w;
    }
    __device__ __forceinline__ int place_of(int unit, int v) const
    {
        int panel = panel_of(unit * UNIT_PANELS + v / PANEL_VECTORS);
        return (panel * PANEL_VECTORS + v % PANEL_VECTORS) * GROUP_THREADS + warp * 32 + lane;
    }
    __device__ __forceinline__ int first_query(int v) const
    {
        return v % PANEL_VECTORS * 8 + lane % 4 * 2;
    }
    __device__ __forceinline__ int second_query(int v) const
    {
        return first_query(v) + 1;
    }

    __device__ __forceinline__ void write_partial(const launch &launch, int64_t index, share kept)
    {
        float2 *statistics = launch.statistics + index * QUERIES;
        float total[QUERIES / 4];
        sum_weights(total);
        write_units(*this, launch.partial + index * partial_vectors(QUERIES), kept);
        if (warp == 0 && lane < 4) {
#pragma unroll
            for (int c = 0; c < COLUMNS; c++)
                statistics[query_of(c)] =
                    make_float2(high[c], group == 0 ? total[c] : total[QUERIES / 4 - COLUMNS + c]);
        }
    }
};

} // namespace decode

#endif
