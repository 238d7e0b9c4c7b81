#include "worker/trace.h"

#include "proto/clock.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Operations of one microbatch that are kept: a prefill with 24 chunks of context. */
enum { OPERATIONS_MAX = 128, PATH_BYTES = 4096 };

/* The device's spans are floats of milliseconds: they lose microseconds after a minute. */
static const uint64_t SETTLED_NS = 10000000000u;

enum track { TRACK_HOST, TRACK_MICROBATCHES, TRACK_OPERATIONS };

/* Operations follow each other on one queue: each begins where the one before ends. */
struct operations {
    const struct mla_flight *flight;
    uint32_t count;
    const char *names[OPERATIONS_MAX];
    struct mla_fence *ends[OPERATIONS_MAX];
};

struct mla_trace {
    struct mla_backend backend; /* forwards to `inner` */
    struct traced_collective {
        struct mla_collective base;
        struct mla_trace *trace;
        struct mla_collective *inner;
    } collective;
    struct mla_backend *inner;
    FILE *file;
    uint32_t rank;
    bool capturing;
    struct mla_fence *origin;
    uint64_t origin_ns;
    struct operations *current;
    struct operations flights[MLA_FLIGHTS_MAX];
};

static struct mla_trace *trace_of(struct mla_backend *backend)
{
    return (struct mla_trace *)(void *)backend;
}

/* What runs inside a capture runs later, many times. */
static enum mla_status record(struct mla_trace *trace, const char *name)
{
    struct operations *to = trace->current;
    if (trace->capturing || !to || to->count == OPERATIONS_MAX)
        return MLA_OK;
    struct mla_fence **end = &to->ends[to->count];
    enum mla_status status = MLA_OK;
    if (!*end)
        status = trace->inner->ops->fence_create(trace->inner, end);
    if (status == MLA_OK)
        status = trace->inner->ops->fence_record(trace->inner, MLA_QUEUE_COMPUTE, *end);
    if (status == MLA_OK)
        to->names[to->count++] = name;
    return status;
}

/* Every operation has its own type, and nothing else differs. */
#define TRACED(operation)                                                                          \
    static enum mla_status traced_##operation(struct mla_backend *backend,                         \
                                              const struct mla_##operation *arguments)             \
    {                                                                                              \
        struct mla_trace *trace = trace_of(backend);                                               \
        enum mla_status status = trace->inner->ops->operation(trace->inner, arguments);            \
        return status == MLA_OK ? record(trace, #operation) : status;                              \
    }

TRACED(gemm)
TRACED(latents)
TRACED(rope)
TRACED(copy)
TRACED(kv_write)
TRACED(kv_gather)
TRACED(attend_decode)
TRACED(attend_prefill)
TRACED(merge)

static enum mla_status traced_alloc(struct mla_backend *backend, size_t bytes, void **out)
{
    struct mla_backend *inner = trace_of(backend)->inner;
    return inner->ops->alloc(inner, bytes, out);
}

static void traced_free(struct mla_backend *backend, void *memory)
{
    struct mla_backend *inner = trace_of(backend)->inner;
    inner->ops->free(inner, memory);
}

static enum mla_status traced_memory_free(struct mla_backend *backend, uint64_t *bytes)
{
    struct mla_backend *inner = trace_of(backend)->inner;
    return inner->ops->memory_free(inner, bytes);
}

static enum mla_status traced_move(struct mla_backend *backend, void *dst, const void *src,
                                   size_t bytes)
{
    struct mla_backend *inner = trace_of(backend)->inner;
    return inner->ops->move(inner, dst, src, bytes);
}

static enum mla_status traced_synchronize(struct mla_backend *backend)
{
    struct mla_backend *inner = trace_of(backend)->inner;
    return inner->ops->synchronize(inner);
}

static enum mla_status traced_capture_begin(struct mla_backend *backend)
{
    struct mla_trace *trace = trace_of(backend);
    trace->capturing = true;
    return trace->inner->ops->capture_begin(trace->inner);
}

static enum mla_status traced_capture_end(struct mla_backend *backend, struct mla_graph **out)
{
    struct mla_trace *trace = trace_of(backend);
    trace->capturing = false;
    return trace->inner->ops->capture_end(trace->inner, out);
}

static enum mla_status traced_graph_run(struct mla_backend *backend, struct mla_graph *graph)
{
    struct mla_trace *trace = trace_of(backend);
    enum mla_status status = trace->inner->ops->graph_run(trace->inner, graph);
    return status == MLA_OK ? record(trace, "graph") : status;
}

static void traced_graph_destroy(struct mla_backend *backend, struct mla_graph *graph)
{
    struct mla_backend *inner = trace_of(backend)->inner;
    inner->ops->graph_destroy(inner, graph);
}

/* What worker/layer.c and worker/graphs.c call. */
static const struct mla_backend_ops traced_ops = {
    .name = "traced",
    .alloc = traced_alloc,
    .free = traced_free,
    .memory_free = traced_memory_free,
    .move = traced_move,
    .synchronize = traced_synchronize,
    .capture_begin = traced_capture_begin,
    .capture_end = traced_capture_end,
    .graph_run = traced_graph_run,
    .graph_destroy = traced_graph_destroy,
    .gemm = traced_gemm,
    .latents = traced_latents,
    .rope = traced_rope,
    .copy = traced_copy,
    .kv_write = traced_kv_write,
    .kv_gather = traced_kv_gather,
    .attend_decode = traced_attend_decode,
    .attend_prefill = traced_attend_prefill,
    .merge = traced_merge,
};

static enum mla_status traced_all_gather(struct mla_collective *collective, void *data,
                                         size_t count)
{
    struct traced_collective *traced = (struct traced_collective *)(void *)collective;
    enum mla_status status = traced->inner->ops->all_gather(traced->inner, data, count);
    collective->ns = traced->inner->ns;
    return status == MLA_OK ? record(traced->trace, "all_gather") : status;
}

static enum mla_status traced_reduce_scatter(struct mla_collective *collective, void *data,
                                             size_t count, void **part)
{
    struct traced_collective *traced = (struct traced_collective *)(void *)collective;
    enum mla_status status = traced->inner->ops->reduce_scatter(traced->inner, data, count, part);
    collective->ns = traced->inner->ns;
    return status == MLA_OK ? record(traced->trace, "reduce_scatter") : status;
}

static enum mla_status traced_collective_alloc(struct mla_collective *collective, size_t bytes,
                                               void **out)
{
    struct mla_collective *inner = ((struct traced_collective *)(void *)collective)->inner;
    return inner->ops->alloc(inner, bytes, out);
}

static void traced_collective_free(struct mla_collective *collective, void *memory)
{
    struct mla_collective *inner = ((struct traced_collective *)(void *)collective)->inner;
    inner->ops->free(inner, memory);
}

static const struct mla_collective_ops traced_collective_ops = {
    .alloc = traced_collective_alloc,
    .free = traced_collective_free,
    .name = "traced",
    .all_gather = traced_all_gather,
    .reduce_scatter = traced_reduce_scatter,
};

static void name_track(struct mla_trace *trace, enum track track, const char *name)
{
    fprintf(trace->file,
            "{\"name\":\"thread_name\",\"ph\":\"M\",\"pid\":%u,\"tid\":%d,"
            "\"args\":{\"name\":\"%s\"}},\n",
            trace->rank, (int)track, name);
}

enum mla_status mla_trace_open(const char *path, uint32_t rank, uint32_t ranks,
                               struct mla_backend *backend, struct mla_collective *collective,
                               struct mla_trace **out)
{
    char name[PATH_BYTES];
    int length = ranks > 1 ? snprintf(name, sizeof name, "%s.%u", path, rank)
                           : snprintf(name, sizeof name, "%s", path);
    if (length >= (int)sizeof name)
        return MLA_OPTION;
    struct mla_trace *trace = calloc(1, sizeof *trace);
    if (!trace)
        return MLA_MEMORY;
    trace->inner = backend;
    trace->backend = *backend;
    trace->backend.ops = &traced_ops;
    trace->collective =
        (struct traced_collective){.base = *collective, .trace = trace, .inner = collective};
    trace->collective.base.ops = &traced_collective_ops;
    trace->rank = rank;
    enum mla_status status = backend->ops->fence_create(backend, &trace->origin);
    trace->file = fopen(name, "w");
    if (status == MLA_OK && !trace->file) {
        perror(name);
        status = MLA_OPTION;
    }
    if (status != MLA_OK) {
        mla_trace_close(&trace);
        return status;
    }
    fprintf(trace->file,
            "[\n{\"name\":\"process_name\",\"ph\":\"M\",\"pid\":%u,\"args\":{\"name\":\"rank %u, "
            "%s\"}},\n",
            rank, rank, backend->ops->name);
    name_track(trace, TRACK_HOST, "host");
    name_track(trace, TRACK_MICROBATCHES, "microbatches");
    name_track(trace, TRACK_OPERATIONS, "operations");
    *out = trace;
    return MLA_OK;
}

struct mla_backend *mla_trace_backend(struct mla_trace *trace, struct mla_backend *backend)
{
    return trace ? &trace->backend : backend;
}

struct mla_collective *mla_trace_collective(struct mla_trace *trace,
                                            struct mla_collective *collective)
{
    return trace ? &trace->collective.base : collective;
}

void mla_trace_close(struct mla_trace **trace_at)
{
    struct mla_trace *trace = *trace_at;
    if (!trace)
        return;
    const struct mla_backend_ops *ops = trace->inner->ops;
    ops->fence_destroy(trace->inner, trace->origin);
    for (uint32_t i = 0; i < MLA_FLIGHTS_MAX; i++)
        for (uint32_t k = 0; k < OPERATIONS_MAX; k++)
            ops->fence_destroy(trace->inner, trace->flights[i].ends[k]);
    if (trace->file) { /* every event ends in a comma; the last is a mark */
        fprintf(
            trace->file,
            "{\"name\":\"end\",\"ph\":\"i\",\"s\":\"p\",\"ts\":%.3f,\"pid\":%u,\"tid\":%d}\n]\n",
            (double)mla_now_ns() / 1e3, trace->rank, (int)TRACK_HOST);
        fclose(trace->file);
    }
    free(trace);
    *trace_at = NULL;
}

bool mla_trace_unsettled(const struct mla_trace *trace)
{
    return trace && (trace->origin_ns == 0 || mla_now_ns() - trace->origin_ns > SETTLED_NS);
}

enum mla_status mla_trace_settle(struct mla_trace *trace)
{
    struct mla_backend *inner = trace->inner;
    enum mla_status status = inner->ops->synchronize(inner);
    if (status == MLA_OK)
        status = inner->ops->fence_record(inner, MLA_QUEUE_COMPUTE, trace->origin);
    if (status == MLA_OK)
        status = inner->ops->synchronize(inner);
    trace->origin_ns = mla_now_ns();
    return status;
}

static void span(const struct mla_trace *trace, enum track track, const char *name,
                 uint64_t begin_ns, uint64_t ns)
{
    fprintf(trace->file,
            "{\"name\":\"%s\",\"ph\":\"X\",\"ts\":%.3f,\"dur\":%.3f,\"pid\":%u,\"tid\":%d", name,
            (double)begin_ns / 1e3, (double)ns / 1e3, trace->rank, (int)track);
}

void mla_trace_host(struct mla_trace *trace, const char *name, uint64_t step, uint64_t begin_ns,
                    uint64_t end_ns)
{
    if (!trace)
        return;
    span(trace, TRACK_HOST, name, begin_ns, end_ns - begin_ns);
    fprintf(trace->file, ",\"args\":{\"step\":%llu}},\n", (unsigned long long)step);
}

/* A flight keeps its place in the ring from begin to take. */
static struct operations *operations_of(struct mla_trace *trace, const struct mla_flight *flight)
{
    for (uint32_t i = 0; i < MLA_FLIGHTS_MAX; i++)
        if (trace->flights[i].flight == flight || !trace->flights[i].flight)
            return &trace->flights[i];
    return NULL;
}

void mla_trace_begin(struct mla_trace *trace, const struct mla_flight *flight)
{
    if (!trace)
        return;
    trace->current = operations_of(trace, flight);
    trace->current->flight = flight;
    trace->current->count = 0;
}

enum mla_status mla_trace_flight(struct mla_trace *trace, const struct mla_flight *flight)
{
    if (!trace)
        return MLA_OK;
    const struct mla_backend_ops *ops = trace->inner->ops;
    const struct operations *operations = operations_of(trace, flight);
    const struct mla_work *work = &flight->work;
    char name[64];
    uint64_t at_ns = 0;
    uint64_t ns = 0;
    enum mla_status status = ops->fence_span(trace->inner, trace->origin, flight->begun, &at_ns);
    if (status == MLA_OK)
        status = ops->fence_span(trace->inner, flight->begun, flight->computed, &ns);
    if (status != MLA_OK)
        return status;
    at_ns += trace->origin_ns;
    snprintf(name, sizeof name, "layer %u", work->layer);
    span(trace, TRACK_MICROBATCHES, name, at_ns, ns);
    fprintf(trace->file,
            ",\"args\":{\"step\":%llu,\"microbatch\":%u,\"own rows\":%u,\"work\":%llu}},\n",
            (unsigned long long)work->step, work->microbatch, work->rows,
            (unsigned long long)work->work);
    struct mla_fence *before = flight->begun;
    for (uint32_t i = 0; i < operations->count; i++) {
        status = ops->fence_span(trace->inner, before, operations->ends[i], &ns);
        if (status != MLA_OK)
            return status;
        span(trace, TRACK_OPERATIONS, operations->names[i], at_ns, ns);
        fprintf(trace->file, "},\n");
        at_ns += ns;
        before = operations->ends[i];
    }
    return MLA_OK;
}
