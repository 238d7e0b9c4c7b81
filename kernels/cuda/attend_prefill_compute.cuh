/* The computing side of the prefill kernel: two warpgroups, each with 64 rows of a tile. */
#ifndef MLA_KERNELS_CUDA_ATTEND_PREFILL_COMPUTE_CUH
#define MLA_KERNELS_CUDA_ATTEND_PREFILL_COMPUTE_CUH

#include "kernels/cuda/attend_prefill_sm90.cuh"
#include "kernels/cuda/wgmma.cuh"

#include <math.h>

namespace prefill
{

/* Weights are 2^(score - reference). The reference of a row follows its maximum only when that
 * is so much higher, which is rare: O needs no scaling otherwise. 2^8 loses nothing in f32, nor in
 * bf16. */
constexpr float REFERENCE_SLACK = 8.0f;

/* A thread's two rows (8 apart) of the softmax. */
struct rows {
    float reference[2]; /* score, not yet scaled */
    float sum[2];       /* of this thread's weights */
};

constexpr int BARRIER_ALL = 1; /* named, of all threads that compute */

/* Between operands in shared memory, in the 16 bytes that descriptors count. */
constexpr uint64_t Q_PANEL = GROUP_ROWS * PANEL * 2 / 16, K_PANEL = KEYS * PANEL * 2 / 16;
constexpr uint64_t Q_TILE = Q_PANELS * Q_PANEL; /* to the next tile's */
constexpr uint64_t K_STAGE = QK_PANELS * K_PANEL, V_STAGE = V_PANELS * K_PANEL;

/* The held panels, as the A operand of products, and their place in shared memory free again. */
__device__ __forceinline__ void hold_queries(struct shared &s, int group,
                                             uint32_t (&held)[HELD_PANELS * 16])
{
    const int lane = (int)threadIdx.x % 32, row = (int)threadIdx.x % 128 / 32 * 16 + lane % 16;
#pragma unroll
    for (int step = 0; step < HELD_PANELS * 4; step++) {
        const uint32_t panel = ptx::shared_address(s.held[group][step / 4]);
        ptx::load_matrices(&held[4 * step],
                           panel + ptx::panel_offset(row, step % 4 * 2 + lane / 16));
    }
    __syncwarp();
    if (RACECHECK || lane == 0) {
        ptx::barrier_arrive(&s.q_empty[group]);
    }
}

__device__ __forceinline__ void start_scores(float (&s)[64], uint64_t q,
                                             const uint32_t (&held)[HELD_PANELS * 16], uint64_t k)
{
#pragma unroll
    for (int panel = 0; panel < Q_PANELS; panel++) {
#pragma unroll
        for (int step = 0; step < PANEL / 16; step++) {
            ptx::wgmma<0>(s, q + panel * Q_PANEL + step * ptx::STEP_ALONG,
                          k + panel * K_PANEL + step * ptx::STEP_ALONG, panel + step > 0);
        }
    }
#pragma unroll
    for (int step = 0; step < HELD_PANELS * 4; step++) {
        ptx::wgmma_held<0>(s, held + 4 * step,
                           k + (Q_PANELS + step / 4) * K_PANEL + step % 4 * ptx::STEP_ALONG);
    }
    ptx::wgmma_commit();
}

__device__ __forceinline__ void start_values(float (&o)[64], const uint32_t (&weights)[32],
                                             uint64_t v)
{
#pragma unroll
    for (int step = 0; step < KEYS / 16; step++) {
        ptx::wgmma_held<1>(o, weights + 4 * step, v + step * ptx::STEP_DOWN);
    }
    ptx::wgmma_commit();
}

/* Scores of keys that a row doesn't see become minus infinity. Of the step's keys the thread's
 * first row sees seen[0], the second seen[1]. */
__device__ __forceinline__ void hide(float (&s)[64], const int (&seen)[2])
{
    const int column = 2 * ((int)threadIdx.x % 4);
#pragma unroll
    for (int i = 0; i < 64; i++) {
        const int row = i / 2 % 2;
        s[i] = i / 4 * 8 + i % 2 < seen[row] - column ? s[i] : -INFINITY;
    }
}

__device__ __forceinline__ float quad_max(float x)
{
    x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
    return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}

__device__ __forceinline__ float quad_sum(float x)
{
    x += __shfl_xor_sync(~0u, x, 1);
    return x + __shfl_xor_sync(~0u, x, 2);
}

/* Scores to weights, in place; the rows' sums grow by them. Returns whether O has to be scaled
 * by `shrink` (for the warp). HIDDEN: some rows may see no key so far. */
template <bool HIDDEN>
__device__ __forceinline__ bool weigh(float (&s)[64], struct rows &rows, float scale_log2,
                                      float (&shrink)[2])
{
    float top[2][2];
#pragma unroll
    for (int i = 0; i < 64; i++) {
        float &most = top[i / 2 % 2][i % 2];
        most = i < 4 ? s[i] : fmaxf(most, s[i]);
    }
    bool grows[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        top[r][0] = fmaxf(rows.reference[r], quad_max(fmaxf(top[r][0], top[r][1])));
        grows[r] = (top[r][0] - rows.reference[r]) * scale_log2 > REFERENCE_SLACK;
        shrink[r] = 1.0f;
    }
    const bool scaled = __any_sync(~0u, grows[0] || grows[1]);
    if (scaled) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            if (grows[r]) {
                shrink[r] = ptx::exp2_fast((rows.reference[r] - top[r][0]) * scale_log2);
                rows.sum[r] *= shrink[r];
                rows.reference[r] = top[r][0];
            }
        }
    }
    float base[2], sum[2][2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        base[r] = rows.reference[r] * scale_log2;
        if (HIDDEN && rows.reference[r] == -INFINITY) {
            base[r] = 0.0f;
        }
    }
#pragma unroll
    for (int i = 0; i < 64; i++) {
        const int r = i / 2 % 2;
        s[i] = ptx::exp2_fast(fmaf(s[i], scale_log2, -base[r]));
        sum[r][i % 2] = i < 4 ? s[i] : sum[r][i % 2] + s[i];
    }
    rows.sum[0] += sum[0][0] + sum[0][1];
    rows.sum[1] += sum[1][0] + sum[1][1];
    return scaled;
}

__device__ __forceinline__ void pack(uint32_t (&weights)[32], const float (&s)[64])
{
#pragma unroll
    for (int i = 0; i < 32; i++) {
        weights[i] = ptx::pack_bf16(s[2 * i], s[2 * i + 1]);
    }
}

/* Values beyond the sequence's last key may be NaN, and a weight of 0 doesn't hide that. All
 * threads that compute, together. */
__device__ __forceinline__ void clear_values(struct shared &s, uint32_t turn, int keys)
{
    const int stage = stage_of(turn);
    ptx::barrier_wait(&s.v_full[stage], phase_of(turn));
    const int thread = (int)threadIdx.x - WARPS * 32, pieces = PANEL * 2 / 16;
    for (int i = keys * pieces + thread; i < KEYS * pieces; i += GROUPS * WARPS * 32) {
#pragma unroll
        for (int panel = 0; panel < V_PANELS; panel++) {
            reinterpret_cast<uint4 *>(s.v[stage][panel])[i] = make_uint4(0, 0, 0, 0);
        }
    }
    ptx::fence_async_shared();
    ptx::named_sync(BARRIER_ALL, GROUPS * WARPS * 32);
}

/* Of lane l of a quad, x[i] is piece l of block i; afterwards piece i of block l. */
__device__ __forceinline__ void quad_transpose(uint32_t (&x)[4])
{
#pragma unroll
    for (int bit = 1; bit < 4; bit *= 2) {
        const bool upper = threadIdx.x & bit;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if ((i & bit) == 0) {
                const uint32_t other = __shfl_xor_sync(~0u, upper ? x[i] : x[i | bit], bit);
                x[i] = upper ? other : x[i];
                x[i | bit] = upper ? x[i | bit] : other;
            }
        }
    }
}

__device__ __forceinline__ void store(const struct launch &p, const struct tile &t,
                                      const float (&o)[64], const struct rows &rows)
{
    const int lane = (int)threadIdx.x % 32, first = (int)threadIdx.x % 128 / 32 * 16 + lane / 4;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const float sum = quad_sum(rows.sum[r]);
        const float inverse = 1.0f / sum;
        const int64_t row = t.row + first + 8 * r;
        const bool present = first + 8 * r < t.rows;
        __nv_bfloat16 *to =
            p.out + row * p.out_row_stride + t.head * p.out_head_stride + lane % 4 * 8;
#pragma unroll
        for (int part = 0; part < V_DIM / 32; part++) {
            uint32_t x[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float *pair = o + part * 16 + i * 4 + r * 2;
                x[i] = sum == 0.0f ? 0u : ptx::pack_bf16(pair[0] * inverse, pair[1] * inverse);
            }
            quad_transpose(x);
            if (present) {
                *reinterpret_cast<uint4 *>(to + part * 32) = make_uint4(x[0], x[1], x[2], x[3]);
            }
        }
        if (present && lane % 4 == 0) {
            p.lse[row * p.heads + t.head] =
                sum == 0.0f ? -INFINITY : fmaf(rows.reference[r], p.scale, logf(sum));
        }
    }
}

/* What a warpgroup carries from step to step. */
struct state {
    float o[64];
    uint32_t weights[32]; /* of the step before, bf16 pairs */
    struct rows rows;
    uint32_t queries[HELD_PANELS * 16];
};

/* The scores of step `turn` and, beside them, the values of the step before. The step's keys have
 * arrived; when it returns, so have the next step's. */
template <bool HIDDEN>
__device__ __forceinline__ void step(struct shared &s, struct state &state, uint32_t turn,
                                     uint64_t q, uint64_t k, uint64_t v, const int (&seen)[2],
                                     bool last, float scale_log2)
{
    const bool leader = threadIdx.x % 32 == 0;
    const int stage = stage_of(turn), before = stage_of(turn - 1);
    float scores[64], shrink[2];
    ptx::wgmma_fence();
    start_scores(scores, q, state.queries, k + stage * K_STAGE);
    ptx::barrier_wait(&s.v_full[before], phase_of(turn - 1));
    ptx::wgmma_fence();
    start_values(state.o, state.weights, v + before * V_STAGE);
    ptx::wgmma_wait<1>();
    ptx::wgmma_pin(scores);
    if (leader) {
        ptx::barrier_arrive(&s.k_empty[stage]);
    }
    if (HIDDEN) {
        hide(scores, seen);
    }
    const bool scaled = weigh<HIDDEN>(scores, state.rows, scale_log2, shrink);
    ptx::wgmma_pin(scores);
    ptx::wgmma_pin(state.rows.sum);
    /* The sums are never negative: asking for them here is what keeps ptxas from moving the weights
     * behind the wait for the values, which run beside them. */
    if (!last && !(state.rows.sum[0] + state.rows.sum[1] < 0.0f)) {
        ptx::barrier_wait(&s.k_full[stage_of(turn + 1)], phase_of(turn + 1));
    }
    ptx::wgmma_wait<0>();
    ptx::wgmma_pin(state.o);
    if (leader) {
        ptx::barrier_arrive(&s.v_empty[before]);
    }
    if (scaled) {
#pragma unroll
        for (int i = 0; i < 64; i++) {
            state.o[i] *= shrink[i / 2 % 2];
        }
    }
    pack(state.weights, scores);
}

/* What was loaded as the warpgroup's tile number `count`. */
__device__ __forceinline__ struct tile next_tile(struct shared &s, int group, uint32_t count)
{
    ptx::barrier_wait(&s.q_full[group], count & 1);
    struct tile t = s.tile[group];
    /* The same in all lanes: that tells the compiler that branches on them don't diverge. */
    t.steps = __shfl_sync(~0u, t.steps, 0);
    t.full = __shfl_sync(~0u, t.full, 0);
    t.keys = __shfl_sync(~0u, t.keys, 0);
    t.row = __shfl_sync(~0u, t.row, 0);
    return t;
}

/* Of the last step's keys (those that come first), the thread's two rows see so many. */
__device__ __forceinline__ void set_seen(const struct tile &t, int (&seen)[2])
{
    const int first = (int)threadIdx.x % 128 / 32 * 16 + (int)threadIdx.x % 32 / 4;
    const int base = (t.steps - 1) * KEYS;
    seen[0] = min(t.keys, t.seen + first) - base;
    seen[1] = min(t.keys, t.seen + first + 8) - base;
}

/* The first scores of a tile, finished, become its first weights. */
__device__ __forceinline__ void begin_tile(struct shared &s, struct state &state,
                                           const struct tile &t, float (&scores)[64], uint32_t turn,
                                           int (&seen)[2], float scale_log2)
{
    if (threadIdx.x % 32 == 0) {
        ptx::barrier_arrive(&s.k_empty[stage_of(turn)]);
    }
    float shrink[2];
    set_seen(t, seen);
    hide(scores, seen);
    state.rows = {{-INFINITY, -INFINITY}, {0.0f, 0.0f}};
    weigh<true>(scores, state.rows, scale_log2, shrink);
    pack(state.weights, scores);
    const int keys_left = t.keys - (t.steps - 1) * KEYS;
    if (keys_left < KEYS) {
        clear_values(s, turn, keys_left);
    }
    if (t.steps > 1) {
        ptx::barrier_wait(&s.k_full[stage_of(turn + 1)], phase_of(turn + 1));
    }
}

__device__ __forceinline__ void zero(float (&o)[64])
{
#pragma unroll
    for (int i = 0; i < 64; i++) {
        o[i] = 0.0f;
    }
}

__device__ __forceinline__ void compute(const struct launch &p, struct shared &s, int group)
{
    constexpr float LOG2_E = 1.44269504f;
    const float scale_log2 = p.scale * LOG2_E;
    const bool leader = threadIdx.x % 32 == 0;
    const uint64_t q = ptx::panel_descriptor(s.q[group]), k = ptx::panel_descriptor(s.k),
                   v = ptx::panel_descriptor(s.v, sizeof s.v[0][0]);
    uint32_t turn = 0, count = 0;
    struct state state;
    int seen[2];
    struct tile t = next_tile(s, group, count);
    while (t.row >= 0) {
        zero(state.o);
        if (t.steps == 0) {
            __syncwarp();
            if (RACECHECK || leader) {
                ptx::barrier_arrive(&s.q_empty[group]);
            }
            state.rows = {{-INFINITY, -INFINITY}, {0.0f, 0.0f}};
            store(p, t, state.o, state.rows);
            t = next_tile(s, group, ++count);
            continue;
        }
        {
            float scores[64];
            hold_queries(s, group, state.queries);
            ptx::barrier_wait(&s.k_full[stage_of(turn)], phase_of(turn));
            ptx::wgmma_fence();
            start_scores(scores, q + (count & 1) * Q_TILE, state.queries,
                         k + stage_of(turn) * K_STAGE);
            ptx::wgmma_wait<0>();
            ptx::wgmma_pin(scores);
            begin_tile(s, state, t, scores, turn, seen, scale_log2);
        }
        for (bool more = true; more;) {
            const uint64_t q_tile = q + (count & 1) * Q_TILE;
            int i = 1;
#pragma unroll 1
            for (; i < t.steps - t.full; i++) {
                seen[0] += KEYS;
                seen[1] += KEYS;
                step<true>(s, state, turn + (uint32_t)i, q_tile, k, v, seen, i == t.steps - 1,
                           scale_log2);
            }
#pragma unroll 1
            for (; i < t.steps; i++) {
                step<false>(s, state, turn + (uint32_t)i, q_tile, k, v, seen, i == t.steps - 1,
                            scale_log2);
            }
            turn += (uint32_t)t.steps;
            const int last = stage_of(turn - 1);
            ptx::barrier_wait(&s.v_full[last], phase_of(turn - 1));
            ptx::wgmma_fence();
            start_values(state.o, state.weights, v + last * V_STAGE);
            const struct tile next = next_tile(s, group, ++count);
            more = next.steps > 0;
            if (more) {
                /* The tensor cores have the next scores to do while O is stored. */
                float scores[64];
                hold_queries(s, group, state.queries);
                ptx::barrier_wait(&s.k_full[stage_of(turn)], phase_of(turn));
                ptx::wgmma_fence();
                start_scores(scores, q + (count & 1) * Q_TILE, state.queries,
                             k + stage_of(turn) * K_STAGE);
                ptx::wgmma_wait<1>();
                ptx::wgmma_pin(state.o);
                if (leader) {
                    ptx::barrier_arrive(&s.v_empty[last]);
                }
                store(p, t, state.o, state.rows);
                zero(state.o);
                ptx::wgmma_wait<0>();
                ptx::wgmma_pin(scores);
                begin_tile(s, state, next, scores, turn, seen, scale_log2);
            } else {
                ptx::wgmma_wait<0>();
                ptx::wgmma_pin(state.o);
                if (leader) {
                    ptx::barrier_arrive(&s.v_empty[last]);
                }
                store(p, t, state.o, state.rows);
            }
            t = next;
        }
    }
}

} // namespace prefill

#endif
