#include "worker/safetensors.h"

#include <assert.h>
#include <errno.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define ALIGNMENT 8u /* of the data, as the format asks of writers */

static const char *dtype_name(enum mla_dtype dtype)
{
    switch (dtype) {
    case MLA_F32:
        return "F32";
    case MLA_BF16:
        return "BF16";
    case MLA_F16:
        return "F16";
    }
    return NULL;
}

static uint64_t entry_bytes(const struct mla_safetensors_entry *entry)
{
    uint64_t bytes = mla_dtype_bytes(entry->dtype);
    for (uint32_t i = 0; i < entry->dims; i++)
        bytes *= entry->shape[i];
    return bytes;
}

/* The header's JSON, NULL when memory is short. */
static char *format_header(const struct mla_safetensors_entry *entries, size_t count)
{
    json_t *header = json_object();
    uint64_t begin = 0;
    bool complete = header != NULL;
    for (size_t i = 0; i < count && complete; i++) {
        const struct mla_safetensors_entry *entry = &entries[i];
        uint64_t end = begin + entry_bytes(entry);
        json_t *shape = json_array();
        for (uint32_t k = 0; k < entry->dims; k++)
            complete =
                json_array_append_new(shape, json_integer((json_int_t)entry->shape[k])) == 0 &&
                complete;
        json_t *tensor =
            json_pack("{s:s, s:o, s:[I, I]}", "dtype", dtype_name(entry->dtype), "shape", shape,
                      "data_offsets", (json_int_t)begin, (json_int_t)end);
        complete = json_object_set_new(header, entry->name, tensor) == 0 && complete;
        begin = end;
    }
    assert(!complete || json_object_size(header) == count); /* no name twice */
    char *text = complete ? json_dumps(header, JSON_COMPACT) : NULL;
    json_decref(header);
    return text;
}

/* Length, JSON, and spaces up to the alignment. */
static bool write_header(FILE *file, const char *text)
{
    size_t used = strlen(text);
    uint64_t bytes = (used + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    return fwrite(&bytes, sizeof bytes, 1, file) == 1 && fwrite(text, used, 1, file) == 1 &&
           fprintf(file, "%*s", (int)(bytes - used), "") >= 0;
}

enum mla_status
mla_safetensors_write(const char *path, const struct mla_safetensors_entry *entries, size_t count,
                      enum mla_status (*fill)(void *context, size_t index, void *file),
                      void *context)
{
    char *text = format_header(entries, count);
    if (!text)
        return MLA_MEMORY;
    enum mla_status status = MLA_SYSTEM;
    FILE *file = fopen(path, "wbe");
    bool written = file && write_header(file, text);
    free(text);
    if (!file)
        return status;
    for (size_t i = 0; i < count && written; i++) {
        off_t begin = ftello(file);
        enum mla_status filled = fill(context, i, file);
        if (filled) {
            status = filled;
            written = false;
        }
        assert(!written || (uint64_t)(ftello(file) - begin) == entry_bytes(&entries[i]));
    }
    int error = errno;
    if (fclose(file) == 0 && written)
        return MLA_OK;
    if (written)
        error = errno;
    unlink(path);
    errno = error;
    return status;
}
