/* mla-size: what was asked, and what comes of it. */
#ifndef MLA_TESTS_TOOLS_SIZE_H
#define MLA_TESTS_TOOLS_SIZE_H

#include "coordinator/core.h"
#include "worker/size.h"

struct sizing {
    /* asked */
    const char *path;
    uint32_t gpus, groups;
    uint32_t layer_first, layer_last; /* first > last: all */
    bool cpu, json;
    uint64_t memory; /* of one GPU, or of the host; 0: unknown */
    enum mla_dtype kv_dtype;
    uint64_t kv_memory; /* 0: a share */
    double kv_fraction; /* 0: the worker's default */
    uint32_t chunk_rows, context, batch;
    struct mla_core_options core;
    /* found */
    struct mla_config config;
    uint32_t ranks, layer_count, context_max;
    enum mla_dtype activation;
    struct mla_size size;
    uint32_t blocks; /* of a group */
    int64_t left;    /* of a rank's memory */
    bool known;      /* memory was given, or kv_memory: blocks count */
    bool fits;
};

/* Sequences of `context` tokens that all groups hold together. */
uint64_t sizing_batch_max(const struct sizing *sizing, uint32_t context);
/* Tokens that each of `batch` sequences can have. */
uint32_t sizing_context_max(const struct sizing *sizing, uint32_t batch);
/* Contexts worth a line: the asked one, or powers of four up to the model's. At most 8. */
uint32_t sizing_contexts(const struct sizing *sizing, uint32_t out[8]);

void sizing_print(const struct sizing *sizing);
/* MLA_MEMORY. */
enum mla_status sizing_print_json(const struct sizing *sizing);

#endif
