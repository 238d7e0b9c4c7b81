/* One rank's layers on a device, and the naive layer in double precision to compare with: for tests
 * of worker/layer.c and worker/graphs.c in models that no golden case has. One at a time. */
#ifndef MLA_TESTS_LIB_LAYER_WORLD_H
#define MLA_TESTS_LIB_LAYER_WORLD_H

#include "tests/unit/plans.h"
#include "worker/graphs.h"

struct model {
    const char *name;
    uint32_t hidden, heads, q_lora, latent, nope, rope, v;
    bool bias, interleaved;
    const char *rope_json;
};

#define YARN                                                                                       \
    "\"rope_parameters\": {\"rope_type\": \"yarn\", \"rope_theta\": 1000, \"factor\": 4, "         \
    "\"original_max_position_embeddings\": 64, \"mscale\": 1.0, \"mscale_all_dim\": 0.7}"
#define PLAIN "\"rope_theta\": 10000"

/* The plan of the next step: to be filled before world_run_step, empty after. Tables are 0, 1, 2
 * with at most 150, 90 and 20 tokens. */
extern struct plan world_plan;
extern struct mla_graphs world_graphs;

/* Takes over the backend. Decode microbatches padded to 4, 16 or 128 rows are replayed where the
 * backend has graphs. tolerance: of ||out - expected|| / ||expected||. */
void world_begin(const struct model *model, struct mla_backend *backend, enum mla_dtype kv_dtype,
                 int64_t chunk_rows, double tolerance);
void world_end(void);
/* Captures all graphs, as at a worker's start-up: after pools of one block gave way to the real
 * ones. Before the first step. */
void world_capture(void);

/* Runs the plan, the layers in another order than they stand and every microbatch
 * eagerly, and twice through world_graphs in each turn. All must give the same bits, near the
 * expected. */
void world_run_step(const char *what);
/* All cache rows that no token of a step stands for are as they were before the first. */
void world_check_cache(void);
/* Every way through the layer: prompts with and without context, cut inside blocks, decode with
 * one row and several, in both halves of a step, with and without padding. */
void world_check_all(void);
/* Two open decode steps in the same bucket, whose RUNs come one after the other: each must find its
 * own lengths, slots and tables. */
void world_check_pair(void);

#endif
