/* What the conformance tests share: every backend that there is, tensors that live on it, and
 * the comparison with a reference in double precision. */
#ifndef MLA_TESTS_CONFORMANCE_DEVICE_H
#define MLA_TESTS_CONFORMANCE_DEVICE_H

#include "kernels/backend.h"

enum { MLA_DEVICE_ALLOCATIONS_MAX = 96 };

struct mla_device {
    struct mla_backend *backend;
    void *memory[MLA_DEVICE_ALLOCATIONS_MAX];
    int allocations;
};

/* Runs `body` on each backend, with random numbers from the same seed. Where a build with CUDA
 * finds no GPU it says so, and fails if the environment has MLA_EXPECT_GPU. */
void mla_each_device(void (*body)(struct mla_device *));

/* In [0, 1); in [low, high]. */
double mla_random(void);
int64_t mla_random_int(int64_t low, int64_t high);

/* Memory of the device, contents undefined, freed with it. */
void *mla_device_make(struct mla_device *device, size_t bytes);
/* A copy of `bytes` bytes on the device, freed with it. */
void *mla_device_put(struct mla_device *device, const void *data, size_t bytes);

/* `host` holds the elements as f32, `memory` the same as `dtype` on the device. */
struct mla_tensor {
    enum mla_dtype dtype;
    int64_t count;
    float *host;
    void *memory;
    struct mla_kv_pool pool; /* of a pool, whose layout `memory` has; `host` has rows */
};

/* All NaN, so that what nobody fills is padding that must not be read, and what nobody writes
 * shows. */
struct mla_tensor mla_tensor_make(struct mla_device *device, enum mla_dtype dtype, int64_t count);
/* A pool's pages, as the device likes them best. */
struct mla_tensor mla_tensor_make_pool(struct mla_device *device, enum mla_dtype dtype,
                                       int64_t blocks, int64_t latent, int64_t rope);
/* rows x n random values in [-1, 1), `stride` apart from `at` on; rounded to dtype. */
void mla_tensor_fill(struct mla_tensor *tensor, int64_t at, int64_t rows, int64_t stride,
                     int64_t n);
void mla_tensor_upload(struct mla_device *device, struct mla_tensor *tensor);
void mla_tensor_download(struct mla_device *device, struct mla_tensor *tensor);
void mla_tensor_free(struct mla_tensor *tensor);

/* `want` with every element NaN, to be filled; the caller frees it. */
double *mla_wanted(const struct mla_tensor *tensor);

/* Downloads and compares: first where NaN and infinities are, then the values, to what rounding
 * to dtype and f32 sums over k terms allow, relative to a value and to the tensor's mean
 * magnitude. */
void mla_expect(struct mla_device *device, struct mla_tensor *got, const double *want, int64_t k,
                const char *what);

/* The same, relative to the mean magnitude of each `row` elements: an average over many values is
 * smaller than one over few, and so are its errors. `roundings` to bf16 lie behind a result, the
 * last one of itself, the others of terms of the sum that it is. One is at most 2^-8 of its value,
 * and 0.42 of that as root mean square. Errors of many terms add up like the terms, to a normal
 * distribution; five of its standard deviations are 5 * 0.42 / 0.8 < 3 times 2^-8 of the mean
 * magnitude. Those of several stages are independent. */
void mla_expect_rounded(struct mla_device *device, struct mla_tensor *got, const double *want,
                        int64_t k, int64_t row, int roundings, const char *what);
/* Each value of `got` is of the same kind (number, NaN, infinity) as the wanted one, and at most
 * 1e-6 sqrt(k) times it, a rounding to the dtype, and slack[i] roundings of 1 away from it: what
 * was rounded on the way. */
void mla_expect_near(struct mla_device *device, struct mla_tensor *got, const double *want,
                     const double *slack, int64_t k, const char *what);

void mla_device_synchronize(struct mla_device *device);

/* Calls an operation, which must succeed. */
#define MLA_RUN(device, operation, ...)                                                            \
    cr_assert_eq((device)->backend->ops->operation((device)->backend, __VA_ARGS__), MLA_OK)

#endif
