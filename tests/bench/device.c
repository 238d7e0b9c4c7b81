#include "tests/bench/device.h"

#include "proto/parse.h"
#include "tests/bench/lengths.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TILE_VALUES = 1 << 20, GEMM_CUDA = 8192, GEMM_CPU = 1024, CEILING_REPEAT = 9 };

struct mla_bench_options mla_bench_defaults(void)
{
    return (struct mla_bench_options){.cuda = mla_backend_cuda_count() > 0, .repeat = 30};
}

/* A positive decimal number, in units of `unit`. */
static bool set_rate(const char *text, double unit, double *out)
{
    char *end;
    double value = strtod(text, &end);
    if (end == text || *end != '\0' || !(value > 0) || value > 1e9)
        return false;
    *out = value * unit;
    return true;
}

bool mla_bench_option_set(struct mla_bench_options *options, int id, const char *text)
{
    switch (id) {
    case MLA_BENCH_BACKEND:
        options->cuda = strcmp(text, "cuda") == 0;
        return options->cuda || strcmp(text, "cpu") == 0;
    case MLA_BENCH_DEVICE:
        return mla_parse_u32(text, 0, 1023, &options->device);
    case MLA_BENCH_THREADS:
        return mla_parse_u32(text, 1, 1024, &options->threads);
    case MLA_BENCH_REPEAT:
        return mla_parse_u32(text, 1, MLA_TIMER_REPEAT_MAX, &options->repeat);
    case MLA_BENCH_BANDWIDTH:
        return set_rate(text, 1e9, &options->ceilings.bytes_per_s);
    case MLA_BENCH_PEAK:
        return set_rate(text, 1e12, &options->ceilings.flops_per_s);
    case MLA_BENCH_JSON:
        options->json = text;
        return *text != '\0';
    default:
        return false;
    }
}

static enum mla_status create(const struct mla_bench_options *options, struct mla_backend **out)
{
    if (!options->cuda)
        return mla_backend_cpu_create((int)options->threads, out);
    int count = mla_backend_cuda_count();
    if ((int)options->device >= count) {
        fprintf(stderr, "mla-bench: there is no GPU %u: %d can be used\n", options->device, count);
        return MLA_OPTION;
    }
    return mla_backend_cuda_create((int)options->device, out);
}

enum mla_status mla_bench_on_device(const struct mla_bench_options *options,
                                    enum mla_status (*run)(struct mla_timer *timer,
                                                           const void *context),
                                    const void *context)
{
    struct mla_backend *backend = NULL;
    struct mla_timer timer = {0};
    enum mla_status status = create(options, &backend);
    if (status != MLA_OK)
        return status;
    status = mla_timer_init(&timer, backend);
    if (status == MLA_OK)
        status = run(&timer, context);
    mla_timer_fini(&timer);
    backend->ops->destroy(&backend);
    return status;
}

/* The value of the first line of a file that begins with `key`. */
static bool read_name(const char *path, const char *key, char *name, size_t bytes)
{
    FILE *file = fopen(path, "re");
    char line[256];
    bool found = false;
    while (file && !found && fgets(line, sizeof line, file)) {
        char *value = strncmp(line, key, strlen(key)) == 0 ? strchr(line, ':') : NULL;
        if (!value)
            continue;
        value += 1 + strspn(value + 1, " \t");
        value[strcspn(value, "\n")] = '\0';
        snprintf(name, bytes, "%s", value);
        found = true;
    }
    if (file)
        (void)fclose(file);
    return found;
}

/* The driver's list, whose order CUDA need not follow: any GPU of a host of equal ones. */
static bool read_gpu_name(char *name, size_t bytes)
{
    static const char folder[] = "/proc/driver/nvidia/gpus";
    char path[sizeof folder + sizeof((struct dirent *)NULL)->d_name + sizeof "/information"];
    DIR *gpus = opendir(folder);
    const struct dirent *gpu;
    bool found = false;
    while (gpus && !found && (gpu = readdir(gpus))) {
        snprintf(path, sizeof path, "%s/%s/information", folder, gpu->d_name);
        found = read_name(path, "Model", name, bytes);
    }
    if (gpus)
        (void)closedir(gpus);
    return found;
}

void mla_bench_device_name(const struct mla_bench_options *options, char *name, size_t bytes)
{
    bool found = options->cuda ? read_gpu_name(name, bytes)
                               : read_name("/proc/cpuinfo", "model name", name, bytes);
    if (!found)
        snprintf(name, bytes, "unknown");
}

static enum mla_status median_us(struct mla_timer *timer, struct mla_timer_body body, double *us)
{
    struct mla_series series = {0};
    struct mla_summary summary;
    enum mla_status status = mla_timer_samples(timer, body, false, CEILING_REPEAT, &series);
    mla_series_summarize(&series, &summary);
    mla_series_fini(&series);
    *us = summary.median;
    return status;
}

struct large_copy {
    struct mla_backend *backend;
    char *memory; /* two halves */
    size_t bytes;
};

static enum mla_status run_copy(void *context)
{
    const struct large_copy *copy = context;
    return copy->backend->ops->move(copy->backend, copy->memory + copy->bytes, copy->memory,
                                    copy->bytes);
}

static enum mla_status measure_copy(struct mla_timer *timer, double *bytes_per_s)
{
    struct mla_backend *backend = timer->backend;
    struct large_copy copy = {backend, NULL, (size_t)(backend->graphs ? 1024 : 128) << 20};
    void *memory = NULL;
    double us = 0;
    int64_t values = (int64_t)(2 * copy.bytes / mla_dtype_bytes(backend->activation));
    enum mla_status status = mla_bench_noise(backend, backend->activation, values, &memory);
    copy.memory = memory;
    if (status == MLA_OK)
        status = median_us(timer, (struct mla_timer_body){run_copy, &copy}, &us);
    if (status == MLA_OK)
        *bytes_per_s = 2 * (double)copy.bytes / us * 1e6;
    backend->ops->free(backend, memory);
    return status;
}

struct large_gemm {
    struct mla_backend *backend;
    struct mla_gemm gemm;
};

static enum mla_status run_gemm(void *context)
{
    const struct large_gemm *large = context;
    return large->backend->ops->gemm(large->backend, &large->gemm);
}

static enum mla_status measure_gemm(struct mla_timer *timer, double *flops_per_s)
{
    struct mla_backend *backend = timer->backend;
    int64_t n = backend->graphs ? GEMM_CUDA : GEMM_CPU;
    void *memory[3] = {0};
    double us = 0;
    enum mla_status status = MLA_OK;
    for (int i = 0; status == MLA_OK && i < 3; i++)
        status = mla_bench_noise(backend, backend->activation, n * n, &memory[i]);
    struct large_gemm large = {backend,
                               {.m = n,
                                .n = n,
                                .k = n,
                                .batch = 1,
                                .a = memory[0],
                                .lda = n,
                                .b = memory[1],
                                .ldb = n,
                                .b_transposed = true,
                                .c = memory[2],
                                .ldc = n}};
    if (status == MLA_OK)
        status = median_us(timer, (struct mla_timer_body){run_gemm, &large}, &us);
    if (status == MLA_OK)
        *flops_per_s = mla_cost_gemm(&large.gemm, 0).flops / us * 1e6;
    for (int i = 0; i < 3; i++)
        backend->ops->free(backend, memory[i]);
    return status;
}

enum mla_status mla_bench_ceilings(struct mla_timer *timer, struct mla_ceilings *ceilings)
{
    enum mla_status status = MLA_OK;
    if (ceilings->bytes_per_s == 0)
        status = measure_copy(timer, &ceilings->bytes_per_s);
    if (status == MLA_OK && ceilings->flops_per_s == 0)
        status = measure_gemm(timer, &ceilings->flops_per_s);
    return status;
}

static enum mla_status run_nothing(void *context)
{
    (void)context;
    return MLA_OK;
}

enum mla_status mla_bench_fences(struct mla_timer *timer, double *us)
{
    return median_us(timer, (struct mla_timer_body){run_nothing, NULL}, us);
}

enum mla_status mla_bench_put(struct mla_backend *backend, const void *data, size_t bytes,
                              void **out)
{
    void *memory = NULL;
    enum mla_status status = backend->ops->alloc(backend, bytes, &memory);
    if (status == MLA_OK)
        status = backend->ops->upload(backend, memory, data, bytes);
    if (status == MLA_OK)
        status = backend->ops->synchronize(backend);
    if (status == MLA_OK)
        *out = memory;
    else
        backend->ops->free(backend, memory);
    return status;
}

/* `count` elements: a tile of them, then copies of what is there: 2, 4, 8, ... tiles. */
static enum mla_status spread(struct mla_backend *backend, const void *tile, size_t element,
                              int64_t count, char *memory)
{
    size_t bytes = (size_t)count * element;
    size_t done = bytes < TILE_VALUES * element ? bytes : TILE_VALUES * element;
    enum mla_status status = backend->ops->upload(backend, memory, tile, done);
    while (status == MLA_OK && done < bytes) {
        size_t now = bytes - done < done ? bytes - done : done;
        status = backend->ops->move(backend, memory + done, memory, now);
        done += now;
    }
    return status == MLA_OK ? backend->ops->synchronize(backend) : status;
}

enum mla_status mla_bench_fill(struct mla_backend *backend, enum mla_dtype dtype, int64_t count,
                               void *memory)
{
    size_t element = mla_dtype_bytes(dtype);
    char *tile = malloc(TILE_VALUES * element);
    uint64_t state = 1;
    if (!tile)
        return MLA_MEMORY;
    for (size_t i = 0; i < TILE_VALUES; i++) {
        float value = (float)(mla_bench_random(&state) >> 40) * 0x1p-23f - 1;
        uint16_t narrow = mla_f32_to_bf16(value);
        memcpy(tile + i * element, dtype == MLA_BF16 ? (void *)&narrow : (void *)&value, element);
    }
    enum mla_status status = spread(backend, tile, element, count, memory);
    free(tile);
    return status;
}

/* Every bit set is a NaN in both dtypes. */
static enum mla_status fill_nan(struct mla_backend *backend, enum mla_dtype dtype, int64_t count,
                                void *memory)
{
    size_t element = mla_dtype_bytes(dtype);
    char *tile = malloc(TILE_VALUES * element);
    if (!tile)
        return MLA_MEMORY;
    memset(tile, 0xff, TILE_VALUES * element);
    enum mla_status status = spread(backend, tile, element, count, memory);
    free(tile);
    return status;
}

static enum mla_status
make(struct mla_backend *backend, enum mla_dtype dtype, int64_t count,
     enum mla_status (*fill)(struct mla_backend *, enum mla_dtype, int64_t, void *), void **out)
{
    void *memory = NULL;
    enum mla_status status =
        backend->ops->alloc(backend, (size_t)count * mla_dtype_bytes(dtype), &memory);
    if (status == MLA_OK)
        status = fill(backend, dtype, count, memory);
    if (status == MLA_OK)
        *out = memory;
    else
        backend->ops->free(backend, memory);
    return status;
}

enum mla_status mla_bench_noise(struct mla_backend *backend, enum mla_dtype dtype, int64_t count,
                                void **out)
{
    return make(backend, dtype, count, mla_bench_fill, out);
}

enum mla_status mla_bench_unwritten(struct mla_backend *backend, enum mla_dtype dtype,
                                    int64_t count, void **out)
{
    return make(backend, dtype, count, fill_nan, out);
}

/* Whether all are numbers in [-1, 1], but for rounding. */
static bool averages(const char *values, enum mla_dtype dtype, size_t count)
{
    size_t element = mla_dtype_bytes(dtype);
    for (size_t i = 0; i < count; i++) {
        uint16_t narrow;
        float value;
        memcpy(&narrow, values + i * element, sizeof narrow);
        if (dtype == MLA_BF16)
            value = mla_bf16_to_f32(narrow);
        else
            memcpy(&value, values + i * element, sizeof value);
        if (!(value >= -1.01f && value <= 1.01f)) {
            fprintf(stderr, "mla-bench: attention made %g of values in [-1, 1)\n", (double)value);
            return false;
        }
    }
    return true;
}

enum mla_status mla_bench_averages(struct mla_backend *backend, enum mla_dtype dtype, int64_t count,
                                   const void *memory)
{
    size_t element = mla_dtype_bytes(dtype);
    size_t part = (size_t)(count < TILE_VALUES ? count : TILE_VALUES);
    size_t starts[] = {0, ((size_t)count - part) * element};
    char *host = malloc(part * element);
    enum mla_status status = host ? MLA_OK : MLA_MEMORY;
    for (int i = 0; status == MLA_OK && i < 2; i++) {
        status =
            backend->ops->download(backend, host, (const char *)memory + starts[i], part * element);
        if (status == MLA_OK)
            status = backend->ops->synchronize(backend);
        if (status == MLA_OK && !averages(host, dtype, part))
            status = MLA_INTERNAL;
    }
    free(host);
    return status;
}
