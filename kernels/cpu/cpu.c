#include "kernels/cpu/cpu.h"

#include "proto/clock.h"

#include <assert.h>
#include <cblas.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { ALIGNMENT = 256 };

static size_t aligned(size_t bytes)
{
    return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

static enum mla_status allocate(size_t bytes, void **out)
{
    void *memory = bytes <= SIZE_MAX - ALIGNMENT ? aligned_alloc(ALIGNMENT, aligned(bytes)) : NULL;
    if (!memory) {
        fprintf(stderr, "kernels: %zu bytes of memory were refused\n", bytes);
        return MLA_MEMORY;
    }
    *out = memory;
    return MLA_OK;
}

static struct mla_cpu *cpu_of(struct mla_backend *backend)
{
    return (struct mla_cpu *)(void *)backend;
}

struct mla_cpu *mla_cpu_begin(struct mla_backend *backend)
{
    struct mla_cpu *cpu = cpu_of(backend);
    omp_set_num_threads(cpu->threads);
    return cpu;
}

enum mla_status mla_cpu_reserve(struct mla_cpu *cpu, size_t shared_bytes, size_t thread_bytes)
{
    size_t shared = aligned(shared_bytes), own = aligned(thread_bytes);
    size_t bytes = shared + own * (size_t)cpu->threads;
    if (bytes > cpu->scratch_bytes) {
        void *scratch;
        enum mla_status status = allocate(bytes, &scratch);
        if (status)
            return status;
        free(cpu->scratch);
        cpu->scratch = scratch;
        cpu->scratch_bytes = bytes;
    }
    cpu->thread_offset = shared;
    cpu->thread_bytes = own;
    return MLA_OK;
}

void *mla_cpu_shared(const struct mla_cpu *cpu)
{
    return cpu->scratch;
}

void *mla_cpu_own(const struct mla_cpu *cpu)
{
    return cpu->scratch + cpu->thread_offset + cpu->thread_bytes * (size_t)omp_get_thread_num();
}

static enum mla_status cpu_alloc(struct mla_backend *backend, size_t bytes, void **out)
{
    (void)backend;
    assert(bytes > 0);
    return allocate(bytes, out);
}

static void cpu_free(struct mla_backend *backend, void *memory)
{
    (void)backend;
    free(memory);
}

static enum mla_status cpu_host_register(struct mla_backend *backend, void *memory, size_t bytes)
{
    (void)backend;
    (void)memory;
    (void)bytes;
    return MLA_OK;
}

static void cpu_host_unregister(struct mla_backend *backend, void *memory)
{
    (void)backend;
    (void)memory;
}

static enum mla_status cpu_move(struct mla_backend *backend, void *dst, const void *src,
                                size_t bytes)
{
    (void)backend;
    memcpy(dst, src, bytes);
    return MLA_OK;
}

static enum mla_status cpu_memory_free(struct mla_backend *backend, uint64_t *bytes)
{
    (void)backend;
    *bytes = (uint64_t)sysconf(_SC_AVPHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
    return MLA_OK;
}

static enum mla_status cpu_synchronize(struct mla_backend *backend)
{
    (void)backend;
    return MLA_OK;
}

static void cpu_destroy(struct mla_backend **backend)
{
    if (!*backend)
        return;
    free(cpu_of(*backend)->scratch);
    free(*backend);
    *backend = NULL;
}

/* Everything has finished when it returns, so a fence is a point in time. */
struct mla_fence {
    uint64_t ns;
};

static enum mla_status cpu_fence_create(struct mla_backend *backend, struct mla_fence **out)
{
    (void)backend;
    struct mla_fence *fence = calloc(1, sizeof *fence);
    if (!fence)
        return MLA_MEMORY;
    *out = fence;
    return MLA_OK;
}

static void cpu_fence_destroy(struct mla_backend *backend, struct mla_fence *fence)
{
    (void)backend;
    free(fence);
}

static enum mla_status cpu_fence_record(struct mla_backend *backend, enum mla_queue queue,
                                        struct mla_fence *fence)
{
    (void)backend;
    (void)queue;
    fence->ns = mla_now_ns();
    return MLA_OK;
}

static enum mla_status cpu_fence_wait(struct mla_backend *backend, enum mla_queue queue,
                                      struct mla_fence *fence)
{
    (void)backend;
    (void)queue;
    (void)fence;
    return MLA_OK;
}

static enum mla_status cpu_fence_reached(struct mla_backend *backend, struct mla_fence *fence,
                                         bool *reached)
{
    (void)backend;
    (void)fence;
    *reached = true;
    return MLA_OK;
}

static enum mla_status cpu_fence_await(struct mla_backend *backend, struct mla_fence *fence)
{
    (void)backend;
    (void)fence;
    return MLA_OK;
}

static enum mla_status cpu_fence_span(struct mla_backend *backend, struct mla_fence *from,
                                      struct mla_fence *to, uint64_t *ns)
{
    (void)backend;
    *ns = to->ns > from->ns ? to->ns - from->ns : 0;
    return MLA_OK;
}

static void cpu_range_begin(struct mla_backend *backend, const char *name)
{
    (void)backend;
    (void)name;
}

static void cpu_range_end(struct mla_backend *backend)
{
    (void)backend;
}

/* The lengths are in host memory: attend_decode looks at them itself. */
static size_t cpu_decode_schedule_bytes(struct mla_backend *backend, int64_t rows_max,
                                        int64_t heads)
{
    (void)backend;
    (void)rows_max;
    (void)heads;
    return 0;
}

static enum mla_status cpu_schedule_decode(struct mla_backend *backend,
                                           const struct mla_attend_decode *attend, void *schedule)
{
    (void)backend;
    (void)attend;
    (void)schedule;
    return MLA_OK;
}

static const struct mla_backend_ops cpu_ops = {
    .name = "cpu",
    .alloc = cpu_alloc,
    .free = cpu_free,
    .memory_free = cpu_memory_free,
    .host_alloc = cpu_alloc,
    .host_free = cpu_free,
    .host_register = cpu_host_register,
    .host_unregister = cpu_host_unregister,
    .upload = cpu_move,
    .download = cpu_move,
    .move = cpu_move,
    .copy_in = cpu_move,
    .copy_out = cpu_move,
    .synchronize = cpu_synchronize,
    .destroy = cpu_destroy,
    .fence_create = cpu_fence_create,
    .fence_destroy = cpu_fence_destroy,
    .fence_record = cpu_fence_record,
    .fence_wait = cpu_fence_wait,
    .fence_reached = cpu_fence_reached,
    .fence_await = cpu_fence_await,
    .fence_span = cpu_fence_span,
    .range_begin = cpu_range_begin,
    .range_end = cpu_range_end,
    .gemm = mla_cpu_gemm,
    .latents = mla_cpu_latents,
    .rope = mla_cpu_rope,
    .copy = mla_cpu_copy,
    .kv_write = mla_cpu_kv_write,
    .kv_gather = mla_cpu_kv_gather,
    .scatter = mla_cpu_scatter,
    .kv_copy = mla_cpu_kv_copy,
    .decode_schedule_bytes = cpu_decode_schedule_bytes,
    .schedule_decode = cpu_schedule_decode,
    .attend_decode = mla_cpu_attend_decode,
    .attend_prefill = mla_cpu_attend_prefill,
    .merge = mla_cpu_merge,
};

/* OpenBLAS compiles its kernels for small products for these cores only. */
static bool has_small_kernels(void)
{
    const char *core = openblas_get_corename();
    return strcmp(core, "SkylakeX") == 0 || strcmp(core, "Cooperlake") == 0 ||
           strcmp(core, "SapphireRapids") == 0;
}

enum mla_status mla_backend_cpu_create(int threads, struct mla_backend **out)
{
    assert(threads >= 0);
    struct mla_cpu *cpu = calloc(1, sizeof *cpu);
    if (!cpu) {
        fputs("kernels: the CPU backend found no memory\n", stderr);
        return MLA_MEMORY;
    }
    cpu->base.ops = &cpu_ops;
    cpu->base.activation = MLA_F32;
    cpu->base.unified = true;
    cpu->threads = threads ? threads : omp_get_max_threads();
    cpu->blas_small = has_small_kernels();
    *out = &cpu->base;
    return MLA_OK;
}
