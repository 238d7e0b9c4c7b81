/* mla-bench: measurements of the service and of its layers. */
#include "tests/bench/bench.h"

#include <stdio.h>
#include <string.h>

static const char usage[] = "usage: mla-bench COMMAND ...\n"
                            "\n"
                            "  replay   runs a trace of requests against a service\n"
                            "  layer    runs one layer in this process\n"
                            "\n"
                            "mla-bench COMMAND --help tells the options of a command.\n";

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "replay") == 0)
        return mla_bench_replay(argc - 1, argv + 1);
    if (argc > 1 && strcmp(argv[1], "layer") == 0)
        return mla_bench_layer(argc - 1, argv + 1);
    if (argc > 1 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)) {
        fputs(usage, stdout);
        return 0;
    }
    fputs(usage, stderr);
    return 2;
}
