/* Named helpers for the PTX that CUDA C has no words for: mbarriers, the tensor memory
 * accelerator, warpgroup products and their fences. Hopper (sm_90a). PTX ISA 8.0, sections
 * "mbarrier", "cp.async.bulk.tensor", "wgmma". Addresses of shared memory are 32 bits. */
#ifndef MLA_KERNELS_CUDA_PTX_CUH
#define MLA_KERNELS_CUDA_PTX_CUH

#include <cuda.h>
#include <stdint.h>

namespace ptx
{

__device__ __forceinline__ uint32_t shared_address(const void *pointer)
{
    return (uint32_t)__cvta_generic_to_shared(pointer);
}

/* mbarrier: a phase ends when `arrivals` threads have arrived and all expected bytes are there. */
__device__ __forceinline__ void barrier_init(uint64_t *barrier, uint32_t arrivals)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
                 "r"(arrivals)
                 : "memory");
}

/* After barrier_init, before other threads or the copy engine use the barrier. */
__device__ __forceinline__ void barrier_init_fence()
{
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void barrier_arrive(uint64_t *barrier)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier))
                 : "memory");
}

__device__ __forceinline__ void barrier_arrive_expect(uint64_t *barrier, uint32_t bytes)
{
    asm volatile(
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
        "r"(bytes)
        : "memory");
}

/* Returns once the phase of this parity has ended. */
__device__ __forceinline__ void barrier_wait(uint64_t *barrier, uint32_t parity)
{
    asm volatile("{\n"
                 ".reg .pred done;\n"
                 "again:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@done bra end;\n"
                 "bra again;\n"
                 "end:\n"
                 "}\n" ::"r"(shared_address(barrier)),
                 "r"(parity)
                 : "memory");
}

/* Named barriers of a block: 0 is __syncthreads. `threads` counts both sides. */
__device__ __forceinline__ void named_sync(int id, int threads)
{
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

__device__ __forceinline__ void named_arrive(int id, int threads)
{
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

/* Ordinary writes to shared memory become visible to TMA and wgmma. */
__device__ __forceinline__ void fence_async_shared()
{
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ __forceinline__ void prefetch_map(const CUtensorMap *map)
{
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

/* Cache policies for createpolicy-free L2 hints, as ptxas encodes them. */
constexpr uint64_t EVICT_FIRST = 0x12F0000000000000ull;
constexpr uint64_t EVICT_LAST = 0x14F0000000000000ull;
constexpr uint64_t EVICT_NORMAL = 0x1000000000000000ull;

/* A box of a tensor to shared memory; its bytes count at `barrier`. The innermost coordinate
 * first. Coordinates outside of the tensor read zeros (and count as bytes). */
__device__ __forceinline__ void tma_load_2d(void *to, const CUtensorMap *map, uint64_t *barrier,
                                            int c0, int c1, uint64_t policy)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
                 ".L2::cache_hint [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(shared_address(to)),
                 "l"(map), "r"(shared_address(barrier)), "r"(c0), "r"(c1), "l"(policy)
                 : "memory");
}

__device__ __forceinline__ void tma_load_3d(void *to, const CUtensorMap *map, uint64_t *barrier,
                                            int c0, int c1, int c2, uint64_t policy)
{
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
                 ".L2::cache_hint [%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(shared_address(to)),
                 "l"(map), "r"(shared_address(barrier)), "r"(c0), "r"(c1), "r"(c2), "l"(policy)
                 : "memory");
}

/* Bytes in a row, a multiple of 16 as are the addresses. */
__device__ __forceinline__ void bulk_load(void *to, const void *from, uint32_t bytes,
                                          uint64_t *barrier, uint64_t policy)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
                 ".L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(shared_address(to)),
                 "l"(from), "r"(bytes), "r"(shared_address(barrier)), "l"(policy)
                 : "memory");
}

template <int REGISTERS> __device__ __forceinline__ void registers_raise()
{
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

template <int REGISTERS> __device__ __forceinline__ void registers_lower()
{
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

/* Whether `flag` is set in any of the block's `threads` that meet at a named barrier. */
__device__ __forceinline__ bool named_any(int id, int threads, bool flag)
{
    int any;
    asm volatile("{\n"
                 ".reg .pred in, out;\n"
                 "setp.ne.b32 in, %3, 0;\n"
                 "barrier.cta.red.or.pred out, %1, %2, in;\n"
                 "selp.b32 %0, 1, 0, out;\n"
                 "}\n"
                 : "=r"(any)
                 : "r"(id), "r"(threads), "r"((int)flag)
                 : "memory");
    return any;
}

/* Four 8x8 matrices of 16-bit values to shared memory, transposed: thread t holds of each row
 * t / 4, columns 2 (t % 4) and that + 1, and names (for matrix t / 8) where column t % 8 goes,
 * 16 bytes. */
__device__ __forceinline__ void store_matrices_transposed(uint32_t to, uint32_t m0, uint32_t m1,
                                                          uint32_t m2, uint32_t m3)
{
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to),
                 "r"(m0), "r"(m1), "r"(m2), "r"(m3)
                 : "memory");
}

/* The same, each matrix as it is: the thread names (for matrix t / 8) where row t % 8 goes. */
__device__ __forceinline__ void store_matrices(uint32_t to, const uint32_t *from)
{
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to),
                 "r"(from[0]), "r"(from[1]), "r"(from[2]), "r"(from[3])
                 : "memory");
}

/* Of an 8x8 matrix of 16-bit values, as above, its transpose in the same form. */
__device__ __forceinline__ uint32_t transpose_matrix(uint32_t matrix)
{
    uint32_t transposed;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(transposed) : "r"(matrix));
    return transposed;
}

/* Four 8x8 matrices of 16-bit values from shared memory: thread t names row t % 8 of matrix t / 8,
 * 16 bytes, and gets of each matrix row t / 4, columns 2 (t % 4) and that + 1. */
__device__ __forceinline__ void load_matrices(uint32_t *to, uint32_t from)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(from)
                 : "memory");
}

/* 2^x, relative error 2^-22; 0 for minus infinity and for results under 2^-126. */
__device__ __forceinline__ float exp2_fast(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* Two floats as bf16, the first in the lower half. */
__device__ __forceinline__ uint32_t pack_bf16(float low, float high)
{
    uint32_t packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}

/* What other threads of the device wrote before they changed *address is seen after. */
__device__ __forceinline__ uint32_t load_acquire(const uint32_t *address)
{
    uint32_t value;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(address) : "memory");
    return value;
}

/* wgmma: registers that it reads or adds to are settled before; one group is what was issued
 * since the last commit. */
__device__ __forceinline__ void wgmma_fence()
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void wgmma_commit()
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

template <int GROUPS_LEFT> __device__ __forceinline__ void wgmma_wait()
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(GROUPS_LEFT) : "memory");
}

/* Programmatic dependent launch: what the kernel before wrote may be read after depend_wait; the
 * kernel behind may start after depend_release (its own wait still waits for our end). */
__device__ __forceinline__ void depend_wait()
{
    asm volatile("griddepcontrol.wait;" ::: "memory");
}

__device__ __forceinline__ void depend_release()
{
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

/* A barrier of all threads of the cluster in two halves, which orders no memory. */
__device__ __forceinline__ void cluster_arrive_relaxed()
{
    asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
}

__device__ __forceinline__ void cluster_wait()
{
    asm volatile("barrier.cluster.wait;" ::: "memory");
}

/* Four floats to the same place of block `block` of the cluster, which may be this one; their bytes
 * count at the barrier in the same place of that block as `barrier`. Addresses are this block's. */
__device__ __forceinline__ void store_four_at(uint32_t address, uint32_t barrier, uint32_t block,
                                              float4 four)
{
    asm volatile("{\n"
                 ".reg .b32 there, barrier_there;\n"
                 "mapa.shared::cluster.u32 there, %0, %2;\n"
                 "mapa.shared::cluster.u32 barrier_there, %1, %2;\n"
                 "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [there], "
                 "{%3, %4, %5, %6}, [barrier_there];\n"
                 "}\n" ::"r"(address),
                 "r"(barrier), "r"(block), "f"(four.x), "f"(four.y), "f"(four.z), "f"(four.w)
                 : "memory");
}

} // namespace ptx

#endif
