/* The subcommands of mla-bench. argv[0] is the subcommand's name; the result is an exit code. */
#ifndef MLA_TESTS_BENCH_BENCH_H
#define MLA_TESTS_BENCH_BENCH_H

int mla_bench_run(int argc, char **argv);
int mla_bench_replay(int argc, char **argv);
int mla_bench_layer(int argc, char **argv);
int mla_bench_attention(int argc, char **argv);
int mla_bench_prefill(int argc, char **argv);
int mla_bench_compare(int argc, char **argv);
int mla_bench_collectives(int argc, char **argv);

#endif
