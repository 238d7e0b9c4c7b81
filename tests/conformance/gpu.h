/* Tests that need a GPU. */
#ifndef MLA_TESTS_CONFORMANCE_GPU_H
#define MLA_TESTS_CONFORMANCE_GPU_H

#include <stdbool.h>

/* Whether there is one. If not it says so, in a build with CUDA, and fails the test where the
 * environment has MLA_EXPECT_GPU: such a run must not pass without. */
bool mla_test_has_gpu(void);

#endif
