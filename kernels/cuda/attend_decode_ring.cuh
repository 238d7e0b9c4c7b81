/* What producers and consumers of decode attention share: a block's shared memory, the ring of K's
 * panels in it, and the parts of rows that a worker goes through. */
#ifndef MLA_KERNELS_CUDA_ATTEND_DECODE_RING_CUH
#define MLA_KERNELS_CUDA_ATTEND_DECODE_RING_CUH

#include "kernels/cuda/attend_decode_launch.cuh"

namespace decode
{

constexpr int PANELS = 1 + LATENT_PANELS; /* rope first, then the latent's */
/* A warp for K, one for Q, one that counts parts; registers move by warpgroups. */
constexpr int PRODUCER_THREADS = 128;

/* Named barriers: all consumers', one of each group's own, and two for parts that were written. */
constexpr int ALL = 1, OWN = 2, WRITTEN = 4;

template <int QUERIES> struct shape {
    static constexpr int GROUPS = QUERIES > 32 ? 2 : 1;
    static constexpr int CONSUMERS = GROUPS * GROUP_THREADS;
    static constexpr int THREADS = CONSUMERS + PRODUCER_THREADS;
    static constexpr int QUERIES_EACH = QUERIES / GROUPS; /* that a group scores */
    static constexpr int PANELS_EACH = LATENT_PANELS / GROUPS;
    static constexpr int QUERIES_BYTES = QUERIES * ptx::PANEL_ROW_BYTES; /* a panel of Q, and P */
    static constexpr int RING =
        (SHARED_BYTES_MAX - (PANELS + 1) * QUERIES_BYTES - 2048) / PANEL_BYTES;
};

template <int QUERIES> struct alignas(1024) shared {
    using shape = decode::shape<QUERIES>;
    unsigned char kv[shape::RING][PANEL_BYTES];
    unsigned char q[PANELS][shape::QUERIES_BYTES];
    unsigned char p[shape::QUERIES_BYTES]; /* and output on its way */
    float warp_value[4][QUERIES];          /* of each warp of the group that scores the query */
    float factor[QUERIES];
    uint64_t full[shape::RING], empty[shape::RING];
    uint64_t q_full, q_empty;
};

/* A place in the ring, and the parity of the phase it is in. */
template <int RING> struct cursor {
    int slot;
    uint32_t phase;

    __device__ __forceinline__ cursor ahead(int panels) const
    {
        int next = slot + panels;
        bool wrapped = next >= RING;
        return {wrapped ? next - RING : next, phase ^ (uint32_t)wrapped};
    }
};

} // namespace decode

#endif
