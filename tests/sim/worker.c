/* Jobs of simulated workers: they follow the plans they are sent, compute together, and die. */
#include "coordinator/state.h"
#include "tests/sim/sim.h"

#include <stdlib.h>
#include <string.h>

/* In which ranks find that their coordinator died (up to 700 ms) and join the next one. */
enum { RETURN_MS = 1500 };

struct sim_job *job_find(struct sim *sim, uint64_t number)
{
    struct sim_job *job = &sim->jobs[number % SIM_JOBS_MAX];
    return number != 0 && job->number == number ? job : NULL;
}

uint32_t job_owner(const struct sim_job *job, uint32_t rank)
{
    return (uint32_t)(job->number % SIM_JOBS_MAX) * SIM_RANKS_MAX + rank;
}

void job_say(struct sim *sim, const struct sim_job *job, uint32_t rank,
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

static void harm(struct sim_job *job)
{
    job->harmed = true;
    job->returns_ns = 0;
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
void job_doom(struct sim *sim, struct sim_job *job, uint32_t delay_ms_max)
{
    if (job->ending)
        return;
    if (job->returns_ns != 0)
        sim_fail(sim, "job %llu is ended, and nothing but the coordinator died",
                 (unsigned long long)job->number);
    job->ending = true;
    harm(job);
    sim_at(sim, random_within(&sim->random, 0, delay_ms_max) * SIM_MS, job_end, job->number, 0);
}

void rank_die(struct sim *sim, struct sim_job *job, uint32_t r)
{
    struct sim_rank *rank = &job->rank[r];
    rank->alive = false;
    harm(job);
    struct link *work = link_find(sim, rank->work);
    struct link *beat = link_find(sim, rank->beat);
    if (work)
        link_close(sim, work, random_chance(&sim->random, 500));
    if (beat)
        link_close(sim, beat, false);
    job_doom(sim, job, 300);
}

static void join(struct sim *sim, uint64_t number, uint64_t r)
{
    struct sim_job *job = job_find(sim, number);
    if (!job || !job->rank[r].alive || job->rank[r].work != 0)
        return;
    struct sim_rank *rank = &job->rank[r];
    rank->work = link_connect(sim, LINK_WORK, job_owner(job, (uint32_t)r))->number;
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
    job_say(sim, job, (uint32_t)r, &said, NULL);
}

/* As a rank is before ADOPT. */
static void rank_reset(struct sim_rank *rank)
{
    while (rank->inbox) {
        struct packet *next = rank->inbox->next;
        packet_free(rank->inbox);
        rank->inbox = next;
    }
    rank->inbox_last = &rank->inbox;
    rank->work = rank->beat = rank->epoch = 0;
    rank->over = false;
    memset(rank->kv, 0xa5, sizeof rank->kv); /* what was never written is nobody's hash */
    memset(rank->tables, 0xff, sizeof rank->tables);
    memset(rank->slots, 0, sizeof rank->slots);
    memset(rank->mapped, 0, sizeof rank->mapped);
}

/* The rank has lost the coordinator: it drops all but its weights and joins again. Inside a
 * collective it gets to know when that is over; before one it turns back, and all do. */
void rank_over(struct sim *sim, struct sim_job *job, uint32_t r)
{
    struct sim_rank *rank = &job->rank[r];
    rank->over = true;
    if (job->computing)
        return;
    struct link *work = link_find(sim, rank->work);
    struct link *beats = link_find(sim, rank->beat);
    if (work)
        link_close(sim, work, random_chance(&sim->random, 500));
    if (beats)
        link_close(sim, beats, false);
    if (rank->epoch > job->closed_epoch)
        job->closed_epoch = rank->epoch;
    sim_trace(sim, "rank %u of job %llu joins again", r, (unsigned long long)job->number);
    rank_reset(rank);
    sim_at(sim, random_within(&sim->random, 1, 50) * SIM_MS, join, job->number, r);
}

static void beat(struct sim *sim, uint64_t number, uint64_t r)
{
    struct sim_job *job = job_find(sim, number);
    if (!job || !job->rank[r].alive)
        return;
    struct sim_rank *rank = &job->rank[r];
    if (!rank->stopped && rank->epoch != 0) {
        uint64_t silence_ns = sim->now_ns - rank->heard_ns;
        struct mla_worker_message said = {.header = {.type = MLA_HEARTBEAT, .epoch = rank->epoch}};
        said.u.heartbeat = (struct mla_heartbeat){
            .group = job->group, .rank = (uint32_t)r, .progress = rank->progress};
        job_say(sim, job, (uint32_t)r, &said, NULL);
        bool silent = silence_ns > sim->core_options.heartbeat_timeout_ms * SIM_MS;
        if (silent && !job->harmed)
            sim_fail(sim, "rank %u of group %u is not answered", (uint32_t)r, job->group);
        if (silent)
            rank_over(sim, job, (uint32_t)r);
    }
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
    for (uint32_t r = 0; r < job->ranks; r++) {
        struct sim_rank *rank = &job->rank[r];
        rank->alive = true;
        rank_reset(rank);
        sim_at(sim, random_within(&sim->random, 0, 8000) * 1000ull, join, job->number, r);
        sim_at(sim, sim->core_options.heartbeat_ms * SIM_MS, beat, job->number, r);
    }
    sim_trace(sim, "job %llu of group %u begins", (unsigned long long)job->number, job->group);
}

void jobs_start(struct sim *sim)
{
    for (uint32_t group = 0; group < sim->group_count; group++)
        job_begin(sim, group, 0);
}

/* ---- Faults */

static void link_end_seen(struct sim *sim, uint64_t number, uint64_t r)
{
    struct sim_job *job = job_find(sim, number);
    if (job && job->rank[r].alive && job->rank[r].stopped)
        sim_at(sim, 20 * SIM_MS, link_end_seen, number, r);
    else if (job && job->rank[r].alive && !link_find_open(sim, job->rank[r].work))
        rank_over(sim, job, (uint32_t)r);
}

static void beat_again(struct sim *sim, uint64_t number, uint64_t r)
{
    struct sim_job *job = job_find(sim, number);
    if (job && job->rank[r].alive && job->rank[r].epoch != 0 &&
        !link_find_open(sim, job->rank[r].beat))
        job->rank[r].beat = link_connect(sim, LINK_BEAT, job_owner(job, (uint32_t)r))->number;
}

void job_link_ended(struct sim *sim, uint32_t owner, enum link_kind kind)
{
    struct sim_job *job = &sim->jobs[owner / SIM_RANKS_MAX];
    if (job->number == 0)
        return;
    harm(job);
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
    harm(job);
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
    sim_at(sim, random_within(&sim->random, 0, 30) * SIM_MS, job_begin, job->group, 0);
    sim_at(sim, random_within(&sim->random, 50, 200) * SIM_MS, stop_new, job->group, r);
}

void jobs_fault(struct sim *sim)
{
    uint32_t group = random_within(&sim->random, 0, sim->group_count - 1);
    struct sim_job *job = job_find(sim, sim->group_job[group]);
    uint32_t r = random_within(&sim->random, 0, sim->ranks - 1);
    uint32_t kind = random_within(&sim->random, 0, 8);
    if (!job || !job->rank[r].alive)
        return;
    sim_trace(sim, "fault %u: rank %u of group %u", kind, r, group);
    harm(job);
    struct mla_worker_message failed = {
        .header = {.type = MLA_FAILED, .epoch = job->rank[r].epoch}};
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
        cut(sim, job_owner(job, r), job->rank[r].work, LINK_WORK);
        break;
    case 4:
        cut(sim, job_owner(job, r), job->rank[r].beat, LINK_BEAT);
        break;
    case 5: /* another job takes the group while this one lives on */
        sim->group_job[group] = 0;
        sim_at(sim, random_within(&sim->random, 0, 50) * SIM_MS, job_begin, group, 0);
        break;
    case 6:
        job_strand(sim, job, r);
        break;
    case 7: /* the next collective never ends */
        job->hangs = true;
        break;
    default:
        if (random_chance(&sim->random, 300) && link) {
            link->refusing = true;
            break;
        }
        failed.u.failed = (struct mla_failed){.group = group, .rank = r, .status = MLA_COLLECTIVE};
        job_say(sim, job, r, &failed, NULL);
        rank_die(sim, job, r);
    }
}

/* Nothing may cost a group its place that was not done to it. */
void job_lost(struct sim *sim, uint64_t epoch)
{
    for (uint32_t at = 0; at < SIM_JOBS_MAX; at++) {
        struct sim_job *job = &sim->jobs[at];
        for (uint32_t r = 0; job->number != 0 && r < job->ranks; r++) {
            if (job->rank[r].epoch == epoch && !job->harmed)
                sim_fail(sim, "group %u (epoch %llu) is lost, and nothing was done to it",
                         job->group, (unsigned long long)epoch);
        }
    }
}

/* What mla-serve does when it hears that a group is lost: a rank that was cut off comes back by
 * itself, one that hangs never does. */
static void kill_lost(struct sim *sim, uint64_t number, uint64_t losses)
{
    struct sim_job *job = job_find(sim, number);
    if (job && job->losses == losses)
        job_doom(sim, job, 20);
}

void job_supervise(struct sim *sim, uint32_t group, bool lost, bool hung)
{
    struct sim_job *job = job_find(sim, sim->group_job[group]);
    if (!job)
        return;
    job->losses++;
    if (lost)
        sim_at(sim, hung ? 0 : 1500 * SIM_MS, kill_lost, job->number, job->losses);
}

/* The coordinator died. What nothing else was done to is found by the next one, as it is. */
void jobs_cut_all(struct sim *sim)
{
    for (uint32_t at = 0; at < SIM_JOBS_MAX; at++) {
        struct sim_job *job = &sim->jobs[at];
        job->was_well = job->number != 0 && (!job->harmed || job->returns_ns != 0);
    }
    links_cut_all(sim);
    for (uint32_t at = 0; at < SIM_JOBS_MAX; at++)
        if (sim->jobs[at].was_well)
            sim->jobs[at].returns_ns = sim->now_ns + RETURN_MS * SIM_MS;
}

static void check_return(struct sim *sim, struct sim_job *job)
{
    const struct group *group = &sim->core->groups[job->group];
    if (group->state == GROUP_READY && group->job == job->number) {
        job->returns_ns = 0;
        job->harmed = false;
        sim->adopted_again++;
    } else if (sim->now_ns > job->returns_ns) {
        sim_fail(sim, "job %llu of group %u is not adopted again", (unsigned long long)job->number,
                 job->group);
    }
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
        if (job->number != 0 && job->returns_ns != 0)
            check_return(sim, job);
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
