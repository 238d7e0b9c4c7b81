/* One MLA layer in double precision, as the formulas say: every key and value is expanded, nothing
 * is absorbed, cached or split. Slow; it is what faster ones are compared with. */
#ifndef MLA_TESTS_LIB_REFERENCE_H
#define MLA_TESTS_LIB_REFERENCE_H

#include "worker/checkpoint.h"

struct mla_reference {
    struct mla_config config;
    float *weights[MLA_WEIGHT_COUNT]; /* in the checkpoint's shapes; NULL where there is none */
};

/* The layer with weights from tests/lib/formula.h. MLA_MEMORY. */
enum mla_status mla_reference_create(const struct mla_config *config, uint32_t layer,
                                     struct mla_reference **out);
void mla_reference_destroy(struct mla_reference **reference);

/* out [tokens, hidden] = one causal pass over x [tokens, hidden], at positions 0 .. tokens - 1.
 * MLA_MEMORY. */
enum mla_status mla_reference_run(const struct mla_reference *reference, uint32_t tokens,
                                  const float *x, double *out);

#endif
