/* Tensors that are formulas of their names, so that any language can rebuild them and none has to
 * be stored. tests/golden/golden.py made the golden outputs with the same:
 *
 *   seed  = FNV-1a 64 of the name
 *   bits  = splitmix64(seed + i)       i = flat row-major index
 *   u     = (bits >> 40) / 2^23 - 1    uniform in [-1, 1)
 *   value = bf16(1 + 0.1 u)            *layernorm.weight
 *           bf16(sqrt(3 / columns) u)  other *.weight
 *           bf16(u)                    everything else: biases, inputs */
#ifndef MLA_TESTS_LIB_FORMULA_H
#define MLA_TESTS_LIB_FORMULA_H

#include <stdint.h>

/* dst[i] = element (first + i) of the tensor `name` [shape[0], .., shape[dims - 1]], a bf16 value
 * as f32. dims >= 1. */
void mla_formula_fill(const char *name, uint32_t dims, const uint64_t *shape, uint64_t first,
                      uint64_t count, float *dst);

#endif
