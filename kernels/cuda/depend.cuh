/* Programmatic dependent launch for kernels that are compiled for older GPUs too: a kernel's blocks
 * start while the kernel in front still runs, and wait for its end where they say so. Each kernel
 * launched this way calls depend() in all its threads, so that none ends, or writes anything, or
 * reads anything but weights, before all the kernels in front have ended. */
#ifndef MLA_KERNELS_CUDA_DEPEND_CUH
#define MLA_KERNELS_CUDA_DEPEND_CUH

#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/racecheck.cuh"

#include <cuda_runtime.h>

/* Kernels that overlap. */
constexpr int SIDE_BY_SIDE = RACECHECK ? 0 : 1;

static __device__ __forceinline__ void depend()
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    ptx::depend_release();
    ptx::depend_wait();
#endif
}

/* A multiprocessor shares its memory out to cache and shared memory as the kernel wants that finds
 * it idle, and a kernel that wants it otherwise waits until it is idle again. Kernels that should
 * run side by side want the same. */
template <class KERNEL> static cudaError_t prefer_shared_memory(KERNEL *kernel)
{
    return cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                cudaSharedmemCarveoutMaxShared);
}

template <class... PARAMETERS>
static cudaError_t launch_dependent(void (*kernel)(PARAMETERS...), dim3 grid, dim3 block,
                                    cudaStream_t stream, PARAMETERS... arguments)
{
    int device = 0, major = 0;
    cudaError_t error = cudaGetDevice(&device);
    if (error == cudaSuccess)
        error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    if (error == cudaSuccess && major >= 9)
        error = prefer_shared_memory(kernel);
    if (error != cudaSuccess)
        return error;
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = SIDE_BY_SIDE;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.stream = stream;
    config.attrs = &attribute;
    config.numAttrs = major >= 9 ? 1 : 0;
    return cudaLaunchKernelEx(&config, kernel, arguments...);
}

#endif
