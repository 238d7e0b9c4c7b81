/* Time: a heap of what is to happen. */
#include "tests/sim/sim.h"

#include <stdlib.h>

static bool before(const struct sim_event *a, const struct sim_event *b)
{
    return a->at_ns != b->at_ns ? a->at_ns < b->at_ns : a->order < b->order;
}

void sim_at(struct sim *sim, uint64_t delay_ns, sim_action *action, uint64_t a, uint64_t b)
{
    if (sim->event_count == sim->event_capacity) {
        sim->event_capacity = sim->event_capacity ? 2 * sim->event_capacity : 256;
        sim->heap = realloc(sim->heap, sim->event_capacity * sizeof *sim->heap);
        if (!sim->heap)
            sim_fail(sim, "no memory for events");
    }
    struct sim_event event = {sim->now_ns + delay_ns, sim->order++, action, a, b};
    uint32_t at = sim->event_count++;
    while (at > 0 && before(&event, &sim->heap[(at - 1) / 2])) {
        sim->heap[at] = sim->heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    sim->heap[at] = event;
}

bool sim_step(struct sim *sim)
{
    if (sim->event_count == 0)
        return false;
    struct sim_event first = sim->heap[0];
    struct sim_event last = sim->heap[--sim->event_count];
    uint32_t at = 0;
    for (uint32_t child; (child = 2 * at + 1) < sim->event_count; at = child) {
        if (child + 1 < sim->event_count && before(&sim->heap[child + 1], &sim->heap[child]))
            child++;
        if (!before(&sim->heap[child], &last))
            break;
        sim->heap[at] = sim->heap[child];
    }
    sim->heap[at] = last;
    sim->now_ns = first.at_ns;
    sim->events_done++;
    first.action(sim, first.a, first.b);
    return true;
}
