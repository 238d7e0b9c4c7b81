/* What producers and consumers of decode attention share: a block's shared memory, and how K lies
 * in it.
 *
 * A tile of 64 tokens is eight boxes of 8 tokens: nine panels of 128 bytes of each token, 9 KiB,
 * which one load brings. So loads read memory as it lies, which is up to 3% faster than a panel of
 * all 64 tokens at a time, and a tile still is nine panels whose rows come by eights. Boxes
 * come and go by pairs, the 16 tokens of a step of the second product. */
#ifndef MLA_KERNELS_CUDA_ATTEND_DECODE_RING_CUH
#define MLA_KERNELS_CUDA_ATTEND_DECODE_RING_CUH

#include "kernels/cuda/attend_decode_launch.cuh"

namespace decode
{

constexpr int PANELS = LATENT_PANELS + 1; /* the last is the rope */
constexpr int BOX_BYTES = PANELS * ptx::EIGHT_ROWS;
constexpr int STEP_TOKENS = 16, STEPS = TILE_TOKENS / STEP_TOKENS;
constexpr int RING = 2; /* tiles */
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
    unsigned char kv[RING][TILE_TOKENS / BOX_TOKENS][BOX_BYTES];
    unsigned char q[PANELS][shape::QUERIES_BYTES];
    unsigned char p[shape::QUERIES_BYTES];
    float warp_value[4][QUERIES]; /* of each warp of the group that scores the query */
    float factor[QUERIES];
    uint64_t full[RING][STEPS], empty[RING][STEPS];
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
