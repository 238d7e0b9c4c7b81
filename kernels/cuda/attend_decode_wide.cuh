/* What producers and consumers of the wide decode kernel share: a block's shared memory.
 *
 * 64 queries of an item are the rows of the products: 64 of its heads, or all heads of several of
 * its tokens. K [64, 576] of a tile is four panels of [64, 64] for the left half of the latent
 * dimensions, four for the right one, and one for the rope. Two groups (warpgroups) of consumers
 * take tiles in turns, A and B:
 *
 *     S [64, 64]       = Q K^T                 of its own tile, group A of A, group B of B
 *     P                = 2^(S scale - reference)      to shared memory
 *     O [64, half 256] += P V                  of both tiles, A of the left half, B of the right
 *
 *     group A   S(a0) weigh  a0 left            b0 left  S(a1) weigh  a1 left         b1 left
 *     group B          S(b0)       a0 right, weigh  b0 right  S(b1)       a1 right, weigh  b1 right
 *
 * While one group weighs, the other keeps the tensor cores busy. A half of a tile is one place in
 * shared memory, which the group that sums it gives back as soon as it has: by then the other has
 * read it as keys, or it could not have sent its weights.
 *
 * P lies where the tile's rope panel was, which only scores need: the next tile's rope comes once
 * the other group has read P.
 *
 * Registers: 128 of a thread's are O, 32 S, 16 P. Shared memory: Q 72 KiB, two tiles 144, output on
 * its way 8: 224 of 227 KiB. */
#ifndef MLA_KERNELS_CUDA_ATTEND_DECODE_WIDE_CUH
#define MLA_KERNELS_CUDA_ATTEND_DECODE_WIDE_CUH

#include "kernels/cuda/attend_decode_launch.cuh"

namespace decode
{
namespace wide
{

constexpr int HALF_PANELS = LATENT_PANELS / 2; /* Q's panel 8 is the rope */
constexpr int HALF_BYTES = HALF_PANELS * PANEL_BYTES;
constexpr int GROUPS = 2, GROUP_WARPS = GROUP_THREADS / 32;
constexpr int CONSUMERS = GROUPS * GROUP_THREADS;
/* A warp for K, one for Q, one that counts parts; registers move by warpgroups. */
constexpr int THREADS = CONSUMERS + 128;

/* Named barriers: all consumers'; of each group's own; a part has been written (first and last
 * item); and P of a group is there, by halves of the tile's tokens (2 for each group). */
constexpr int ALL = 1, OWN = 2, WRITTEN = 4, WEIGHED = 6;
constexpr int HALVES = 2;

/* A warp's output on its way: of its 16 queries half a panel. */
constexpr int OUT_ROW_BYTES = 64, OUT_BYTES = 16 * OUT_ROW_BYTES;

struct alignas(1024) shared {
    unsigned char kv[GROUPS][2][HALF_BYTES]; /* of tile A and B: left, right */
    unsigned char rope[GROUPS][PANEL_BYTES]; /* then P */
    unsigned char q[PANELS][PANEL_BYTES];
    unsigned char out[GROUPS * GROUP_WARPS][OUT_BYTES];
    float reference[GROUPS][WIDE_QUERIES];
    float sum[2][GROUPS][WIDE_QUERIES];   /* of items in turns: the last one's may still be read */
    uint32_t raised[GROUPS][GROUP_WARPS]; /* reference[] of the warp's queries is new */
    uint64_t full[GROUPS][PANELS], empty[GROUPS][2], rope_empty[GROUPS];
    uint64_t q_full, q_empty;
#ifdef MLA_RACECHECK
    /* It loses the order of named barriers where some only arrive. */
    uint64_t told[GROUPS * HALVES];
#endif
};
static_assert(sizeof(shared) <= SHARED_BYTES_MAX, "one block's shared memory");

} // namespace wide
} // namespace decode

#endif
