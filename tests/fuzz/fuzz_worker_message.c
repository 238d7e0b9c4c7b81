/* What decodes is encoded again and must give the same bytes. */
#include "proto/worker_message.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct mla_worker_message message;
    size_t bytes = 0;
    if (mla_worker_message_decode(data, size, &message) != MLA_OK)
        return 0;
    uint8_t *frame = malloc(size); /* a PLAN may be long */
    assert(frame);
    enum mla_status status = mla_worker_message_encode(&message, frame, size, &bytes);
    assert(status == MLA_OK && bytes == size && memcmp(frame, data, size) == 0);
    free(frame);
    return 0;
}
