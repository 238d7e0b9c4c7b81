#include "worker/graphs.h"

#include "comm/bootstrap.h"
#include "worker/progress.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>

struct mla_graphs_bucket {
    uint32_t padded;
    /* Whose arrays are in its place; step 0: nobody's. */
    uint64_t step;
    uint32_t microbatch;
    struct captured {
        struct mla_graph *graph;
        void *out;
    } (*layers)[MLA_TURNS]; /* [layer_count] */
};

static struct mla_backend *backend_of(const struct mla_graphs *graphs)
{
    return graphs->layer->backend;
}

/* A rank that replays and one that runs eagerly may not meet in a collective. */
static enum mla_status agree(const struct mla_graphs *graphs, bool *all)
{
    uint64_t value = *all;
    enum mla_status status = graphs->layer->shard->ranks > 1 ? mla_bootstrap_min(&value) : MLA_OK;
    *all = value;
    return status;
}

/* One layer on the arrays in the bucket's place. *captured is false where a rank could not. */
static enum mla_status capture(struct mla_graphs *graphs, uint32_t index, uint32_t bucket_index,
                               uint32_t turn, bool *captured)
{
    struct mla_backend *backend = backend_of(graphs);
    struct captured *to = &graphs->buckets[bucket_index].layers[index][turn];
    const struct mla_microbatch *place = &graphs->places.microbatches[bucket_index];
    bool ok = backend->ops->capture_begin(backend) == MLA_OK;
    if (ok) {
        ok = mla_layer_run(graphs->layer, index, place, graphs->x[turn], turn, &to->out) == MLA_OK;
        ok = backend->ops->capture_end(backend, &to->graph) == MLA_OK && ok;
    }
    enum mla_status status = agree(graphs, &ok);
    if (status == MLA_OK && !ok) {
        graphs->mode = MLA_GRAPHS_OFF;
        if (graphs->layer->shard->rank == 0)
            fprintf(stderr, "warning: layers can't be captured: all run eagerly\n");
    }
    *captured = ok;
    return status;
}

/* Each bucket once eagerly: what is made on first use may not be made inside a capture, and
 * products are tuned for all buckets' shapes. */
static enum mla_status warm_up(struct mla_graphs *graphs)
{
    struct mla_backend *device = graphs->layer->cache->backend; /* without a trace around it */
    void *out = NULL;
    enum mla_status status = device->ops->tune ? device->ops->tune(device, true) : MLA_OK;
    for (uint32_t b = graphs->count; status == MLA_OK && b-- > 0;)
        status =
            mla_layer_run(graphs->layer, 0, &graphs->places.microbatches[b], graphs->x[0], 0, &out);
    if (status == MLA_OK && device->ops->tune)
        status = device->ops->tune(device, false);
    return status;
}

enum mla_status mla_graphs_capture(struct mla_graphs *graphs)
{
    struct mla_backend *backend = backend_of(graphs);
    const struct mla_shard *shard = graphs->layer->shard;
    const uint32_t turns = mla_turns(backend);
    const uint32_t each = shard->layer_count * turns; /* of a bucket */
    uint64_t before = 0;
    uint64_t after = 0;
    if (graphs->mode != MLA_GRAPHS_START)
        return MLA_OK;
    enum mla_status status = backend->ops->memory_free(backend, &before);
    for (uint32_t b = graphs->count; status == MLA_OK && b-- > 0;) { /* the largest needs most */
        for (uint32_t i = 0; status == MLA_OK && i < each; i++) {
            bool captured = false;
            status = capture(graphs, i / turns, b, i % turns, &captured);
            if (status != MLA_OK || !captured)
                return status;
            if (shard->rank == 0)
                mla_progress_show("captured", "graph", (graphs->count - 1 - b) * each + i + 1,
                                  graphs->count * each, each);
        }
    }
    if (status == MLA_OK)
        status = backend->ops->synchronize(backend);
    if (status == MLA_OK)
        status = backend->ops->memory_free(backend, &after);
    if (status == MLA_OK && shard->rank == 0)
        fprintf(stderr, "the graphs take %.1f MiB of device memory\n",
                before > after ? (double)(before - after) / (1 << 20) : 0.0);
    return status;
}

/* A decode microbatch without rows for each bucket. */
static enum mla_status build_places(struct mla_graphs *graphs)
{
    struct mla_plan_microbatch *empty = calloc(graphs->count, sizeof *empty);
    if (!empty)
        return MLA_MEMORY;
    for (uint32_t i = 0; i < graphs->count; i++)
        empty[i] =
            (struct mla_plan_microbatch){.kind = MLA_DECODE, .padded = graphs->buckets[i].padded};
    struct mla_plan_message plan = {
        .step = 1, .microbatch_count = graphs->count, .microbatches = empty};
    const struct mla_layer *layer = graphs->layer;
    enum mla_status status = mla_step_build(&graphs->places, layer->cache, &plan,
                                            (uint32_t)layer->chunk_rows, layer->shard->heads);
    free(empty);
    return status;
}

enum mla_status mla_graphs_init(struct mla_graphs *graphs, struct mla_layer *layer,
                                void *const x[MLA_TURNS], enum mla_graphs_mode mode,
                                const uint32_t *buckets, uint32_t count)
{
    *graphs = (struct mla_graphs){.layer = layer, .mode = mode};
    for (uint32_t i = 0; i < MLA_TURNS; i++)
        graphs->x[i] = x[i];
    if (!layer->backend->graphs || count == 0)
        graphs->mode = MLA_GRAPHS_OFF;
    if (graphs->mode == MLA_GRAPHS_OFF)
        return MLA_OK;
    graphs->buckets = calloc(count, sizeof *graphs->buckets);
    enum mla_status status = graphs->buckets ? MLA_OK : MLA_MEMORY;
    graphs->count = graphs->buckets ? count : 0;
    for (uint32_t i = 0; status == MLA_OK && i < count; i++) {
        struct mla_graphs_bucket *bucket = &graphs->buckets[i];
        bucket->padded = buckets[i];
        bucket->layers = calloc(layer->shard->layer_count, sizeof *bucket->layers);
        if (!bucket->layers)
            status = MLA_MEMORY;
    }
    if (status == MLA_OK)
        status = build_places(graphs);
    if (status == MLA_OK && graphs->mode == MLA_GRAPHS_START)
        status = warm_up(graphs);
    if (status != MLA_OK)
        mla_graphs_fini(graphs);
    return status;
}

void mla_graphs_fini(struct mla_graphs *graphs)
{
    if (!graphs->layer)
        return;
    struct mla_backend *backend = backend_of(graphs);
    for (uint32_t b = 0; b < graphs->count; b++) {
        struct captured(*layers)[MLA_TURNS] = graphs->buckets[b].layers;
        for (uint32_t l = 0; layers && l < graphs->layer->shard->layer_count; l++)
            for (uint32_t i = 0; i < MLA_TURNS; i++)
                if (layers[l][i].graph)
                    backend->ops->graph_destroy(backend, layers[l][i].graph);
        free(layers);
    }
    free(graphs->buckets);
    mla_step_fini(&graphs->places, backend);
    *graphs = (struct mla_graphs){0};
}

static uint32_t find_bucket(const struct mla_graphs *graphs, int64_t padded)
{
    uint32_t i = 0;
    while (i < graphs->count && graphs->buckets[i].padded != padded)
        i++;
    return i;
}

enum mla_status mla_graphs_run(struct mla_graphs *graphs, uint32_t index,
                               const struct mla_step *step, uint32_t microbatch, uint32_t turn,
                               void **out)
{
    struct mla_backend *backend = backend_of(graphs);
    const struct mla_microbatch *mb = &step->microbatches[microbatch];
    uint32_t at = mb->kind == MLA_DECODE ? find_bucket(graphs, mb->padded) : graphs->count;
    if (graphs->mode == MLA_GRAPHS_OFF || at == graphs->count)
        return mla_layer_run(graphs->layer, index, mb, graphs->x[turn], turn, out);

    struct mla_graphs_bucket *bucket = &graphs->buckets[at];
    const struct mla_microbatch *place = &graphs->places.microbatches[at];
    assert(place->block_bytes == mb->block_bytes);
    enum mla_status status = MLA_OK;
    if (bucket->step != step->number || bucket->microbatch != microbatch) {
        status = backend->ops->move(backend, place->block, mb->block, mb->block_bytes);
        bucket->step = step->number;
        bucket->microbatch = microbatch;
    }
    struct captured *captured = &bucket->layers[index][turn];
    if (status == MLA_OK && !captured->graph) {
        bool ok = false;
        status = mla_layer_run(graphs->layer, index, place, graphs->x[turn], turn, out);
        if (status == MLA_OK)
            status = capture(graphs, index, at, turn, &ok);
        if (status != MLA_OK || !ok)
            return status;
        return MLA_OK; /* ran eagerly just now */
    }
    if (status == MLA_OK)
        status = backend->ops->graph_run(backend, captured->graph);
    *out = captured->out;
    return status;
}
