#include "coordinator/state.h"

static uint32_t bucket_of(const struct mla_core *core, uint32_t session, uint64_t id)
{
    uint64_t mixed = (id ^ ((uint64_t)session << 48)) * 0x9e3779b97f4a7c15u;
    return (uint32_t)(mixed >> 32) & (core->sequence_buckets - 1);
}

uint32_t sequence_find(const struct mla_core *core, uint32_t session, uint64_t id)
{
    uint32_t at = core->sequence_heads[bucket_of(core, session, id)];
    while (at != NONE && (core->sequences[at].id != id || core->sequences[at].session != session))
        at = core->sequences[at].chain;
    return at;
}

uint32_t sequence_add(struct mla_core *core, uint32_t session, uint64_t id)
{
    uint32_t at = core->sequence_free;
    if (at == NONE)
        return NONE;
    struct sequence *sequence = &core->sequences[at];
    core->sequence_free = sequence->chain;
    uint32_t *head = &core->sequence_heads[bucket_of(core, session, id)];
    uint32_t *first = &core->sessions[session].sequence_first;
    *sequence = (struct sequence){.id = id,
                                  .session = session,
                                  .group = NONE,
                                  .table = NONE,
                                  .step = NONE,
                                  .chain = *head,
                                  .previous = NONE,
                                  .next = *first};
    *head = at;
    if (*first != NONE)
        core->sequences[*first].previous = at;
    *first = at;
    core->stats.sequences++;
    return at;
}

void sequence_remove(struct mla_core *core, uint32_t at)
{
    struct sequence *sequence = &core->sequences[at];
    if (sequence->group != NONE && !sequence->lost)
        mla_ledger_free(core->groups[sequence->group].ledger, sequence->table);

    uint32_t *link = &core->sequence_heads[bucket_of(core, sequence->session, sequence->id)];
    while (*link != at)
        link = &core->sequences[*link].chain;
    *link = sequence->chain;
    if (sequence->previous != NONE)
        core->sequences[sequence->previous].next = sequence->next;
    else
        core->sessions[sequence->session].sequence_first = sequence->next;
    if (sequence->next != NONE)
        core->sequences[sequence->next].previous = sequence->previous;
    sequence->chain = core->sequence_free;
    core->sequence_free = at;
    core->stats.sequences--;
}

/* The sequence of entry i, which must exist, be in no open step and be named once. */
static enum mla_status find_idle(struct mla_core *core, uint32_t session, uint64_t id,
                                 uint64_t stamp, uint32_t i, uint32_t *at, struct failure *failure)
{
    *at = sequence_find(core, session, id);
    if (*at == NONE)
        return fail_with(failure, MLA_SEQUENCE_UNKNOWN, i, "sequence %llu does not exist",
                         (unsigned long long)id);
    struct sequence *sequence = &core->sequences[*at];
    if (sequence->step != NONE)
        return fail_with(failure, MLA_SEQUENCE_BUSY, i, "sequence %llu is in open step %llu",
                         (unsigned long long)id,
                         (unsigned long long)core->steps[sequence->step].id);
    if (stamp && sequence->stamp == stamp)
        return fail_with(failure, MLA_SEQUENCE_REPEATED, i, "sequence %llu is named twice",
                         (unsigned long long)id);
    if (stamp)
        sequence->stamp = stamp;
    return MLA_OK;
}

static enum mla_status check_kept(const struct mla_core *core, uint32_t at, uint32_t i,
                                  uint32_t length, struct failure *failure)
{
    const struct sequence *sequence = &core->sequences[at];
    if (sequence->lost)
        return fail_with(failure, MLA_KV_LOST, i, "sequence %llu was lost with its group",
                         (unsigned long long)sequence->id);
    uint32_t committed = mla_ledger_length(core->groups[sequence->group].ledger, sequence->table);
    if (length > committed)
        return fail_with(failure, MLA_OUT_OF_ORDER, i,
                         "sequence %llu has %u tokens, %u were asked for",
                         (unsigned long long)sequence->id, committed, length);
    return MLA_OK;
}

static void reply_blocks(struct mla_core *core)
{
    core->reply.u.blocks_reply.blocks_free = blocks_free(core);
}

static enum mla_status fork_one(struct mla_core *core, uint32_t session, uint32_t i,
                                struct failure *failure)
{
    const struct mla_fork_entry *entry = &core->request.u.fork.entries[i];
    uint32_t parent = NONE;
    enum mla_status status = find_idle(core, session, entry->parent, 0, i, &parent, failure);
    if (status == MLA_OK && entry->length == 0)
        status = fail_with(failure, MLA_COUNT, i, "a fork of 0 tokens");
    if (status == MLA_OK)
        status = check_kept(core, parent, i, entry->length, failure);
    if (status != MLA_OK)
        return status;
    if (sequence_find(core, session, entry->child) != NONE)
        return fail_with(failure, MLA_SEQUENCE_EXISTS, i, "sequence %llu exists",
                         (unsigned long long)entry->child);

    uint32_t group = core->sequences[parent].group;
    uint32_t child = sequence_add(core, session, entry->child);
    uint32_t table = NONE;
    if (child == NONE || mla_ledger_fork(core->groups[group].ledger, core->sequences[parent].table,
                                         entry->length, &table) != MLA_OK) {
        if (child != NONE)
            sequence_remove(core, child);
        return fail_with(failure, MLA_SEQUENCES_FULL, i, "no room for another sequence");
    }
    core->sequences[child].group = group;
    core->sequences[child].table = table;
    return MLA_OK;
}

enum mla_status sequences_fork(struct mla_core *core, uint32_t session, struct failure *failure)
{
    const struct mla_fork *fork = &core->request.u.fork;
    for (uint32_t i = 0; i < fork->count; i++) {
        enum mla_status status = fork_one(core, session, i, failure);
        if (status == MLA_OK)
            continue;
        while (i-- > 0) /* all or nothing */
            sequence_remove(core, sequence_find(core, session, fork->entries[i].child));
        return status;
    }
    reply_blocks(core);
    return MLA_OK;
}

enum mla_status sequences_truncate(struct mla_core *core, uint32_t session, struct failure *failure)
{
    const struct mla_truncate *truncate = &core->request.u.truncate;
    uint64_t stamp = ++core->next_stamp;
    for (uint32_t i = 0; i < truncate->count; i++) {
        uint32_t at = NONE;
        const struct mla_truncate_entry *entry = &truncate->entries[i];
        enum mla_status status = find_idle(core, session, entry->sequence, stamp, i, &at, failure);
        if (status == MLA_OK)
            status = check_kept(core, at, i, entry->length, failure);
        if (status != MLA_OK)
            return status;
    }
    for (uint32_t i = 0; i < truncate->count; i++) {
        const struct sequence *sequence =
            &core->sequences[sequence_find(core, session, truncate->entries[i].sequence)];
        mla_ledger_truncate(core->groups[sequence->group].ledger, sequence->table,
                            truncate->entries[i].length);
    }
    reply_blocks(core);
    return MLA_OK;
}

enum mla_status sequences_free(struct mla_core *core, uint32_t session, struct failure *failure)
{
    const struct mla_free *request = &core->request.u.free;
    uint64_t stamp = ++core->next_stamp;
    for (uint32_t i = 0; i < request->count; i++) {
        uint32_t at = NONE;
        enum mla_status status =
            find_idle(core, session, request->sequences[i], stamp, i, &at, failure);
        if (status != MLA_OK)
            return status;
    }
    for (uint32_t i = 0; i < request->count; i++)
        sequence_remove(core, sequence_find(core, session, request->sequences[i]));
    reply_blocks(core);
    return MLA_OK;
}
