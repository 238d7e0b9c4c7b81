/* What a build for compute-sanitizer's racecheck (MLA_RACECHECK) does otherwise: the tool knows the
 * order of the threads alone that arrive at a barrier, and follows one kernel at a time. */
#ifndef MLA_KERNELS_CUDA_RACECHECK_CUH
#define MLA_KERNELS_CUDA_RACECHECK_CUH

#ifdef MLA_RACECHECK
constexpr bool RACECHECK = true;
#else
constexpr bool RACECHECK = false;
#endif

/* Lanes of a warp that arrive at a barrier when the warp has read something. One is enough: what
 * the warp does together before puts the others' reads before its arrival. */
constexpr int TELLERS = RACECHECK ? 32 : 1;

#endif
