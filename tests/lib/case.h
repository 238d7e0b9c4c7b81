/* A golden case: a folder with config.json, case.json and golden.safetensors. The inputs are
 * formulas (tests/lib/formula.h); the outputs are those of one causal pass over each sequence.
 * tests/README.md and tests/golden/golden.py tell where they come from. */
#ifndef MLA_TESTS_LIB_CASE_H
#define MLA_TESTS_LIB_CASE_H

#include "worker/config.h"
#include "worker/safetensors.h"

#include "proto/limits.h"

#include <stdbool.h>
#include <stdint.h>

/* What is known of one sequence in one layer: output row rows[i] is row i of `tensor`. */
struct mla_case_output {
    const struct mla_tensor *tensor; /* [row_count, hidden] */
    uint32_t row_count;
    uint32_t *rows; /* ascending positions */
};

struct mla_case {
    struct mla_config config;
    struct mla_safetensors golden;
    uint32_t layer_count;
    uint32_t layers[MLA_LAYERS_MAX];
    uint32_t sequence_count;
    uint32_t *lengths;               /* [sequence_count] tokens, each >= 1 */
    struct mla_case_output *outputs; /* [layer_count, sequence_count] */
};

/* Reads and checks DIR. MLA_CONFIG for config.json and case.json, MLA_CHECKPOINT for
 * golden.safetensors, MLA_SYSTEM, MLA_MEMORY; a sentence in `why` (MLA_SENTENCE_BYTES_MAX). */
enum mla_status mla_case_open(const char *dir, struct mla_case *out, char *why);
/* Safe on a zeroed struct. */
void mla_case_close(struct mla_case *golden_case);

/* dst [count, hidden] f32 = rows [first, first + count) of the input of layers[layer] for
 * `sequence`; every value is exact in bf16. `word` is "input", or any other word for rows that
 * are just as random and wrong. */
void mla_case_input(const struct mla_case *golden_case, const char *word, uint32_t layer,
                    uint32_t sequence, uint32_t first, uint32_t count, float *dst);

/* dst [hidden] f32 = the golden output of layers[layer] for `sequence` at `position`. False,
 * and dst untouched, where the case did not keep this row. */
bool mla_case_golden(const struct mla_case *golden_case, uint32_t layer, uint32_t sequence,
                     uint32_t position, float *dst);

#endif
