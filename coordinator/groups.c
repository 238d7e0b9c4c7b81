#include "coordinator/state.h"

#include <assert.h>
#include <stdio.h>

/* Ranks that are not adopted don't know our heartbeat_ms: they beat every 100 ms. */
enum { LOADING_SILENCE_MS = 1000 };

uint32_t group_choose(const struct mla_core *core)
{
    uint32_t found = NONE;
    uint32_t most = 0;
    for (uint32_t i = 0; i < core->options.groups; i++) {
        const struct group *group = &core->groups[i];
        if (group->state != GROUP_READY || group->doomed)
            continue;
        uint32_t free_blocks = mla_ledger_blocks_free(group->ledger);
        if (found == NONE || free_blocks > most) {
            found = i;
            most = free_blocks;
        }
    }
    return found;
}

uint32_t blocks_free(const struct mla_core *core)
{
    uint32_t sum = 0;
    for (uint32_t i = 0; i < core->options.groups; i++)
        if (core->groups[i].state == GROUP_READY)
            sum += mla_ledger_blocks_free(core->groups[i].ledger);
    return sum;
}

uint32_t mla_core_groups_ready(const struct mla_core *core)
{
    uint32_t ready = 0;
    for (uint32_t i = 0; i < core->options.groups; i++)
        ready += core->groups[i].state == GROUP_READY;
    return ready;
}

void group_send(struct mla_core *core, uint32_t index, uint32_t rank, const void *head,
                size_t bytes, struct mla_blob *payload, size_t offset, size_t payload_bytes)
{
    struct group *group = &core->groups[index];
    if (!group->doomed &&
        core->effects.send_worker(core->effects.context, &group->peers[rank], head, bytes, payload,
                                  offset, payload_bytes) != MLA_OK)
        group->doomed = "a worker does not take its messages";
}

/* SHUTDOWN, ALIVE, or DISMISS with a status. The peer may be gone already. */
static void tell(struct mla_core *core, const struct mla_peer *peer, uint16_t type, uint64_t epoch,
                 enum mla_status status)
{
    size_t bytes = 0;
    core->outgoing = (struct mla_worker_message){.header = {.type = type, .epoch = epoch}};
    core->outgoing.u.dismiss.status = status;
    if (mla_worker_message_encode(&core->outgoing, core->frame, sizeof core->frame, &bytes) ==
        MLA_OK)
        (void)core->effects.send_worker(core->effects.context, peer, core->frame, bytes, NULL, 0,
                                        0);
}

/* Tells all ranks that joined, or load. Over both connections: a rank that is busy reads only that
 * of its heartbeats. */
static uint32_t tell_ranks(struct mla_core *core, const struct group *group, uint16_t type,
                           enum mla_status status)
{
    uint32_t told = 0;
    for (uint32_t rank = 0; rank < MLA_RANKS_MAX; rank++) {
        bool joined = group->joined_set >> rank & 1;
        bool beats = (joined || (group->loading_set >> rank & 1)) && group->beats[rank].size > 0;
        if (joined)
            tell(core, &group->peers[rank], type, group->epoch, status);
        if (beats)
            tell(core, &group->beats[rank], type, group->epoch, status);
        told += joined + beats;
    }
    return told;
}

/* Its rank has not joined any more. */
static void forget_connection(struct mla_core *core, const struct mla_peer *peer)
{
    core->worker_fds[peer->fd] = NONE;
}

/* Forgets the job. */
static void group_clear(struct mla_core *core, struct group *group)
{
    for (uint32_t rank = 0; rank < group->ranks; rank++)
        if (group->joined_set >> rank & 1)
            forget_connection(core, &group->peers[rank]);
    mla_ledger_destroy(&group->ledger);
    struct work *works = group->works;
    *group = (struct group){.works = works, .next_work = group->next_work};
    regions_forget(core, (uint32_t)(group - core->groups));
}

void group_lose(struct mla_core *core, uint32_t index, enum mla_status status, const char *why)
{
    struct group *group = &core->groups[index];
    core->metrics.lost[index]++;
    fprintf(stderr, "group %u (epoch %llu) is lost: %s\n", index, (unsigned long long)group->epoch,
            why);
    if (group->state == GROUP_READY) {
        works_lose(core, index);
        for (uint32_t i = 0; i < core->options.steps_open_max; i++)
            if (core->steps[i].used && core->steps[i].plans[index].microbatch_count > 0)
                core->steps[i].lost = true;
        for (uint32_t i = 0; i < core->sequence_capacity; i++)
            if (core->sequences[i].group == index)
                core->sequences[i].lost = true;
        for (uint32_t i = 0; i < core->run_bound && core->stats.runs_in_flight > 0; i++)
            if (core->runs[i].used && core->steps[core->runs[i].step].lost)
                run_fail(core, i, MLA_GROUP_LOST, "the workers died under this RUN");
    }
    (void)tell_ranks(core, group, MLA_DISMISS, status);
    group_clear(core, group);
    if (core->effects.group_lost)
        core->effects.group_lost(core->effects.context, index, status == MLA_DEADLINE);
}

/* A joining rank must be like those that joined before it and like the service's other groups. */
static bool agrees(const struct mla_join *a, const struct mla_join *b)
{
    return memcmp(&a->dims, &b->dims, sizeof a->dims) == 0 && a->context_max == b->context_max &&
           a->layer_count == b->layer_count &&
           memcmp(a->layers, b->layers, a->layer_count * sizeof *a->layers) == 0;
}

/* How many blocks the pool of each rank is to have, 0: as many as fit. False: what the options ask
 * for is no block, or more than any that can fit. */
static bool choose_blocks(const struct mla_core *core, const struct mla_join *join, uint32_t *out)
{
    uint64_t blocks = core->options.kv_blocks;
    *out = 0;
    if (blocks == 0 && core->options.kv_memory_bytes == 0)
        return true;
    if (blocks == 0)
        blocks = core->options.kv_memory_bytes / join->kv_block_bytes;
    *out = blocks < MLA_BLOCKS_MAX ? (uint32_t)blocks : MLA_BLOCKS_MAX;
    return *out > 0 && (join->kv_blocks_max == 0 || *out <= join->kv_blocks_max);
}

static void adopt(struct mla_core *core, uint32_t index)
{
    struct group *group = &core->groups[index];
    const struct mla_core_options *options = &core->options;
    if (!choose_blocks(core, &group->join, &group->kv_blocks_asked)) {
        fprintf(stderr, "group %u: the KV cache asked for does not fit (%u blocks do)\n", index,
                group->join.kv_blocks_max);
        group->doomed = "no KV cache";
        group->doomed_status = MLA_OPTION;
        return;
    }
    if (!core->model_known) {
        core->model = group->join;
        core->model_known = true;
        core->context_max = mla_core_sizes(options, group->join.context_max).context_max;
    }
    group->epoch = ++core->epoch;
    group->loading_set = 0;
    core->metrics.adopted[index]++;
    group->plan = options->plan;
    group->plan.ranks = group->ranks;
    group->plan.pad_to_bucket =
        options->pad_to_bucket || (group->join.flags & MLA_WORKER_GRAPHS) != 0;
    group->state = GROUP_ADOPTED;

    struct mla_worker_message *message = &core->outgoing;
    *message = (struct mla_worker_message){.header = {.type = MLA_ADOPT, .epoch = group->epoch}};
    message->u.adopt = mla_core_sizes(options, core->context_max);
    message->u.adopt.epoch = group->epoch;
    message->u.adopt.kv_blocks = group->kv_blocks_asked;
    size_t bytes = 0;
    enum mla_status status =
        mla_worker_message_encode(message, core->frame, sizeof core->frame, &bytes);
    assert(status == MLA_OK);
    (void)status;
    for (uint32_t rank = 0; rank < group->ranks; rank++) {
        group_send(core, index, rank, core->frame, bytes, NULL, 0, 0);
        group->heard_ns[rank] = core->effects.now_ns(core->effects.context);
    }
    regions_tell(core, index);
    if (core->effects.group_joined)
        core->effects.group_joined(core->effects.context, index);
}

static void refuse(struct mla_core *core, const struct mla_peer *peer, const struct mla_join *join,
                   const char *why)
{
    fprintf(stderr, "rank %u of group %u is refused: %s\n", join->rank, join->group, why);
    tell(core, peer, MLA_DISMISS, 0, MLA_OPTION);
}

/* Of a group that is not complete: it may come again. */
static void leave(struct mla_core *core, uint32_t index, uint32_t rank)
{
    struct group *group = &core->groups[index];
    forget_connection(core, &group->peers[rank]);
    group->joined_set &= ~(1ull << rank);
    group->since_ns = core->effects.now_ns(core->effects.context);
    if (--group->joined == 0 && group->loading_set == 0)
        group_clear(core, group);
    else if (group->joined == 0)
        group->state = GROUP_EMPTY;
}

/* A rank's connection ended. */
static void rank_gone(struct mla_core *core, uint32_t owner)
{
    uint32_t index = owner / MLA_RANKS_MAX;
    if (core->groups[index].state == GROUP_JOINING)
        leave(core, index, owner % MLA_RANKS_MAX);
    else
        group_lose(core, index, MLA_GROUP_LOST, "a worker's connection ended");
}

static void join(struct mla_core *core, const struct mla_peer *peer)
{
    const struct mla_join *join = &core->incoming.u.join;
    if (join->group >= core->options.groups) {
        refuse(core, peer, join, "there are fewer groups");
        return;
    }
    struct group *group = &core->groups[join->group];
    if (group->state != GROUP_EMPTY && join->job < group->job) {
        fprintf(stderr, "rank %u of group %u is dismissed: a newer job has its place\n", join->rank,
                join->group);
        tell(core, peer, MLA_DISMISS, 0, MLA_GROUP_LOST);
        return;
    }
    if (group->state != GROUP_EMPTY && group->job != join->job)
        group_lose(core, join->group, MLA_GROUP_LOST, "a newer job joined in its place");
    /* The rank has dropped what it had of this epoch. */
    else if (group_is_adopted(group))
        group_lose(core, join->group, MLA_GROUP_LOST, "a rank of it joins again");
    else if (group->state == GROUP_JOINING && join->rank < group->ranks &&
             (group->joined_set >> join->rank & 1))
        leave(core, join->group, join->rank);
    if (core->model_known && !agrees(join, &core->model)) {
        refuse(core, peer, join, "it serves another model or other layers than the service");
        return;
    }
    if (group->state == GROUP_EMPTY) {
        if (group->loading_set == 0)
            group->since_ns = core->effects.now_ns(core->effects.context);
        group->state = GROUP_JOINING;
        group->job = join->job;
        group->ranks = join->ranks;
        group->join = *join;
    }
    if (group->state != GROUP_JOINING || join->ranks != group->ranks ||
        (group->joined_set >> join->rank & 1) || !agrees(join, &group->join)) {
        refuse(core, peer, join, "it disagrees with the ranks that joined before it");
        return;
    }
    if (group->join.kv_blocks_max == 0 ||
        (join->kv_blocks_max > 0 && join->kv_blocks_max < group->join.kv_blocks_max))
        group->join.kv_blocks_max = join->kv_blocks_max;
    group->peers[join->rank] = *peer;
    core->worker_fds[peer->fd] = join->group * MLA_RANKS_MAX + join->rank;
    group->joined_set |= 1ull << join->rank;
    if (++group->joined == group->ranks)
        adopt(core, join->group);
}

/* A rank has its pool. All of them use as many blocks as the smallest has. */
static void ready(struct mla_core *core, uint32_t index, uint32_t rank)
{
    struct group *group = &core->groups[index];
    uint32_t blocks = core->incoming.u.ready.kv_blocks;
    if (group->state != GROUP_ADOPTED || (group->ready_set >> rank & 1))
        return;
    if (blocks == 0 || blocks > MLA_BLOCKS_MAX ||
        (group->kv_blocks_asked > 0 && blocks != group->kv_blocks_asked)) {
        group->doomed = "a worker's KV pool is not what it was asked for";
        return;
    }
    if (group->ready == 0 || blocks < group->kv_blocks)
        group->kv_blocks = blocks;
    group->ready_set |= 1ull << rank;
    if (++group->ready < group->ranks)
        return;
    if (mla_ledger_create(group->kv_blocks, core->options.sequences_max, core->context_max,
                          &group->ledger) != MLA_OK) {
        group->doomed = "no memory for the ledger";
        return;
    }
    group->state = GROUP_READY;
    fprintf(stderr, "group %u is ready: %u ranks, %u blocks, epoch %llu\n", index, group->ranks,
            group->kv_blocks, (unsigned long long)group->epoch);
}

/* A message of a rank that joined. */
static void handle(struct mla_core *core, uint32_t index, uint32_t rank, struct mla_blob *payload)
{
    struct group *group = &core->groups[index];
    const struct mla_worker_message *message = &core->incoming;
    group->heard_ns[rank] = core->effects.now_ns(core->effects.context);
    switch (message->header.type) {
    case MLA_READY:
        ready(core, index, rank);
        break;
    case MLA_DONE:
        if (!work_done(core, index, rank, &message->u.done, payload))
            group->doomed = "a worker's result is not what it was asked for";
        break;
    case MLA_ATTACHED:
        region_attached(core, index, rank, &message->u.attached);
        break;
    case MLA_FAILED:
        group->doomed = mla_status_sentence((enum mla_status)message->u.failed.status);
        break;
    default:
        group->doomed = "a worker sent what only a coordinator sends";
    }
}

/* From JOIN's connection on a rank beats in epoch 0 until it is adopted, also while it loads. */
static void loading_beat(struct mla_core *core, struct group *group, uint32_t rank,
                         const struct mla_peer *peer)
{
    uint64_t now_ns = core->effects.now_ns(core->effects.context);
    if (group->loading_set == 0 && group->state == GROUP_EMPTY)
        group->since_ns = now_ns;
    group->loading_set |= 1ull << rank;
    group->heard_ns[rank] = now_ns;
    group->beats[rank] = *peer;
}

/* One of them may have stopped, or never come. The others wait for it and can't know. */
static void loading_check(const struct mla_core *core, struct group *group, uint64_t now_ns)
{
    uint64_t silence_ns = core->options.heartbeat_timeout_ms * 1000000ull;
    uint64_t missing_ns = core->options.run_timeout_ms * 1000000ull + silence_ns;
    if (silence_ns < LOADING_SILENCE_MS * 1000000ull)
        silence_ns = LOADING_SILENCE_MS * 1000000ull;
    uint64_t there = group->joined_set | group->loading_set;
    for (uint32_t rank = 0; rank < MLA_RANKS_MAX; rank++) {
        bool silent = (group->loading_set >> rank & 1) && now_ns > group->heard_ns[rank] &&
                      now_ns - group->heard_ns[rank] > silence_ns;
        bool missing = group->state == GROUP_JOINING && rank < group->ranks &&
                       !(there >> rank & 1) && now_ns > group->since_ns &&
                       now_ns - group->since_ns > missing_ns;
        if (!silent && !missing)
            continue;
        group->doomed = silent ? "a rank stopped before it was adopted" : "a rank does not join";
        group->doomed_status = MLA_DEADLINE;
    }
}

/* The end of a connection over which one of them beat. */
static void loading_gone(struct mla_core *core, int fd, uint64_t number)
{
    for (uint32_t i = 0; i < core->options.groups; i++) {
        struct group *group = &core->groups[i];
        for (uint32_t rank = 0; group->loading_set != 0 && rank < MLA_RANKS_MAX; rank++)
            if ((group->loading_set >> rank & 1) && group->beats[rank].fd == fd &&
                group->beats[rank].number == number) {
                group->loading_set &= ~(1ull << rank);
                group->since_ns = core->effects.now_ns(core->effects.context);
            }
    }
}

/* Heartbeats come over a connection of their own. One of another epoch gets no answer: its rank
 * will drop that epoch and join again. */
static void heartbeat(struct mla_core *core, const struct mla_peer *peer)
{
    const struct mla_heartbeat *beat = &core->incoming.u.heartbeat;
    uint64_t epoch = core->incoming.header.epoch;
    if (beat->group >= core->options.groups || beat->rank >= MLA_RANKS_MAX)
        return;
    struct group *group = &core->groups[beat->group];
    if (!group_is_adopted(group) && epoch == 0)
        loading_beat(core, group, beat->rank, peer);
    if (!group_is_adopted(group) || epoch != group->epoch || beat->rank >= group->ranks)
        return;
    group->heard_ns[beat->rank] = core->effects.now_ns(core->effects.context);
    group->beats[beat->rank] = *peer;
    tell(core, peer, MLA_ALIVE, epoch, MLA_OK);
}

/* The peer of worker_fds' owner. */
static const struct mla_peer *worker_at(const struct mla_core *core, uint32_t owner)
{
    return &core->groups[owner / MLA_RANKS_MAX].peers[owner % MLA_RANKS_MAX];
}

void mla_core_worker_message(struct mla_core *core, const struct mla_incoming *incoming)
{
    struct mla_blob *payload = incoming->payload;
    const struct mla_peer *peer = &incoming->peer;
    enum mla_status status =
        mla_worker_message_decode(incoming->head, incoming->head_bytes, &core->incoming);
    const struct mla_header *header = &core->incoming.header;
    if (peer->fd < 0 || peer->fd >= (int)FDS_MAX || status != MLA_OK || incoming->frames > 2 ||
        (payload ? payload->bytes : 0) != header->payload_bytes) {
        fprintf(stderr, "a worker's message is refused: %s\n", mla_status_name(status));
        mla_blob_drop(payload);
        return;
    }
    uint32_t owner = core->worker_fds[peer->fd];
    if (owner != NONE && worker_at(core, owner)->number != peer->number) {
        rank_gone(core, owner);
        owner = NONE;
    }
    if (header->type == MLA_JOIN)
        join(core, peer);
    else if (header->type == MLA_HEARTBEAT)
        heartbeat(core, peer);
    else if (owner != NONE && header->epoch == core->groups[owner / MLA_RANKS_MAX].epoch)
        handle(core, owner / MLA_RANKS_MAX, owner % MLA_RANKS_MAX, payload);
    mla_blob_drop(payload);
    settle(core);
}

void mla_core_worker_gone(struct mla_core *core, int fd, uint64_t number)
{
    if (fd < 0 || fd >= (int)FDS_MAX)
        return;
    uint32_t owner = core->worker_fds[fd];
    if (owner != NONE && worker_at(core, owner)->number == number)
        rank_gone(core, owner);
    loading_gone(core, fd, number);
    settle(core);
}

void mla_core_tick(struct mla_core *core)
{
    uint64_t now_ns = core->effects.now_ns(core->effects.context);
    for (uint32_t i = 0; i < core->options.groups; i++) {
        struct group *group = &core->groups[i];
        if (!group_is_adopted(group)) {
            loading_check(core, group, now_ns);
            continue;
        }
        for (uint32_t rank = 0; rank < group->ranks; rank++)
            if (now_ns > group->heard_ns[rank] &&
                now_ns - group->heard_ns[rank] >
                    (uint64_t)core->options.heartbeat_timeout_ms * 1000000u)
                group->doomed = "a worker's heartbeat stopped";
    }
    runs_expire(core, now_ns);
    settle(core);
}

uint32_t mla_core_shutdown(struct mla_core *core)
{
    uint32_t told = 0;
    for (uint32_t i = 0; i < core->options.groups; i++)
        told += tell_ranks(core, &core->groups[i], MLA_SHUTDOWN, MLA_OK);
    return told;
}
