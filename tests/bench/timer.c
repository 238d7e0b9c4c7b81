#include "tests/bench/timer.h"

enum mla_status mla_timer_init(struct mla_timer *timer, struct mla_backend *backend)
{
    *timer = (struct mla_timer){.backend = backend};
    enum mla_status status = backend->ops->fence_create(backend, &timer->from);
    if (status == MLA_OK)
        status = backend->ops->fence_create(backend, &timer->to);
    if (status == MLA_OK && backend->graphs)
        status = backend->ops->alloc(backend, (size_t)2 * MLA_TIMER_COLD_BYTES, &timer->cold);
    return status;
}

void mla_timer_fini(struct mla_timer *timer)
{
    struct mla_backend *backend = timer->backend;
    if (!backend)
        return;
    backend->ops->fence_destroy(backend, timer->from);
    backend->ops->fence_destroy(backend, timer->to);
    backend->ops->free(backend, timer->cold);
    *timer = (struct mla_timer){0};
}

enum mla_status mla_timer_cool(struct mla_timer *timer, uint32_t times)
{
    struct mla_backend *backend = timer->backend;
    enum mla_status status = MLA_OK;
    for (uint32_t i = 0; timer->cold && status == MLA_OK && i < times; i++)
        status = backend->ops->move(backend, (char *)timer->cold + MLA_TIMER_COLD_BYTES,
                                    timer->cold, MLA_TIMER_COLD_BYTES);
    return status;
}

static enum mla_status capture(struct mla_backend *backend, struct mla_timer_body body,
                               struct mla_graph **out)
{
    enum mla_status status = backend->ops->capture_begin(backend);
    if (status != MLA_OK)
        return status;
    status = body.run(body.context);
    struct mla_graph *graph = NULL;
    enum mla_status ended = backend->ops->capture_end(backend, &graph);
    if (status == MLA_OK)
        status = ended;
    if (status == MLA_OK)
        *out = graph;
    else if (ended == MLA_OK)
        backend->ops->graph_destroy(backend, graph);
    return status;
}

/* One sample. */
static enum mla_status sample(struct mla_timer *timer, struct mla_timer_body body,
                              struct mla_graph *graph, struct mla_series *us)
{
    struct mla_backend *backend = timer->backend;
    uint64_t ns;
    enum mla_status status = mla_timer_cool(timer, graph ? 1 : MLA_TIMER_EAGER_COOLS);
    if (status == MLA_OK)
        status = backend->ops->fence_record(backend, MLA_QUEUE_COMPUTE, timer->from);
    if (status == MLA_OK)
        status = graph ? backend->ops->graph_run(backend, graph) : body.run(body.context);
    if (status == MLA_OK)
        status = backend->ops->fence_record(backend, MLA_QUEUE_COMPUTE, timer->to);
    if (status == MLA_OK)
        status = backend->ops->synchronize(backend);
    if (status == MLA_OK)
        status = backend->ops->fence_span(backend, timer->from, timer->to, &ns);
    return status == MLA_OK ? mla_series_add(us, (double)ns / 1e3) : status;
}

/* As mla-worker does it for what it captures. */
static enum mla_status tune(struct mla_backend *backend, bool on)
{
    return backend->ops->tune ? backend->ops->tune(backend, on) : MLA_OK;
}

enum mla_status mla_timer_samples(struct mla_timer *timer, struct mla_timer_body body, bool graph,
                                  uint32_t repeat, struct mla_series *us)
{
    struct mla_backend *backend = timer->backend;
    struct mla_graph *captured = NULL;
    /* The first run may allocate and choose algorithms, which a capture can't. */
    enum mla_status status = graph ? tune(backend, true) : MLA_OK;
    if (status == MLA_OK)
        status = body.run(body.context);
    if (status == MLA_OK)
        status = backend->ops->synchronize(backend);
    if (status == MLA_OK)
        status = tune(backend, false);
    if (status == MLA_OK && graph && backend->graphs)
        status = capture(backend, body, &captured);
    if (status == MLA_OK && captured)
        status = backend->ops->graph_run(backend, captured);
    for (uint32_t i = 0; status == MLA_OK && i < repeat; i++)
        status = sample(timer, body, captured, us);
    if (captured)
        backend->ops->graph_destroy(backend, captured);
    return status;
}
