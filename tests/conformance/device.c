#include "tests/conformance/device.h"

#include "tests/conformance/gpu.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static enum mla_status create_cpu(struct mla_backend **out)
{
    return mla_backend_cpu_create(1, out);
}

static enum mla_status create_cpu_threads(struct mla_backend **out)
{
    return mla_backend_cpu_create(3, out);
}

static enum mla_status create_cuda(struct mla_backend **out)
{
    return mla_backend_cuda_create(0, out);
}

static const struct {
    const char *name;
    enum mla_status (*create)(struct mla_backend **);
} backends[] = {
    {"cpu, 1 thread", create_cpu},
    {"cpu, 3 threads", create_cpu_threads},
    {"cuda", create_cuda},
};

static uint64_t random_state;

/* splitmix64 (Steele, Lea, Flood, 2014). */
static uint64_t random_bits(void)
{
    uint64_t z = random_state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

double mla_random(void)
{
    return (double)(random_bits() >> 11) * 0x1p-53;
}

int64_t mla_random_int(int64_t low, int64_t high)
{
    return low + (int64_t)(random_bits() % (uint64_t)(high - low + 1));
}

void mla_each_device(void (*body)(struct mla_device *))
{
    for (size_t i = 0; i < sizeof backends / sizeof *backends; i++) {
        struct mla_device device = {0};
        if (backends[i].create == create_cuda && !mla_test_has_gpu())
            continue;
        cr_log_info("backend: %s", backends[i].name);
        cr_assert_eq(backends[i].create(&device.backend), MLA_OK);
        random_state = 1;
        body(&device);
        for (int j = 0; j < device.allocations; j++)
            device.backend->ops->free(device.backend, device.memory[j]);
        device.backend->ops->destroy(&device.backend);
        cr_assert_null(device.backend);
    }
}

void mla_device_synchronize(struct mla_device *device)
{
    cr_assert_eq(device->backend->ops->synchronize(device->backend), MLA_OK);
}

static void *allocate(struct mla_device *device, size_t bytes)
{
    void *memory;
    cr_assert_lt(device->allocations, MLA_DEVICE_ALLOCATIONS_MAX);
    MLA_RUN(device, alloc, bytes ? bytes : 1, &memory);
    cr_assert_eq((uintptr_t)memory % 256, 0);
    device->memory[device->allocations++] = memory;
    return memory;
}

void *mla_device_make(struct mla_device *device, size_t bytes)
{
    return allocate(device, bytes);
}

void *mla_device_put(struct mla_device *device, const void *data, size_t bytes)
{
    void *memory = allocate(device, bytes);
    MLA_RUN(device, upload, memory, data, bytes);
    mla_device_synchronize(device);
    return memory;
}

struct mla_tensor mla_tensor_make(struct mla_device *device, enum mla_dtype dtype, int64_t count)
{
    struct mla_tensor tensor = {.dtype = dtype, .count = count};
    tensor.memory = allocate(device, (size_t)count * mla_dtype_bytes(dtype));
    tensor.host = malloc((size_t)count * sizeof(float) + 1);
    cr_assert_not_null(tensor.host);
    for (int64_t i = 0; i < count; i++)
        tensor.host[i] = NAN;
    mla_tensor_upload(device, &tensor);
    return tensor;
}

struct mla_tensor mla_tensor_make_pool(struct mla_device *device, enum mla_dtype dtype,
                                       int64_t blocks, int64_t latent, int64_t rope)
{
    struct mla_tensor tensor =
        mla_tensor_make(device, dtype, blocks * MLA_BLOCK_TOKENS * (latent + rope));
    tensor.pool = mla_kv_pool_of(device->backend, tensor.memory, dtype, latent, rope);
    return tensor;
}

/* Where the device has an element. */
static int64_t place(const struct mla_tensor *tensor, int64_t i)
{
    int64_t width = tensor->pool.latent + tensor->pool.rope;
    return width ? mla_kv_place(tensor->pool.layout, width, i / width, i % width) : i;
}

static float rounded(enum mla_dtype dtype, float value)
{
    return dtype == MLA_BF16 ? mla_bf16_to_f32(mla_f32_to_bf16(value)) : value;
}

void mla_tensor_fill(struct mla_tensor *tensor, int64_t at, int64_t rows, int64_t stride, int64_t n)
{
    for (int64_t row = 0; row < rows; row++)
        for (int64_t i = 0; i < n; i++)
            tensor->host[at + row * stride + i] =
                rounded(tensor->dtype, (float)(2 * mla_random() - 1));
}

void mla_tensor_upload(struct mla_device *device, struct mla_tensor *tensor)
{
    size_t bytes = (size_t)tensor->count * mla_dtype_bytes(tensor->dtype);
    uint16_t *narrow = NULL;
    if (tensor->dtype == MLA_BF16) {
        narrow = malloc(bytes + 1);
        cr_assert_not_null(narrow);
        for (int64_t i = 0; i < tensor->count; i++)
            narrow[place(tensor, i)] = mla_f32_to_bf16(tensor->host[i]);
    }
    MLA_RUN(device, upload, tensor->memory, narrow ? (void *)narrow : tensor->host, bytes);
    mla_device_synchronize(device);
    free(narrow);
}

void mla_tensor_download(struct mla_device *device, struct mla_tensor *tensor)
{
    size_t bytes = (size_t)tensor->count * mla_dtype_bytes(tensor->dtype);
    uint16_t *narrow = tensor->dtype == MLA_BF16 ? malloc(bytes + 1) : NULL;
    cr_assert(narrow || tensor->dtype != MLA_BF16);
    MLA_RUN(device, download, narrow ? (void *)narrow : tensor->host, tensor->memory, bytes);
    mla_device_synchronize(device);
    for (int64_t i = 0; narrow && i < tensor->count; i++)
        tensor->host[i] = mla_bf16_to_f32(narrow[place(tensor, i)]);
    free(narrow);
}

void mla_tensor_free(struct mla_tensor *tensor)
{
    free(tensor->host);
    *tensor = (struct mla_tensor){0};
}

double *mla_wanted(const struct mla_tensor *tensor)
{
    double *want = malloc((size_t)tensor->count * sizeof *want + 1);
    cr_assert_not_null(want);
    for (int64_t i = 0; i < tensor->count; i++)
        want[i] = (double)NAN;
    return want;
}

/* 0: a number, 1: NaN, 2 and 3: the infinities. */
static int kind(double value)
{
    if (isnan(value))
        return 1;
    return isinf(value) ? 2 + (value > 0) : 0;
}

void mla_expect(struct mla_device *device, struct mla_tensor *got, const double *want, int64_t k,
                const char *what)
{
    mla_expect_rounded(device, got, want, k, got->count, 1, what);
}

/* The mean of what is a number. */
static double magnitude(const double *want, int64_t count)
{
    double sum = 0;
    int64_t numbers = 0;
    for (int64_t i = 0; i < count; i++) {
        if (kind(want[i]) == 0) {
            sum += fabs(want[i]);
            numbers++;
        }
    }
    return numbers ? sum / (double)numbers : 0;
}

void mla_expect_rounded(struct mla_device *device, struct mla_tensor *got, const double *want,
                        int64_t k, int64_t row, int roundings, const char *what)
{
    const double sums = 1e-6 * sqrt((double)k), last = got->dtype == MLA_BF16 ? 0x1p-8 : 0;
    const double earlier = roundings > 1 ? 3 * last * sqrt((double)roundings - 1) : last;
    double scale = 0;
    mla_tensor_download(device, got);
    for (int64_t i = 0; i < got->count; i++)
        cr_assert_eq(kind((double)got->host[i]), kind(want[i]), "%s[%ld]: %g instead of %g", what,
                     (long)i, (double)got->host[i], want[i]);
    for (int64_t i = 0; i < got->count; i++) {
        if (i % row == 0)
            scale = magnitude(want + i, got->count - i < row ? got->count - i : row);
        if (kind(want[i]) != 0)
            continue;
        double error = fabs((double)got->host[i] - want[i]);
        cr_assert_leq(error, (sums + last) * fabs(want[i]) + (sums + earlier) * scale,
                      "%s[%ld]: %.9g for %.9g", what, (long)i, (double)got->host[i], want[i]);
    }
}

void mla_expect_near(struct mla_device *device, struct mla_tensor *got, const double *want,
                     const double *slack, int64_t k, const char *what)
{
    const double sums = 1e-6 * sqrt((double)k), rounding = got->dtype == MLA_BF16 ? 0x1p-8 : 0;
    mla_tensor_download(device, got);
    for (int64_t i = 0; i < got->count; i++) {
        double have = (double)got->host[i];
        cr_assert_eq(kind(have), kind(want[i]), "%s[%ld]: %g instead of %g", what, (long)i, have,
                     want[i]);
        if (kind(want[i]) != 0)
            continue;
        /* Of the sums, what slack says they are made of counts as well: they may cancel out. */
        double most = (sums + rounding) * (fabs(want[i]) + slack[i]);
        cr_assert_leq(fabs(have - want[i]), most, "%s[%ld]: %.9g for %.9g", what, (long)i, have,
                      want[i]);
    }
}
