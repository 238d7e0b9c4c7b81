/* Absorbed decode attention on Hopper for 64 queries of one item; attend_decode_wide.cuh says how.
 */
#include "kernels/cuda/attend_decode_wide_consumer.cuh"
#include "kernels/cuda/decode_join.cuh"

namespace decode
{
namespace wide
{

/* Copies page `block` to place TILE. */
template <int TILE>
__device__ __forceinline__ void produce_tile(const launch &launch, shared &s, int block,
                                             uint64_t policy, uint32_t parity)
{
#pragma unroll
    for (int p = 0; p < LATENT_PANELS; p++) {
        if (p % HALF_PANELS == 0)
            ptx::barrier_wait(&s.empty[TILE][p / HALF_PANELS], parity ^ 1);
        load_panel(launch, block, p, s.kv[TILE][p / HALF_PANELS] + p % HALF_PANELS * PANEL_BYTES,
                   &s.full[TILE][p], policy);
    }
    ptx::barrier_wait(&s.rope_empty[TILE], parity ^ 1);
    load_panel(launch, block, LATENT_PANELS, s.rope[TILE], &s.full[TILE][LATENT_PANELS], policy);
}

__device__ void produce_kv(const launch &launch, const range &range, shared &s)
{
    uint64_t policy = kv_policy(launch, range);
    uint32_t a = 0, b = 0; /* tiles so far */
    for (int i = range.item_begin; i <= range.item_end; i++) {
        segment segment(range, launch.schedule, i);
        const int32_t *blocks = launch.tables + segment.item.table * launch.table_stride;
        int end = segment.tile_end;
        int next = blocks[segment.tile_begin];
        for (int t = segment.tile_begin; t < end; t++) {
            int block = next;
            if (t + 1 < end)
                next = blocks[t + 1];
            if ((t - segment.tile_begin) % 2 == 0) {
                produce_tile<0>(launch, s, block, policy, a & 1);
                a++;
            } else {
                produce_tile<1>(launch, s, block, policy, b & 1);
                b++;
            }
        }
    }
}

__device__ void produce_q(const launch &launch, const range &range, int head_block, shared &s)
{
    uint32_t phase = 0;
    for (int i = range.item_begin; i <= range.item_end; i++) {
        segment segment(range, launch.schedule, i);
        ptx::barrier_wait(&s.q_empty, phase ^ 1);
        ptx::barrier_arrive_expect(&s.q_full, sizeof s.q);
        for (int p = 0; p < PANELS; p++)
            ptx::tma_load_3d(s.q[p], &launch.q, &s.q_full, p * ptx::PANEL_WIDTH,
                             head_block * launch.block_heads, segment.item.row, ptx::EVICT_FIRST);
        phase ^= 1;
    }
}

/* ptxas runs products one by one behind branches that it can't tell to be uniform. */
__device__ __forceinline__ bool uniform(bool condition)
{
    return __shfl_sync(~0u, condition, 0);
}

/* Starts the sums of the other group's tile. */
template <int GROUP>
__device__ __forceinline__ void start_other(consumer<GROUP> &group, const item &item, int tile)
{
    group.adopt();
    group.clear(item, tile, 1 - GROUP);
    group.add_other();
    group.tiles[1 - GROUP]++;
}

/* The same, with the scores of the group's own tile behind them. */
template <int GROUP>
__device__ __forceinline__ void start_other_and_score(consumer<GROUP> &group, const item &item,
                                                      int tile, bool last)
{
    start_other(group, item, tile - 1);
    group.template score<0, 3>();
    ptx::wgmma_wait<3>();
    group.release_other();
    group.template score<3, PANELS>();
    group.finish_scores(last);
}

/* From scores to sums of the group's own tile. ADDING: the other tile's sums may still run. */
template <bool ADDING, int GROUP>
__device__ __forceinline__ void finish_own(consumer<GROUP> &group, const item &item, int tile,
                                           int block_heads)
{
    float factor[2];
    if (seen_by_all(item, tile) < TILE_TOKENS)
        group.mask(item, tile, block_heads);
    bool scaled = group.weigh(factor);
    if (ADDING) {
        group.finish();
        group.release_other();
    }
    if (scaled)
        group.scale_sums(factor);
    group.clear(item, tile, GROUP);
    group.add_own();
    group.finish();
    group.release(&group.s.empty[GROUP][GROUP]);
    group.tiles[GROUP]++;
}

/* A segment's tiles: A has the first and every second one behind it. At the end O is settled. No
 * products run while a loop turns: ptxas would not let them run together. */
template <bool EARLY>
__device__ __forceinline__ void take(consumer<0> &a, const launch &launch, const segment &segment)
{
    const item &item = segment.item;
    int begin = segment.tile_begin, end = segment.tile_end;
    a.score<0, PANELS>();
    a.finish_scores(begin + 2 >= end);
    for (int t = begin;; t += 2) {
        finish_own<false>(a, item, t, launch.block_heads);
        if (uniform(t + 1 >= end))
            break;
        if (uniform(t + 2 >= end)) {
            start_other(a, item, t + 1);
            a.finish();
            a.release_other();
            break;
        }
        start_other_and_score(a, item, t + 2, t + 4 >= end);
    }
}

/* EARLY: B scores its tile while A weighs, and adds A's values while it weighs itself. Else it adds
 * them first, so that A's place is free earlier: that is faster while tiles come from memory,
 * unless that is an H200's, and not from the L2 cache. */
template <bool EARLY>
__device__ __forceinline__ void take(consumer<1> &b, const launch &launch, const segment &segment)
{
    const item &item = segment.item;
    int begin = segment.tile_begin, end = segment.tile_end;
    if (begin + 1 >= end)
        b.release(&b.s.q_empty);
    for (int t = begin; uniform(t < end); t += 2) {
        bool last = t + 3 >= end;
        if (uniform(t + 1 >= end)) {
            start_other(b, item, t);
            b.finish();
            b.release_other();
            break;
        }
        if (EARLY) {
            b.score<0, PANELS>();
            b.finish_scores(last);
            start_other(b, item, t);
        } else {
            start_other_and_score(b, item, t + 1, last);
        }
        finish_own<EARLY>(b, item, t + 1, launch.block_heads);
    }
}

template <bool EARLY, int GROUP>
__device__ __forceinline__ void consume(const launch &launch, const range &range, int head_block,
                                        shared &s)
{
    consumer<GROUP> group(s, launch.scale_log2);
    for (int i = range.item_begin; i <= range.item_end; i++) {
        segment segment(range, launch.schedule, i);
        group.begin();
        take<EARLY>(group, launch, segment);
        if (segment.item.splits == 1)
            group.write_item(launch, segment.item, head_block);
        else
            write_part<CONSUMERS, WRITTEN>(group, launch, range, i, segment.item, head_block);
    }
    join_last<CONSUMERS, ALL>(group, launch, range, head_block, s.kv);
}

template <bool EARLY>
__global__ void __launch_bounds__(THREADS, 1)
    attend_decode_wide(const __grid_constant__ launch launch)
{
    extern __shared__ __align__(1024) unsigned char memory[];
    shared &s = *(shared *)memory;
    int head_block = blockIdx.x % launch.head_blocks;

    if (threadIdx.x == CONSUMERS) {
        ptx::prefetch_map(&launch.q);
        for (int tile = 0; tile < GROUPS; tile++) {
            for (int p = 0; p < PANELS; p++)
                ptx::barrier_init(&s.full[tile][p], 1);
            for (int half = 0; half < 2; half++)
                ptx::barrier_init(&s.empty[tile][half], GROUP_WARPS * TELLERS);
            ptx::barrier_init(&s.rope_empty[tile],
                              (RACECHECK ? GROUPS : 1) * GROUP_WARPS * TELLERS);
        }
#ifdef MLA_RACECHECK
        for (int i = 0; i < GROUPS * HALVES; i++)
            ptx::barrier_init(&s.told[i], GROUP_THREADS);
#endif
        ptx::barrier_init(&s.q_full, 1);
        ptx::barrier_init(&s.q_empty, GROUPS * GROUP_WARPS * TELLERS);
        ptx::barrier_init_fence();
    }
    range range = launch.schedule.ranges[blockIdx.x / launch.head_blocks];
    ptx::depend_release(); /* what is next may come in as blocks end, and waits for all of them */
    __syncthreads();

    if (threadIdx.x < CONSUMERS) {
        ptx::registers_raise<232>();
        if (threadIdx.x < GROUP_THREADS)
            consume<EARLY, 0>(launch, range, head_block, s);
        else
            consume<EARLY, 1>(launch, range, head_block, s);
    } else {
        ptx::registers_lower<40>();
        if (threadIdx.x == CONSUMERS)
            produce_kv(launch, range, s);
        else if (threadIdx.x == CONSUMERS + 32)
            produce_q(launch, range, head_block, s);
        else if (threadIdx.x / 32 == CONSUMERS / 32 + 2)
            count_parts<WRITTEN, CONSUMERS>(launch, range, head_block);
    }
}

} // namespace wide

cudaError_t attend_wide(const launch &launch, int blocks, cudaStream_t stream)
{
    auto kernel = launch.early ? wide::attend_decode_wide<true> : wide::attend_decode_wide<false>;
    return launch_together(kernel, wide::THREADS, sizeof(wide::shared), launch, blocks, stream);
}

} // namespace decode
