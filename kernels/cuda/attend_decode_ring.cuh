/* What producers and consumers of decode attention share: a block's shared memory. K's panels come
 * and go one by one. */
#ifndef MLA_KERNELS_CUDA_ATTEND_DECODE_RING_CUH
#define MLA_KERNELS_CUDA_ATTEND_DECODE_RING_CUH

#include "kernels/cuda/attend_decode_launch.cuh"

namespace decode
{

constexpr int STEPS = TILE_TOKENS / 16; /* of a product over a tile's tokens */
constexpr int RING = 2;                 /* tiles */
/* A warp for K, one for Q, one that counts parts; registers move by warpgroups. */
constexpr int PRODUCER_THREADS = 128;

/* Named barriers: all consumers', and two for parts that were written. */
constexpr int ALL = 1, WRITTEN = 2;

template <int QUERIES> struct shape {
    static constexpr int GROUPS = QUERIES > 32 ? 2 : 1;
    static constexpr int CONSUMERS = GROUPS * GROUP_THREADS;
    static constexpr int THREADS = CONSUMERS + PRODUCER_THREADS;
    static constexpr int QUERIES_EACH = QUERIES / GROUPS; /* that a group scores */
    static constexpr int PANELS_EACH = LATENT_PANELS / GROUPS;
    static constexpr int QUERIES_BYTES = QUERIES * ptx::PANEL_ROW_BYTES; /* a panel of Q, and P */
};

template <int QUERIES> struct alignas(1024) shared {
    using shape = decode::shape<QUERIES>;
    unsigned char kv[RING][PANELS][PANEL_BYTES];
    unsigned char q[PANELS][shape::QUERIES_BYTES];
    unsigned char p[shape::QUERIES_BYTES];
    float warp_value[4][QUERIES]; /* of each warp of the group that scores the query */
    float factor[QUERIES];
    uint64_t full[RING][PANELS], empty[RING][PANELS];
    uint64_t q_full, q_empty;
};

/* A place in the ring, and the parity of the phase it is in. */
struct cursor {
    int slot;
    uint32_t phase;

    __device__ __forceinline__ void next()
    {
        phase ^= slot == RING - 1;
        slot = (slot + 1) % RING;
    }
};

} // namespace decode

#endif
