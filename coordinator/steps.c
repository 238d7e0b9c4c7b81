#include "coordinator/state.h"

#include <assert.h>

uint32_t step_find(const struct mla_core *core, uint32_t session, uint64_t id)
{
    for (uint32_t i = 0; i < core->options.steps_open_max; i++) {
        const struct step *step = &core->steps[i];
        if (step->used && step->session == session && step->id == id)
            return i;
    }
    return NONE;
}

static enum mla_status check_sizes(const struct mla_core *core, const struct mla_open *open,
                                   struct failure *failure)
{
    uint64_t tokens = 0;
    uint64_t blocks = 0;
    if (open->count == 0)
        return fail_with(failure, MLA_COUNT, MLA_INDEX_NONE, "a step of no sequences");
    for (uint32_t i = 0; i < open->count; i++) {
        const struct mla_open_entry *entry = &open->entries[i];
        if (entry->tokens == 0)
            return fail_with(failure, MLA_COUNT, i, "a sequence with 0 new tokens");
        tokens += entry->tokens;
        blocks += ((uint64_t)entry->start + entry->tokens) / MLA_BLOCK_TOKENS + 1;
        if (tokens > core->options.step_tokens_max)
            return fail_with(failure, MLA_LIMIT, i, "a step of more than %u tokens",
                             core->options.step_tokens_max);
        if ((uint64_t)entry->start + entry->tokens > core->context_max)
            return fail_with(failure, MLA_CONTEXT, i,
                             "sequence %llu would have %llu tokens, context_max is %u",
                             (unsigned long long)entry->sequence,
                             (unsigned long long)entry->start + entry->tokens, core->context_max);
        if (blocks > MLA_PLAN_BLOCKS_MAX)
            return fail_with(failure, MLA_LIMIT, i, "a step over more than %u blocks",
                             MLA_PLAN_BLOCKS_MAX);
    }
    return MLA_OK;
}

/* Finds or makes the sequence of entry i and checks that it may be continued there. */
static enum mla_status admit(struct mla_core *core, uint32_t session, uint32_t i, uint64_t stamp,
                             struct failure *failure)
{
    const struct mla_open_entry *entry = &core->request.u.open.entries[i];
    struct opening *opening = &core->openings[i];
    unsigned long long id = entry->sequence;
    *opening = (struct opening){.sequence = sequence_find(core, session, entry->sequence)};
    if (opening->sequence == NONE) {
        if (entry->start != 0)
            return fail_with(failure, MLA_SEQUENCE_UNKNOWN, i,
                             "sequence %llu does not exist; a new one starts at 0, not %u", id,
                             entry->start);
        opening->sequence = sequence_add(core, session, entry->sequence);
        if (opening->sequence == NONE)
            return fail_with(failure, MLA_SEQUENCES_FULL, i, "no room for another sequence");
        opening->created = true;
        core->sequences[opening->sequence].stamp = stamp;
        return MLA_OK;
    }
    struct sequence *sequence = &core->sequences[opening->sequence];
    if (sequence->stamp == stamp)
        return fail_with(failure, MLA_SEQUENCE_REPEATED, i, "sequence %llu is named twice", id);
    if (sequence->step != NONE)
        return fail_with(failure, MLA_SEQUENCE_BUSY, i, "sequence %llu is in open step %llu", id,
                         (unsigned long long)core->steps[sequence->step].id);
    if (sequence->lost && entry->start != 0)
        return fail_with(failure, MLA_KV_LOST, i,
                         "sequence %llu was lost with its group; start again from 0", id);
    if (sequence->group != NONE && !sequence->lost) {
        uint32_t committed =
            mla_ledger_length(core->groups[sequence->group].ledger, sequence->table);
        if (entry->start != committed)
            return fail_with(failure, MLA_OUT_OF_ORDER, i,
                             "sequence %llu has %u tokens, the step starts at %u", id, committed,
                             entry->start);
    }
    sequence->stamp = stamp;
    return MLA_OK;
}

/* Chooses a group for a sequence that has none and reserves the blocks. */
static enum mla_status reserve(struct mla_core *core, uint32_t i, struct failure *failure)
{
    const struct mla_open_entry *entry = &core->request.u.open.entries[i];
    struct opening *opening = &core->openings[i];
    struct sequence *sequence = &core->sequences[opening->sequence];
    if (sequence->group == NONE || sequence->lost) {
        uint32_t group = group_choose(core);
        uint32_t table = NONE;
        if (mla_ledger_add(core->groups[group].ledger, &table) != MLA_OK)
            return fail_with(failure, MLA_SEQUENCES_FULL, i, "no room for another sequence");
        opening->placed = true;
        opening->was_lost = sequence->lost;
        sequence->group = group;
        sequence->table = table;
        sequence->lost = false;
    }
    struct mla_ledger *ledger = core->groups[sequence->group].ledger;
    enum mla_status status =
        mla_ledger_reserve(ledger, sequence->table, entry->tokens, &opening->copy);
    if (status == MLA_KV_FULL)
        return fail_with(failure, status, i, "%u blocks are free, sequence %llu needs more",
                         mla_ledger_blocks_free(ledger), (unsigned long long)entry->sequence);
    if (status != MLA_OK)
        return fail_with(failure, status, i, "sequence %llu would be longer than its group allows",
                         (unsigned long long)entry->sequence);
    return MLA_OK;
}

static void undo_one(struct mla_core *core, const struct opening *opening, bool reserved)
{
    struct sequence *sequence = &core->sequences[opening->sequence];
    if (reserved)
        mla_ledger_rollback(core->groups[sequence->group].ledger, sequence->table);
    if (opening->placed) {
        mla_ledger_free(core->groups[sequence->group].ledger, sequence->table);
        sequence->group = NONE;
        sequence->lost = opening->was_lost;
    }
    if (opening->created)
        sequence_remove(core, opening->sequence);
}

/* The first `admitted` entries passed admit, the first `reserved` also reserve. The ledger wants
 * the newest reservation undone first. */
static void undo(struct mla_core *core, uint32_t admitted, uint32_t reserved)
{
    for (uint32_t i = admitted; i-- > 0;)
        undo_one(core, &core->openings[i], i < reserved);
}

static enum mla_status take(struct mla_core *core, uint32_t session, struct failure *failure)
{
    uint32_t count = core->request.u.open.count;
    uint64_t stamp = ++core->next_stamp;
    for (uint32_t i = 0; i < count; i++) {
        enum mla_status status = admit(core, session, i, stamp, failure);
        if (status != MLA_OK) {
            undo(core, i, 0);
            return status;
        }
    }
    for (uint32_t i = 0; i < count; i++) {
        enum mla_status status = reserve(core, i, failure);
        if (status != MLA_OK) {
            undo(core, count, i);
            return status;
        }
    }
    return MLA_OK;
}

/* The group's part of the step, from its sequences in the client's order. */
static enum mla_status plan_group(struct mla_core *core, struct step *step, uint32_t group)
{
    const struct mla_open *open = &core->request.u.open;
    uint32_t count = 0;
    uint32_t row = 0;
    for (uint32_t i = 0; i < open->count; i++) {
        const struct sequence *sequence = &core->sequences[core->openings[i].sequence];
        if (sequence->group == group)
            core->plan_sequences[count++] =
                (struct mla_plan_sequence){.table = sequence->table,
                                           .start = open->entries[i].start,
                                           .tokens = open->entries[i].tokens,
                                           .row = row};
        row += open->entries[i].tokens;
    }
    step->rows = row;
    return mla_plan_build(&core->groups[group].plan, core->plan_sequences, count,
                          &step->plans[group]);
}

static enum mla_status plan_all(struct mla_core *core, struct step *step, struct failure *failure)
{
    step->microbatches = 0;
    for (uint32_t group = 0; group < core->options.groups; group++) {
        if (core->groups[group].state != GROUP_READY) {
            step->plans[group].microbatch_count = 0;
            continue;
        }
        if (plan_group(core, step, group) != MLA_OK)
            return fail_with(failure, MLA_LIMIT, MLA_INDEX_NONE,
                             "the step needs more than %u microbatches", MLA_STEP_MICROBATCHES_MAX);
        step->microbatches += step->plans[group].microbatch_count;
    }
    return MLA_OK;
}

/* Tells every rank of the group its part of the step. */
static void send_plan(struct mla_core *core, const struct step *step, uint32_t index,
                      uint32_t group_index)
{
    struct group *group = &core->groups[group_index];
    const struct mla_plan *plan = &step->plans[group_index];
    uint32_t tables = 0;
    uint32_t copies = 0;
    uint32_t blocks = 0;
    for (uint32_t i = 0; i < step->count; i++) {
        const struct opening *opening = &core->openings[i];
        const struct sequence *sequence = &core->sequences[opening->sequence];
        if (sequence->group != group_index)
            continue;
        if (opening->copy.src != opening->copy.dst)
            core->plan_copies[copies++] = opening->copy;
        struct mla_plan_table change = {.table = sequence->table};
        const uint32_t *ids = NULL;
        mla_ledger_changes(group->ledger, sequence->table, &change.first, &change.count, &ids);
        if (change.count == 0)
            continue;
        assert(blocks + change.count <= MLA_PLAN_BLOCKS_MAX);
        memcpy(core->plan_blocks + blocks, ids, change.count * sizeof *ids);
        blocks += change.count;
        core->plan_tables[tables++] = change;
    }

    struct mla_worker_message *message = &core->outgoing;
    *message = (struct mla_worker_message){.header = {.type = MLA_PLAN, .epoch = group->epoch}};
    message->u.plan = (struct mla_plan_message){.step = step->number,
                                                .slot = index,
                                                .microbatch_count = plan->microbatch_count,
                                                .entry_count = plan->entry_count,
                                                .table_count = tables,
                                                .copy_count = copies,
                                                .block_count = blocks,
                                                .run_count = plan->run_count,
                                                .rows = step->rows,
                                                .microbatches = plan->microbatches,
                                                .entries = plan->entries,
                                                .tables = core->plan_tables,
                                                .copies = core->plan_copies,
                                                .blocks = core->plan_blocks,
                                                .runs = plan->runs};
    size_t bytes = 0;
    enum mla_status status =
        mla_worker_message_encode(message, core->plan_frame, core->plan_frame_bytes, &bytes);
    assert(status == MLA_OK); /* plan_frame is large enough for every plan */
    (void)status;
    for (uint32_t rank = 0; rank < group->ranks; rank++)
        group_send(core, group_index, rank, core->plan_frame, bytes, NULL, 0, 0);
}

static void set_opened(struct mla_core *core, struct step *step)
{
    struct mla_open_reply reply = {.step = step->id, .microbatches = step->microbatches};
    for (uint32_t group = 0; group < core->options.groups; group++) {
        if (step->plans[group].microbatch_count == 0)
            continue;
        reply.decode_rows += step->plans[group].decode_rows;
        reply.prefill_rows += step->plans[group].prefill_rows;
    }
    step->opened = reply;
    core->stats.rows_decode += reply.decode_rows;
    core->stats.rows_prefill += reply.prefill_rows;
}

static enum mla_status answer_opened(struct mla_core *core, const struct mla_open_reply *opened)
{
    core->reply.u.open_reply = *opened;
    core->reply.u.open_reply.blocks_free = blocks_free(core);
    return MLA_OK;
}

/* FNV-1a. A client that finds two OPENs with the same digest deceives only itself. */
static uint64_t digest_of(const struct mla_open *open)
{
    uint64_t digest = 0xcbf29ce484222325u;
    for (uint32_t i = 0; i < open->count; i++) {
        const uint64_t values[] = {open->entries[i].sequence, open->entries[i].start,
                                   open->entries[i].tokens};
        for (uint32_t k = 0; k < sizeof values / sizeof *values; k++)
            digest = (digest ^ values[k]) * 0x100000001b3u;
    }
    return digest ^ open->count;
}

/* The newest of this id among those that are remembered, or NULL. */
static const struct closed *find_closed(const struct session *session, uint64_t step)
{
    for (uint32_t i = 0; i < session->closed_count && i < MLA_STEPS_CLOSED_MAX; i++) {
        const struct closed *closed =
            &session->closed[(session->closed_count - 1 - i) % MLA_STEPS_CLOSED_MAX];
        if (closed->step == step)
            return closed;
    }
    return NULL;
}

/* An OPEN that was done before is answered as it was then, and not done. MLA_AGAIN: it is new. */
static enum mla_status open_again(struct mla_core *core, uint32_t session, struct failure *failure)
{
    const struct mla_open *open = &core->request.u.open;
    uint64_t digest = digest_of(open);
    uint32_t index = step_find(core, session, open->step);
    if (index != NONE && core->steps[index].digest != digest)
        return fail_with(failure, MLA_STEP_EXISTS, MLA_INDEX_NONE,
                         "step %llu is open, with other entries", (unsigned long long)open->step);
    if (index != NONE)
        return answer_opened(core, &core->steps[index].opened);
    /* An id is free again after CLOSE, so it takes the request's to tell. */
    const struct closed *closed = find_closed(&core->sessions[session], open->step);
    if (closed && closed->open_request == core->request.header.request_id &&
        closed->digest == digest)
        return answer_opened(core, &closed->opened);
    return MLA_AGAIN;
}

enum mla_status step_open(struct mla_core *core, uint32_t session, struct failure *failure)
{
    const struct mla_open *open = &core->request.u.open;
    enum mla_status status = open_again(core, session, failure);
    if (status != MLA_AGAIN)
        return status;
    if (group_choose(core) == NONE)
        return fail_with(failure, MLA_NOT_READY, MLA_INDEX_NONE, "no group of workers is ready");
    if ((status = check_sizes(core, open, failure)) != MLA_OK)
        return status;
    uint32_t index = 0;
    while (index < core->options.steps_open_max && core->steps[index].used)
        index++;
    if (index == core->options.steps_open_max)
        return fail_with(failure, MLA_BUSY, MLA_INDEX_NONE, "%u steps are open",
                         core->options.steps_open_max);

    if ((status = take(core, session, failure)) != MLA_OK)
        return status;
    struct step *step = &core->steps[index];
    if ((status = plan_all(core, step, failure)) != MLA_OK) {
        undo(core, open->count, open->count);
        return status;
    }

    step->used = true;
    step->lost = false;
    step->id = open->step;
    step->number = ++core->next_step;
    step->open_request = core->request.header.request_id;
    step->digest = digest_of(open);
    step->session = session;
    step->runs = 0;
    step->count = open->count;
    for (uint32_t i = 0; i < open->count; i++) {
        step->sequences[i] = core->openings[i].sequence;
        core->sequences[step->sequences[i]].step = index;
    }
    core->sessions[session].steps++;
    core->stats.steps_open++;
    for (uint32_t group = 0; group < core->options.groups; group++)
        if (step->plans[group].microbatch_count > 0)
            send_plan(core, step, index, group);
    set_opened(core, step);
    return answer_opened(core, &step->opened);
}

void step_end(struct mla_core *core, uint32_t index, enum mla_close_action action)
{
    struct step *step = &core->steps[index];
    assert(step->used && step->runs == 0);
    for (uint32_t i = 0; i < step->count; i++) {
        struct sequence *sequence = &core->sequences[step->sequences[i]];
        sequence->step = NONE;
        if (sequence->lost)
            continue;
        struct mla_ledger *ledger = core->groups[sequence->group].ledger;
        if (action == MLA_COMMIT)
            mla_ledger_commit(ledger, sequence->table);
        else
            mla_ledger_abort(ledger, sequence->table);
    }
    step->used = false;
    struct session *session = &core->sessions[step->session];
    session->closed[session->closed_count++ % MLA_STEPS_CLOSED_MAX] =
        (struct closed){.step = step->id,
                        .open_request = step->open_request,
                        .digest = step->digest,
                        .opened = step->opened,
                        .action = action};
    session->steps--;
    core->stats.steps_open--;
}

static enum mla_status answer_closed(struct mla_core *core)
{
    core->reply.u.close_reply = (struct mla_close_reply){.step = core->request.u.close.step,
                                                         .blocks_free = blocks_free(core)};
    return MLA_OK;
}

/* Of a step that is not open: a CLOSE that was done before is answered as it was then. */
static enum mla_status close_again(struct mla_core *core, uint32_t session, struct failure *failure)
{
    const struct mla_close *close = &core->request.u.close;
    const struct closed *closed = find_closed(&core->sessions[session], close->step);
    if (closed && closed->action == (enum mla_close_action)close->action)
        return answer_closed(core);
    return fail_with(failure, MLA_STEP_UNKNOWN, MLA_INDEX_NONE, "step %llu %s",
                     (unsigned long long)close->step,
                     !closed                        ? "is not open"
                     : closed->action == MLA_COMMIT ? "was committed"
                                                    : "was aborted");
}

enum mla_status step_close(struct mla_core *core, uint32_t session, struct failure *failure)
{
    const struct mla_close *close = &core->request.u.close;
    unsigned long long id = close->step;
    uint32_t index = step_find(core, session, close->step);
    if (index == NONE)
        return close_again(core, session, failure);
    struct step *step = &core->steps[index];
    if (step->runs > 0)
        return fail_with(failure, MLA_STEP_BUSY, MLA_INDEX_NONE,
                         "%u RUNs of step %llu are in flight", step->runs, id);
    if (step->lost && close->action == MLA_COMMIT)
        return fail_with(failure, MLA_STEP_LOST, MLA_INDEX_NONE,
                         "step %llu lost its group and can only be aborted", id);
    step_end(core, index, (enum mla_close_action)close->action);
    return answer_closed(core);
}
