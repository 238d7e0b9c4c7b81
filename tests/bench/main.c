/* mla-bench: measurements of the service and of its layers. */
#include "kernels/backend.h"
#include "tests/bench/bench.h"

#include <stdio.h>
#include <string.h>

static const char usage[] = "usage: mla-bench COMMAND ...\n"
                            "\n"
                            "  run          measures RUN, OPEN and CLOSE of a service\n"
                            "  replay       runs a trace of requests against a service\n"
                            "  layer        runs one layer in this process\n"
                            "  attention    runs decode attention alone\n"
                            "  prefill      runs prefill attention alone\n"
                            "  collectives  runs a layer's collectives between ranks\n"
                            "  compare      sets such times beside a peer's\n"
                            "  gpus         prints how many GPUs can be used\n"
                            "\n"
                            "mla-bench COMMAND --help tells the options of a command.\n";

static int gpus(int argc, char **argv)
{
    (void)argc;
    (void)argv;
    printf("%d\n", mla_backend_cuda_count());
    return 0;
}

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
} commands[] = {
    {"run", mla_bench_run},
    {"replay", mla_bench_replay},
    {"layer", mla_bench_layer},
    {"attention", mla_bench_attention},
    {"prefill", mla_bench_prefill},
    {"compare", mla_bench_compare},
    {"collectives", mla_bench_collectives},
    {"gpus", gpus},
};

int main(int argc, char **argv)
{
    for (size_t i = 0; argc > 1 && i < sizeof commands / sizeof *commands; i++)
        if (strcmp(argv[1], commands[i].name) == 0)
            return commands[i].run(argc - 1, argv + 1);
    if (argc > 1 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)) {
        fputs(usage, stdout);
        return 0;
    }
    fputs(usage, stderr);
    return 2;
}
