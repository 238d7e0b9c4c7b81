#include "tests/lib/recording_backend.h"

#include <assert.h>
#include <stdlib.h>

/* One call: what to do with a copy of its arguments. */
struct call {
    enum mla_status (*run)(struct mla_backend *, const void *arguments);
    union {
        struct mla_gemm gemm;
        struct mla_latents latents;
        struct mla_rope rope;
        struct mla_copy copy;
        struct mla_kv_write kv_write;
        struct mla_kv_gather kv_gather;
        struct mla_attend_decode attend_decode;
        struct mla_attend_prefill attend_prefill;
        struct mla_merge merge;
    } arguments;
};

enum { CALLS_MAX = 64 };

struct mla_graph {
    uint32_t count;
    struct call calls[CALLS_MAX];
};

static struct mla_recording *recording_of(struct mla_backend *backend)
{
    return (struct mla_recording *)(void *)backend;
}

#define RECORDED(operation)                                                                        \
    static enum mla_status run_##operation(struct mla_backend *inner, const void *arguments)       \
    {                                                                                              \
        return inner->ops->operation(inner, arguments);                                            \
    }                                                                                              \
    static enum mla_status recorded_##operation(struct mla_backend *backend,                       \
                                                const struct mla_##operation *arguments)           \
    {                                                                                              \
        struct mla_recording *recording = recording_of(backend);                                   \
        struct mla_graph *graph = recording->capturing;                                            \
        if (!graph)                                                                                \
            return recording->inner->ops->operation(recording->inner, arguments);                  \
        assert(graph->count < CALLS_MAX);                                                          \
        graph->calls[graph->count++] = (struct call){run_##operation, {.operation = *arguments}};  \
        return MLA_OK;                                                                             \
    }

RECORDED(gemm)
RECORDED(latents)
RECORDED(rope)
RECORDED(copy)
RECORDED(kv_write)
RECORDED(kv_gather)
RECORDED(attend_decode)
RECORDED(attend_prefill)
RECORDED(merge)

static enum mla_status capture_begin(struct mla_backend *backend)
{
    struct mla_recording *recording = recording_of(backend);
    assert(!recording->capturing);
    recording->capturing = calloc(1, sizeof *recording->capturing);
    return recording->capturing ? MLA_OK : MLA_MEMORY;
}

static enum mla_status capture_end(struct mla_backend *backend, struct mla_graph **out)
{
    struct mla_recording *recording = recording_of(backend);
    struct mla_graph *graph = recording->capturing;
    recording->capturing = NULL;
    if (recording->refuse) {
        free(graph);
        return MLA_INTERNAL;
    }
    recording->captured++;
    *out = graph;
    return MLA_OK;
}

static enum mla_status graph_run(struct mla_backend *backend, struct mla_graph *graph)
{
    struct mla_recording *recording = recording_of(backend);
    recording->replayed++;
    enum mla_status status = MLA_OK;
    for (uint32_t i = 0; status == MLA_OK && i < graph->count; i++)
        status = graph->calls[i].run(recording->inner, &graph->calls[i].arguments);
    return status;
}

static void graph_destroy(struct mla_backend *backend, struct mla_graph *graph)
{
    recording_of(backend)->destroyed++;
    free(graph);
}

static void destroy(struct mla_backend **backend)
{
    struct mla_recording *recording = recording_of(*backend);
    recording->inner->ops->destroy(&recording->inner);
    *backend = NULL;
}

void mla_recording_init(struct mla_recording *recording, struct mla_backend *inner)
{
    /* Of its memory and fences, the inner backend's functions don't look at themselves. */
    static struct mla_backend_ops ops;
    ops = *inner->ops;
    ops.name = "recording";
    ops.destroy = destroy;
    ops.capture_begin = capture_begin;
    ops.capture_end = capture_end;
    ops.graph_run = graph_run;
    ops.graph_destroy = graph_destroy;
    ops.gemm = recorded_gemm;
    ops.latents = recorded_latents;
    ops.rope = recorded_rope;
    ops.copy = recorded_copy;
    ops.kv_write = recorded_kv_write;
    ops.kv_gather = recorded_kv_gather;
    ops.attend_decode = recorded_attend_decode;
    ops.attend_prefill = recorded_attend_prefill;
    ops.merge = recorded_merge;
    *recording = (struct mla_recording){.base = *inner, .inner = inner};
    recording->base.ops = &ops;
    recording->base.graphs = true;
}
