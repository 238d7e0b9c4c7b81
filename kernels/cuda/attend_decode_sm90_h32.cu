#include "kernels/cuda/attend_decode_sm90.cuh"

cudaError_t decode::attend_32(const launch &launch, int blocks, cudaStream_t stream)
{
    return launch_sm90<32>(launch, blocks, stream);
}
