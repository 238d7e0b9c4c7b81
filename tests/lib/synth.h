/* Checkpoint folders whose weights are formulas (tests/lib/formula.h). */
#ifndef MLA_TESTS_LIB_SYNTH_H
#define MLA_TESTS_LIB_SYNTH_H

#include "proto/dtype.h"
#include "proto/status.h"

#include <stddef.h>
#include <stdint.h>

struct mla_synth {
    const char *config; /* a config.json, copied as it is */
    const char *out;    /* the folder, made where there is none */
    const uint32_t *layers;
    size_t layer_count;
    size_t shards;        /* 1: model.safetensors, without an index */
    enum mla_dtype dtype; /* of the weights; f16 rounds what is below its range */
    /* Called whenever some bytes more are written; NULL for silence. */
    void (*progress)(void *context, const char *tensor, uint64_t bytes_done, uint64_t bytes_total);
    void *context;
};

/* Writes the attention tensors of the layers. An earlier checkpoint in the folder is replaced.
 * MLA_OPTION for more shards than tensors, MLA_CONFIG, MLA_SYSTEM, MLA_MEMORY, with a sentence in
 * `why` (MLA_SENTENCE_BYTES_MAX bytes). */
enum mla_status mla_synth_write(const struct mla_synth *synth, char *why);

#endif
