#include "worker/gate_kind.h"

#include "proto/clock.h"

#include <sched.h>

#define ASK_NS  1000000u       /* how often to ask whether to turn back */
#define WAIT_NS 10000000000ull /* for the others to say whether they turn back, too */

enum mla_status mla_gate_create(uint32_t rank, uint32_t ranks, uint32_t local_ranks,
                                struct mla_gate **out)
{
    *out = NULL;
    if (ranks == 1)
        return MLA_OK;
    enum mla_status status = MLA_OK;
    if (local_ranks == ranks)
        status = mla_gate_memory_create(rank, ranks, out);
    if (status == MLA_OK && !*out)
        status = mla_gate_words_create(rank, ranks, out);
    return status;
}

void mla_gate_destroy(struct mla_gate **gate)
{
    if (*gate)
        (*gate)->ops->destroy(*gate);
    *gate = NULL;
}

void mla_gate_open(struct mla_gate *gate, uint64_t epoch)
{
    if (!gate)
        return;
    gate->epoch = epoch;
    gate->arrived = 0;
    gate->pending = false;
    gate->ops->open(gate);
}

void mla_gate_arrive(struct mla_gate *gate)
{
    if (!gate)
        return;
    gate->pending = true;
    gate->arrived++;
    gate->ops->arrive(gate);
}

enum mla_status mla_gate_pass(struct mla_gate *gate, bool (*turn_back)(void *), void *context)
{
    if (!gate || !gate->pending)
        return MLA_OK;
    uint64_t ask_ns = 0;
    uint64_t turned_ns = 0;
    for (;;) {
        enum mla_status status = gate->ops->look(gate);
        if (status == MLA_OK)
            gate->pending = false;
        if (status != MLA_AGAIN)
            return status;
        uint64_t now_ns = mla_now_ns();
        if (turned_ns && now_ns - turned_ns > WAIT_NS)
            return MLA_TIMEOUT;
        if (ask_ns == 0)
            ask_ns = now_ns + ASK_NS;
        if (!turned_ns && now_ns >= ask_ns) {
            ask_ns = now_ns + ASK_NS;
            if (turn_back(context)) {
                mla_gate_close(gate); /* and see whether all arrived first */
                turned_ns = now_ns;
            }
        }
        sched_yield();
    }
}

void mla_gate_close(struct mla_gate *gate)
{
    if (gate)
        gate->ops->close(gate);
}

/* ---- Collectives behind it */

static enum mla_status pass(struct mla_gated_collective *gated)
{
    return mla_gate_pass(gated->gate, gated->turn_back, gated->context);
}

static enum mla_status all_gather(struct mla_collective *collective, void *data, size_t count)
{
    struct mla_gated_collective *gated = (struct mla_gated_collective *)collective;
    uint64_t begin_ns = mla_now_ns();
    enum mla_status status = pass(gated);
    uint64_t waited_ns = mla_now_ns() - begin_ns;
    if (status == MLA_OK)
        status = gated->inner->ops->all_gather(gated->inner, data, count);
    gated->inner->ns += waited_ns; /* for the other ranks, as inside the collective */
    collective->ns = gated->inner->ns;
    return status;
}

static enum mla_status reduce_scatter(struct mla_collective *collective, void *data, size_t count,
                                      void **part)
{
    struct mla_gated_collective *gated = (struct mla_gated_collective *)collective;
    enum mla_status status = pass(gated);
    if (status == MLA_OK)
        status = gated->inner->ops->reduce_scatter(gated->inner, data, count, part);
    collective->ns = gated->inner->ns;
    return status;
}

static enum mla_status alloc(struct mla_collective *collective, size_t bytes, void **out)
{
    struct mla_gated_collective *gated = (struct mla_gated_collective *)collective;
    return gated->inner->ops->alloc(gated->inner, bytes, out);
}

static void release(struct mla_collective *collective, void *memory)
{
    struct mla_gated_collective *gated = (struct mla_gated_collective *)collective;
    gated->inner->ops->free(gated->inner, memory);
}

static void destroy(struct mla_collective **collective)
{
    *collective = NULL; /* what it stands before lives on */
}

struct mla_collective *mla_gated_collective_init(struct mla_gated_collective *gated,
                                                 struct mla_gate *gate,
                                                 struct mla_collective *inner,
                                                 bool (*turn_back)(void *), void *context)
{
    static const struct mla_collective_ops ops = {.name = "gated",
                                                  .all_gather = all_gather,
                                                  .reduce_scatter = reduce_scatter,
                                                  .alloc = alloc,
                                                  .free = release,
                                                  .destroy = destroy};
    if (!gate)
        return inner;
    *gated = (struct mla_gated_collective){
        .base = {.ops = &ops, .rank = inner->rank, .ranks = inner->ranks},
        .inner = inner,
        .gate = gate,
        .turn_back = turn_back,
        .context = context};
    return &gated->base;
}
