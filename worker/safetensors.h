/* One safetensors file, mapped read-only. The header is checked completely before anything is
 * offered: its size, JSON, known dtypes, checked products of shapes, ranges that neither overlap
 * nor leave a gap and end with the file, no duplicates. */
#ifndef MLA_WORKER_SAFETENSORS_H
#define MLA_WORKER_SAFETENSORS_H

#include "proto/dtype.h"
#include "proto/status.h"

#include <stddef.h>
#include <stdint.h>

#define MLA_SAFETENSORS_HEADER_MAX (64u << 20)
#define MLA_TENSOR_DIMS_MAX        8u

struct mla_tensor {
    const char *name;
    enum mla_dtype dtype; /* 0 for a dtype that no weight of ours may have (I64, ...) */
    uint32_t dims;
    uint64_t shape[MLA_TENSOR_DIMS_MAX];
    const uint8_t *data; /* little-endian, row-major, in the mapping */
    uint64_t bytes;
};

struct mla_safetensors {
    uint8_t *mapping;
    size_t mapping_bytes;
    struct mla_tensor *tensors; /* sorted by name */
    size_t count;
    void *header; /* keeps the names alive */
};

/* Checks and indexes `bytes` of a file image that the caller keeps (the core of open, and what
 * is fuzzed). MLA_CHECKPOINT with a sentence in `why` (MLA_SENTENCE_BYTES_MAX bytes). */
enum mla_status mla_safetensors_parse(const uint8_t *image, size_t bytes,
                                      struct mla_safetensors *out, char *why);

/* Maps and parses `path`. MLA_CHECKPOINT, MLA_SYSTEM. */
enum mla_status mla_safetensors_open(const char *path, struct mla_safetensors *out, char *why);

/* Safe on a zeroed struct. */
void mla_safetensors_close(struct mla_safetensors *file);

/* NULL when there is none. */
const struct mla_tensor *mla_safetensors_find(const struct mla_safetensors *file, const char *name);

struct mla_safetensors_entry {
    const char *name;
    enum mla_dtype dtype;
    uint32_t dims;
    uint64_t shape[MLA_TENSOR_DIMS_MAX];
};

/* Writes a file of `count` tensors in the given order. `fill` is called once per tensor, in
 * order, and must write all its bytes with fwrite. MLA_SYSTEM (errno), or what fill returned. */
enum mla_status
mla_safetensors_write(const char *path, const struct mla_safetensors_entry *entries, size_t count,
                      enum mla_status (*fill)(void *context, size_t index, void *file),
                      void *context);

#endif
