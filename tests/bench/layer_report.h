/* What the rounds of mla-bench layer took, and how it is told. */
#ifndef MLA_TESTS_BENCH_LAYER_REPORT_H
#define MLA_TESTS_BENCH_LAYER_REPORT_H

#include "tests/bench/layer_ops.h"
#include "tests/bench/layer_setup.h"
#include "tests/bench/series.h"

/* Of one half of the step, in microseconds, one value a round. Zeroed: empty. */
struct mla_layer_times {
    struct mla_series layer[MLA_ROLE_COUNT], bare[MLA_ROLE_COUNT];
    struct mla_series whole; /* mla_layer_run, nothing timed inside */
    struct mla_series bare_gemms, bare_attention, bare_all;
    struct mla_series ratio;                  /* whole / bare_all of the same round */
    struct mla_role_time one[MLA_ROLE_COUNT]; /* of one run: calls and flops */
};

/* A round: the layer as it is, the layer timed by operation, the bare products. MLA_MEMORY. */
enum mla_status mla_layer_times_add(struct mla_layer_times *times, uint64_t whole_ns,
                                    const struct mla_role_time *layer,
                                    const struct mla_role_time *bare);
void mla_layer_times_fini(struct mla_layer_times *times);

/* Measures both halves beside the bare products, and reports. */
enum mla_status mla_layer_beside_bare(struct mla_layer_setup *setup,
                                      const struct mla_layer_options *options);
/* Measures both halves beside the floor, and reports (layer_floor.c). */
enum mla_status mla_layer_beside_floor(struct mla_layer_setup *setup, struct mla_timer *timer,
                                       const struct mla_layer_options *options);

/* The result on stdout and, where options->json names a file, there. A half without rounds is
 * left out. Sorts the samples. MLA_SYSTEM, MLA_MEMORY, both logged. */
enum mla_status mla_layer_report(const struct mla_layer_options *options,
                                 const struct mla_config *config, struct mla_layer_times *decode,
                                 struct mla_layer_times *prefill);

#endif
