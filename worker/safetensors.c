#include "worker/safetensors.h"

#include "proto/limits.h"
#include "worker/input.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "tensors are read in place");

#define LENGTH_BYTES 8u /* of the header's length, before the header */

static const struct {
    const char *name;
    uint32_t bits;
    enum mla_dtype dtype;
} dtypes[] = {
    {"BF16", 16, MLA_BF16}, {"F32", 32, MLA_F32}, {"F16", 16, MLA_F16}, {"F64", 64, 0},
    {"F8_E4M3", 8, 0},      {"F8_E5M2", 8, 0},    {"F8_E8M0", 8, 0},    {"F6_E2M3", 6, 0},
    {"F6_E3M2", 6, 0},      {"F4", 4, 0},         {"C64", 64, 0},       {"I64", 64, 0},
    {"I32", 32, 0},         {"I16", 16, 0},       {"I8", 8, 0},         {"U64", 64, 0},
    {"U32", 32, 0},         {"U16", 16, 0},       {"U8", 8, 0},         {"BOOL", 8, 0},
};

static enum mla_status read_dtype(const json_t *value, uint32_t *bits, struct mla_tensor *out,
                                  char *why)
{
    const char *name = json_string_value(value);
    if (!name)
        return mla_refuse(MLA_CHECKPOINT, why, "tensor %.80s has no dtype", out->name);
    for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; i++) {
        if (strcmp(name, dtypes[i].name) == 0) {
            *bits = dtypes[i].bits;
            out->dtype = dtypes[i].dtype;
            return MLA_OK;
        }
    }
    return mla_refuse(MLA_CHECKPOINT, why, "tensor %.80s has the unknown dtype %.40s", out->name,
                      name);
}

static bool read_unsigned(const json_t *value, uint64_t *out)
{
    if (!json_is_integer(value) || json_integer_value(value) < 0)
        return false;
    *out = (uint64_t)json_integer_value(value);
    return true;
}

/* Fills dims, shape and bytes. */
static enum mla_status read_shape(const json_t *value, uint32_t bits, struct mla_tensor *out,
                                  char *why)
{
    size_t dims = json_array_size(value);
    uint64_t total = bits;
    bool fits = true;
    if (!json_is_array(value) || dims > MLA_TENSOR_DIMS_MAX)
        return mla_refuse(MLA_CHECKPOINT, why, "the shape of tensor %.80s is not a list of 0 to %u",
                          out->name, MLA_TENSOR_DIMS_MAX);
    for (size_t i = 0; i < dims; i++) {
        if (!read_unsigned(json_array_get(value, i), &out->shape[i]))
            return mla_refuse(MLA_CHECKPOINT, why, "dimension %zu of tensor %.80s is not a size", i,
                              out->name);
        fits = fits && !__builtin_mul_overflow(total, out->shape[i], &total);
    }
    if (!fits || total % 8 != 0)
        return mla_refuse(MLA_CHECKPOINT, why, "the shape of tensor %.80s has no size in bytes",
                          out->name);
    out->dims = (uint32_t)dims;
    out->bytes = total / 8;
    return MLA_OK;
}

static enum mla_status read_tensor(const char *name, const json_t *value, const uint8_t *data,
                                   uint64_t data_bytes, struct mla_tensor *out, char *why)
{
    struct mla_tensor tensor = {.name = name};
    const json_t *offsets = json_object_get(value, "data_offsets");
    uint64_t begin, end;
    uint32_t bits = 0;
    enum mla_status status;
    if (!json_is_object(value))
        return mla_refuse(MLA_CHECKPOINT, why, "tensor %.80s is not an object", name);
    if ((status = read_dtype(json_object_get(value, "dtype"), &bits, &tensor, why)) ||
        (status = read_shape(json_object_get(value, "shape"), bits, &tensor, why)))
        return status;
    if (json_array_size(offsets) != 2 || !read_unsigned(json_array_get(offsets, 0), &begin) ||
        !read_unsigned(json_array_get(offsets, 1), &end) || begin > end)
        return mla_refuse(MLA_CHECKPOINT, why, "tensor %.80s has no valid data_offsets", name);
    if (end > data_bytes)
        return mla_refuse(MLA_CHECKPOINT, why,
                          "tensor %.80s ends at byte %llu of the data, which has %llu", name,
                          (unsigned long long)end, (unsigned long long)data_bytes);
    if (end - begin != tensor.bytes)
        return mla_refuse(MLA_CHECKPOINT, why,
                          "tensor %.80s has %llu bytes of data, its shape asks for %llu", name,
                          (unsigned long long)(end - begin), (unsigned long long)tensor.bytes);
    tensor.data = data + begin;
    *out = tensor;
    return MLA_OK;
}

static enum mla_status check_metadata(const json_t *metadata, char *why)
{
    bool valid = json_is_object(metadata);
    for (void *i = json_object_iter((json_t *)metadata); i && valid;
         i = json_object_iter_next((json_t *)metadata, i))
        valid = json_is_string(json_object_iter_value(i));
    if (!valid)
        return mla_refuse(MLA_CHECKPOINT, why, "__metadata__ is not a map of strings");
    return MLA_OK;
}

static int compare_places(const void *a, const void *b)
{
    const struct mla_tensor *x = a, *y = b;
    if (x->data != y->data)
        return x->data < y->data ? -1 : 1;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes); /* the empty ones first */
}

static int compare_names(const void *a, const void *b)
{
    const struct mla_tensor *x = a, *y = b;
    return strcmp(x->name, y->name);
}

/* The tensors must cover the data exactly, one after the other. */
static enum mla_status check_cover(struct mla_safetensors *file, const uint8_t *data,
                                   uint64_t data_bytes, char *why)
{
    uint64_t covered = 0;
    if (file->count > 0)
        qsort(file->tensors, file->count, sizeof *file->tensors, compare_places);
    for (size_t i = 0; i < file->count; i++) {
        const struct mla_tensor *tensor = &file->tensors[i];
        uint64_t begin = (uint64_t)(tensor->data - data);
        if (begin != covered)
            return mla_refuse(MLA_CHECKPOINT, why, "tensor %.80s %s", tensor->name,
                              begin < covered ? "overlaps the one before" : "comes after a gap");
        covered += tensor->bytes;
    }
    if (covered != data_bytes)
        return mla_refuse(MLA_CHECKPOINT, why, "%llu bytes at the end belong to no tensor",
                          (unsigned long long)(data_bytes - covered));
    return MLA_OK;
}

/* Fills tensors, count and header of `file` from the header's JSON, which it takes over. */
static enum mla_status index_tensors(struct mla_safetensors *file, json_t *header,
                                     const uint8_t *data, uint64_t data_bytes, char *why)
{
    enum mla_status status;
    file->header = header;
    size_t fields = json_object_size(header);
    file->tensors = calloc(fields + 1, sizeof *file->tensors);
    if (!file->tensors)
        return mla_refuse(MLA_MEMORY, why, "no memory for %zu tensors", fields);
    for (void *i = json_object_iter(header); i; i = json_object_iter_next(header, i)) {
        const char *name = json_object_iter_key(i);
        const json_t *value = json_object_iter_value(i);
        if (strcmp(name, "__metadata__") == 0)
            status = check_metadata(value, why);
        else
            status = read_tensor(name, value, data, data_bytes, &file->tensors[file->count++], why);
        if (status)
            return status;
    }
    if ((status = check_cover(file, data, data_bytes, why)))
        return status;
    qsort(file->tensors, file->count, sizeof *file->tensors, compare_names);
    return MLA_OK;
}

enum mla_status mla_safetensors_parse(const uint8_t *image, size_t bytes,
                                      struct mla_safetensors *out, char *why)
{
    struct mla_safetensors file = {0};
    uint64_t header_bytes;
    json_t *header;
    enum mla_status status;
    if (bytes < LENGTH_BYTES)
        return mla_refuse(MLA_CHECKPOINT, why, "%zu bytes are no safetensors file", bytes);
    memcpy(&header_bytes, image, LENGTH_BYTES);
    if (header_bytes > MLA_SAFETENSORS_HEADER_MAX || header_bytes > bytes - LENGTH_BYTES)
        return mla_refuse(MLA_CHECKPOINT, why,
                          "a header of %llu bytes: at most %u are read, and the file has %zu",
                          (unsigned long long)header_bytes, MLA_SAFETENSORS_HEADER_MAX, bytes);
    const char *text = (const char *)image + LENGTH_BYTES;
    if (header_bytes == 0 || text[0] != '{')
        return mla_refuse(MLA_CHECKPOINT, why, "the header does not begin with '{'");
    status = mla_json_parse(text, header_bytes, "the header", MLA_CHECKPOINT, &header, why);
    if (status)
        return status;
    status = index_tensors(&file, header, image + LENGTH_BYTES + header_bytes,
                           bytes - LENGTH_BYTES - header_bytes, why);
    if (status) {
        mla_safetensors_close(&file);
        return status;
    }
    *out = file;
    return MLA_OK;
}

enum mla_status mla_safetensors_open(const char *path, struct mla_safetensors *out, char *why)
{
    char reason[MLA_SENTENCE_BYTES_MAX];
    struct mla_safetensors file;
    struct stat info;
    enum mla_status status;
    const char *base = strrchr(path, '/');
    base = base ? base + 1 : path;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 || fstat(fd, &info) < 0) {
        status = mla_refuse(MLA_SYSTEM, why, "cannot open %.150s: %s", path, strerror(errno));
        goto fail;
    }
    if (!S_ISREG(info.st_mode) || info.st_size < (off_t)LENGTH_BYTES) {
        status = mla_refuse(MLA_CHECKPOINT, why, "%.80s is no safetensors file", base);
        goto fail;
    }
    size_t bytes = (size_t)info.st_size;
    uint8_t *mapping = mmap(NULL, bytes, PROT_READ, MAP_SHARED, fd, 0);
    if (mapping == MAP_FAILED) {
        status = mla_refuse(MLA_SYSTEM, why, "cannot map %.150s: %s", path, strerror(errno));
        goto fail;
    }
    close(fd);
    status = mla_safetensors_parse(mapping, bytes, &file, reason);
    if (status) {
        munmap(mapping, bytes);
        return mla_refuse(status, why, "%.80s: %.170s", base, reason);
    }
    file.mapping = mapping;
    file.mapping_bytes = bytes;
    *out = file;
    return MLA_OK;
fail:
    if (fd >= 0)
        close(fd);
    return status;
}

void mla_safetensors_close(struct mla_safetensors *file)
{
    free(file->tensors);
    json_decref(file->header);
    if (file->mapping)
        munmap(file->mapping, file->mapping_bytes);
    *file = (struct mla_safetensors){0};
}

const struct mla_tensor *mla_safetensors_find(const struct mla_safetensors *file, const char *name)
{
    if (file->count == 0)
        return NULL;
    struct mla_tensor key = {.name = name};
    return bsearch(&key, file->tensors, file->count, sizeof key, compare_names);
}
