/* What only the CPU backend has. */
#include "kernels/cpu/cpu.h"

#include <criterion/criterion.h>
#include <math.h>

Test(cpu, exp_is_accurate)
{
    for (int i = 0; i <= 870000; i++) {
        float x = -0.0001f * (float)i;
        double want = exp((double)x), error = fabs((double)mla_cpu_exp(x) - want) / want;
        cr_assert_leq(error, 1.5e-7, "exp(%.9g) is off by %g", (double)x, error);
    }
}

Test(cpu, exp_at_its_ends)
{
    cr_assert(mla_cpu_exp(0.0f) == 1.0f);
    cr_assert(mla_cpu_exp(-0.0f) == 1.0f);
    cr_assert(mla_cpu_exp(-88.0f) == 0.0f);
    cr_assert(mla_cpu_exp(-3.4e38f) == 0.0f);
    cr_assert(mla_cpu_exp(-INFINITY) == 0.0f);
    cr_assert(isnan(mla_cpu_exp(NAN)));
}
