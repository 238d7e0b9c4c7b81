/* The device that a bench runs on: made by its name, filled with what doesn't matter, and how
 * fast it is at best. */
#ifndef MLA_TESTS_BENCH_DEVICE_H
#define MLA_TESTS_BENCH_DEVICE_H

#include "tests/bench/cost.h"
#include "tests/bench/timer.h"

/* Options that the benches of a device have in common. */
struct mla_bench_options {
    bool cuda;
    uint32_t device;  /* of those that CUDA counts */
    uint32_t threads; /* of the CPU; 0: OMP_NUM_THREADS, or all cores */
    uint32_t repeat;
    struct mla_ceilings ceilings; /* what is 0 is measured */
    const char *json;
};

enum mla_bench_option {
    MLA_BENCH_BACKEND = 512,
    MLA_BENCH_DEVICE,
    MLA_BENCH_THREADS,
    MLA_BENCH_REPEAT,
    MLA_BENCH_BANDWIDTH,
    MLA_BENCH_PEAK,
    MLA_BENCH_JSON,
};

/* For a table of options, and its help. */
#define MLA_BENCH_OPTIONS                                                                          \
    {"backend", required_argument, NULL, MLA_BENCH_BACKEND},                                       \
        {"device", required_argument, NULL, MLA_BENCH_DEVICE},                                     \
        {"threads", required_argument, NULL, MLA_BENCH_THREADS},                                   \
        {"repeat", required_argument, NULL, MLA_BENCH_REPEAT},                                     \
        {"bandwidth", required_argument, NULL, MLA_BENCH_BANDWIDTH},                               \
        {"peak", required_argument, NULL, MLA_BENCH_PEAK},                                         \
    {                                                                                              \
        "json", required_argument, NULL, MLA_BENCH_JSON                                            \
    }
#define MLA_BENCH_HELP                                                                             \
    "  --backend cpu|cuda    where to compute (cuda where there is a GPU)\n"                       \
    "  --device N            which GPU (0)\n"                                                      \
    "  --threads N           OpenMP threads of the CPU backend (OMP_NUM_THREADS, or all cores)\n"  \
    "  --repeat N            samples of each time (30)\n"                                          \
    "  --bandwidth GB        memory bandwidth, GB a second; measured with a large copy "           \
    "otherwise\n"                                                                                  \
    "  --peak TFLOP          TFLOP a second; measured with a large product otherwise\n"            \
    "  --json FILE           writes the numbers there as well\n"

struct mla_bench_options mla_bench_defaults(void);
/* Takes one of the options above; false for a value that it does not take, or another option. */
bool mla_bench_option_set(struct mla_bench_options *options, int id, const char *text);

/* Makes the backend and a timer, calls `run`, and destroys both. MLA_OPTION where there is no such
 * device, MLA_MEMORY, MLA_INTERNAL; logged. */
enum mla_status mla_bench_on_device(const struct mla_bench_options *options,
                                    enum mla_status (*run)(struct mla_timer *timer,
                                                           const void *context),
                                    const void *context);
/* "NVIDIA H100 80GB HBM3", or the CPU's name, or "unknown". */
void mla_bench_device_name(const struct mla_bench_options *options, char *name, size_t bytes);

/* Measures what is 0. */
enum mla_status mla_bench_ceilings(struct mla_timer *timer, struct mla_ceilings *ceilings);
/* Microseconds from one fence to the next with nothing in between: a part of every time. */
enum mla_status mla_bench_fences(struct mla_timer *timer, double *us);

/* New memory with a copy of `bytes` bytes; with `count` values in [-1, 1); with NaNs, which show
 * what nobody writes. MLA_MEMORY. */
enum mla_status mla_bench_put(struct mla_backend *backend, const void *data, size_t bytes,
                              void **out);
enum mla_status mla_bench_noise(struct mla_backend *backend, enum mla_dtype dtype, int64_t count,
                                void **out);
enum mla_status mla_bench_unwritten(struct mla_backend *backend, enum mla_dtype dtype,
                                    int64_t count, void **out);
/* Memory that is there, with `count` values in [-1, 1). */
enum mla_status mla_bench_fill(struct mla_backend *backend, enum mla_dtype dtype, int64_t count,
                               void *memory);

/* Looks at the beginning and the end of what attention over values in [-1, 1) made: all of it
 * must be numbers of that range. Times of nonsense would be none. MLA_INTERNAL, logged. */
enum mla_status mla_bench_averages(struct mla_backend *backend, enum mla_dtype dtype, int64_t count,
                                   const void *memory);

#endif
