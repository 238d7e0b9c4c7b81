/* The loading side of the prefill kernel: one warp. */
#ifndef MLA_KERNELS_CUDA_ATTEND_PREFILL_LOAD_CUH
#define MLA_KERNELS_CUDA_ATTEND_PREFILL_LOAD_CUH

#include "kernels/cuda/attend_prefill_sm90.cuh"

namespace prefill
{

/* Heads whose tiles are worked on at a time, a section: their keys and values should stay in the L2
 * cache, as every one is read by all later rows. Short sequences run best with about a tile for
 * each multiprocessor, long ones with a few, within half of the cache. */
constexpr int SECTION_HEADS = 16, SECTION_KEYS_MIN = 16 << 10, SECTION_KEYS_MAX = 64 << 10;

/* A tile as the loader needs it. */
struct work {
    int row, rows; /* first row, of all rows; rows of the sequence from it on */
    int key, keys; /* first key, of all keys; keys of the sequence */
    int head, steps, full, seen;
};

/* How far the search in row_first has come: tiles of the sequences before `sequence`. */
struct cursor {
    int sequence, tiles;
};

/* Tiles are numbered sequence by sequence, section by section, in a section from the longest to the
 * shortest: its long ones first, so that no long tile is left over at the end. `tile` never goes
 * down from call to call. A warp together. */
__device__ __forceinline__ bool locate(const struct launch &p, struct cursor &at, int tile,
                                       struct work &out)
{
    const int lane = (int)threadIdx.x % 32;
    for (; at.sequence < p.sequences; at.sequence += 32) {
        const int sequence = at.sequence + lane;
        int row = 0, rows = 0;
        if (sequence < p.sequences) {
            row = __ldg(p.row_first + sequence);
            rows = __ldg(p.row_first + sequence + 1) - row;
        }
        const int tiles = ceil_div(rows, ROWS) * p.heads;
        int end = tiles;
#pragma unroll
        for (int step = 1; step < 32; step *= 2) {
            const int before = __shfl_up_sync(~0u, end, step);
            end += lane >= step ? before : 0;
        }
        const unsigned found = __ballot_sync(~0u, tile < at.tiles + end);
        if (found == 0) {
            at.tiles += __shfl_sync(~0u, end, 31);
            continue;
        }
        const int source = __ffs((int)found) - 1;
        const int rest = tile - at.tiles - __shfl_sync(~0u, end - tiles, source);
        row = __shfl_sync(~0u, row, source);
        rows = __shfl_sync(~0u, rows, source);
        const int key = __ldg(p.key_first + at.sequence + source);
        const int keys = __ldg(p.key_first + at.sequence + source + 1) - key;

        const int section_keys =
            (int)min(max((int64_t)keys * SECTION_HEADS, (int64_t)SECTION_KEYS_MIN),
                     (int64_t)SECTION_KEYS_MAX);
        const int most = min(p.heads, max(1, section_keys / max(keys, 1)));
        const int section_heads = ceil_div(p.heads, ceil_div(p.heads, most));
        const int blocks = ceil_div(rows, ROWS);
        const int section = rest / (section_heads * blocks);
        const int first_head = section * section_heads;
        const int within = rest - first_head * blocks;
        const int heads = min(section_heads, p.heads - first_head);
        const int first = (blocks - 1 - within / heads) * ROWS;

        /* The last row that is there sees the most, the first row the fewest. */
        const int last = min(first + ROWS, rows) - 1;
        const int seen = p.causal ? keys - rows + first + 1 : keys;
        const int seen_last = p.causal ? keys - rows + last + 1 : keys;
        out.row = row + first;
        out.rows = rows - first;
        out.key = key;
        out.keys = keys;
        out.head = first_head + within % heads;
        out.steps = max(0, ceil_div(seen_last, KEYS));
        out.full = min(max(seen, 0), keys) / KEYS;
        out.seen = seen;
        return true;
    }
    return false;
}

/* One thread. */
__device__ __forceinline__ void load_keys(const struct launch &p, struct shared &s, uint32_t turn,
                                          int head, int key)
{
    const int stage = stage_of(turn);
    ptx::barrier_wait(&s.k_empty[stage], phase_of(turn) ^ 1);
    ptx::barrier_arrive_expect(&s.k_full[stage], sizeof s.k[stage]);
#pragma unroll
    for (int panel = 0; panel < NOPE_PANELS; panel++) {
        ptx::tma_load_3d(s.k[stage][panel], &p.k_nope, &s.k_full[stage], panel * PANEL, head, key,
                         ptx::EVICT_LAST);
    }
    ptx::tma_load_2d(s.k[stage][NOPE_PANELS], &p.k_rope, &s.k_full[stage], 0, key, ptx::EVICT_LAST);
}

__device__ __forceinline__ void load_values(const struct launch &p, struct shared &s, uint32_t turn,
                                            int head, int key)
{
    const int stage = stage_of(turn);
    ptx::barrier_wait(&s.v_empty[stage], phase_of(turn) ^ 1);
    ptx::barrier_arrive_expect(&s.v_full[stage], sizeof s.v[stage]);
#pragma unroll
    for (int panel = 0; panel < V_PANELS; panel++) {
        ptx::tma_load_3d(s.v[stage][panel], &p.v, &s.v_full[stage], panel * PANEL, head, key,
                         ptx::EVICT_LAST);
    }
}

/* A tile's description and its queries, for tile number `count` of the block; a tile without keys
 * needs none. The place is free when the warpgroup has begun the tile before. */
__device__ __forceinline__ void load_queries(const struct launch &p, struct shared &s,
                                             uint32_t count, const struct work &w)
{
#pragma unroll
    for (int group = 0; group < GROUPS; group++) {
        ptx::barrier_wait(&s.q_empty[group], (count & 1) ^ 1);
        struct tile &t = s.tile[group];
        const int row = w.row + group * GROUP_ROWS;
        t.row = row;
        t.rows = w.rows - group * GROUP_ROWS;
        t.head = w.head;
        t.steps = w.steps;
        t.full = w.full;
        t.keys = w.keys;
        t.seen = w.seen + group * GROUP_ROWS;
        if (w.steps == 0) {
            ptx::barrier_arrive(&s.q_full[group]);
            continue;
        }
        ptx::barrier_arrive_expect(&s.q_full[group], sizeof s.q[group][0] + sizeof s.held[group]);
#pragma unroll
        for (int panel = 0; panel < QK_PANELS; panel++) {
            void *to =
                panel < Q_PANELS ? s.q[group][count & 1][panel] : s.held[group][panel - Q_PANELS];
            ptx::tma_load_3d(to, &p.q, &s.q_full[group], panel * PANEL, w.head, row,
                             ptx::EVICT_FIRST);
        }
    }
}

/* In place of a tile: there are no more. */
__device__ __forceinline__ void load_end(struct shared &s, uint32_t count)
{
    for (int group = 0; group < GROUPS; group++) {
        ptx::barrier_wait(&s.q_empty[group], (count & 1) ^ 1);
        s.tile[group].row = -1;
        s.tile[group].steps = 0;
        ptx::barrier_arrive(&s.q_full[group]);
    }
}

/* Leaves the queue as it was found. */
__device__ __forceinline__ void leave_queue(const struct launch &p)
{
    __threadfence();
    if (atomicAdd(p.queue + 1, 1u) == gridDim.x - 1) {
        atomicExch(p.queue, 0u);
        atomicExch(p.queue + 1, 0u);
    }
}

/* One thread loads, in the order in which the warpgroups ask: scores run one step ahead of values,
 * and the next tile's queries come before what has to wait for this tile's first scores. */
__device__ __forceinline__ void load(const struct launch &p, struct shared &s)
{
    const bool leader = threadIdx.x % 32 == 0;
    struct cursor at = {0, 0};
    struct work w, next;
    uint32_t turn = 0;
    int tile = (int)blockIdx.x;
    bool more = locate(p, at, tile, w);
    if (leader && more) {
        load_queries(p, s, 0, w);
    } else if (leader) {
        load_end(s, 0);
    }
    for (uint32_t count = 0; more; count++) {
        int key = w.key + (w.steps - 1) * KEYS;
        if (leader) {
            tile = (int)(gridDim.x + atomicAdd(p.queue, 1u));
            if (w.steps > 0) {
                load_keys(p, s, turn, w.head, key);
            }
        }
        __syncwarp();
        tile = __shfl_sync(~0u, tile, 0);
        more = locate(p, at, tile, next);
        if (leader) {
            if (w.steps > 1) {
                load_keys(p, s, turn + 1, w.head, key - KEYS);
            }
            if (w.steps > 0) {
                load_values(p, s, turn, w.head, key);
            }
            if (more) {
                load_queries(p, s, count + 1, next);
            } else {
                load_end(s, count + 1);
            }
#pragma unroll 1
            for (int i = 2; i < w.steps; i++) {
                key -= KEYS;
                load_keys(p, s, turn + (uint32_t)i, w.head, key - KEYS);
                load_values(p, s, turn + (uint32_t)i - 1, w.head, key);
            }
            if (w.steps > 1) {
                load_values(p, s, turn + (uint32_t)w.steps - 1, w.head, key - KEYS);
            }
        }
        __syncwarp();
        turn += (uint32_t)w.steps;
        w = next;
    }
    if (leader) {
        leave_queue(p);
    }
}

} // namespace prefill

#endif
