/* One layer in this process, and the two halves of a step that it runs. */
#ifndef MLA_TESTS_BENCH_LAYER_SETUP_H
#define MLA_TESTS_BENCH_LAYER_SETUP_H

#include "tests/bench/device.h"
#include "tests/lib/alone.h"
#include "worker/layer.h"

struct mla_layer_options {
    const char *config;
    struct mla_bench_options device; /* repeat 0: the comparison's own number */
    uint32_t layer;
    uint32_t ranks, heads;         /* the work of rank 0 of so many; heads 0: the config's */
    uint32_t decode_rows, context; /* sequences of one new token each; 0: no decode */
    uint32_t prefill_tokens, prefill_context; /* of one sequence; 0: no prefill */
    bool kv_given, compare_given, bare;       /* bare: beside bare products, not the floor */
    enum mla_dtype kv_dtype;
};

/* Weights are formulas (tests/lib/formula.h), inputs and cached rows noise. */
struct mla_layer_setup {
    struct mla_config config;    /* heads: of the rank */
    struct mla_backend *backend; /* the caller's */
    struct mla_alone collective;
    struct mla_shard shard; /* of one layer */
    struct mla_kvcache cache;
    struct mla_layer layer;
    struct mla_step decode, prefill; /* a half that isn't wanted has no microbatch */
    void *x;                         /* [padded / ranks, hidden] */
    void *keys;                      /* bare: decode's cached rows, one sequence after the other */
    void *arrays;                    /* by which they were gathered */
};

/* Whatever the status, mla_layer_setup_fini frees it. MLA_CONFIG, MLA_OPTION (heads that can't be
 * shared out), MLA_MEMORY, logged. */
enum mla_status mla_layer_setup_init(struct mla_layer_setup *setup, struct mla_backend *backend,
                                     const struct mla_layer_options *options);
void mla_layer_setup_fini(struct mla_layer_setup *setup);

#endif
