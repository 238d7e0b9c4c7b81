#include "worker/state.h"

#include "proto/clock.h"

#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

enum { WAIT_MS = 200 };

static volatile sig_atomic_t stopped;

static void stop(int signal_number)
{
    (void)signal_number;
    stopped = 1;
}

bool executor_is_stopped(void)
{
    return stopped;
}

static bool turns_back(void *context)
{
    return stopped || life_is_over(context);
}

static enum mla_status on_adopt(struct executor *executor)
{
    struct life *life = &executor->life;
    if (life->adopted)
        return MLA_MALFORMED;
    life->adopt = executor->incoming.u.adopt;
    life->adopted = true;
    mla_heartbeat_adopted(life->heartbeat, life->adopt.epoch, life->adopt.heartbeat_ms);
    atomic_store(&executor->watch.stall_ns, life->adopt.stall_ms * 1000000ull);
    mla_gate_open(executor->gate, life->adopt.epoch);
    mla_gate_arrive(executor->gate); /* capturing graphs needs all ranks */
    enum mla_status status = mla_gate_pass(executor->gate, turns_back, executor);
    if (status != MLA_OK)
        return status;
    status = life_allocate(executor);
    if (status == MLA_OK)
        status = life_fill(executor);
    if (status != MLA_OK) {
        fprintf(stderr, "rank %u: no memory for the workspaces, the KV blocks or the graphs\n",
                executor->shard->rank);
        return status;
    }
    outgoing_begin(executor, MLA_READY);
    executor->outgoing.u.ready = (struct mla_ready){.group = executor->options->group,
                                                    .rank = executor->shard->rank,
                                                    .kv_blocks = life->cache.blocks};
    return outgoing_send(executor, NULL);
}

static enum mla_status on_plan(struct executor *executor)
{
    const struct mla_plan_message *plan = &executor->incoming.u.plan;
    if (!executor->life.adopted || plan->slot >= executor->life.adopt.steps)
        return MLA_MALFORMED;
    for (uint32_t i = 0; i < plan->microbatch_count; i++) {
        struct mla_plan_microbatch mb = mla_plan_microbatch_at(plan, i);
        int64_t most = mb.kind == MLA_DECODE ? executor->life.layer.decode_rows_max
                                             : executor->life.layer.rows_max;
        if (mb.padded > most || mb.padded % executor->shard->ranks != 0)
            return MLA_MALFORMED;
    }
    struct mla_backend *backend = executor->backend;
    uint64_t begin_ns = mla_now_ns();
    backend->ops->range_begin(backend, "plan");
    enum mla_status status = mla_kvcache_apply(&executor->life.cache, plan);
    if (status == MLA_OK)
        status = mla_step_build(&executor->life.steps[plan->slot], &executor->life.cache, plan,
                                executor->options->chunk_rows, executor->shard->heads);
    if (status == MLA_OK)
        status = mla_payload_plan(&executor->life.payload, plan);
    backend->ops->range_end(backend);
    mla_trace_host(executor->trace, "plan", plan->step, begin_ns, mla_now_ns());
    return status;
}

static uint32_t layer_index(const struct mla_shard *shard, uint32_t layer)
{
    uint32_t i = 0;
    while (i < shard->layer_count && shard->layers[i] != layer)
        i++;
    return i;
}

static bool work_fits(const struct executor *executor, const struct mla_work *work)
{
    if (!executor->life.adopted || work->slot >= executor->life.adopt.steps ||
        layer_index(executor->shard, work->layer) == executor->shard->layer_count)
        return false;
    const struct mla_step *step = &executor->life.steps[work->slot];
    return step->number == work->step && work->microbatch < step->microbatch_count;
}

static uint32_t clamp_ns(uint64_t ns)
{
    return ns < UINT32_MAX ? (uint32_t)ns : UINT32_MAX;
}

/* The oldest flight's reply, if it has landed. */
static enum mla_status answer(struct executor *executor)
{
    bool landed = false;
    struct mla_flight flight;
    uint64_t compute_ns = 0;
    enum mla_status status = mla_flights_landed(&executor->life.flights, &landed);
    if (status == MLA_OK && !landed)
        return MLA_AGAIN;
    if (status == MLA_OK)
        status = mla_trace_flight(executor->trace, mla_flights_oldest(&executor->life.flights));
    if (status == MLA_OK)
        status = mla_flights_take(&executor->life.flights, &flight, &compute_ns);
    if (status != MLA_OK)
        return status;
    outgoing_begin(executor, MLA_DONE);
    executor->outgoing.u.done =
        (struct mla_done){.step = flight.work.step,
                          .work = flight.work.work,
                          .rank = executor->shard->rank,
                          .rows = flight.work.rows,
                          .dtype = flight.work.reply_dtype,
                          .compute_ns = clamp_ns(compute_ns - flight.collective_ns),
                          .collective_ns = clamp_ns(flight.collective_ns)};
    status = outgoing_send(executor, flight.reply);
    mla_blob_drop(flight.reply);
    atomic_fetch_add_explicit(&executor->watch.progress, 1, memory_order_relaxed);
    atomic_store(&executor->watch.begun_ns, executor->life.flights.count > 0 ? mla_now_ns() : 0);
    executor->poll_until_ns = mla_now_ns() + executor->options->poll_us * 1000ull;
    return status;
}

/* Waits until at most `most` are in flight. */
static enum mla_status land(struct executor *executor, uint32_t most)
{
    enum mla_status status = MLA_OK;
    while (status == MLA_OK && executor->life.flights.count > most) {
        status = answer(executor);
        if (status == MLA_AGAIN) {
            sched_yield();
            status = MLA_OK;
        }
    }
    return status;
}

static enum mla_status run_layer(struct executor *executor, const struct mla_work *work,
                                 const struct mla_step *step, uint32_t turn, void **rows)
{
    struct mla_backend *backend = executor->backend;
    char name[64];
    snprintf(name, sizeof name, "layer %u of step %llu, microbatch %u", work->layer,
             (unsigned long long)work->step, work->microbatch);
    backend->ops->range_begin(backend, name);
    enum mla_status status =
        mla_graphs_run(&executor->life.graphs, layer_index(executor->shard, work->layer), step,
                       work->microbatch, turn, rows);
    backend->ops->range_end(backend);
    return status;
}

static enum mla_status on_work(struct executor *executor, const struct mla_blob *payload)
{
    const struct mla_work work = executor->incoming.u.work;
    const struct mla_pieces *pieces = NULL;
    if (!work_fits(executor, &work))
        return MLA_MALFORMED;
    if (atomic_load(&executor->watch.begun_ns) == 0)
        atomic_store(&executor->watch.begun_ns, mla_now_ns());
    mla_gate_arrive(executor->gate);
    enum mla_status status = mla_payload_resolve(&executor->life.payload, &work, payload, &pieces);
    if (status != MLA_OK)
        return status;
    const struct mla_step *step = &executor->life.steps[work.slot];
    int64_t padded = step->microbatches[work.microbatch].padded / executor->shard->ranks;
    uint64_t collective_ns = executor->collective->ns;
    struct mla_flight *flight = NULL;
    void *rows = NULL;
    status = land(executor, mla_trace_unsettled(executor->trace) ? 0 : MLA_FLIGHTS_MAX - 1);
    if (status == MLA_OK && mla_trace_unsettled(executor->trace))
        status = mla_trace_settle(executor->trace);
    if (status == MLA_OK)
        status = mla_flights_begin(&executor->life.flights, &work, pieces, padded, &flight);
    if (status != MLA_OK)
        return status;
    mla_trace_begin(executor->trace, flight);
    /* Where collectives are queued, or are in graphs, they can't wait at the gate themselves. */
    if (!executor->backend->unified)
        status = mla_gate_pass(executor->gate, turns_back, executor);
    if (status == MLA_OK)
        status = run_layer(executor, &work, step, flight->turn, &rows);
    if (status != MLA_OK)
        return status;
    flight->collective_ns = executor->collective->ns - collective_ns;
    return mla_flights_end(&executor->life.flights, flight, pieces, rows);
}

/* Whether this rank can map the region is for the coordinator to know, and no failure. */
static enum mla_status on_attach(struct executor *executor)
{
    const struct mla_grant grant = executor->incoming.u.attach;
    if (!executor->life.adopted)
        return MLA_MALFORMED;
    struct mla_backend *backend = executor->backend;
    enum mla_status status = mla_payload_attach(&executor->life.payload, &grant);
    if (status == MLA_OK) {
        const struct mla_region *region = mla_payload_region(&executor->life.payload, grant.region);
        status = backend->ops->host_register(backend, region->data, region->bytes);
        if (status != MLA_OK)
            mla_payload_detach(&executor->life.payload, grant.region);
    }
    outgoing_begin(executor, MLA_ATTACHED);
    executor->outgoing.u.attached = (struct mla_attached){.region = grant.region, .status = status};
    return outgoing_send(executor, NULL);
}

/* One message. */
static enum mla_status handle(struct executor *executor, const struct mla_incoming *incoming)
{
    enum mla_status status =
        mla_worker_message_decode(incoming->head, incoming->head_bytes, &executor->incoming);
    if (status != MLA_OK)
        return status;
    const struct mla_header *header = &executor->incoming.header;
    if (executor->life.adopted && header->epoch != executor->life.adopt.epoch && header->epoch != 0)
        return MLA_OK; /* of a group that was */
    if (header->type == MLA_SHUTDOWN) {
        executor->stopping = true;
        atomic_store(&executor->watch.following, true);
        return MLA_OK;
    }
    if (header->type == MLA_DISMISS)
        mla_dismissed(executor->shard->rank, executor->incoming.u.dismiss.status);
    if (executor->life.given_up)
        return MLA_OK;
    switch (header->type) {
    case MLA_ADOPT:
        return on_adopt(executor);
    case MLA_PLAN:
        return on_plan(executor);
    case MLA_WORK:
        return on_work(executor, incoming->payload);
    case MLA_ATTACH:
        return on_attach(executor);
    case MLA_DETACH:
        life_detach(executor, executor->incoming.u.detach.region);
        return MLA_OK;
    default:
        return MLA_MALFORMED;
    }
}

/* No message is there. A layer's successor mostly comes within a fraction of a millisecond, and
 * waking a core that sleeps takes a good part of that: look for it a while, and let others run
 * meanwhile, before going to sleep. A channel that spins does so by itself. MLA_CLOSED: the
 * coordinator is gone. */
static enum mla_status idle(struct executor *executor)
{
    if (!executor->life.given_up &&
        (executor->life.flights.count > 0 ||
         (!executor->options->spin && mla_now_ns() < executor->poll_until_ns))) {
        sched_yield();
        return MLA_OK;
    }
    if (executor->life.over) { /* and what was sent before has been read */
        fprintf(stderr, "rank %u: the coordinator is gone\n", executor->shard->rank);
        return MLA_CLOSED;
    }
    if (life_is_over(executor))
        return MLA_OK;
    (void)mla_channel_wait(&executor->life.channel, 1, WAIT_MS);
    return MLA_OK;
}

static enum mla_status fail(struct executor *executor, const char *what, enum mla_status status)
{
    fprintf(stderr, "rank %u: %s: %s\n", executor->shard->rank, what, mla_status_name(status));
    outgoing_begin(executor, MLA_FAILED);
    executor->outgoing.u.failed = (struct mla_failed){
        .group = executor->options->group, .rank = executor->shard->rank, .status = status};
    (void)outgoing_send(executor, NULL); /* the end of the connection tells as much */
    return status;
}

/* Until the coordinator's order or a signal; MLA_CLOSED: until the coordinator is gone. */
static enum mla_status work(struct executor *executor)
{
    while (!executor->stopping && !stopped) {
        struct mla_incoming incoming;
        enum mla_status status = MLA_OK;
        if (executor->life.flights.count > 0 && !executor->life.given_up)
            status = answer(executor);
        if (status != MLA_OK && status != MLA_AGAIN)
            return fail(executor, "a microbatch", status);
        status = mla_channel_receive(executor->life.channel, &incoming);
        if (status == MLA_AGAIN && (status = idle(executor)) == MLA_OK)
            continue;
        if (status != MLA_OK)
            return status;
        status = handle(executor, &incoming);
        mla_blob_drop(incoming.payload);
        if (status == MLA_CLOSED) {
            /* Not all ranks have this one. What ends the epoch is yet to be read or noticed. */
            executor->life.given_up = true;
            atomic_store(&executor->watch.begun_ns, 0);
        } else if (status != MLA_OK) {
            char what[32];
            snprintf(what, sizeof what, "message of type %u", executor->incoming.header.type);
            return fail(executor, what, status);
        }
    }
    return MLA_OK;
}

static enum mla_status start(struct executor *executor)
{
    const struct mla_executor_options *options = executor->options;
    const struct mla_shard *shard = executor->shard;
    struct sigaction action = {.sa_handler = stop};
    sigemptyset(&action.sa_mask);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    enum mla_status status =
        mla_gate_create(shard->rank, shard->ranks, options->local_ranks, &executor->gate);
    if (status == MLA_OK && executor->backend->unified)
        executor->collective = mla_gated_collective_init(
            &executor->gated, executor->gate, executor->collective, turns_back, executor);
    if (status == MLA_OK && options->trace)
        status = mla_trace_open(options->trace, shard->rank, shard->ranks, executor->backend,
                                executor->collective, &executor->trace);
    if (status == MLA_OK)
        status = mla_watchdog_start(&executor->watch, &executor->watchdog);
    return status;
}

enum mla_status mla_executor_run(const struct mla_executor_options *options,
                                 struct mla_backend *backend, struct mla_collective *collective,
                                 struct mla_shard *shard)
{
    struct executor *executor = calloc(1, sizeof *executor);
    if (!executor)
        return MLA_MEMORY;
    executor->options = options;
    executor->backend = backend;
    executor->collective = collective;
    executor->shard = shard;
    executor->watch.rank = shard->rank;
    enum mla_status status = start(executor);
    /* Weights outlive a coordinator: they are what takes long to have. */
    while (status == MLA_OK && !executor->stopping && !stopped) {
        bool working = (status = life_begin(executor)) == MLA_OK;
        if (working)
            status = work(executor);
        life_end(executor);
        if (working && status == MLA_CLOSED)
            status = MLA_OK;
        if (atomic_load(&executor->watch.told_ns))
            break; /* told by the heartbeats' connection */
    }
    mla_watchdog_stop(&executor->watchdog);
    mla_trace_close(&executor->trace);
    mla_gate_destroy(&executor->gate);
    free(executor);
    return status;
}
