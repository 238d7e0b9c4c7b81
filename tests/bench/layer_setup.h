/* One layer in this process, and the two halves of a step that it runs. */
#ifndef MLA_TESTS_BENCH_LAYER_SETUP_H
#define MLA_TESTS_BENCH_LAYER_SETUP_H

#include "worker/layer.h"

struct mla_layer_options {
    const char *config, *json;
    uint32_t layer;
    uint32_t decode_rows, context;            /* sequences of one new token each; 0: no decode */
    uint32_t prefill_tokens, prefill_context; /* of one sequence; 0: no prefill */
    uint32_t threads, repeat;                 /* repeat 0: as many as fit in a few seconds */
    enum mla_dtype kv_dtype;
};

/* Weights, inputs and cached rows are formulas (tests/lib/formula.h). */
struct mla_layer_setup {
    struct mla_config config;
    struct mla_backend *backend;
    struct mla_collective *collective;
    struct mla_shard shard; /* of one layer */
    struct mla_kvcache cache;
    struct mla_layer layer;
    struct mla_step decode, prefill; /* a half that isn't wanted has no microbatch */
    void *x;                         /* [rows, hidden] */
    void *keys;                      /* decode's cached rows, one sequence after the other */
    void *arrays;                    /* by which they were gathered */
};

/* Whatever the status, mla_layer_setup_fini frees it. MLA_CONFIG, MLA_MEMORY, logged. */
enum mla_status mla_layer_setup_init(struct mla_layer_setup *setup,
                                     const struct mla_layer_options *options);
void mla_layer_setup_fini(struct mla_layer_setup *setup);

#endif
