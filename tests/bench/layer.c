#include "tests/bench/bench.h"

#include <stdio.h>

int mla_bench_layer(int argc, char **argv)
{
    (void)argc;
    fprintf(stderr, "mla-bench %s: not built in\n", argv[0]);
    return 2;
}
