#include "tests/lib/synth.h"

#include "proto/limits.h"
#include "tests/lib/formula.h"
#include "worker/checkpoint.h"
#include "worker/input.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#define CHUNK            65536u /* elements made at a time */
#define CONFIG_BYTES_MAX (4u << 20)

struct job {
    const struct mla_synth *synth;
    struct mla_weight_spec *specs;
    struct mla_safetensors_entry *entries; /* of specs, in the same order */
    size_t count;
    size_t first; /* of the shard that is being written */
    uint64_t bytes_done, bytes_total;
    char *why;
};

static size_t shard_first(const struct job *job, size_t shard)
{
    return shard * job->count / job->synth->shards;
}

static void shard_name(const struct job *job, size_t shard, char *name, size_t bytes)
{
    if (job->synth->shards == 1)
        snprintf(name, bytes, "model.safetensors");
    else
        snprintf(name, bytes, "model-%05zu-of-%05zu.safetensors", shard + 1, job->synth->shards);
}

static enum mla_status path_of(const struct job *job, const char *name, char path[PATH_MAX])
{
    int length = snprintf(path, PATH_MAX, "%s/%s", job->synth->out, name);
    if (length < 0 || length >= PATH_MAX)
        return mla_refuse(MLA_SYSTEM, job->why, "the path of the folder is too long");
    return MLA_OK;
}

/* The formula's values are bf16 and below 2: only what is subnormal as f16 is rounded, to even. */
static uint16_t f32_to_f16(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint32_t sign = (bits >> 16) & 0x8000u;
    bits &= 0x7fffffffu;
    if (bits < 0x38800000u) { /* 2^-14: adding 0.5 leaves multiples of 2^-24 in the low bits */
        float magnitude;
        memcpy(&magnitude, &bits, sizeof magnitude);
        magnitude += 0.5f;
        memcpy(&bits, &magnitude, sizeof bits);
        return (uint16_t)(sign | (bits - 0x3f000000u));
    }
    return (uint16_t)(sign | ((bits - 0x38000000u) >> 13));
}

static enum mla_status write_elements(FILE *file, enum mla_dtype dtype, const float *values,
                                      size_t count)
{
    uint16_t halves[CHUNK];
    const void *data = halves;
    if (dtype == MLA_F32)
        data = values;
    for (size_t i = 0; i < count && dtype == MLA_BF16; i++)
        halves[i] = mla_f32_to_bf16(values[i]);
    for (size_t i = 0; i < count && dtype == MLA_F16; i++)
        halves[i] = f32_to_f16(values[i]);
    return fwrite(data, mla_dtype_bytes(dtype), count, file) == count ? MLA_OK : MLA_SYSTEM;
}

static enum mla_status fill(void *context, size_t index, void *file)
{
    struct job *job = context;
    const struct mla_synth *synth = job->synth;
    const struct mla_safetensors_entry *entry = &job->entries[job->first + index];
    uint64_t elements = entry->shape[0] * (entry->dims > 1 ? entry->shape[1] : 1);
    float values[CHUNK];
    for (uint64_t first = 0; first < elements;) {
        uint64_t count = elements - first < CHUNK ? elements - first : CHUNK;
        mla_formula_fill(entry->name, entry->dims, entry->shape, first, count, values);
        enum mla_status status = write_elements(file, synth->dtype, values, count);
        if (status)
            return status;
        first += count;
        job->bytes_done += count * mla_dtype_bytes(synth->dtype);
        if (synth->progress)
            synth->progress(synth->context, entry->name, job->bytes_done, job->bytes_total);
    }
    return MLA_OK;
}

static enum mla_status refuse_write(const struct job *job, const char *path)
{
    return mla_refuse(MLA_SYSTEM, job->why, "cannot write %.150s: %s", path, strerror(errno));
}

static enum mla_status list_tensors(struct job *job, const struct mla_config *config)
{
    const struct mla_synth *synth = job->synth;
    size_t room = synth->layer_count * MLA_WEIGHT_COUNT;
    job->specs = calloc(room, sizeof *job->specs);
    job->entries = calloc(room, sizeof *job->entries);
    if (!job->specs || !job->entries)
        return mla_refuse(MLA_MEMORY, job->why, "no memory for the list of tensors");
    for (size_t i = 0; i < room; i++) {
        struct mla_weight_spec *spec = &job->specs[job->count];
        mla_weight_describe(config, synth->layers[i / MLA_WEIGHT_COUNT], i % MLA_WEIGHT_COUNT,
                            spec);
        if (!spec->present)
            continue;
        job->entries[job->count++] =
            (struct mla_safetensors_entry){.name = spec->name,
                                           .dtype = synth->dtype,
                                           .dims = spec->dims,
                                           .shape = {spec->shape[0], spec->shape[1]}};
        job->bytes_total +=
            spec->shape[0] * (spec->dims > 1 ? spec->shape[1] : 1) * mla_dtype_bytes(synth->dtype);
    }
    if (synth->shards < 1 || synth->shards > job->count)
        return mla_refuse(MLA_OPTION, job->why, "%zu tensors cannot be in %zu shards", job->count,
                          synth->shards);
    return MLA_OK;
}

static enum mla_status write_config(const struct job *job, const char *json, size_t bytes)
{
    char path[PATH_MAX];
    enum mla_status status = path_of(job, "config.json", path);
    if (status)
        return status;
    FILE *file = fopen(path, "wbe");
    bool written = file && fwrite(json, 1, bytes, file) == bytes;
    if (file && fclose(file) != 0)
        written = false;
    return written ? MLA_OK : refuse_write(job, path);
}

static enum mla_status write_index(const struct job *job)
{
    char path[PATH_MAX], name[64];
    enum mla_status status = path_of(job, "model.safetensors.index.json", path);
    if (status)
        return status;
    FILE *file = fopen(path, "we");
    if (!file)
        return refuse_write(job, path);
    fprintf(file, "{\"metadata\": {\"total_size\": %" PRIu64 "}, \"weight_map\": {",
            job->bytes_total);
    for (size_t shard = 0; shard < job->synth->shards; shard++) {
        shard_name(job, shard, name, sizeof name);
        for (size_t i = shard_first(job, shard); i < shard_first(job, shard + 1); i++)
            fprintf(file, "%s\n  \"%s\": \"%s\"", i > 0 ? "," : "", job->entries[i].name, name);
    }
    fprintf(file, "\n}}\n");
    bool failed = ferror(file) != 0;
    return fclose(file) == 0 && !failed ? MLA_OK : refuse_write(job, path);
}

/* What an earlier checkpoint in the folder would be found by. */
static enum mla_status remove_old(const struct job *job)
{
    static const char *const names[] = {"model.safetensors", "model.safetensors.index.json"};
    char path[PATH_MAX];
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        enum mla_status status = path_of(job, names[i], path);
        if (status)
            return status;
        if (unlink(path) != 0 && errno != ENOENT)
            return refuse_write(job, path);
    }
    return MLA_OK;
}

static enum mla_status write_shards(struct job *job)
{
    char path[PATH_MAX], name[64];
    for (size_t shard = 0; shard < job->synth->shards; shard++) {
        enum mla_status status;
        size_t end = shard_first(job, shard + 1);
        shard_name(job, shard, name, sizeof name);
        if ((status = path_of(job, name, path)))
            return status;
        job->first = shard_first(job, shard);
        status =
            mla_safetensors_write(path, job->entries + job->first, end - job->first, fill, job);
        if (status)
            return status == MLA_SYSTEM ? refuse_write(job, path)
                                        : mla_refuse(status, job->why, "no memory for %s", name);
    }
    return MLA_OK;
}

enum mla_status mla_synth_write(const struct mla_synth *synth, char *why)
{
    struct job job = {.synth = synth, .why = why};
    struct mla_config config;
    char *json;
    size_t bytes;
    enum mla_status status =
        mla_file_read(synth->config, "config.json", CONFIG_BYTES_MAX, &json, &bytes, why);
    if (status)
        return status == MLA_MEMORY ? status : MLA_CONFIG;
    if ((status = mla_config_parse(json, bytes, &config, why)) ||
        (status = list_tensors(&job, &config)))
        goto fail;
    if (mkdir(synth->out, 0777) != 0 && errno != EEXIST) {
        status = mla_refuse(MLA_SYSTEM, why, "cannot make the folder %.150s: %s", synth->out,
                            strerror(errno));
        goto fail;
    }
    if ((status = remove_old(&job)) || (status = write_config(&job, json, bytes)) ||
        (status = write_shards(&job)))
        goto fail;
    if (synth->shards > 1)
        status = write_index(&job);
fail:
    free(json);
    free(job.specs);
    free(job.entries);
    return status;
}
