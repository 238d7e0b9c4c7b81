/* Elements of f32 and bf16: one, or EIGHT side by side in 16-byte accesses. */
#ifndef MLA_KERNELS_CUDA_ELEMENT_CUH
#define MLA_KERNELS_CUDA_ELEMENT_CUH

#include <cuda_bf16.h>
#include <stdint.h>

constexpr int EIGHT = 8;

__device__ __forceinline__ float widen(float value)
{
    return value;
}

__device__ __forceinline__ float widen(__nv_bfloat16 value)
{
    return __bfloat162float(value);
}

template <class T> __device__ __forceinline__ T narrow(float value);

template <> __device__ __forceinline__ float narrow<float>(float value)
{
    return value;
}

template <> __device__ __forceinline__ __nv_bfloat16 narrow<__nv_bfloat16>(float value)
{
    return __float2bfloat16_rn(value);
}

__device__ __forceinline__ void load_eight(float (&to)[EIGHT], const float *from)
{
    const float4 *four = reinterpret_cast<const float4 *>(from);
    const float4 low = four[0], high = four[1];
    to[0] = low.x, to[1] = low.y, to[2] = low.z, to[3] = low.w;
    to[4] = high.x, to[5] = high.y, to[6] = high.z, to[7] = high.w;
}

__device__ __forceinline__ void load_eight(float (&to)[EIGHT], const __nv_bfloat16 *from)
{
    const uint4 packed = *reinterpret_cast<const uint4 *>(from);
    const uint32_t words[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        to[2 * i] = __uint_as_float(words[i] << 16);
        to[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    }
}

__device__ __forceinline__ void store_eight(float *to, const float (&from)[EIGHT])
{
    float4 *four = reinterpret_cast<float4 *>(to);
    four[0] = make_float4(from[0], from[1], from[2], from[3]);
    four[1] = make_float4(from[4], from[5], from[6], from[7]);
}

__device__ __forceinline__ void store_eight(__nv_bfloat16 *to, const float (&from)[EIGHT])
{
    union {
        uint4 all;
        __nv_bfloat162 pairs[4];
    } packed;
#pragma unroll
    for (int i = 0; i < 4; i++)
        packed.pairs[i] = __floats2bfloat162_rn(from[2 * i], from[2 * i + 1]);
    *reinterpret_cast<uint4 *>(to) = packed.all;
}

/* Whether rows of n elements, `stride` apart, may be read and written by eights. */
template <class T> static inline bool by_eights(const T *base, int64_t stride, int64_t n)
{
    const int64_t step = 16 / (int64_t)sizeof(T);
    return (uintptr_t)base % 16 == 0 && stride % step == 0 && n % EIGHT == 0;
}

/* Sum over the lanes of a warp, the same bits on each. */
__device__ __forceinline__ float warp_sum(float value)
{
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2)
        value += __shfl_xor_sync(0xffffffffu, value, lanes);
    return value;
}

static inline int64_t ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

#endif
