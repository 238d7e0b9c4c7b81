/* Any bytes as a config.json. What is accepted must be usable. */
#include "proto/limits.h"
#include "worker/config.h"

#include <math.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static float table[2 * MLA_HEAD_DIM_MAX];
    char why[MLA_SENTENCE_BYTES_MAX];
    struct mla_config config;
    if (mla_config_parse((const char *)data, size, &config, why))
        return 0;
    if (!isfinite(mla_config_softmax_scale(&config)))
        abort();
    mla_config_rope_table(&config, 2, table);
    for (uint32_t i = 0; i < 2 * config.rope; i++) {
        if (!isfinite(table[i]))
            abort();
    }
    return 0;
}
