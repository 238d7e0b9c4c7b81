#include "tests/conformance/gpu.h"

#include "kernels/backend.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>

bool mla_test_has_gpu(void)
{
    if (mla_backend_cuda_count() > 0)
        return true;
    cr_assert_null(getenv("MLA_EXPECT_GPU"), "a GPU is expected, and there is none");
    if (MLA_HAVE_CUDA)
        fputs("SKIPPED: no GPU\n", stderr); /* a warning of Criterion's would be a failure */
    return false;
}
