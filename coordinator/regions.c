#include "coordinator/state.h"

#include <assert.h>

/* A message about a region to every rank of a group. */
static void tell_group(struct mla_core *core, uint32_t index, uint16_t type,
                       const struct mla_grant *grant)
{
    const struct group *group = &core->groups[index];
    struct mla_worker_message *message = &core->outgoing;
    size_t bytes = 0;
    *message = (struct mla_worker_message){.header = {.type = type, .epoch = group->epoch}};
    if (type == MLA_ATTACH)
        message->u.attach = *grant;
    else
        message->u.detach.region = grant->region;
    enum mla_status status =
        mla_worker_message_encode(message, core->frame, sizeof core->frame, &bytes);
    assert(status == MLA_OK);
    (void)status;
    for (uint32_t rank = 0; rank < group->ranks; rank++)
        group_send(core, index, rank, core->frame, bytes, NULL, 0, 0);
}

static void ask_group(struct mla_core *core, struct region *region, uint32_t group)
{
    region->asked[group] = all_ranks(&core->groups[group]);
    region->mapped[group] = 0;
    tell_group(core, group, MLA_ATTACH, &region->grant);
}

/* A RUN in flight is in the session's region. */
static bool is_used(const struct mla_core *core, uint32_t index)
{
    for (uint32_t i = 0; i < core->run_bound; i++)
        if (core->runs[i].used && core->runs[i].session == index && core->runs[i].shared)
            return true;
    return false;
}

void region_drop(struct mla_core *core, uint32_t index)
{
    struct region *region = &core->sessions[index].region;
    if (region->grant.region == 0)
        return;
    assert(!is_used(core, index));
    for (uint32_t g = 0; g < core->options.groups; g++)
        if (group_is_adopted(&core->groups[g]))
            tell_group(core, g, MLA_DETACH, &region->grant);
    core->effects.region_remove(core->effects.context, region->grant.region);
    core->region_bytes -= region->grant.bytes;
    *region = (struct region){0};
}

static enum mla_status give_back(struct mla_core *core, uint32_t index, struct failure *failure)
{
    const struct session *session = &core->sessions[index];
    if (session->runs > 0)
        return fail_with(failure, MLA_BUSY, MLA_INDEX_NONE, "%u RUNs are in flight", session->runs);
    region_drop(core, index);
    core->reply.u.share_reply = (struct mla_grant){0};
    return MLA_OK;
}

enum mla_status region_share(struct mla_core *core, uint32_t index, struct failure *failure)
{
    struct session *session = &core->sessions[index];
    struct region *region = &session->region;
    uint64_t bytes = core->request.u.share.bytes;
    uint64_t most = core->options.region_bytes_max;
    bool told = false;
    if (region->pending)
        return fail_with(failure, MLA_BUSY, MLA_INDEX_NONE,
                         "the workers have yet to map the region that was asked for");
    if (bytes == 0)
        return give_back(core, index, failure);
    if (most == 0)
        return fail_with(failure, MLA_NOT_SHARED, MLA_INDEX_NONE,
                         "payloads travel inline here, no memory is shared");
    if (region->grant.region != 0)
        return fail_with(failure, MLA_REGION, MLA_INDEX_NONE,
                         "this client has a region of %llu bytes: give it back first",
                         (unsigned long long)region->grant.bytes);
    if (bytes > most || bytes > MLA_REGION_BYTES_MAX)
        return fail_with(failure, MLA_LIMIT, MLA_INDEX_NONE,
                         "all regions together may have %llu bytes", (unsigned long long)most);
    if (bytes > most - core->region_bytes)
        return fail_with(failure, MLA_BUSY, MLA_INDEX_NONE,
                         "%llu bytes are left for regions of shared memory",
                         (unsigned long long)(most - core->region_bytes));
    if (core->effects.region_add(core->effects.context, core->next_region + 1, bytes,
                                 &region->grant) != MLA_OK)
        return fail_with(failure, MLA_NOT_SHARED, MLA_INDEX_NONE,
                         "a region of %llu bytes can't be made", (unsigned long long)bytes);
    core->next_region++;
    core->region_bytes += bytes;
    region->request_id = core->request.header.request_id;
    for (uint32_t g = 0; g < core->options.groups; g++) {
        if (!group_is_adopted(&core->groups[g]))
            continue;
        ask_group(core, region, g);
        told = true;
    }
    if (!told) {
        region_drop(core, index);
        return fail_with(failure, MLA_NOT_READY, MLA_INDEX_NONE, "no group of workers is there");
    }
    region->pending = true;
    return MLA_AGAIN;
}

/* Answers a SHARE that waits once nobody is left to hear from. */
static void answer(struct mla_core *core, uint32_t index)
{
    struct region *region = &core->sessions[index].region;
    uint64_t request_id = region->request_id;
    if (!region->pending)
        return;
    for (uint32_t g = 0; g < core->options.groups; g++)
        if (region->asked[g])
            return;
    region->pending = false;
    if (!region->refused) {
        core->reply.u.share_reply = region->grant;
        session_reply(core, index, MLA_SHARE, request_id, NULL, 0, 0);
        return;
    }
    struct failure failure;
    (void)fail_with(&failure, MLA_NOT_SHARED, MLA_INDEX_NONE,
                    "not all workers can map shared memory of this host");
    region_drop(core, index);
    session_reply_failure(core, index, MLA_SHARE, request_id, &failure);
}

void region_attached(struct mla_core *core, uint32_t group, uint32_t rank,
                     const struct mla_attached *attached)
{
    for (uint32_t i = 0; i < core->session_bound; i++) {
        struct region *region = &core->sessions[i].region;
        uint64_t bit = 1ull << rank;
        if (!core->sessions[i].used || region->grant.region != attached->region ||
            !(region->asked[group] & bit))
            continue;
        region->asked[group] &= ~bit;
        if (attached->status == MLA_OK)
            region->mapped[group] |= bit;
        else
            region->refused = true;
        answer(core, i);
        return;
    }
}

void regions_tell(struct mla_core *core, uint32_t group)
{
    for (uint32_t i = 0; i < core->session_bound; i++)
        if (core->sessions[i].used && core->sessions[i].region.grant.region != 0)
            ask_group(core, &core->sessions[i].region, group);
}

void regions_forget(struct mla_core *core, uint32_t group)
{
    for (uint32_t i = 0; i < core->session_bound; i++) {
        struct region *region = &core->sessions[i].region;
        if (!core->sessions[i].used || region->grant.region == 0)
            continue;
        region->asked[group] = region->mapped[group] = 0;
        answer(core, i);
    }
}

/* [at, at + bytes) is within the region; nothing overflows. */
static bool is_within(const struct region *region, uint64_t at, uint64_t bytes)
{
    return at % MLA_REGION_ALIGNMENT == 0 && bytes <= region->grant.bytes &&
           at <= region->grant.bytes - bytes;
}

enum mla_status region_check(const struct mla_core *core, uint32_t session, const struct step *step,
                             const struct mla_run *request, struct failure *failure)
{
    const struct region *region = &core->sessions[session].region;
    const struct mla_run_place *place = &request->places[0];
    uint64_t in_bytes = step->rows * row_bytes(core, (enum mla_dtype)request->dtype);
    uint64_t out_bytes = step->rows * row_bytes(core, (enum mla_dtype)request->reply_dtype);
    if (place->region == 0 || region->grant.region != place->region || region->pending)
        return fail_with(failure, MLA_REGION, 0, "region %llu is not this client's",
                         (unsigned long long)place->region);
    if (!is_within(region, place->input_at, in_bytes) ||
        !is_within(region, place->output_at, out_bytes))
        return fail_with(failure, MLA_REGION, 0,
                         "%llu bytes at %llu or %llu bytes at %llu are not a place in a region of "
                         "%llu, at multiples of %u",
                         (unsigned long long)in_bytes, (unsigned long long)place->input_at,
                         (unsigned long long)out_bytes, (unsigned long long)place->output_at,
                         (unsigned long long)region->grant.bytes, MLA_REGION_ALIGNMENT);
    if (place->input_at < place->output_at + out_bytes &&
        place->output_at < place->input_at + in_bytes)
        return fail_with(failure, MLA_REGION, 0, "input and output overlap");
    for (uint32_t g = 0; g < core->options.groups; g++)
        if (step->plans[g].microbatch_count > 0 && region->mapped[g] != all_ranks(&core->groups[g]))
            return fail_with(failure, MLA_NOT_SHARED, 0,
                             "the workers of group %u don't have the region", g);
    return MLA_OK;
}
