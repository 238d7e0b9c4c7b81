/* Jobs of simulated workers: they follow the plans they are sent, compute together, and die. */
#include "coordinator/state.h"
#include "tests/sim/sim.h"

#include <stdlib.h>
#include <string.h>

static struct mla_worker_message message;

static struct sim_job *job_find(struct sim *sim, uint64_t number)
{
    struct sim_job *job = &sim->jobs[number % SIM_JOBS_MAX];
    return number != 0 && job->number == number ? job : NULL;
}

static uint32_t owner_of(const struct sim_job *job, uint32_t rank)
{
    return (uint32_t)(job->number % SIM_JOBS_MAX) * SIM_RANKS_MAX + rank;
}

static void say(struct sim *sim, const struct sim_job *job, uint32_t rank,
                struct mla_worker_message *said, struct mla_blob *payload)
{
    uint8_t frame[MLA_WORKER_MESSAGE_BYTES_MAX];
    size_t bytes = 0;
    bool beat = said->header.type == MLA_HEARTBEAT;
    struct link *link = link_find(sim, beat ? job->rank[rank].beat : job->rank[rank].work);
    said->header.payload_bytes = payload ? payload->bytes : 0;
    if (!link || !link->open) {
        mla_blob_drop(payload);
        return;
    }
    if (mla_worker_message_encode(said, frame, sizeof frame, &bytes) != MLA_OK)
        sim_fail(sim, "a worker's message can't be encoded");
    link_send(sim, link, frame, bytes, payload);
}

/* ---- Life and death */

static void job_end(struct sim *sim, uint64_t number, uint64_t unused)
{
    (void)unused;
    struct sim_job *job = job_find(sim, number);
    if (!job)
        return;
    sim_trace(sim, "job %llu of group %u has ended", (unsigned long long)number, job->group);
    for (uint32_t r = 0; r < job->ranks; r++) {
        struct sim_rank *rank = &job->rank[r];
        struct link *work = link_find(sim, rank->work);
        struct link *beat = link_find(sim, rank->beat);
        if (work)
            link_close(sim, work, random_chance(&sim->random, 500));
        if (beat)
            link_close(sim, beat, false);
        while (rank->inbox) {
            struct packet *next = rank->inbox->next;
            packet_free(rank->inbox);
            rank->inbox = next;
        }
    }
    job->number = 0;
    if (sim->group_job[job->group] != number)
        return;
    sim->group_job[job->group] = 0;
    sim_at(sim, random_within(&sim->random, 5, 300) * SIM_MS, job_begin, job->group, 0);
}

/* One of its processes ended: the others follow. */
static void job_doom(struct sim *sim, struct sim_job *job, uint32_t delay_ms_max)
{
    if (job->ending)
        return;
    job->ending = true;
    job->harmed = true;
    sim_at(sim, random_within(&sim->random, 0, delay_ms_max) * SIM_MS, job_end, job->number, 0);
}

static void rank_die(struct sim *sim, struct sim_job *job, uint32_t r)
{
    struct sim_rank *rank = &job->rank[r];
    rank->alive = false;
    job->harmed = true;
    struct link *work = link_find(sim, rank->work);
    struct link *beat = link_find(sim, rank->beat);
    if (work)
        link_close(sim, work, random_chance(&sim->random, 500));
    if (beat)
        link_close(sim, beat, false);
    job_doom(sim, job, 300);
}

static void beat(struct sim *sim, uint64_t number, uint64_t r)
{
    struct sim_job *job = job_find(sim, number);
    if (!job || !job->rank[r].alive)
        return;
    if (!job->rank[r].stopped && job->epoch != 0) {
        struct mla_worker_message said = {.header = {.type = MLA_HEARTBEAT, .epoch = job->epoch}};
        said.u.heartbeat = (struct mla_heartbeat){
            .group = job->group, .rank = (uint32_t)r, .progress = job->rank[r].progress};
        say(sim, job, (uint32_t)r, &said, NULL);
    }
    sim_at(sim, sim->core_options.heartbeat_ms * SIM_MS, beat, number, r);
}

static void join(struct sim *sim, uint64_t number, uint64_t r)
{
    struct sim_job *job = job_find(sim, number);
    if (!job || !job->rank[r].alive)
        return;
    struct sim_rank *rank = &job->rank[r];
    rank->work = link_connect(sim, LINK_WORK, owner_of(job, (uint32_t)r))->number;
    rank->beat = link_connect(sim, LINK_BEAT, owner_of(job, (uint32_t)r))->number;
    struct mla_worker_message said = {.header = {.type = MLA_JOIN}};
    said.u.join = (struct mla_join){
        .job = job->number,
        .group = job->group,
        .rank = (uint32_t)r,
        .ranks = job->ranks,
        .dims = {.hidden = SIM_HIDDEN, .heads = 8, .latent = 4, .nope = 4, .rope = 2, .v = 4},
        .context_max = SIM_CONTEXT_MAX,
        .kv_block_bytes = 1024,
        .layer_count = SIM_LAYERS,
        .layers = {3, 4}};
    say(sim, job, (uint32_t)r, &said, NULL);
    sim_at(sim, sim->core_options.heartbeat_ms * SIM_MS, beat, number, r);
}

void job_begin(struct sim *sim, uint64_t group, uint64_t unused)
{
    (void)unused;
    if (sim->group_job[group] != 0)
        return;
    uint32_t at = 0;
    while (at < SIM_JOBS_MAX && sim->jobs[at].number != 0)
        at++;
    if (at == SIM_JOBS_MAX)
        sim_fail(sim, "the simulation has too few jobs");
    struct sim_job *job = &sim->jobs[at];
    *job = (struct sim_job){.group = (uint32_t)group, .ranks = sim->ranks};
    job->number = ++sim->jobs_made * SIM_JOBS_MAX + at;
    sim->group_job[group] = job->number;
    for (at = 0; at < SIM_JOBS_MAX; at++) /* one that it replaces may join after it */
        if (&sim->jobs[at] != job && sim->jobs[at].number != 0 && sim->jobs[at].group == group)
            job->harmed = true;
    for (uint32_t r = 0; r < job->ranks; r++) {
        struct sim_rank *rank = &job->rank[r];
        rank->alive = true;
        rank->inbox_last = &rank->inbox;
        memset(rank->kv, 0xa5, sizeof rank->kv); /* what was never written is nobody's hash */
        memset(rank->tables, 0xff, sizeof rank->tables);
        sim_at(sim, random_within(&sim->random, 0, 8000) * 1000ull, join, job->number, r);
    }
    sim_trace(sim, "job %llu of group %u begins", (unsigned long long)job->number, job->group);
}

void jobs_start(struct sim *sim)
{
    for (uint32_t group = 0; group < sim->group_count; group++)
        job_begin(sim, group, 0);
}

/* ---- Work */

static void answer(struct sim *sim, const struct sim_job *job, uint32_t r,
                   const struct mla_work *work, uint32_t first, const uint64_t *out)
{
    enum mla_dtype dtype = (enum mla_dtype)work->reply_dtype;
    size_t row = SIM_HIDDEN * mla_dtype_bytes(dtype);
    struct mla_blob *payload = NULL;
    if (work->region)
        rank_write(sim, &job->rank[r], work, first, out, job->epoch);
    else if (work->rows)
        payload = blob_make(sim, work->rows * row);
    for (uint32_t i = 0; payload && i < work->rows; i++) {
        memcpy(payload->data + i * row, &out[i], sizeof *out);
        if (dtype == MLA_F32)
            memcpy(payload->data + i * row + sizeof *out, &job->epoch, sizeof job->epoch);
    }
    struct mla_worker_message done = {.header = {.type = MLA_DONE, .epoch = job->epoch}};
    done.u.done = (struct mla_done){.step = work->step,
                                    .work = work->work,
                                    .rank = r,
                                    .rows = work->rows,
                                    .dtype = work->reply_dtype,
                                    .compute_ns = 1000,
                                    .collective_ns = 10};
    say(sim, job, r, &done, payload);
}

static void job_go_on(struct sim *sim, struct sim_job *job);

static void computed(struct sim *sim, uint64_t number, uint64_t unused)
{
    static uint64_t x[SIM_ROWS_MAX];
    static uint64_t out[SIM_ROWS_MAX];
    static struct mla_work works[SIM_RANKS_MAX];
    uint32_t first[SIM_RANKS_MAX] = {0};
    struct sim_job *job = job_find(sim, number);
    if (!job)
        return;
    for (uint32_t r = 0; r < job->ranks; r++) {
        if (!job->rank[r].alive)
            return; /* the others hang until they are ended */
        if (job->rank[r].stopped) {
            sim_at(sim, 5 * SIM_MS, computed, number, unused);
            return;
        }
    }
    for (uint32_t r = 0; r < job->ranks; r++) {
        const struct packet *packet = job->rank[r].inbox;
        if (mla_worker_message_decode(packet->head, packet->head_bytes, &message) != MLA_OK)
            sim_fail(sim, "a WORK can't be decoded");
        works[r] = message.u.work;
        rank_check_work(sim, &job->rank[r], &works[r], job->ranks, r, &first[r]);
        if (works[r].work != works[0].work || works[r].layer != works[0].layer)
            sim_fail(sim, "ranks have different work: their collectives would hang");
        size_t row = SIM_HIDDEN * mla_dtype_bytes((enum mla_dtype)works[r].dtype);
        if (works[r].region)
            rank_read(sim, &job->rank[r], &works[r], first[r], x + first[r]);
        if (packet->bytes != (works[r].region ? 0 : works[r].rows * row))
            sim_fail(sim, "rank %u: %u rows in %zu bytes", r, works[r].rows, packet->bytes);
        for (uint32_t i = 0; packet->payload && i < works[r].rows; i++)
            memcpy(&x[first[r] + i], packet->payload->data + packet->offset + i * row, sizeof *x);
    }
    for (uint32_t r = 0; r < job->ranks; r++) {
        rank_compute(sim, &job->rank[r], &works[r], x, out);
        job->rank[r].progress++;
        answer(sim, job, r, &works[r], first[r], out + first[r]);
        struct packet *packet = job->rank[r].inbox;
        job->rank[r].inbox = packet->next;
        if (!packet->next)
            job->rank[r].inbox_last = &job->rank[r].inbox;
        packet_free(packet);
    }
    job->computing = false;
    job_go_on(sim, job);
}

static void adopted(struct sim *sim, uint64_t number, uint64_t r)
{
    struct sim_job *job = job_find(sim, number);
    if (!job || !job->rank[r].alive)
        return;
    struct mla_worker_message said = {.header = {.type = MLA_READY, .epoch = job->epoch}};
    said.u.ready = (struct mla_ready){.group = job->group, .rank = (uint32_t)r};
    say(sim, job, (uint32_t)r, &said, NULL);
}

static void attach(struct sim *sim, struct sim_job *job, uint32_t r, uint64_t region)
{
    struct mla_worker_message said = {.header = {.type = MLA_ATTACHED, .epoch = job->epoch}};
    said.u.attached = (struct mla_attached){.region = region, .status = MLA_UNSUPPORTED};
    if (rank_attach(sim, &job->rank[r], region))
        said.u.attached.status = MLA_OK;
    say(sim, job, r, &said, NULL);
}

/* Handles what stands first in the rank's queue. False: nothing, or WORK, which waits. */
static bool rank_handle(struct sim *sim, struct sim_job *job, uint32_t r)
{
    struct sim_rank *rank = &job->rank[r];
    struct packet *packet = rank->inbox;
    if (!packet || !rank->alive || rank->stopped)
        return false;
    if (mla_worker_message_decode(packet->head, packet->head_bytes, &message) != MLA_OK)
        sim_fail(sim, "a worker can't read what it is sent");
    const struct mla_header *header = &message.header;
    if (header->type == MLA_WORK)
        return false;
    rank->inbox = packet->next;
    if (!packet->next)
        rank->inbox_last = &rank->inbox;
    if (header->type == MLA_ADOPT) {
        job->epoch = message.u.adopt.epoch;
        sim_at(sim, random_within(&sim->random, 0, 20) * SIM_MS, adopted, job->number, r);
    } else if (header->type == MLA_PLAN && header->epoch == job->epoch) {
        rank_plan(sim, rank, &message.u.plan);
    } else if (header->type == MLA_ATTACH && header->epoch == job->epoch) {
        attach(sim, job, r, message.u.attach.region);
    } else if (header->type == MLA_DETACH && header->epoch == job->epoch) {
        rank_detach(sim, rank, message.u.detach.region);
    } else if (header->type == MLA_SHUTDOWN || header->type == MLA_DISMISS) {
        rank_die(sim, job, r);
    } else {
        sim_fail(sim, "a worker is sent type %u of epoch %llu in epoch %llu", header->type,
                 (unsigned long long)header->epoch, (unsigned long long)job->epoch);
    }
    packet_free(packet);
    return true;
}

static void job_go_on(struct sim *sim, struct sim_job *job)
{
    bool all_wait = true;
    for (uint32_t r = 0; r < job->ranks; r++) {
        while (rank_handle(sim, job, r)) {}
        const struct sim_rank *rank = &job->rank[r];
        all_wait = all_wait && rank->inbox && rank->alive && !rank->stopped;
    }
    if (!all_wait || job->computing)
        return;
    job->computing = true;
    sim_at(sim, random_within(&sim->random, 100, 3000) * 1000ull, computed, job->number, 0);
}

void job_arrived(struct sim *sim, uint32_t owner, struct packet *packet)
{
    struct sim_job *job = &sim->jobs[owner / SIM_RANKS_MAX];
    struct sim_rank *rank = &job->rank[owner % SIM_RANKS_MAX];
    if (job->number == 0 || !rank->alive || packet->head[6] == MLA_ALIVE) {
        packet_free(packet);
        return;
    }
    *rank->inbox_last = packet;
    rank->inbox_last = &packet->next;
    /* Whoever hangs in a collective doesn't see it, and is ended by its watchdog. */
    if (!rank->stopped && (packet->head[6] == MLA_SHUTDOWN || packet->head[6] == MLA_DISMISS))
        job_doom(sim, job, 800);
    job_go_on(sim, job);
}

/* ---- Faults */

static void link_end_seen(struct sim *sim, uint64_t number, uint64_t r)
{
    struct sim_job *job = job_find(sim, number);
    if (job && job->rank[r].alive && job->rank[r].stopped)
        sim_at(sim, 20 * SIM_MS, link_end_seen, number, r);
    else if (job && job->rank[r].alive)
        rank_die(sim, job, (uint32_t)r);
}

static void beat_again(struct sim *sim, uint64_t number, uint64_t r)
{
    struct sim_job *job = job_find(sim, number);
    if (job && job->rank[r].alive)
        job->rank[r].beat = link_connect(sim, LINK_BEAT, owner_of(job, (uint32_t)r))->number;
}

void job_link_ended(struct sim *sim, uint32_t owner, enum link_kind kind)
{
    struct sim_job *job = &sim->jobs[owner / SIM_RANKS_MAX];
    if (job->number == 0)
        return;
    job->harmed = true;
    sim_at(sim, random_within(&sim->random, 1, kind == LINK_WORK ? 700 : 50) * SIM_MS,
           kind == LINK_WORK ? link_end_seen : beat_again, job->number, owner % SIM_RANKS_MAX);
}

static void go_on_after_stop(struct sim *sim, uint64_t number, uint64_t r)
{
    struct sim_job *job = job_find(sim, number);
    if (!job)
        return;
    job->rank[r].stopped = false;
    job_go_on(sim, job);
}

static void rank_stop(struct sim *sim, struct sim_job *job, uint32_t r)
{
    if (job->rank[r].stopped)
        return;
    job->rank[r].stopped = true;
    job->harmed = true;
    job->rank[r].stopped_ns = sim->now_ns;
    if (random_chance(&sim->random, 500)) /* else for ever */
        sim_at(sim, random_within(&sim->random, 1, 500) * SIM_MS, go_on_after_stop, job->number, r);
}

static void cut(struct sim *sim, uint32_t owner, uint64_t number, enum link_kind kind)
{
    struct link *link = link_find(sim, number);
    if (!link || !link->open)
        return;
    link_close(sim, link, true);
    job_link_ended(sim, owner, kind);
}

static void stop_new(struct sim *sim, uint64_t group, uint64_t r)
{
    struct sim_job *job = job_find(sim, sim->group_job[group]);
    if (job && job->rank[r].alive)
        rank_stop(sim, job, (uint32_t)r);
}

/* The network takes a job away, which goes on and says so, while the next one has its place and a
 * rank that is stopped. */
static void job_strand(struct sim *sim, struct sim_job *job, uint32_t r)
{
    struct link *link = link_find(sim, job->rank[r].work);
    if (!link || !link->open)
        return;
    link_close(sim, link, true);
    sim_at(sim, 3 * SIM_S, link_end_seen, job->number, r);
    sim->group_job[job->group] = 0;
    job->harmed = true;
    sim_at(sim, random_within(&sim->random, 0, 30) * SIM_MS, job_begin, job->group, 0);
    sim_at(sim, random_within(&sim->random, 50, 200) * SIM_MS, stop_new, job->group, r);
}

void jobs_fault(struct sim *sim)
{
    uint32_t group = random_within(&sim->random, 0, sim->group_count - 1);
    struct sim_job *job = job_find(sim, sim->group_job[group]);
    uint32_t r = random_within(&sim->random, 0, sim->ranks - 1);
    uint32_t kind = random_within(&sim->random, 0, 7);
    if (!job || !job->rank[r].alive)
        return;
    sim_trace(sim, "fault %u: rank %u of group %u", kind, r, group);
    struct mla_worker_message failed = {.header = {.type = MLA_FAILED, .epoch = job->epoch}};
    struct link *link = link_find(sim, job->rank[r].work);
    switch (kind) {
    case 0:
        rank_die(sim, job, r);
        break;
    case 1:
    case 2:
        rank_stop(sim, job, r);
        break;
    case 3:
        cut(sim, owner_of(job, r), job->rank[r].work, LINK_WORK);
        break;
    case 4:
        cut(sim, owner_of(job, r), job->rank[r].beat, LINK_BEAT);
        break;
    case 5: /* another job takes the group while this one lives on */
        sim->group_job[group] = 0;
        job->harmed = true;
        sim_at(sim, random_within(&sim->random, 0, 50) * SIM_MS, job_begin, group, 0);
        break;
    case 6:
        job_strand(sim, job, r);
        break;
    default:
        if (random_chance(&sim->random, 300) && link) {
            link->refusing = true;
            job->harmed = true;
            break;
        }
        failed.u.failed = (struct mla_failed){.group = group, .rank = r, .status = MLA_COLLECTIVE};
        say(sim, job, r, &failed, NULL);
        rank_die(sim, job, r);
    }
}

/* Nothing may cost a group its place that was not done to it. */
void job_lost(struct sim *sim, uint64_t epoch)
{
    for (uint32_t at = 0; at < SIM_JOBS_MAX; at++)
        if (sim->jobs[at].number != 0 && sim->jobs[at].epoch == epoch && !sim->jobs[at].harmed)
            sim_fail(sim, "group %u (epoch %llu) is lost, and nothing was done to it",
                     sim->jobs[at].group, (unsigned long long)epoch);
}

/* A rank that is stopped must cost its group its place in time. Whatever is left of a job then is
 * ended by its supervisor. */
void jobs_check(struct sim *sim)
{
    const uint64_t bound_ns =
        (sim->core_options.heartbeat_timeout_ms + 3 * sim->core_options.heartbeat_ms) * SIM_MS +
        100 * SIM_MS;
    for (uint32_t at = 0; at < SIM_JOBS_MAX; at++) {
        struct sim_job *job = &sim->jobs[at];
        for (uint32_t r = 0; job->number != 0 && r < job->ranks; r++) {
            const struct sim_rank *rank = &job->rank[r];
            if (!rank->alive || !rank->stopped || sim->now_ns - rank->stopped_ns < bound_ns)
                continue;
            const struct group *group = &sim->core->groups[job->group];
            if (group->state == GROUP_READY && group->job == job->number)
                sim_fail(sim, "rank %u of group %u is stopped and its group goes on", r,
                         job->group);
            job_doom(sim, job, 800);
        }
    }
}

/* All clients have left, and their regions with them. */
void jobs_check_end(struct sim *sim)
{
    for (uint32_t at = 0; at < SIM_JOBS_MAX; at++) {
        const struct sim_job *job = &sim->jobs[at];
        const struct group *group = &sim->core->groups[job->group];
        if (job->number == 0 || group->job != job->number || group->state != GROUP_READY)
            continue;
        for (uint32_t r = 0; r < job->ranks; r++)
            for (int i = 0; i < SIM_MAPPED_MAX; i++)
                if (job->rank[r].mapped[i] && !job->rank[r].stopped)
                    sim_fail(sim, "rank %u of group %u still has region %llu", r, job->group,
                             (unsigned long long)job->rank[r].mapped[i]->number);
    }
}

void jobs_free(struct sim *sim)
{
    for (uint32_t at = 0; at < SIM_JOBS_MAX; at++)
        for (uint32_t r = 0; sim->jobs[at].number != 0 && r < sim->jobs[at].ranks; r++)
            while (sim->jobs[at].rank[r].inbox) {
                struct packet *next = sim->jobs[at].rank[r].inbox->next;
                packet_free(sim->jobs[at].rank[r].inbox);
                sim->jobs[at].rank[r].inbox = next;
            }
}
