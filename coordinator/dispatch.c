#include "coordinator/state.h"

#include <assert.h>

static void run_release(struct mla_core *core, uint32_t index)
{
    struct run *run = &core->runs[index];
    core->input_bytes -= run->input ? run->input->bytes : 0;
    mla_blob_drop(run->input);
    mla_blob_drop(run->output);
    run->used = false;
    run->next = core->run_free;
    core->run_free = index;
    core->stats.runs_in_flight--;
    core->steps[run->step].runs--;
    core->sessions[run->session].runs--;
    session_settle(core, run->session);
}

static void unqueue(struct mla_core *core, uint32_t index)
{
    struct session *session = &core->sessions[core->runs[index].session];
    uint32_t *link = &session->run_first;
    uint32_t before = NONE;
    while (*link != NONE && *link != index) {
        before = *link;
        link = &core->runs[*link].next;
    }
    if (*link == NONE)
        return;
    *link = core->runs[index].next;
    if (session->run_last == index)
        session->run_last = before;
}

static bool layer_is_served(const struct mla_core *core, uint32_t layer)
{
    for (uint32_t i = 0; i < core->model.layer_count; i++)
        if (core->model.layers[i] == layer)
            return true;
    return false;
}

static enum mla_status check_run(const struct mla_core *core, uint32_t session, uint32_t step_index,
                                 const struct mla_blob *payload, struct failure *failure)
{
    const struct mla_run *request = &core->request.u.run;
    const struct step *step = &core->steps[step_index];
    if (step->lost)
        return fail_with(failure, MLA_STEP_LOST, MLA_INDEX_NONE,
                         "step %llu lost its group: abort it", (unsigned long long)request->step);
    if (!layer_is_served(core, request->layer))
        return fail_with(failure, MLA_LAYER, MLA_INDEX_NONE, "layer %u is not served",
                         request->layer);
    if ((request->dtype != MLA_F32 && request->dtype != MLA_BF16) ||
        (request->reply_dtype != MLA_F32 && request->reply_dtype != MLA_BF16))
        return fail_with(failure, MLA_DTYPE, MLA_INDEX_NONE,
                         "dtype %u, reply dtype %u: payloads are f32 (1) or bf16 (2)",
                         request->dtype, request->reply_dtype);
    if (request->rows != step->rows)
        return fail_with(failure, MLA_COUNT, MLA_INDEX_NONE, "%u rows, the step has %u",
                         request->rows, step->rows);
    if (request->hidden != core->model.dims.hidden)
        return fail_with(failure, MLA_COUNT, MLA_INDEX_NONE, "hidden %u, the model has %u",
                         request->hidden, core->model.dims.hidden);
    if (request->place_count > 0)
        return region_check(core, session, step, request, failure);
    size_t bytes = request->rows * row_bytes(core, (enum mla_dtype)request->dtype);
    if (!payload || payload->bytes != bytes)
        return fail_with(failure, MLA_LENGTH, MLA_INDEX_NONE,
                         "a payload of %zu bytes, %u x %u x %s take %zu",
                         payload ? payload->bytes : 0, request->rows, request->hidden,
                         mla_dtype_name((enum mla_dtype)request->dtype), bytes);
    return MLA_OK;
}

/* One microbatch, whole on one rank, in the client's order: its result is the reply. */
static bool result_is_reply(const struct mla_core *core, const struct step *step)
{
    if (step->microbatches != 1)
        return false;
    for (uint32_t group = 0; group < core->options.groups; group++) {
        const struct mla_plan *plan = &step->plans[group];
        if (plan->microbatch_count == 0 || core->groups[group].ranks != 1)
            continue;
        uint32_t cursor = 0;
        struct mla_plan_run rows;
        return mla_plan_next_run(plan, 0, 0, step->rows, &cursor, &rows) &&
               rows.count == step->rows;
    }
    return false;
}

enum mla_status run_queue(struct mla_core *core, uint32_t session_index, uint64_t received_ns,
                          struct mla_blob **payload, struct failure *failure)
{
    const struct mla_run *request = &core->request.u.run;
    struct session *session = &core->sessions[session_index];
    uint32_t step_index = step_find(core, session_index, request->step);
    if (step_index == NONE)
        return fail_with(failure, MLA_STEP_UNKNOWN, MLA_INDEX_NONE, "step %llu is not open",
                         (unsigned long long)request->step);
    enum mla_status status = check_run(core, session_index, step_index, *payload, failure);
    if (status != MLA_OK)
        return status;
    struct step *step = &core->steps[step_index];
    size_t input_bytes = step->rows * row_bytes(core, (enum mla_dtype)request->dtype);
    size_t reply_bytes = step->rows * row_bytes(core, (enum mla_dtype)request->reply_dtype);
    bool shared = request->place_count > 0;
    size_t held_bytes = shared ? 0 : input_bytes;
    bool direct = !shared && result_is_reply(core, step);
    struct mla_blob *output = NULL;
    uint32_t index = core->run_free;
    if (session->runs >= core->options.runs_queued_max || index == NONE ||
        core->input_bytes + held_bytes > core->options.payload_bytes_max / 2 ||
        (!direct && !shared && mla_blob_pool_get(core->pool, reply_bytes, &output) != MLA_OK))
        return fail_with(failure, MLA_BUSY, MLA_INDEX_NONE,
                         "%u RUNs are in flight, payloads hold %zu bytes", session->runs,
                         core->input_bytes + mla_blob_pool_bytes(core->pool));

    struct run *run = &core->runs[index];
    core->run_free = run->next;
    if (index >= core->run_bound)
        core->run_bound = index + 1;
    uint32_t *next_microbatch = run->next_microbatch;
    *run = (struct run){.used = true,
                        .direct = direct,
                        .shared = shared,
                        .place = shared ? request->places[0] : (struct mla_run_place){0},
                        .session = session_index,
                        .step = step_index,
                        .layer = request->layer,
                        .request_id = core->request.header.request_id,
                        .dtype = (enum mla_dtype)request->dtype,
                        .reply_dtype = (enum mla_dtype)request->reply_dtype,
                        .input = *payload,
                        .output = output,
                        .received_ns = received_ns,
                        .waiting = step->microbatches,
                        .next = NONE,
                        .next_microbatch = next_microbatch};
    memset(next_microbatch, 0, core->options.groups * sizeof *next_microbatch);
    *payload = NULL;
    core->input_bytes += held_bytes;
    if (session->run_last == NONE)
        session->run_first = index;
    else
        core->runs[session->run_last].next = index;
    session->run_last = index;
    session->runs++;
    step->runs++;
    core->stats.runs++;
    core->stats.runs_in_flight++;
    core->stats.bytes_in += input_bytes;
    return MLA_OK;
}

/* The run of this session that the group should go on with: the first whose next microbatch is
 * decode, else the first that has one. */
static uint32_t pick_run(const struct mla_core *core, uint32_t session, uint32_t group)
{
    uint32_t found = NONE;
    for (uint32_t at = core->sessions[session].run_first; at != NONE; at = core->runs[at].next) {
        const struct run *run = &core->runs[at];
        const struct mla_plan *plan = &core->steps[run->step].plans[group];
        uint32_t next = run->next_microbatch[group];
        if (next >= plan->microbatch_count)
            continue;
        if (plan->microbatches[next].kind == MLA_DECODE)
            return at;
        if (found == NONE)
            found = at;
    }
    return found;
}

/* Clients take turns. */
static uint32_t pick(struct mla_core *core, uint32_t group_index)
{
    struct group *group = &core->groups[group_index];
    for (uint32_t i = 0; i < core->session_bound; i++) {
        uint32_t session = (group->turn + i) % core->session_bound;
        if (core->sessions[session].run_first == NONE)
            continue;
        uint32_t run = pick_run(core, session, group_index);
        if (run != NONE) {
            group->turn = session + 1;
            return run;
        }
    }
    return NONE;
}

/* The rank's rows as one piece: a slice of the client's payload where they stand together in it,
 * a copy elsewhere. The caller drops *blob. */
static enum mla_status rank_input(struct mla_core *core, const struct run *run, uint32_t group,
                                  uint32_t microbatch, uint32_t first, uint32_t count,
                                  struct mla_blob **blob, size_t *offset)
{
    size_t row = row_bytes(core, run->dtype);
    const struct mla_plan *plan = &core->steps[run->step].plans[group];
    uint32_t cursor = 0;
    struct mla_plan_run rows;
    bool any = mla_plan_next_run(plan, microbatch, first, count, &cursor, &rows);
    assert(any);
    (void)any;
    if (rows.count == count) {
        *blob = mla_blob_hold(run->input);
        *offset = rows.client_row * row;
        return MLA_OK;
    }
    enum mla_status status = mla_blob_pool_get(core->pool, count * row, blob);
    if (status != MLA_OK)
        return status;
    do {
        memcpy((*blob)->data + (rows.microbatch_row - first) * row,
               run->input->data + rows.client_row * row, rows.count * row);
    } while (mla_plan_next_run(plan, microbatch, first, count, &cursor, &rows));
    *offset = 0;
    core->stats.bytes_copied += count * row;
    return MLA_OK;
}

static enum mla_status send_work(struct mla_core *core, uint32_t group_index, uint32_t run_index,
                                 uint32_t microbatch, uint64_t number)
{
    struct group *group = &core->groups[group_index];
    const struct run *run = &core->runs[run_index];
    const struct step *step = &core->steps[run->step];
    for (uint32_t rank = 0; rank < group->ranks; rank++) {
        uint32_t first = 0;
        uint32_t count = 0;
        mla_plan_rank_rows(&step->plans[group_index].microbatches[microbatch], group->ranks, rank,
                           &first, &count);
        struct mla_blob *blob = NULL;
        size_t offset = 0;
        if (count > 0 && !run->shared) {
            enum mla_status status =
                rank_input(core, run, group_index, microbatch, first, count, &blob, &offset);
            if (status != MLA_OK)
                return status;
        }
        size_t payload_bytes = run->shared ? 0 : count * row_bytes(core, run->dtype);
        struct mla_worker_message *message = &core->outgoing;
        message->header = (struct mla_header){
            .type = MLA_WORK, .epoch = group->epoch, .payload_bytes = payload_bytes};
        message->u.work = (struct mla_work){.step = step->number,
                                            .work = number,
                                            .slot = run->step,
                                            .layer = run->layer,
                                            .microbatch = microbatch,
                                            .dtype = run->dtype,
                                            .reply_dtype = run->reply_dtype,
                                            .rows = count,
                                            .region = run->place.region,
                                            .input_at = run->place.input_at,
                                            .output_at = run->place.output_at};
        size_t bytes = 0;
        enum mla_status status =
            mla_worker_message_encode(message, core->frame, sizeof core->frame, &bytes);
        assert(status == MLA_OK);
        (void)status;
        group_send(core, group_index, rank, core->frame, bytes, blob, offset, payload_bytes);
        mla_blob_drop(blob);
    }
    return MLA_OK;
}

/* Which of the sizes for decode the microbatch was padded to; MLA_DECODE_BUCKETS_MAX: none. */
static uint32_t bucket_of(const struct group *group, const struct mla_plan_microbatch *microbatch)
{
    if (!group->plan.pad_to_bucket || microbatch->kind != MLA_DECODE)
        return MLA_DECODE_BUCKETS_MAX;
    uint32_t bucket = 0;
    while (group->plan.buckets[bucket] < microbatch->rows)
        bucket++;
    return bucket;
}

static void start_work(struct mla_core *core, uint32_t group_index, uint32_t run_index)
{
    struct group *group = &core->groups[group_index];
    struct run *run = &core->runs[run_index];
    struct work *work = &group->works[group->next_work % core->options.credits];
    uint32_t microbatch = run->next_microbatch[group_index]++;
    *work = (struct work){.number = group->next_work++,
                          .run = run_index,
                          .microbatch = microbatch,
                          .ranks_left = group->ranks};
    if (group->works_out++ == 0)
        group->moved_ns = core->effects.now_ns(core->effects.context);
    run->out++;
    if (--run->waiting == 0)
        unqueue(core, run_index);
    core->stats.microbatches++;
    const struct mla_plan_microbatch *rows =
        &core->steps[run->step].plans[group_index].microbatches[microbatch];
    mla_metrics_microbatch(&core->metrics,
                           rows->kind == MLA_DECODE ? MLA_PHASE_DECODE : MLA_PHASE_PREFILL,
                           rows->rows, rows->padded, bucket_of(group, rows));
    if (send_work(core, group_index, run_index, microbatch, work->number) != MLA_OK) {
        /* Some ranks have it and others never will. */
        group->doomed = "no memory for a payload";
        return;
    }
    run->dispatched_ns = core->effects.now_ns(core->effects.context);
}

void dispatch(struct mla_core *core)
{
    for (uint32_t g = 0; g < core->options.groups; g++) {
        struct group *group = &core->groups[g];
        while (group->state == GROUP_READY && !group->doomed &&
               group->works_out < core->options.credits &&
               group->works[group->next_work % core->options.credits].ranks_left == 0) {
            uint32_t run = pick(core, g);
            if (run == NONE)
                break;
            start_work(core, g, run);
        }
    }
}

static uint32_t span_ns(uint64_t from_ns, uint64_t to_ns)
{
    uint64_t span = to_ns > from_ns ? to_ns - from_ns : 0;
    return span < UINT32_MAX ? (uint32_t)span : UINT32_MAX;
}

static void run_finish(struct mla_core *core, uint32_t index)
{
    struct run *run = &core->runs[index];
    if (run->answered) {
        run_release(core, index);
        return;
    }
    uint64_t now_ns = core->effects.now_ns(core->effects.context);
    const struct step *step = &core->steps[run->step];
    core->reply.u.run_reply =
        (struct mla_run_reply){.step = step->id,
                               .layer = run->layer,
                               .dtype = run->reply_dtype,
                               .rows = step->rows,
                               .hidden = core->model.dims.hidden,
                               .times = {.received_ns = run->received_ns,
                                         .replied_ns = now_ns,
                                         .queued_ns = span_ns(run->received_ns, run->dispatched_ns),
                                         .compute_ns = span_ns(0, run->compute_ns),
                                         .collective_ns = span_ns(0, run->collective_ns),
                                         .gathered_ns = span_ns(run->done_ns, now_ns)}};
    size_t bytes = step->rows * row_bytes(core, run->reply_dtype);
    core->stats.bytes_out += bytes;
    mla_metrics_run(&core->metrics,
                    step->opened.prefill_rows > 0 ? MLA_PHASE_PREFILL : MLA_PHASE_DECODE,
                    now_ns - run->received_ns);
    session_reply(core, run->session, MLA_RUN, run->request_id, run->output, 0, bytes);
    run_release(core, index);
}

/* Puts a rank's rows where they belong in the reply. */
static void gather(struct mla_core *core, struct run *run, uint32_t group, const struct work *work,
                   uint32_t first, uint32_t count, struct mla_blob *payload)
{
    if (run->direct) {
        run->output = mla_blob_hold(payload);
        return;
    }
    size_t row = row_bytes(core, run->reply_dtype);
    const struct mla_plan *plan = &core->steps[run->step].plans[group];
    uint32_t cursor = 0;
    struct mla_plan_run rows;
    while (mla_plan_next_run(plan, work->microbatch, first, count, &cursor, &rows))
        memcpy(run->output->data + rows.client_row * row,
               payload->data + (rows.microbatch_row - first) * row, rows.count * row);
    core->stats.bytes_copied += count * row;
}

bool work_done(struct mla_core *core, uint32_t group_index, uint32_t rank,
               const struct mla_done *done, struct mla_blob *payload)
{
    struct group *group = &core->groups[group_index];
    struct work *work = &group->works[done->work % core->options.credits];
    if (work->ranks_left == 0 || work->number != done->work || done->rank != rank ||
        (work->rank_done >> rank & 1))
        return false;
    struct run *run = &core->runs[work->run];
    uint32_t first = 0;
    uint32_t count = 0;
    mla_plan_rank_rows(&core->steps[run->step].plans[group_index].microbatches[work->microbatch],
                       group->ranks, rank, &first, &count);
    if (done->rows != count || (count > 0 && done->dtype != run->reply_dtype) ||
        (payload ? payload->bytes : 0) !=
            (run->shared ? 0 : count * row_bytes(core, run->reply_dtype)))
        return false;

    if (count > 0 && !run->answered && !run->shared)
        gather(core, run, group_index, work, first, count, payload);
    if ((uint64_t)done->compute_ns + done->collective_ns > work->compute_ns + work->collective_ns) {
        work->compute_ns = done->compute_ns;
        work->collective_ns = done->collective_ns;
    }
    work->rank_done |= 1ull << rank;
    group->moved_ns = core->effects.now_ns(core->effects.context);
    if (--work->ranks_left > 0)
        return true;
    group->works_out--;
    run->compute_ns += work->compute_ns;
    run->collective_ns += work->collective_ns;
    run->done_ns = core->effects.now_ns(core->effects.context);
    if (--run->out == 0 && run->waiting == 0)
        run_finish(core, work->run);
    return true;
}

static void forget_waiting(struct mla_core *core, uint32_t index)
{
    struct run *run = &core->runs[index];
    if (run->waiting > 0)
        unqueue(core, index);
    run->waiting = 0;
    run->answered = true;
    if (run->out == 0)
        run_release(core, index);
}

void run_fail(struct mla_core *core, uint32_t index, enum mla_status status, const char *sentence)
{
    struct run *run = &core->runs[index];
    if (!run->answered) {
        struct failure failure;
        (void)fail_with(&failure, status, MLA_INDEX_NONE, "%s", sentence);
        session_reply_failure(core, run->session, MLA_RUN, run->request_id, &failure);
    }
    forget_waiting(core, index);
}

void runs_cancel(struct mla_core *core, uint32_t session)
{
    for (uint32_t i = 0; i < core->run_bound && core->sessions[session].runs > 0; i++)
        if (core->runs[i].used && core->runs[i].session == session && !core->runs[i].answered)
            forget_waiting(core, i);
}

void works_lose(struct mla_core *core, uint32_t group_index)
{
    struct group *group = &core->groups[group_index];
    for (uint32_t i = 0; i < core->options.credits; i++) {
        struct work *work = &group->works[i];
        if (work->ranks_left == 0)
            continue;
        work->ranks_left = 0;
        core->runs[work->run].out--;
    }
    group->works_out = 0;
}

/* Whether a microbatch of this run is at work in the group. */
static bool is_at_work(const struct mla_core *core, uint32_t run, const struct group *group)
{
    for (uint32_t i = 0; i < core->options.credits; i++)
        if (group->works[i].ranks_left > 0 && group->works[i].run == run)
            return true;
    return false;
}

/* A group is not to blame for a RUN that waited for others; one that moved nothing for half of the
 * time hangs. */
static void blame(struct mla_core *core, uint32_t run, uint64_t now_ns, uint64_t timeout_ns)
{
    for (uint32_t g = 0; g < core->options.groups; g++) {
        struct group *group = &core->groups[g];
        if (group->state != GROUP_READY || group->doomed || group->works_out == 0 ||
            now_ns - group->moved_ns < timeout_ns / 2 || !is_at_work(core, run, group))
            continue;
        group->doomed = "a RUN passed its deadline and no rank moves";
        group->doomed_status = MLA_DEADLINE;
    }
}

void runs_expire(struct mla_core *core, uint64_t now_ns)
{
    uint64_t timeout_ns = core->options.run_timeout_ms * 1000000ull;
    for (uint32_t i = 0; i < core->run_bound && core->stats.runs_in_flight > 0; i++) {
        struct run *run = &core->runs[i];
        if (!run->used || now_ns < run->received_ns || now_ns - run->received_ns < timeout_ns)
            continue;
        blame(core, i, now_ns, timeout_ns);
        if (!run->answered)
            run_fail(core, i, MLA_DEADLINE, "the RUN was not done in time");
    }
}
