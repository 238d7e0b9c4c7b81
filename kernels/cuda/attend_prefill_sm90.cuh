/* What the two sides of the prefill kernel share: sizes, shared memory, how tiles are shared out.
 *
 * A tile is 128 rows of one head of one sequence. A block's first warp fetches tiles from a queue
 * and loads their queries and, 128 at a time from the last to the first, their keys and values;
 * two warpgroups compute 64 rows each. */
#ifndef MLA_KERNELS_CUDA_ATTEND_PREFILL_SM90_CUH
#define MLA_KERNELS_CUDA_ATTEND_PREFILL_SM90_CUH

#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/racecheck.cuh"

#include <cuda_bf16.h>

namespace prefill
{

constexpr int NOPE = 128, ROPE = 64, V_DIM = 128;
constexpr int GROUPS = 2;      /* warpgroups that compute */
constexpr int GROUP_ROWS = 64; /* of queries */
constexpr int ROWS = GROUPS * GROUP_ROWS;
constexpr int KEYS = 128; /* of a step */
constexpr int STAGES = 2; /* steps in shared memory */
constexpr int PANEL = 64; /* values of a panel's row: 128 bytes, swizzled */
constexpr int WARPS = 4;  /* of a warpgroup */
constexpr int THREADS = (1 + GROUPS) * WARPS * 32;

constexpr int NOPE_PANELS = NOPE / PANEL, V_PANELS = V_DIM / PANEL;
constexpr int QK_PANELS = (NOPE + ROPE) / PANEL;
constexpr int HELD_PANELS = 2; /* of queries, the last ones, that live in registers */
constexpr int Q_PANELS = QK_PANELS - HELD_PANELS;

/* One warpgroup's part of a tile. */
struct tile {
    int row;  /* its first, of all rows; -1: there are no more tiles */
    int rows; /* that belong to the sequence; none if <= 0 */
    int head;
    int steps; /* of KEYS keys that some row sees */
    int full;  /* the first so many are seen by all rows from end to end */
    int keys;  /* of the sequence */
    int seen;  /* keys that the first row sees, each further row one more; may be outside of 0..keys
                */
    int unused;
};

struct shared {
    /* Queries of this tile and the next; the held panels' place is free again at once. */
    __nv_bfloat16 q[GROUPS][2][Q_PANELS][GROUP_ROWS][PANEL];
    __nv_bfloat16 held[GROUPS][HELD_PANELS][GROUP_ROWS][PANEL];
    __nv_bfloat16 k[STAGES][QK_PANELS][KEYS][PANEL];
    __nv_bfloat16 v[STAGES][V_PANELS][KEYS][PANEL];
    struct tile tile[GROUPS];
    uint64_t q_full[GROUPS], q_empty[GROUPS];
    uint64_t k_full[STAGES], k_empty[STAGES];
    uint64_t v_full[STAGES], v_empty[STAGES];
};

struct launch {
    CUtensorMap q, k_nope, k_rope, v;
    const int *row_first, *key_first;
    int sequences, heads;
    bool causal;
    float scale;
    __nv_bfloat16 *out;
    int64_t out_row_stride, out_head_stride;
    float *lse;
    uint32_t *queue; /* tiles handed out beyond the grid's first, blocks that are done */
};

/* A stage's barrier is in its n-th use (n = turn / STAGES): full ends phase n, empty phase n - 1.
 */
__device__ __forceinline__ int stage_of(uint32_t turn)
{
    return (int)(turn % STAGES);
}

__device__ __forceinline__ uint32_t phase_of(uint32_t turn)
{
    return turn / STAGES & 1;
}

__device__ __forceinline__ int ceil_div(int a, int b)
{
    return (a + b - 1) / b;
}

} // namespace prefill

#endif
