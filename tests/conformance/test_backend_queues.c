/* Queues beside each other, and the fences between them. */
#include "tests/conformance/device.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <sys/mman.h>

/* Large enough that a queue that doesn't wait for the other is ahead of it. */
enum { BYTES = 32 << 20, ROUNDS = 4 };

static struct mla_fence *fence(struct mla_device *device)
{
    struct mla_fence *out = NULL;
    MLA_RUN(device, fence_create, &out);
    cr_assert_not_null(out);
    return out;
}

static void *host(struct mla_device *device)
{
    void *out = NULL;
    MLA_RUN(device, host_alloc, BYTES, &out);
    cr_assert_not_null(out);
    return out;
}

/* In, through the device, out; every round in the same memory. Nothing but fences keeps a round
 * from the one before, and its three parts in order. */
static void order(struct mla_device *device)
{
    const struct mla_backend_ops *ops = device->backend->ops;
    uint32_t *from = host(device);
    uint32_t *to = host(device);
    void *a = mla_device_make(device, BYTES);
    void *b = mla_device_make(device, BYTES);
    struct mla_fence *in = fence(device), *moved = fence(device), *out = fence(device);
    const size_t words = BYTES / sizeof *from;
    for (uint32_t round = 1; round <= ROUNDS; round++) {
        for (size_t i = 0; i < words; i++)
            from[i] = round * 0x01000193u ^ (uint32_t)i;
        memset(to, 0, BYTES);
        MLA_RUN(device, fence_wait, MLA_QUEUE_IN, moved);
        MLA_RUN(device, copy_in, a, from, BYTES);
        MLA_RUN(device, fence_record, MLA_QUEUE_IN, in);
        MLA_RUN(device, fence_wait, MLA_QUEUE_COMPUTE, in);
        MLA_RUN(device, fence_wait, MLA_QUEUE_COMPUTE, out);
        MLA_RUN(device, move, b, a, BYTES);
        MLA_RUN(device, fence_record, MLA_QUEUE_COMPUTE, moved);
        MLA_RUN(device, fence_wait, MLA_QUEUE_OUT, moved);
        MLA_RUN(device, copy_out, to, b, BYTES);
        MLA_RUN(device, fence_record, MLA_QUEUE_OUT, out);
        bool reached = false;
        while (!reached)
            MLA_RUN(device, fence_reached, out, &reached);
        for (size_t i = 0; i < words; i++)
            cr_assert_eq(to[i], from[i], "round %u, word %zu", round, i);
    }
    ops->fence_destroy(device->backend, in);
    ops->fence_destroy(device->backend, moved);
    ops->fence_destroy(device->backend, out);
    ops->host_free(device->backend, from);
    ops->host_free(device->backend, to);
}

Test(queues, order)
{
    mla_each_device(order);
}

static void fences(struct mla_device *device)
{
    const struct mla_backend_ops *ops = device->backend->ops;
    struct mla_fence *begin = fence(device), *end = fence(device);
    void *a = mla_device_make(device, BYTES);
    void *b = mla_device_make(device, BYTES);
    bool reached = false;
    uint64_t ns = 1;
    MLA_RUN(device, fence_reached, begin, &reached);
    cr_assert(reached, "a fence that was never recorded counts as reached");
    MLA_RUN(device, fence_await, begin);
    MLA_RUN(device, fence_span, begin, end, &ns);
    cr_assert_eq(ns, 0);
    MLA_RUN(device, fence_record, MLA_QUEUE_COMPUTE, begin);
    MLA_RUN(device, move, b, a, BYTES);
    MLA_RUN(device, fence_record, MLA_QUEUE_COMPUTE, end);
    MLA_RUN(device, fence_await, end);
    reached = false;
    MLA_RUN(device, fence_reached, begin, &reached);
    cr_assert(reached, "the fence before one that was reached");
    MLA_RUN(device, fence_span, begin, end, &ns);
    /* 32 MiB are not moved in less than 5 us, nor in more than 10 s. */
    cr_assert(ns > 5000 && ns < 10000000000, "%llu ns", (unsigned long long)ns);
    ops->fence_destroy(device->backend, begin);
    ops->fence_destroy(device->backend, end);
    ops->fence_destroy(device->backend, NULL);
    ops->host_free(device->backend, NULL);
    ops->free(device->backend, NULL);
}

Test(queues, fences)
{
    mla_each_device(fences);
}

/* synchronize waits for all queues. */
static void synchronize(struct mla_device *device)
{
    unsigned char *from = host(device);
    unsigned char *to = host(device);
    void *a = mla_device_make(device, BYTES);
    memset(from, 0xa5, BYTES);
    memset(to, 0, BYTES);
    MLA_RUN(device, copy_in, a, from, BYTES);
    mla_device_synchronize(device);
    MLA_RUN(device, copy_out, to, a, BYTES);
    mla_device_synchronize(device);
    cr_assert(memcmp(from, to, BYTES) == 0);
    device->backend->ops->host_free(device->backend, from);
    device->backend->ops->host_free(device->backend, to);
}

Test(queues, synchronize)
{
    mla_each_device(synchronize);
}

enum { ROWS = 40, WIDTH = 264 };
static const size_t VALUES = (size_t)ROWS * WIDTH;

static struct mla_copy rows_copy(const void *src, enum mla_dtype src_dtype, void *dst,
                                 enum mla_dtype dst_dtype)
{
    return (struct mla_copy){.rows = ROWS,
                             .n = WIDTH,
                             .src = src,
                             .src_stride = WIDTH,
                             .src_dtype = src_dtype,
                             .dst = dst,
                             .dst_stride = WIDTH,
                             .dst_dtype = dst_dtype};
}

/* Small numbers, the same in both dtypes. */
static void write_value(void *rows, enum mla_dtype dtype, size_t at, float value)
{
    if (dtype == MLA_F32)
        ((float *)rows)[at] = value;
    else
        ((uint16_t *)rows)[at] = mla_f32_to_bf16(value);
}

static float read_value(const void *rows, enum mla_dtype dtype, size_t at)
{
    return dtype == MLA_F32 ? ((const float *)rows)[at]
                            : mla_bf16_to_f32(((const uint16_t *)rows)[at]);
}

/* From one host's memory through the device to the other. What the host has written is read, and
 * not what was there in the last round; what it reads once the fence is reached was written. */
static void through(struct mla_device *device, void *from, enum mla_dtype from_dtype, void *to,
                    enum mla_dtype to_dtype)
{
    enum mla_dtype activation = device->backend->activation;
    void *between = mla_device_make(device, VALUES * sizeof(float));
    struct mla_fence *end = fence(device);
    struct mla_copy in = rows_copy(from, from_dtype, between, activation);
    struct mla_copy out = rows_copy(between, activation, to, to_dtype);
    for (size_t round = 0; round < ROUNDS; round++) {
        for (size_t i = 0; i < VALUES; i++)
            write_value(from, from_dtype, i, (float)((i * 7 + round) % 251));
        MLA_RUN(device, copy, &in);
        MLA_RUN(device, copy, &out);
        MLA_RUN(device, fence_record, MLA_QUEUE_COMPUTE, end);
        bool reached = false;
        while (!reached)
            MLA_RUN(device, fence_reached, end, &reached);
        for (size_t i = 0; i < VALUES; i++)
            cr_assert_float_eq(read_value(to, to_dtype, i), (float)((i * 7 + round) % 251), 0,
                               "round %zu, value %zu", round, i);
    }
    device->backend->ops->fence_destroy(device->backend, end);
}

static void host_memory(struct mla_device *device)
{
    static const enum mla_dtype dtypes[] = {MLA_F32, MLA_BF16};
    void *own = host(device);
    void *given = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    cr_assert_neq(given, MAP_FAILED);
    MLA_RUN(device, host_register, given, BYTES);
    for (int i = 0; i < 4; i++) {
        through(device, own, dtypes[i / 2], given, dtypes[i % 2]);
        through(device, given, dtypes[i / 2], own, dtypes[i % 2]);
    }
    device->backend->ops->host_unregister(device->backend, given);
    device->backend->ops->host_free(device->backend, own);
    munmap(given, BYTES);
}

Test(queues, copies_of_host_memory)
{
    mla_each_device(host_memory);
}
