/* What decodes is encoded again and must give the same bytes. */
#include "proto/message.h"

#include <assert.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct mla_message message;
    static uint8_t frame[MLA_MESSAGE_BYTES_MAX];
    size_t bytes = 0;
    if (mla_message_decode(data, size, &message) != MLA_OK)
        return 0;
    enum mla_status status = mla_message_encode(&message, frame, sizeof frame, &bytes);
    assert(status == MLA_OK && bytes == size && memcmp(frame, data, size) == 0);
    return 0;
}
