/* Absorbed decode attention on Hopper, for a block of QUERIES: heads of one row, or of two.
 *
 * The usual operands are swapped: cached tokens are the 64 rows that a warpgroup's product has
 * anyway, queries are its columns, so that 16 queries cost a quarter of 64. For each tile of 64
 * tokens (a page), with K [64, 576] as nine panels of [64, 64] in shared memory:
 *
 *     S^T [64, QUERIES]   = K Q^T                  K as it lies
 *     P^T                 = 2^(S^T scale - max)    to shared memory as P [QUERIES, 64]
 *     O^T [512, QUERIES] += V^T P^T                V = K's latent panels, read transposed
 *
 * One warp copies tiles into a ring, one Q. QUERIES 64 has two groups of consumers: each scores
 * half of them and sums half of the latent dimensions (panels in turns) for all.
 * A panel returns to the ring as soon as it is summed, so that the next tile's loads start early.
 *
 * The maximum is not exact: O is only rescaled when a score exceeds it by 2^RAISE, which all
 * consumers learn from one barrier that also says that P is free again. */
#ifndef MLA_KERNELS_CUDA_ATTEND_DECODE_SM90_CUH
#define MLA_KERNELS_CUDA_ATTEND_DECODE_SM90_CUH

#include "kernels/cuda/attend_decode_consumer.cuh"
#include "kernels/cuda/decode_join.cuh"

namespace decode
{

template <int QUERIES>
__device__ void produce_kv(const launch &launch, const range &range, shared<QUERIES> &shared)
{
    uint64_t policy = kv_policy(launch, range);
    int lane = threadIdx.x % 32;
    cursor at = {0, 0};
    for (int i = range.item_begin; i <= range.item_end; i++) {
        segment segment(range, launch.schedule, i);
        const int32_t *blocks = launch.tables + segment.item.table * launch.table_stride;
        for (int first = segment.tile_begin; first < segment.tile_end; first += 32) {
            int tiles = min(32, segment.tile_end - first);
            int block_mine = lane < tiles ? blocks[first + lane] : 0;
            for (int t = 0; t < tiles; t++) {
                int block = __shfl_sync(~0u, block_mine, t);
                if (lane == 0) {
#pragma unroll
                    for (int p = 0; p < PANELS; p++) {
                        ptx::barrier_wait(&shared.empty[at.slot][p], at.phase ^ 1);
                        load_panel(launch, block, p, shared.kv[at.slot][p],
                                   &shared.full[at.slot][p], policy);
                    }
                }
                at.next();
            }
        }
    }
}

template <int QUERIES>
__device__ void produce_q(const launch &launch, const range &range, int head_block,
                          shared<QUERIES> &shared)
{
    uint32_t phase = 0;
    for (int i = range.item_begin; i <= range.item_end; i++) {
        segment segment(range, launch.schedule, i);
        ptx::barrier_wait(&shared.q_empty, phase ^ 1);
        ptx::barrier_arrive_expect(&shared.q_full, sizeof shared.q);
        for (int p = 0; p < PANELS; p++)
            ptx::tma_load_3d(shared.q[p], &launch.q, &shared.q_full, p * ptx::PANEL_WIDTH,
                             head_block * launch.block_heads, segment.item.row, ptx::EVICT_FIRST);
        phase ^= 1;
    }
}

template <int QUERIES>
__device__ void consume(const launch &launch, const range &range, int head_block,
                        shared<QUERIES> &shared)
{
    consumer<QUERIES> consumer(shared, launch.scale_log2);
    for (int i = range.item_begin; i <= range.item_end; i++) {
        segment segment(range, launch.schedule, i);
        consumer.begin();
        for (int t = segment.tile_begin; t < segment.tile_end; t++) {
            consumer.score(t + 1 == segment.tile_end);
            if (seen_by_all(segment.item, t) < TILE_TOKENS)
                consumer.mask(segment.item, t, launch.block_heads);
            consumer.weigh();
            consumer.add_values();
        }
        if (segment.item.splits == 1)
            consumer.write_item(launch, segment.item, head_block);
        else
            write_part<shape<QUERIES>::CONSUMERS, WRITTEN>(consumer, launch, range, i, segment.item,
                                                           head_block);
    }
    join_last<shape<QUERIES>::CONSUMERS, ALL>(consumer, launch, range, head_block, shared.kv);
}

template <int QUERIES>
__global__ void __launch_bounds__(shape<QUERIES>::THREADS, 1)
    attend_decode(const __grid_constant__ launch launch)
{
    using shape = decode::shape<QUERIES>;
    extern __shared__ __align__(1024) unsigned char memory[];
    shared<QUERIES> &shared = *(decode::shared<QUERIES> *)memory;
    int head_block = blockIdx.x % launch.head_blocks;

    if (threadIdx.x == shape::CONSUMERS) {
        ptx::prefetch_map(&launch.q);
        for (int slot = 0; slot < RING; slot++) {
            for (int p = 0; p < PANELS; p++) {
                ptx::barrier_init(&shared.full[slot][p], 1);
                /* Both groups score the rope, one sums a panel of the latent. */
                int readers = p < LATENT_PANELS ? GROUP_THREADS : shape::CONSUMERS;
                ptx::barrier_init(&shared.empty[slot][p], readers / 32 * TELLERS);
            }
        }
        ptx::barrier_init(&shared.q_full, 1);
        ptx::barrier_init(&shared.q_empty, shape::CONSUMERS / 32 * TELLERS);
        ptx::barrier_init_fence();
    }
    range range = launch.schedule.ranges[blockIdx.x / launch.head_blocks];
    ptx::depend_release(); /* what is next may come in as blocks end, and waits for all of them */
    __syncthreads();

    if (threadIdx.x < shape::CONSUMERS) {
        if constexpr (shape::GROUPS == 2)
            ptx::registers_raise<232>();
        consume<QUERIES>(launch, range, head_block, shared);
    } else {
        if constexpr (shape::GROUPS == 2)
            ptx::registers_lower<40>();
        if (threadIdx.x < shape::CONSUMERS + 32)
            produce_kv<QUERIES>(launch, range, shared);
        else if (threadIdx.x == shape::CONSUMERS + 32)
            produce_q<QUERIES>(launch, range, head_block, shared);
        else if (threadIdx.x / 32 == shape::CONSUMERS / 32 + 2)
            count_parts<WRITTEN, shape::CONSUMERS>(launch, range, head_block);
    }
}

template <int QUERIES>
cudaError_t launch_sm90(const launch &launch, int blocks, cudaStream_t stream)
{
    static_assert(sizeof(shared<QUERIES>) <= SHARED_BYTES_MAX, "the ring is too long");
    return launch_together(attend_decode<QUERIES>, shape<QUERIES>::THREADS, sizeof(shared<QUERIES>),
                           launch, blocks, stream);
}

} // namespace decode

#endif
