/* Any bytes as a safetensors file. Of what is accepted, every byte of every tensor is read. */
#include "proto/limits.h"
#include "worker/safetensors.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char why[MLA_SENTENCE_BYTES_MAX];
    struct mla_safetensors file;
    uint64_t bytes = 0, sum = 0;
    if (mla_safetensors_parse(data, size, &file, why))
        return 0;
    for (size_t i = 0; i < file.count; i++) {
        const struct mla_tensor *tensor = &file.tensors[i];
        for (uint64_t k = 0; k < tensor->bytes; k++)
            sum += tensor->data[k];
        bytes += tensor->bytes;
        if (mla_safetensors_find(&file, tensor->name) != tensor)
            abort();
    }
    if (bytes > size || sum > 255 * bytes)
        abort();
    mla_safetensors_close(&file);
    return 0;
}
