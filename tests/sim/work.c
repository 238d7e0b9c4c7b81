/* What the ranks of a job do with the messages they are sent. */
#include "tests/sim/sim.h"

#include <string.h>

static struct mla_worker_message message;

static void answer(struct sim *sim, const struct sim_job *job, uint32_t r,
                   const struct mla_work *work, uint32_t first, const uint64_t *out)
{
    enum mla_dtype dtype = (enum mla_dtype)work->reply_dtype;
    size_t row = SIM_HIDDEN * mla_dtype_bytes(dtype);
    struct mla_blob *payload = NULL;
    if (work->region)
        rank_write(sim, &job->rank[r], work, first, out, job->rank[r].epoch);
    else if (work->rows)
        payload = blob_make(sim, work->rows * row);
    for (uint32_t i = 0; payload && i < work->rows; i++) {
        memcpy(payload->data + i * row, &out[i], sizeof *out);
        if (dtype == MLA_F32)
            memcpy(payload->data + i * row + sizeof *out, &job->rank[r].epoch,
                   sizeof job->rank[r].epoch);
    }
    struct mla_worker_message done = {.header = {.type = MLA_DONE, .epoch = job->rank[r].epoch}};
    done.u.done = (struct mla_done){.step = work->step,
                                    .work = work->work,
                                    .rank = r,
                                    .rows = work->rows,
                                    .dtype = work->reply_dtype,
                                    .compute_ns = 1000,
                                    .collective_ns = 10};
    job_say(sim, job, r, &done, payload);
}

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
        if (!job->rank[r].alive || job->hangs)
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
    for (uint32_t r = 0; r < job->ranks; r++)
        if (job->rank[r].over)
            rank_over(sim, job, r);
    job_go_on(sim, job);
}

static void adopted(struct sim *sim, uint64_t number, uint64_t r)
{
    struct sim_job *job = job_find(sim, number);
    if (!job || !job->rank[r].alive || job->rank[r].epoch == 0)
        return;
    struct mla_worker_message said = {.header = {.type = MLA_READY, .epoch = job->rank[r].epoch}};
    said.u.ready = (struct mla_ready){
        .group = job->group, .rank = (uint32_t)r, .kv_blocks = job->rank[r].blocks};
    job_say(sim, job, (uint32_t)r, &said, NULL);
}

static void attach(struct sim *sim, struct sim_job *job, uint32_t r, uint64_t region)
{
    struct mla_worker_message said = {
        .header = {.type = MLA_ATTACHED, .epoch = job->rank[r].epoch}};
    said.u.attached = (struct mla_attached){.region = region, .status = MLA_UNSUPPORTED};
    if (rank_attach(sim, &job->rank[r], region))
        said.u.attached.status = MLA_OK;
    job_say(sim, job, r, &said, NULL);
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
        rank->epoch = message.u.adopt.epoch;
        rank->blocks = message.u.adopt.kv_blocks;
        if (rank->blocks == 0) /* as many as fit */
            rank->blocks = random_within(&sim->random, 4, SIM_BLOCKS_MAX);
        rank->heard_ns = sim->now_ns;
        rank->beat = link_connect(sim, LINK_BEAT, job_owner(job, r))->number;
        sim_at(sim, random_within(&sim->random, 0, 20) * SIM_MS, adopted, job->number, r);
    } else if (header->type == MLA_PLAN && header->epoch == rank->epoch) {
        rank_plan(sim, rank, &message.u.plan);
    } else if (header->type == MLA_ATTACH && header->epoch == rank->epoch) {
        attach(sim, job, r, message.u.attach.region);
    } else if (header->type == MLA_DETACH && header->epoch == rank->epoch) {
        rank_detach(sim, rank, message.u.detach.region);
    } else if (header->type == MLA_SHUTDOWN || header->type == MLA_DISMISS) {
        rank_die(sim, job, r);
    } else {
        sim_fail(sim, "a worker is sent type %u of epoch %llu in epoch %llu", header->type,
                 (unsigned long long)header->epoch, (unsigned long long)rank->epoch);
    }
    packet_free(packet);
    return true;
}

/* A microbatch that takes so long will never end. */
static void watchdog(struct sim *sim, uint64_t number, uint64_t computations)
{
    struct sim_job *job = job_find(sim, number);
    for (uint32_t r = 0; job && job->computing && r < job->ranks; r++)
        if (job->computations == computations && job->rank[r].alive && !job->rank[r].stopped)
            job_doom(sim, job, 50);
}

/* Whoever has WORK waits at the gate, until all have it or one has turned back. */
void job_go_on(struct sim *sim, struct sim_job *job)
{
    bool all_wait = !job->computing;
    if (job->computing)
        return;
    for (uint32_t r = 0; r < job->ranks; r++) {
        struct sim_rank *rank = &job->rank[r];
        while (rank_handle(sim, job, r)) {}
        bool waits = rank->inbox && rank->alive && !rank->stopped;
        if (waits && rank->epoch <= job->closed_epoch) {
            rank_over(sim, job, r);
            waits = false;
        }
        all_wait = all_wait && waits;
    }
    if (!all_wait)
        return;
    job->computing = true;
    sim_at(sim, (sim->core_options.run_timeout_ms + 500) * SIM_MS, watchdog, job->number,
           ++job->computations);
    sim_at(sim, random_within(&sim->random, 100, 3000) * 1000ull * (sim->faults ? sim->slow : 1),
           computed, job->number, 0);
}

/* The thread of heartbeats reads this, whatever the rank does. */
static void beat_arrived(struct sim *sim, struct sim_job *job, uint32_t r, uint8_t type)
{
    struct sim_rank *rank = &job->rank[r];
    if (rank->stopped)
        return;
    if (type == MLA_ALIVE)
        rank->heard_ns = sim->now_ns;
    else if (type == MLA_DISMISS)
        rank_die(sim, job, r);
    else
        job_doom(sim, job, 1000); /* by its watchdog, if not before */
}

void job_arrived(struct sim *sim, const struct link *link, struct packet *packet)
{
    struct sim_job *job = &sim->jobs[link->owner / SIM_RANKS_MAX];
    uint32_t r = link->owner % SIM_RANKS_MAX;
    struct sim_rank *rank = &job->rank[r];
    if (job->number == 0 || !rank->alive ||
        link->number != (link->kind == LINK_BEAT ? rank->beat : rank->work)) {
        packet_free(packet);
        return;
    }
    if (link->kind == LINK_BEAT) {
        beat_arrived(sim, job, r, packet->head[6]);
        packet_free(packet);
        return;
    }
    *rank->inbox_last = packet;
    rank->inbox_last = &packet->next;
    job_go_on(sim, job);
}
