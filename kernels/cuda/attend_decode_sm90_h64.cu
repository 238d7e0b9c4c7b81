#include "kernels/cuda/attend_decode_sm90.cuh"

cudaError_t decode::attend_64(const launch &launch, int blocks, cudaStream_t stream)
{
    return launch_sm90<64>(launch, blocks, stream);
}
