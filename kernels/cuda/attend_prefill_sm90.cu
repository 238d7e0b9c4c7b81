/* Prefill attention for Hopper. The plan is FlashAttention's (Dao 2023; Shah et al. 2024); NOTES.md
 * says how it is laid out here. */
#include "kernels/cuda/attend_prefill.h"
#include "kernels/cuda/attend_prefill_compute.cuh"
#include "kernels/cuda/attend_prefill_load.cuh"
#include "kernels/cuda/tensor_map.h"

namespace prefill
{

__global__ void __launch_bounds__(THREADS, 1) attend(const __grid_constant__ struct launch p)
{
    extern __shared__ __align__(1024) unsigned char memory[];
    struct shared &s = *reinterpret_cast<struct shared *>(memory);
    if (threadIdx.x == 0) {
        for (int i = 0; i < GROUPS; i++) {
            ptx::barrier_init(&s.q_full[i], 1);
            ptx::barrier_init(&s.q_empty[i], WARPS * TELLERS);
        }
        for (int i = 0; i < STAGES; i++) {
            ptx::barrier_init(&s.k_full[i], 1);
            ptx::barrier_init(&s.k_empty[i], GROUPS * WARPS);
            ptx::barrier_init(&s.v_full[i], 1);
            ptx::barrier_init(&s.v_empty[i], GROUPS * WARPS);
        }
        ptx::barrier_init_fence();
        ptx::prefetch_map(&p.q);
        ptx::prefetch_map(&p.k_nope);
        ptx::prefetch_map(&p.k_rope);
        ptx::prefetch_map(&p.v);
    }
    __syncthreads();
    const int warpgroup = __shfl_sync(~0u, (int)threadIdx.x / (WARPS * 32), 0);
    if (warpgroup == 0) {
        ptx::registers_lower<40>();
        if (threadIdx.x < 32) {
            load(p, s);
        }
    } else {
        ptx::registers_raise<232>();
        compute(p, s, warpgroup - 1);
    }
}

} // namespace prefill

static bool aligned(const void *base, int64_t row_stride, int64_t head_stride)
{
    return (uintptr_t)base % 16 == 0 && row_stride % 8 == 0 && head_stride % 8 == 0;
}

static int64_t tiles_max(const struct mla_attend_prefill *a)
{
    return (a->rows / prefill::ROWS + a->sequences) * a->heads;
}

extern "C" bool mla_cuda_attend_prefill_sm90_fits(const struct mla_attend_prefill *a)
{
    const int64_t most = (int64_t)1 << 30;
    return a->nope == prefill::NOPE && a->rope == prefill::ROPE && a->v_dim == prefill::V_DIM &&
           a->scale > 0 && a->rows < most && a->keys < most && tiles_max(a) < most &&
           aligned(a->q, a->q_row_stride, a->q_head_stride) &&
           aligned(a->k_nope, a->k_row_stride, a->k_head_stride) &&
           aligned(a->k_rope, a->k_rope_stride, 0) &&
           aligned(a->v, a->v_row_stride, a->v_head_stride) &&
           aligned(a->out, a->out_row_stride, a->out_head_stride);
}

/* [rows, heads, width], in boxes of box_rows rows of one head's panel. */
static cudaError_t encode(const void *base, int64_t width, int64_t heads, int64_t rows,
                          int64_t head_stride, int64_t row_stride, int box_rows, CUtensorMap *out)
{
    struct mla_tensor_map map = {};
    map.base = base;
    map.dims = 3;
    map.extent[0] = (uint64_t)width;
    map.extent[1] = (uint64_t)heads;
    map.extent[2] = (uint64_t)rows;
    map.stride[1] = (uint64_t)head_stride;
    map.stride[2] = (uint64_t)row_stride;
    map.box[0] = prefill::PANEL;
    map.box[1] = 1;
    map.box[2] = (uint32_t)box_rows;
    map.swizzle = CU_TENSOR_MAP_SWIZZLE_128B;
    return mla_tensor_map_encode(&map, out);
}

static cudaError_t encode_all(const struct mla_attend_prefill *a, struct prefill::launch *p)
{
    cudaError_t error = encode(a->q, a->nope + a->rope, a->heads, a->rows, a->q_head_stride,
                               a->q_row_stride, prefill::GROUP_ROWS, &p->q);
    if (error != cudaSuccess || a->keys == 0) {
        return error; /* without keys nothing is loaded */
    }
    error = encode(a->k_nope, a->nope, a->heads, a->keys, a->k_head_stride, a->k_row_stride,
                   prefill::KEYS, &p->k_nope);
    if (error != cudaSuccess) {
        return error;
    }
    error = encode(a->v, a->v_dim, a->heads, a->keys, a->v_head_stride, a->v_row_stride,
                   prefill::KEYS, &p->v);
    if (error != cudaSuccess) {
        return error;
    }
    struct mla_tensor_map rope = {};
    rope.base = a->k_rope;
    rope.dims = 2;
    rope.extent[0] = (uint64_t)a->rope;
    rope.extent[1] = (uint64_t)a->keys;
    rope.stride[1] = (uint64_t)a->k_rope_stride;
    rope.box[0] = prefill::PANEL;
    rope.box[1] = prefill::KEYS;
    rope.swizzle = CU_TENSOR_MAP_SWIZZLE_128B;
    return mla_tensor_map_encode(&rope, &p->k_rope);
}

extern "C" cudaError_t mla_cuda_attend_prefill_sm90(const struct mla_attend_prefill *a,
                                                    uint32_t *queue, cudaStream_t stream)
{
    if (a->rows == 0 || a->heads == 0 || a->sequences == 0) {
        return cudaSuccess;
    }
    struct prefill::launch p = {};
    cudaError_t error = encode_all(a, &p);
    if (error != cudaSuccess) {
        return error;
    }
    p.row_first = a->row_first;
    p.key_first = a->key_first;
    p.sequences = (int)a->sequences;
    p.heads = (int)a->heads;
    p.causal = a->causal;
    p.scale = a->scale;
    p.out = (__nv_bfloat16 *)a->out;
    p.out_row_stride = a->out_row_stride;
    p.out_head_stride = a->out_head_stride;
    p.lse = a->lse;
    p.queue = queue;
    int device, blocks;
    error = cudaGetDevice(&device);
    if (error == cudaSuccess) {
        error = cudaDeviceGetAttribute(&blocks, cudaDevAttrMultiProcessorCount, device);
    }
    if (error == cudaSuccess) {
        error = cudaFuncSetAttribute(prefill::attend, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                     sizeof(struct prefill::shared));
    }
    if (error != cudaSuccess) {
        return error;
    }
    const int64_t tiles = tiles_max(a);
    blocks = tiles < blocks ? (int)tiles : blocks;
    prefill::attend<<<blocks, prefill::THREADS, sizeof(struct prefill::shared), stream>>>(p);
    return cudaGetLastError();
}
