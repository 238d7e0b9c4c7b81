/* Absorbed decode attention on Hopper, for a block of HEADS heads.
 *
 * The usual operands are swapped: cached tokens are the 64 rows that a warpgroup's product has
 * anyway, heads are its columns, so that 16 heads cost a quarter of 64. For each tile of 64
 * tokens (a page), with K [64, 576] as nine panels of [64, 64] in shared memory:
 *
 *     S^T [64, HEADS]  = K Q^T                  K as it lies
 *     P^T              = 2^(S^T scale - max)    to shared memory as P [HEADS, 64]
 *     O^T [512, HEADS] += V^T P^T               V = K's latent panels, read transposed
 *
 * One warp copies panels into a ring, one Q. HEADS 64 has two groups of consumers: each scores
 * half of the heads and sums half of the latent dimensions (panels in turns) for all heads.
 * Panels return to the ring one by one, so that the next tile's loads start early.
 *
 * The maximum is not exact: O is only rescaled when a score exceeds it by 2^RAISE, which all
 * consumers learn from one barrier that also says that P is free again. */
#ifndef MLA_KERNELS_CUDA_ATTEND_DECODE_SM90_CUH
#define MLA_KERNELS_CUDA_ATTEND_DECODE_SM90_CUH

#include "kernels/cuda/attend_decode_consumer.cuh"
#include "kernels/cuda/decode_join.cuh"

namespace decode
{

template <int HEADS>
__device__ void produce_kv(const launch &launch, const range &range, shared<HEADS> &shared)
{
    constexpr int RING = shape<HEADS>::RING;
    int lane = threadIdx.x % 32;
    cursor<RING> at = {0, 0};
    for (int r = range.row_begin; r <= range.row_end; r++) {
        segment segment(range, launch.schedule, r);
        const int32_t *blocks = launch.tables + segment.row.table * launch.table_stride;
        for (int first = segment.tile_begin; first < segment.tile_end; first += 32) {
            int tiles = min(32, segment.tile_end - first);
            int block_mine = lane < tiles ? blocks[first + lane] : 0;
            for (int i = 0; i < tiles; i++) {
                int token = __shfl_sync(~0u, block_mine, i) * TILE_TOKENS;
                if (lane == 0) {
#pragma unroll
                    for (int p = 0; p < PANELS; p++) {
                        cursor<RING> to = at.ahead(p);
                        int column = p == 0 ? LATENT_PANELS : p - 1;
                        ptx::barrier_wait(&shared.empty[to.slot], to.phase ^ 1);
                        ptx::barrier_arrive_expect(&shared.full[to.slot], PANEL_BYTES);
                        ptx::tma_load_2d(shared.kv[to.slot], &launch.kv, &shared.full[to.slot],
                                         column * ptx::PANEL_WIDTH, token, launch.kv_policy);
                    }
                }
                at = at.ahead(PANELS);
            }
        }
    }
}

template <int HEADS>
__device__ void produce_q(const launch &launch, const range &range, int head_block,
                          shared<HEADS> &shared)
{
    uint32_t phase = 0;
    for (int r = range.row_begin; r <= range.row_end; r++) {
        if (segment(range, launch.schedule, r).empty())
            continue;
        ptx::barrier_wait(&shared.q_empty, phase ^ 1);
        ptx::barrier_arrive_expect(&shared.q_full, sizeof shared.q);
        for (int p = 0; p < PANELS; p++) {
            int column = p == 0 ? LATENT_PANELS : p - 1;
            ptx::tma_load_3d(shared.q[p], &launch.q, &shared.q_full, column * ptx::PANEL_WIDTH,
                             head_block * HEADS, r, ptx::EVICT_FIRST);
        }
        phase ^= 1;
    }
}

template <int HEADS>
__device__ void consume(const launch &launch, const range &range, int worker, int head_block,
                        shared<HEADS> &shared)
{
    consumer<HEADS> consumer(shared, launch.scale_log2);
    uint32_t q_phase = 0;
    for (int r = range.row_begin; r <= range.row_end; r++) {
        segment segment(range, launch.schedule, r);
        if (segment.empty())
            continue;
        consumer.begin();
        ptx::barrier_wait(&shared.q_full, q_phase);
        q_phase ^= 1;
        for (int t = segment.tile_begin; t < segment.tile_end; t++) {
            consumer.score(t + 1 == segment.tile_end);
            int valid = segment.row.length - t * TILE_TOKENS;
            if (valid < TILE_TOKENS)
                consumer.mask(valid);
            consumer.weigh();
            consumer.add_values();
        }
        if (segment.row.splits == 1) {
            int head = head_block * HEADS;
            __nv_bfloat16 *out =
                launch.out + r * launch.out_row_stride + head * launch.out_head_stride;
            consumer.write_row(launch, out, launch.heads - head);
        } else {
            int part = worker - segment.row.worker;
            consumer.write_partial(launch, partial_of(segment.row, part, launch, head_block));
            ptx::named_sync(ALL, shape<HEADS>::CONSUMERS);
            if (threadIdx.x == 0)
                count_part(count_of(segment.row, launch, head_block));
        }
    }
}

/* Only the first and the last row of a range can be split. */
template <int HEADS>
__device__ void join_rows(const launch &launch, const range &range, int worker, int head_block,
                          void *memory)
{
    for (int r = range.row_begin; r <= range.row_end;
         r += max(1, range.row_end - range.row_begin)) {
        segment segment(range, launch.schedule, r);
        if (segment.split())
            join_row<HEADS, shape<HEADS>::CONSUMERS, ALL>(launch, segment.row, r, worker,
                                                          head_block, memory);
    }
}

template <int HEADS>
__global__ void __launch_bounds__(shape<HEADS>::THREADS, 1)
    attend_decode(const __grid_constant__ launch launch)
{
    using shape = decode::shape<HEADS>;
    extern __shared__ __align__(1024) unsigned char memory[];
    shared<HEADS> &shared = *(decode::shared<HEADS> *)memory;
    int worker = blockIdx.x / launch.head_blocks, head_block = blockIdx.x % launch.head_blocks;

    if (threadIdx.x == shape::CONSUMERS) {
        ptx::prefetch_map(&launch.kv);
        ptx::prefetch_map(&launch.q);
        for (int i = 0; i < shape::RING; i++) {
            ptx::barrier_init(&shared.full[i], 1);
            ptx::barrier_init(&shared.empty[i], shape::CONSUMERS / 32);
        }
        ptx::barrier_init(&shared.q_full, 1);
        ptx::barrier_init(&shared.q_empty, shape::CONSUMERS / 32);
        ptx::barrier_init_fence();
    }
    range range = launch.schedule.ranges[worker];
    __syncthreads();

    if (threadIdx.x < shape::CONSUMERS) {
        if constexpr (shape::GROUPS == 2)
            ptx::registers_raise<232>();
        consume<HEADS>(launch, range, worker, head_block, shared);
        join_rows<HEADS>(launch, range, worker, head_block, shared.kv);
    } else {
        if constexpr (shape::GROUPS == 2)
            ptx::registers_lower<40>();
        if (threadIdx.x < shape::CONSUMERS + 32)
            produce_kv<HEADS>(launch, range, shared);
        else if (threadIdx.x == shape::CONSUMERS + 32)
            produce_q<HEADS>(launch, range, head_block, shared);
    }
}

template <int HEADS> cudaError_t launch_sm90(const launch &launch, int blocks, cudaStream_t stream)
{
    constexpr int bytes = sizeof(shared<HEADS>);
    static_assert(bytes <= SHARED_BYTES_MAX, "the ring is too long");
    cudaError_t error = cudaFuncSetAttribute(attend_decode<HEADS>,
                                             cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (error != cudaSuccess)
        return error;
    /* Workers of one row wait for each other: all blocks run at once or the launch fails. */
    cudaLaunchAttribute together = {};
    together.id = cudaLaunchAttributeCooperative;
    together.val.cooperative = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(blocks);
    config.blockDim = dim3(shape<HEADS>::THREADS);
    config.dynamicSmemBytes = bytes;
    config.stream = stream;
    config.attrs = &together;
    config.numAttrs = 1;
    return cudaLaunchKernelEx(&config, attend_decode<HEADS>, launch);
}

} // namespace decode

#endif
