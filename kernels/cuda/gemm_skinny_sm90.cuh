/* C [m, n] = A [m, k] op(B) + bias with few rows, on Hopper.
 *
 * The operands are swapped: weights are the 64 rows that a warpgroup's product has anyway, tokens
 * (rows of A) its columns, so that few tokens cost little. A block's tile is 64 columns of C by
 * TOKENS rows; it adds up steps of 64 k:
 *
 *     C^T [64, TOKENS] += W [64, 64] X [TOKENS, 64]^T
 *
 * W as it lies where k is contiguous, read transposed where n is (TURNED). One warp copies to a
 * ring of `stages` steps, each 8 KiB of weights and 128 bytes for a token; a warpgroup sums. Two
 * blocks fit on a multiprocessor: of this launch or, with its weights on the way already, of the
 * next.
 *
 * Where there are too few tiles, a cluster of `splits` blocks shares a tile's k. The first block
 * adds what the others send to memory that it keeps for that, in their order, so that the result
 * does not depend on time.
 *
 * Programmatic dependent launch: weights are loaded before depend_wait, tokens after it. Only the
 * thread that loads reads what an earlier kernel wrote; nothing is stored before what it loaded is
 * there; and each block has one, so that none ends before the kernels in front did. */
#ifndef MLA_KERNELS_CUDA_GEMM_SKINNY_SM90_CUH
#define MLA_KERNELS_CUDA_GEMM_SKINNY_SM90_CUH

#include "kernels/cuda/wgmma.cuh"

#include <cuda_bf16.h>

namespace skinny
{

constexpr int STEP = ptx::PANEL_WIDTH; /* of k */
constexpr int COLUMNS = 64;            /* of C, in a tile */
constexpr int CONSUMERS = 128, THREADS = CONSUMERS + 32;
constexpr int WEIGHT_BYTES = COLUMNS * ptx::PANEL_ROW_BYTES;

template <int TOKENS> struct shape {
    static constexpr int OCTETS = TOKENS / 8; /* of tokens: a thread has four sums of each */
    static constexpr int STAGE_BYTES = WEIGHT_BYTES + TOKENS * ptx::PANEL_ROW_BYTES;
    static constexpr int SUMS_BYTES = CONSUMERS * OCTETS * (int)sizeof(float4); /* of a block */
    static_assert(STAGE_BYTES % 1024 == 0, "panels are swizzled");
};

/* Shared memory: the ring, the others' sums, barriers. */
struct launch {
    CUtensorMap x; /* bf16 [batch, m, k], boxes [1, TOKENS, 64] */
    CUtensorMap w; /* bf16 [batch, n, k] or, TURNED, [batch, k, n], boxes [1, 64, 64] */
    __nv_bfloat16 *c;
    int64_t ldc, c_stride;
    const __nv_bfloat16 *bias; /* [n] or NULL */
    int m, n;
    int steps; /* the last may be short */
    int tiles; /* of a batch, the last may reach past n */
    int splits, stages;
};

/* "full" and "empty" of each stage, and one for the others' sums. */
constexpr int barrier_bytes(int stages)
{
    return (2 * stages + 1) * (int)sizeof(uint64_t);
}

/* What a block works on. */
struct work {
    int batch, column; /* the tile's first */
    int split;         /* its place in the cluster */
    int step, steps;   /* the first, how many */
};

__device__ __forceinline__ work work_of(const launch &p)
{
    const int tile = (int)blockIdx.x / p.splits, split = (int)blockIdx.x % p.splits;
    const int first = p.steps * split / p.splits, end = p.steps * (split + 1) / p.splits;
    return {tile / p.tiles, tile % p.tiles * COLUMNS, split, first, end - first};
}

template <int TURNED>
__device__ __forceinline__ void load_weights(const launch &p, const work &w, int step,
                                             unsigned char *stage, uint64_t *full)
{
    const int k = (w.step + step) * STEP;
    /* No other tile reads them: they need not stay in the L2 cache. */
    ptx::tma_load_3d(stage, &p.w, full, TURNED ? w.column : k, TURNED ? k : w.column, w.batch,
                     ptx::EVICT_FIRST);
}

__device__ __forceinline__ void load_tokens(const launch &p, const work &w, int step,
                                            unsigned char *stage, uint64_t *full)
{
    ptx::tma_load_3d(stage + WEIGHT_BYTES, &p.x, full, (w.step + step) * STEP, 0, w.batch,
                     ptx::EVICT_NORMAL);
}

/* One thread. */
template <int TOKENS, int TURNED>
__device__ __forceinline__ void produce(const launch &p, const work &w, unsigned char *ring,
                                        uint64_t *full, uint64_t *empty)
{
    constexpr int STAGE_BYTES = shape<TOKENS>::STAGE_BYTES;
    const int ahead = min(w.steps, p.stages);
    for (int i = 0; i < ahead; i++) {
        ptx::barrier_arrive_expect(&full[i], STAGE_BYTES);
        load_weights<TURNED>(p, w, i, ring + i * STAGE_BYTES, &full[i]);
    }
    ptx::depend_release();
    ptx::depend_wait();
    for (int i = 0; i < ahead; i++)
        load_tokens(p, w, i, ring + i * STAGE_BYTES, &full[i]);
    int slot = 0;
    uint32_t phase = 0; /* of the slot's last use */
    for (int i = ahead; i < w.steps; i++) {
        unsigned char *stage = ring + slot * STAGE_BYTES;
        ptx::barrier_wait(&empty[slot], phase);
        ptx::barrier_arrive_expect(&full[slot], STAGE_BYTES);
        load_weights<TURNED>(p, w, i, stage, &full[slot]);
        load_tokens(p, w, i, stage, &full[slot]);
        if (++slot == p.stages) {
            slot = 0;
            phase ^= 1;
        }
    }
}

/* One warpgroup. */
template <int TOKENS, int TURNED>
__device__ __forceinline__ void consume(const launch &p, const work &w, const unsigned char *ring,
                                        uint64_t *full, uint64_t *empty, float (&sums)[TOKENS / 2])
{
    constexpr uint64_t W_STEP = TURNED ? ptx::STEP_DOWN : ptx::STEP_ALONG;
    int slot = 0, before = 0;
    uint32_t phase = 0;
#pragma unroll 1
    for (int i = 0; i < w.steps; i++) {
        const unsigned char *stage = ring + slot * shape<TOKENS>::STAGE_BYTES;
        const uint64_t weights = ptx::panel_descriptor(stage);
        const uint64_t tokens = ptx::panel_descriptor(stage + WEIGHT_BYTES);
        ptx::barrier_wait(&full[slot], phase);
        ptx::wgmma_fence();
#pragma unroll
        for (int step = 0; step < STEP / 16; step++)
            ptx::wgmma<TURNED>(sums, weights + step * W_STEP, tokens + step * ptx::STEP_ALONG,
                               i > 0 || step > 0);
        ptx::wgmma_commit();
        ptx::wgmma_wait<1>(); /* the step before is done */
        if (i > 0 && threadIdx.x % 32 == 0)
            ptx::barrier_arrive(&empty[before]);
        before = slot;
        if (++slot == p.stages) {
            slot = 0;
            phase ^= 1;
        }
    }
    ptx::wgmma_wait<0>();
    ptx::wgmma_pin(sums);
}

/* A thread's sums to the first block: sent is [split - 1, octet, thread]. */
template <int TOKENS>
__device__ __forceinline__ void send(const work &w, const float4 *sent, const uint64_t *joined,
                                     const float (&sums)[TOKENS / 2])
{
    constexpr int OCTETS = shape<TOKENS>::OCTETS;
    sent += (w.split - 1) * OCTETS * CONSUMERS + threadIdx.x;
#pragma unroll
    for (int i = 0; i < OCTETS; i++)
        ptx::store_four_at(
            ptx::shared_address(sent + i * CONSUMERS), ptx::shared_address(joined), 0,
            make_float4(sums[4 * i], sums[4 * i + 1], sums[4 * i + 2], sums[4 * i + 3]));
}

template <int TOKENS>
__device__ __forceinline__ void add_sent(const launch &p, const float4 *sent, uint64_t *joined,
                                         float (&sums)[TOKENS / 2])
{
    constexpr int OCTETS = shape<TOKENS>::OCTETS;
    sent += threadIdx.x;
    ptx::barrier_wait(joined, 0);
    for (int split = 1; split < p.splits; split++, sent += OCTETS * CONSUMERS) {
#pragma unroll
        for (int i = 0; i < OCTETS; i++) {
            const float4 other = sent[i * CONSUMERS];
            sums[4 * i] += other.x;
            sums[4 * i + 1] += other.y;
            sums[4 * i + 2] += other.z;
            sums[4 * i + 3] += other.w;
        }
    }
}

/* A warp has 16 columns. Of each eight by eight tokens a thread sums two tokens of a column, and
 * stores two columns of a token. */
template <int TOKENS>
__device__ __forceinline__ void store(const launch &p, const work &w,
                                      const float (&sums)[TOKENS / 2])
{
    const int lane = (int)threadIdx.x % 32;
    __nv_bfloat16 *c = p.c + w.batch * p.c_stride;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int first = w.column + (int)threadIdx.x / 32 * 16 + half * 8;
        const int summed = first + lane / 4, column = first + lane % 4 * 2;
        const float bias = p.bias && summed < p.n ? __bfloat162float(p.bias[summed]) : 0.0f;
#pragma unroll
        for (int i = 0; i < shape<TOKENS>::OCTETS; i++) {
            const float *two = &sums[4 * i + 2 * half];
            const uint32_t columns =
                ptx::transpose_matrix(ptx::pack_bf16(two[0] + bias, two[1] + bias));
            const int token = i * 8 + lane / 4;
            if (token < p.m && column < p.n)
                *reinterpret_cast<uint32_t *>(c + token * p.ldc + column) = columns;
        }
    }
}

template <int TOKENS, int TURNED>
__global__ void __launch_bounds__(THREADS, 2) multiply(const __grid_constant__ launch p)
{
    extern __shared__ __align__(1024) unsigned char memory[];
    unsigned char *sums_at = memory + p.stages * shape<TOKENS>::STAGE_BYTES;
    const uint32_t sent_bytes = (uint32_t)((p.splits - 1) * shape<TOKENS>::SUMS_BYTES);
    const float4 *sent = reinterpret_cast<const float4 *>(sums_at);
    uint64_t *full = reinterpret_cast<uint64_t *>(sums_at + sent_bytes);
    uint64_t *empty = full + p.stages, *joined = empty + p.stages;
    const bool consumer = __shfl_sync(~0u, (int)threadIdx.x, 0) < CONSUMERS;
    const work w = work_of(p);

    if (threadIdx.x == CONSUMERS) {
        ptx::prefetch_map(&p.w);
        ptx::prefetch_map(&p.x);
        for (int i = 0; i < p.stages; i++) {
            ptx::barrier_init(&full[i], 1);
            ptx::barrier_init(&empty[i], CONSUMERS / 32);
        }
        ptx::barrier_init(joined, 1);
        ptx::barrier_init_fence();
        ptx::barrier_arrive_expect(joined, sent_bytes);
    }
    __syncthreads();
    if (p.splits > 1)
        ptx::cluster_arrive_relaxed();
    float sums[TOKENS / 2];
    if (consumer)
        consume<TOKENS, TURNED>(p, w, memory, full, empty, sums);
    else if (threadIdx.x == CONSUMERS)
        produce<TOKENS, TURNED>(p, w, memory, full, empty);
    __syncwarp();

    if (p.splits > 1) {
        ptx::cluster_wait(); /* the first block's barrier is there */
        if (consumer && w.split > 0)
            send<TOKENS>(w, sent, joined, sums);
        else if (consumer)
            add_sent<TOKENS>(p, sent, joined, sums);
        __syncwarp();
        ptx::cluster_arrive_relaxed();
    }
    if (consumer && w.split == 0)
        store<TOKENS>(p, w, sums);
    __syncwarp();
    if (p.splits > 1)
        ptx::cluster_wait(); /* all that was sent has arrived: no block ends before */
}

} // namespace skinny

#endif
