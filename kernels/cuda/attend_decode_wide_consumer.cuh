/* What a group of the wide decode kernel computes. */
#ifndef MLA_KERNELS_CUDA_ATTEND_DECODE_WIDE_CONSUMER_CUH
#define MLA_KERNELS_CUDA_ATTEND_DECODE_WIDE_CONSUMER_CUH

#include "kernels/cuda/attend_decode_wide.cuh"
#include "kernels/cuda/decode_parts.cuh"

#include <math.h>

namespace decode
{
namespace wide
{

/* A thread has two queries (lane / 4 of its warp's 16, and that + 8), and of each column pairs
 * 8 i + 2 (lane % 4). GROUP: 0 for A, 1 for B; it also sums that half of the latent dimensions. */
template <int GROUP> struct consumer {
    static constexpr int OTHER = 1 - GROUP;
    using layout = queries_as_rows;
    static constexpr int UNITS = HALF_PANELS, UNIT_VECTORS = 8; /* a panel; decode_parts.cuh */

    shared &s;
    const float scale;
    const int warp, lane;            /* of the group's four */
    const uint64_t base;             /* the descriptor of where shared memory begins */
    uint32_t tiles[GROUPS] = {0, 0}; /* that lay in A's place and in B's */
    uint32_t q_phase = 1;            /* of this item's Q: items in turns */
#ifdef MLA_RACECHECK
    uint32_t heard = 0;
#endif
    float o[128];
    float scores[32];
    uint32_t weights[16];
    float reference[2], sum[2]; /* sum: of this thread's columns of this group's tiles */

    __device__ __forceinline__ consumer(shared &to, float scale_log2)
        : s(to), scale(scale_log2), warp(threadIdx.x / 32 % 4), lane(threadIdx.x % 32),
          base(ptx::panel_descriptor(&to))
    {
    }

    /* The descriptor of a panel, or of the first of several: an addition, done here and now, where
     * the compiler would otherwise keep all of them. */
    __device__ __forceinline__ uint64_t descriptor(const void *panel) const
    {
        uint64_t from = base;
        asm volatile("" : "+l"(from));
        return from + ((const unsigned char *)panel - (const unsigned char *)&s) / 16;
    }

    /* Of four panels side by side. */
    __device__ __forceinline__ uint64_t half_descriptor(const void *panels) const
    {
        constexpr uint64_t apart = (uint64_t)(PANEL_BYTES / 16 - 1) << 16;
        return descriptor(panels) + apart;
    }

    __device__ __forceinline__ int query(int second) const
    {
        return warp * 16 + lane / 4 + 8 * second;
    }

    __device__ __forceinline__ void begin()
    {
        q_phase ^= 1;
        ptx::barrier_wait(&s.q_full, q_phase);
#pragma unroll
        for (int i = 0; i < 128; i++)
            o[i] = 0;
        reference[0] = reference[1] = NO_SCORE;
        sum[0] = sum[1] = 0;
    }

    /* To the other group, which waits for it: what half of weights is there. */
    __device__ __forceinline__ void tell(int what)
    {
#ifdef MLA_RACECHECK
        ptx::barrier_arrive(&s.told[what]);
#else
        ptx::named_arrive(WEIGHED + what, CONSUMERS);
#endif
    }
    __device__ __forceinline__ void hear(int what)
    {
#ifdef MLA_RACECHECK
        ptx::barrier_wait(&s.told[what], heard >> what & 1);
        heard ^= 1u << what;
#else
        ptx::named_sync(WEIGHED + what, CONSUMERS);
#endif
    }

    /* By each warp, once it has read what it needs. */
    __device__ __forceinline__ void release(uint64_t *barrier)
    {
        if (RACECHECK || lane == 0)
            ptx::barrier_arrive(barrier);
    }

    /* The other group's weights have been multiplied with the values of its tile. */
    __device__ __forceinline__ void release_other()
    {
        release(&s.empty[OTHER][GROUP]);
        release(&s.rope_empty[OTHER]);
    }

    __device__ __forceinline__ void wait_panel(int tile, int panel)
    {
        ptx::barrier_wait(&s.full[tile][panel], tiles[tile] & 1);
    }

    /* Panels FROM up to TO of the scores of this group's next tile. */
    template <int FROM, int TO> __device__ __forceinline__ void score()
    {
#pragma unroll
        for (int p = FROM; p < TO; p++) {
            const unsigned char *panel =
                p < LATENT_PANELS ? s.kv[GROUP][p / HALF_PANELS] + p % HALF_PANELS * PANEL_BYTES
                                  : s.rope[GROUP];
            wait_panel(GROUP, p);
            ptx::wgmma_fence();
            uint64_t q = descriptor(s.q[p]), k = descriptor(panel);
#pragma unroll
            for (int step = 0; step < 4; step++)
                ptx::wgmma<0>(scores, q + step * ptx::STEP_ALONG, k + step * ptx::STEP_ALONG,
                              p + step > 0);
            ptx::wgmma_commit();
        }
    }

    /* All scores are there. `last`: of the item. */
    __device__ __forceinline__ void finish_scores(bool last)
    {
        finish();
        ptx::wgmma_pin(scores);
        if (last)
            release(&s.q_empty);
    }

    /* All products are done. */
    __device__ __forceinline__ void finish()
    {
        ptx::wgmma_wait<0>();
        ptx::wgmma_pin(o);
    }

    /* A query sees one token less than the same head's of the item's next row. */
    __device__ __forceinline__ void mask(const item &item, int tile, int block_heads)
    {
        int seen[2];
#pragma unroll
        for (int r = 0; r < 2; r++)
            seen[r] = seen_by(item, tile, query(r) / block_heads);
#pragma unroll
        for (int i = 0; i < 32; i++) {
            if (i / 4 * 8 + lane % 4 * 2 + i % 2 >= seen[i / 2 % 2])
                scores[i] = -INFINITY;
        }
    }

    /* O begins to count from another reference. Nothing is being added to it. */
    __device__ __forceinline__ void scale_sums(const float (&factor)[2])
    {
#pragma unroll
        for (int i = 0; i < 128; i++)
            o[i] *= factor[i / 2 % 2];
    }

    /* Subtracts from now on the exact maximum so far. factor: what O has to be multiplied by. */
    __device__ __forceinline__ void raise(const float (&top)[2], float (&factor)[2])
    {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float most = fmaxf(top[r], __shfl_xor_sync(~0u, top[r], 1));
            most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
            most = fmaxf(most * scale, reference[r]);
            factor[r] = ptx::exp2_fast(reference[r] - most);
            sum[r] *= factor[r];
            reference[r] = most;
        }
    }

    /* Weights of half of the tile's tokens, in registers and, for the other group, in shared
     * memory. */
    template <int HALF> __device__ __forceinline__ void weigh_half()
    {
#pragma unroll
        for (int i = 16 * HALF; i < 16 * HALF + 16; i++)
            scores[i] = ptx::exp2_fast(fmaf(scores[i], scale, -reference[i / 2 % 2]));
        uint32_t to = ptx::shared_address(s.rope[GROUP]);
#pragma unroll
        for (int step = 2 * HALF; step < 2 * HALF + 2; step++) {
#pragma unroll
            for (int i = 0; i < 4; i++)
                weights[4 * step + i] =
                    ptx::pack_bf16(scores[8 * step + 2 * i], scores[8 * step + 2 * i + 1]);
            ptx::store_matrices(to + ptx::panel_offset(warp * 16 + lane % 16, 2 * step + lane / 16),
                                weights + 4 * step);
        }
        ptx::fence_async_shared();
        tell(HALVES * GROUP + HALF);
    }

    /* Weights of the tile's tokens. Whether O has to be scaled, for the warp. */
    __device__ __forceinline__ bool weigh(float (&factor)[2])
    {
        float top[2] = {fmaxf(scores[0], scores[1]), fmaxf(scores[2], scores[3])};
        float other[2] = {fmaxf(scores[4], scores[5]), fmaxf(scores[6], scores[7])};
#pragma unroll
        for (int i = 8; i < 32; i += 8) {
#pragma unroll
            for (int r = 0; r < 2; r++) {
                top[r] = fmaxf(top[r], fmaxf(scores[i + 2 * r], scores[i + 2 * r + 1]));
                other[r] = fmaxf(other[r], fmaxf(scores[i + 4 + 2 * r], scores[i + 5 + 2 * r]));
            }
        }
        top[0] = fmaxf(top[0], other[0]);
        top[1] = fmaxf(top[1], other[1]);
        bool raised = __any_sync(~0u, fmaxf(fmaf(top[0], scale, -reference[0]),
                                            fmaf(top[1], scale, -reference[1])) > RAISE);
        if (raised)
            raise(top, factor);
        ptx::named_sync(OWN + GROUP, GROUP_THREADS); /* all have read the rope */
        if (lane == 0)
            s.raised[GROUP][warp] = raised;
        if (raised && lane % 4 == 0) {
            s.reference[GROUP][query(0)] = reference[0];
            s.reference[GROUP][query(1)] = reference[1];
        }
        weigh_half<0>();
        weigh_half<1>();
        if (RACECHECK) /* who reads P says so to who loads, but racecheck wants it of who wrote */
            release(&s.rope_empty[GROUP]);
#pragma unroll
        for (int i = 0; i < 32; i++)
            sum[i / 2 % 2] += scores[i];
        return raised;
    }

    /* The first half of the other group's weights is there; its reference becomes this one's.
     * Nothing is being added to O. */
    __device__ __forceinline__ void adopt()
    {
#pragma unroll
        for (int p = 0; p < HALF_PANELS; p++) /* long there, but that is how one may read it */
            wait_panel(OTHER, GROUP * HALF_PANELS + p);
        hear(HALVES * OTHER);
        if (!__shfl_sync(~0u, s.raised[OTHER][warp], 0))
            return;
        float factor[2];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float theirs = s.reference[OTHER][query(r)];
            factor[r] = ptx::exp2_fast(reference[r] - theirs);
            sum[r] *= factor[r];
            reference[r] = theirs;
        }
        scale_sums(factor);
    }

    /* Readies this group's half of a tile in place `place` for sums: by now both have scored it. */
    __device__ __forceinline__ void clear(const item &item, int tile, int place)
    {
        int all = seen_by_all(item, tile), any = seen_by_any(item, tile);
        if (all >= TILE_TOKENS)
            return;
        for (int p = 0; p < HALF_PANELS; p++)
            clear_values(s.kv[place][GROUP] + p * PANEL_BYTES, all, any, warp * 32 + lane,
                         GROUP_THREADS);
        ptx::fence_async_shared();
        ptx::named_sync(OWN + GROUP, GROUP_THREADS);
    }

    /* Starts O += P V of this group's tile, or of the other's. */
    __device__ __forceinline__ void add_own()
    {
        uint64_t v = half_descriptor(s.kv[GROUP][GROUP]);
        ptx::wgmma_fence();
#pragma unroll
        for (int step = 0; step < 4; step++)
            ptx::wgmma_held(o, weights + 4 * step, v + step * ptx::STEP_DOWN);
        ptx::wgmma_commit();
    }

    __device__ __forceinline__ void add_other()
    {
        uint64_t v = half_descriptor(s.kv[OTHER][GROUP]);
        uint64_t p = descriptor(s.rope[OTHER]);
        ptx::wgmma_fence();
#pragma unroll
        for (int step = 0; step < 4; step++) {
            if (step == 2)
                hear(HALVES * OTHER + 1);
            ptx::wgmma_rows(o, p + step * ptx::STEP_ALONG, v + step * ptx::STEP_DOWN);
        }
        ptx::wgmma_commit();
    }

    /* Of each of the thread's queries: the sum of all weights. */
    __device__ __forceinline__ void sum_weights(float (&total)[2])
    {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            sum[r] += __shfl_xor_sync(~0u, sum[r], 1);
            sum[r] += __shfl_xor_sync(~0u, sum[r], 2);
            if (lane % 4 == 0)
                s.sum[q_phase][GROUP][query(r)] = sum[r];
        }
        ptx::named_sync(ALL, CONSUMERS);
#pragma unroll
        for (int r = 0; r < 2; r++)
            total[r] = s.sum[q_phase][0][query(r)] + s.sum[q_phase][1][query(r)];
    }

    /* Where a warp's output lies on its way: [16 queries, 4 pieces of 16 bytes]. */
    static __device__ __forceinline__ uint32_t out_offset(int row, int piece)
    {
        return row * OUT_ROW_BYTES + (piece ^ (row >> 1 & 3)) * 16;
    }

    /* Output of some panels; a warp turns its own queries' in shared memory, half a panel at a
     * time. */
    __device__ __forceinline__ void write_panels(const launch &launch, const item &item,
                                                 int head_block, share panels,
                                                 const float (&factor)[2])
    {
        unsigned char *staged = s.out[GROUP * GROUP_WARPS + warp];
        __nv_bfloat16 *out[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            out[i] = output_of(launch, item, head_block, warp * 16 + i * 8 + lane / 4);
            if (out[i])
                out[i] += GROUP * HALF_PANELS * ptx::PANEL_WIDTH + lane % 4 * 8;
        }
#pragma unroll
        for (int half = 0; half < 2 * HALF_PANELS; half++) {
            if (!panels.has(half / 2))
                continue;
#pragma unroll
            for (int step = 0; step < 2; step++) {
                uint32_t packed[4];
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const float *pair = o + 16 * half + 8 * step + 2 * i;
                    packed[i] = ptx::pack_bf16(pair[0] * factor[i % 2], pair[1] * factor[i % 2]);
                }
                ptx::store_matrices(ptx::shared_address(staged) +
                                        out_offset(lane % 16, 2 * step + lane / 16),
                                    packed);
            }
            __syncwarp();
#pragma unroll
            for (int i = 0; i < 2; i++) {
                uint4 piece = *(uint4 *)(staged + out_offset(i * 8 + lane / 4, lane % 4));
                if (out[i])
                    *(uint4 *)(out[i] + half * 32) = piece;
            }
            __syncwarp();
        }
    }

    __device__ __forceinline__ void write_item(const launch &launch, const item &item,
                                               int head_block)
    {
        float total[2];
        sum_weights(total);
        float factor[2] = {1 / total[0], 1 / total[1]};
        write_panels(launch, item, head_block, {0, UNITS}, factor);
    }

    template <class JOINER>
    __device__ __forceinline__ void write_joined(const launch &launch, const item &item,
                                                 int head_block, share panels, const JOINER &joiner)
    {
        float factor[2] = {joiner.inverse_of(query(0)), joiner.inverse_of(query(1))};
        write_panels(launch, item, head_block, panels, factor);
    }

    /* A part as decode_parts.cuh has it: of a unit's vector, its registers, its place in a partial,
     * and whose it is. */
    __device__ __forceinline__ float4 vector(int unit, int v) const
    {
        const float *from = o + 32 * unit + 4 * v;
        return make_float4(from[0], from[1], from[2], from[3]);
    }
    __device__ __forceinline__ void set_vector(int unit, int v, float4 to)
    {
        float *at = o + 32 * unit + 4 * v;
        at[0] = to.x;
        at[1] = to.y;
        at[2] = to.z;
        at[3] = to.w;
    }
    __device__ __forceinline__ int place_of(int unit, int v) const
    {
        return (GROUP * 32 + unit * UNIT_VECTORS + v) * GROUP_THREADS + warp * 32 + lane;
    }
    __device__ __forceinline__ int first_query(int) const
    {
        return query(0);
    }
    __device__ __forceinline__ int second_query(int) const
    {
        return query(1);
    }

    __device__ __forceinline__ void write_partial(const launch &launch, int64_t index, share kept)
    {
        float total[2];
        sum_weights(total);
        write_units(*this, launch.partial + index * partial_vectors(WIDE_QUERIES), kept);
        if (GROUP == 0 && lane % 4 == 0) {
#pragma unroll
            for (int r = 0; r < 2; r++)
                launch.statistics[index * WIDE_QUERIES + query(r)] =
                    make_float2(reference[r], total[r]);
        }
    }
};

} // namespace wide
} // namespace decode

#endif
