/* Joins the parts of split rows: out = sum_k 2^(max_k - max) sums_k / sum_k 2^(max_k - max) sum_k.
 *
 * The workers of a split row do it together at their end: each leaves its part in device memory
 * and counts itself in, waits for the others, and joins its share of the row's pieces, adding
 * the parts in their order. All blocks of the launch run at once, so that nobody waits for a
 * block that has not begun. */
#ifndef MLA_KERNELS_CUDA_DECODE_JOIN_CUH
#define MLA_KERNELS_CUDA_DECODE_JOIN_CUH

#include "kernels/cuda/attend_decode_launch.cuh"
#include "kernels/cuda/ptx.cuh"

#include <math.h>

namespace decode
{

/* Where part k of a row lies, counted in partials. */
__device__ __forceinline__ int64_t partial_of(const row &row, int k, const launch &launch,
                                              int head_block)
{
    return (2 * (int64_t)(row.worker + k) + (k == 0)) * launch.head_blocks + head_block;
}

/* Counts of a row's parts: one for each that is written, one more for each worker that has read
 * what it needs of the others'. The last of those leaves 0 for the next launch. */
__device__ __forceinline__ uint32_t *count_of(const row &row, const launch &launch, int head_block)
{
    return launch.counts + row.worker * launch.head_blocks + head_block;
}

/* By one thread, behind a barrier of all that wrote the part. */
__device__ __forceinline__ void count_part(uint32_t *count)
{
    __threadfence();
    atomicAdd(count, 1);
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

/* THREADS threads' work on one row of a block of HEADS heads, which meet at named barrier
 * BARRIER. A piece is 16 latent dimensions of 8 heads: one vector of each lane of a warp, as the
 * registers of the products lie. */
template <int HEADS, int THREADS, int BARRIER> struct joiner {
    static constexpr int WARPS = THREADS / 32;
    static constexpr int PIECES = 8 * (HEADS / 8) * 4;

    const launch &launch;
    const row &row;
    const int head_block;
    float *weights; /* [splits, HEADS], shared */
    float *slices;  /* [SLICES, HEADS], shared */

    /* A thread stays with one head, and a slice of the parts. */
    static constexpr int SLICES = THREADS / HEADS;

    /* Each part's weight for each head, over the weights' sum. */
    __device__ void weigh_parts(float *sums)
    {
        int head = threadIdx.x % HEADS, slice = threadIdx.x / HEADS;
        float most = -INFINITY, sum = 0;
#pragma unroll 8
        for (int k = slice; k < row.splits; k += SLICES) {
            float2 part =
                __ldcg(launch.statistics + partial_of(row, k, launch, head_block) * HEADS + head);
            weights[k * HEADS + head] = part.x;
            sums[k * HEADS + head] = part.y;
            most = fmaxf(most, part.x);
        }
        slices[threadIdx.x] = most;
        ptx::named_sync(BARRIER, THREADS);
#pragma unroll
        for (int i = 0; i < SLICES; i++)
            most = fmaxf(most, slices[i * HEADS + head]);
        ptx::named_sync(BARRIER, THREADS);
#pragma unroll 4
        for (int k = slice; k < row.splits; k += SLICES) {
            float weight = ptx::exp2_fast(weights[k * HEADS + head] - most);
            weights[k * HEADS + head] = weight;
            sum += weight * sums[k * HEADS + head];
        }
        slices[threadIdx.x] = sum;
        ptx::named_sync(BARRIER, THREADS);
    }

    __device__ __forceinline__ float inverse_of(int head) const
    {
        float sum = 0;
#pragma unroll
        for (int i = 0; i < SLICES; i++)
            sum += slices[i * HEADS + head];
        return 1 / sum;
    }

    /* Of up to MANY pieces, piece_step apart, the weighted sums of parts part, part + part_step,
     * ..., with MANY * DEEP loads in flight. x, y are of a lane's two heads at dimension lane / 4,
     * z, w at that + 8. */
    template <int MANY, int DEEP>
    __device__ __forceinline__ void add_parts(float4 (&sum)[MANY], int piece, int piece_step,
                                              int part, int part_step)
    {
        int lane = threadIdx.x % 32;
#pragma unroll
        for (int m = 0; m < MANY; m++)
            sum[m] = make_float4(0, 0, 0, 0);
        for (; part < row.splits; part += DEEP * part_step) {
            float4 loaded[DEEP][MANY];
#pragma unroll
            for (int i = 0; i < DEEP; i++) {
                int k = part + i * part_step;
                const float4 *from =
                    launch.partial + lane +
                    partial_of(row, k, launch, head_block) * partial_vectors(HEADS);
#pragma unroll
                for (int m = 0; m < MANY; m++) {
                    int p = piece + m * piece_step;
                    if (k < row.splits && p < PIECES)
                        loaded[i][m] = __ldcg(from + p * 32);
                }
            }
#pragma unroll
            for (int i = 0; i < DEEP; i++) {
                int k = part + i * part_step;
#pragma unroll
                for (int m = 0; m < MANY; m++) {
                    int p = piece + m * piece_step;
                    if (k < row.splits && p < PIECES) {
                        int head = p / 4 % (HEADS / 8) * 8 + lane % 4 * 2;
                        float2 weight = *(float2 *)(weights + k * HEADS + head);
                        sum[m].x = fmaf(weight.x, loaded[i][m].x, sum[m].x);
                        sum[m].y = fmaf(weight.y, loaded[i][m].y, sum[m].y);
                        sum[m].z = fmaf(weight.x, loaded[i][m].z, sum[m].z);
                        sum[m].w = fmaf(weight.y, loaded[i][m].w, sum[m].w);
                    }
                }
            }
        }
    }

    __device__ __forceinline__ void write_piece(__nv_bfloat16 *out, int piece, float4 sum)
    {
        int lane = threadIdx.x % 32, first_head = piece / 4 % (HEADS / 8) * 8;
        float even = inverse_of(first_head + lane % 4 * 2);
        float odd = inverse_of(first_head + lane % 4 * 2 + 1);
        /* Turned: a lane has two dimensions of one head, four lanes 16 bytes of it. */
        uint32_t low = ptx::transpose_matrix(ptx::pack_bf16(sum.x * even, sum.y * odd));
        uint32_t high = ptx::transpose_matrix(ptx::pack_bf16(sum.z * even, sum.w * odd));
        int head = head_block * HEADS + first_head + lane / 4;
        int dimension = piece / (HEADS / 2) * 64 + piece % 4 * 16;
        if (head >= launch.heads)
            return;
        uint32_t *to = (uint32_t *)(out + head * launch.out_head_stride + dimension) + lane % 4;
        to[0] = low;
        to[4] = high;
    }

    /* Pieces for each warp: its own, all parts of them. */
    template <int MANY, int DEEP> __device__ void join_by_warps(__nv_bfloat16 *out, int mine)
    {
        int step = row.splits * WARPS, warp = threadIdx.x / 32;
        for (int piece = mine * WARPS + warp; piece < PIECES; piece += MANY * step) {
            float4 sum[MANY];
            add_parts<MANY, DEEP>(sum, piece, step, 0, 1);
#pragma unroll
            for (int m = 0; m < MANY; m++) {
                if (piece + m * step < PIECES)
                    write_piece(out, piece + m * step, sum[m]);
            }
        }
    }

    /* Fewer pieces than warps: a worker's warps share out the parts of a piece. `sums`: shared,
     * [WARPS, 32]. */
    __device__ void join_by_parts(__nv_bfloat16 *out, int mine, float4 *sums)
    {
        int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        for (int piece = mine; piece < PIECES; piece += row.splits) {
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
                write_piece(out, piece, sum[0]);
            }
            ptx::named_sync(BARRIER, THREADS);
        }
    }
};

/* memory: shared, THREADS * 20 + splits * HEADS * 8 bytes, aligned to 16. */
template <int HEADS, int THREADS, int BARRIER>
__device__ void join_row(const launch &launch, const row &row, int index, int worker,
                         int head_block, void *memory)
{
    float4 *sums = (float4 *)memory;
    float *slices = (float *)(sums + THREADS), *weights = slices + THREADS;
    joiner<HEADS, THREADS, BARRIER> joiner = {launch, row, head_block, weights, slices};
    __nv_bfloat16 *out = launch.out + index * launch.out_row_stride;
    uint32_t *count = count_of(row, launch, head_block);
    int mine = worker - row.worker;

    if (threadIdx.x == 0)
        wait_for_parts(count, row.splits);
    ptx::named_sync(BARRIER, THREADS);
    joiner.weigh_parts(weights + row.splits * HEADS);
    int pieces_each = joiner.PIECES / joiner.WARPS / row.splits;
    if (pieces_each > 2)
        joiner.template join_by_warps<8, 2>(out, mine);
    else if (pieces_each > 0)
        joiner.template join_by_warps<1, 16>(out, mine);
    else
        joiner.join_by_parts(out, mine, sums);
    ptx::named_sync(BARRIER, THREADS);
    if (threadIdx.x == 0)
        count_reader(count, row.splits);
}

} // namespace decode

#endif
