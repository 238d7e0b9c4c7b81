#include "coordinator/core.h"
#include "coordinator/state.h"

#include <stdio.h>
#include <stdlib.h>

/* A rank's watchdog leaves the coordinator time to find a late RUN, and to say so. */
enum { STALL_MORE_MS = 500 };

void mla_core_options_default(struct mla_core_options *options)
{
    static const uint32_t buckets[] = {1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256};
    *options = (struct mla_core_options){
        .plan = {.ranks = 1,
                 .decode_tokens_max = 1,
                 .prefill_tokens_max = 512,
                 .bucket_count = sizeof buckets / sizeof *buckets},
        .groups = 1,
        .sequences_max = 1024,
        .clients_max = MLA_CLIENTS_MAX,
        .steps_open_max = 16,
        .step_tokens_max = 8192,
        .runs_queued_max = 64,
        .credits = 8,
        .payload_bytes_max = 2ull << 30,
        .region_bytes_max = 4ull << 30,
        .heartbeat_ms = 200,
        .heartbeat_timeout_ms = 1800,
        .run_timeout_ms = 60000,
    };
    memcpy(options->plan.buckets, buckets, sizeof buckets);
}

struct mla_adopt mla_core_sizes(const struct mla_core_options *options, uint32_t context_max)
{
    struct mla_adopt sizes = {
        .sequences = options->sequences_max,
        .context_max = options->context_max && options->context_max < context_max
                           ? options->context_max
                           : context_max,
        .steps = options->steps_open_max,
        .step_tokens_max = options->step_tokens_max,
        .prefill_tokens_max = options->plan.prefill_tokens_max,
        .decode_tokens_max = options->plan.decode_tokens_max,
        .credits = options->credits,
        .heartbeat_ms = options->heartbeat_ms,
        .silence_ms = options->heartbeat_timeout_ms,
        .stall_ms = options->run_timeout_ms + STALL_MORE_MS,
        .bucket_count = options->plan.bucket_count,
    };
    memcpy(sizes.buckets, options->plan.buckets, sizeof sizes.buckets);
    return sizes;
}

enum mla_status mla_core_options_check(const struct mla_core_options *options, char *why)
{
    const struct {
        const char *name;
        uint64_t value, least, most;
    } ranges[] = {
        {"groups", options->groups, 1, MLA_GROUPS_MAX},
        {"kv-blocks", options->kv_blocks, 0, MLA_BLOCKS_MAX},
        {"context-max", options->context_max, 0, MLA_CONTEXT_MAX},
        {"sequences-max", options->sequences_max, 1, MLA_SEQUENCES_MAX},
        {"clients-max", options->clients_max, 1, MLA_CLIENTS_MAX},
        {"steps-open-max", options->steps_open_max, 1, MLA_STEPS_OPEN_MAX},
        {"step-tokens-max", options->step_tokens_max, 1, MLA_STEP_TOKENS_MAX},
        {"runs-queued-max", options->runs_queued_max, 1, MLA_RUNS_QUEUED_MAX},
        {"credits", options->credits, 1, MLA_CREDITS_MAX},
        {"payload-memory", options->payload_bytes_max, 1u << 20, 1ull << 44},
        {"region-memory", options->region_bytes_max, 0, MLA_REGION_BYTES_MAX},
        {"heartbeat-ms", options->heartbeat_ms, 1, 60000},
        {"heartbeat-timeout-ms", options->heartbeat_timeout_ms, options->heartbeat_ms, 3600000},
        {"run-timeout-ms", options->run_timeout_ms, 1, 86400000},
    };
    for (size_t i = 0; i < sizeof ranges / sizeof *ranges; i++)
        if (ranges[i].value < ranges[i].least || ranges[i].value > ranges[i].most) {
            snprintf(why, MLA_SENTENCE_BYTES_MAX, "--%s %llu is not within %llu to %llu",
                     ranges[i].name, (unsigned long long)ranges[i].value,
                     (unsigned long long)ranges[i].least, (unsigned long long)ranges[i].most);
            return MLA_OPTION;
        }
    return mla_plan_options_check(&options->plan, why);
}

static size_t plan_frame_bytes(void)
{
    const struct mla_plan_message largest = {
        .microbatch_count = MLA_STEP_MICROBATCHES_MAX,
        .entry_count = MLA_STEP_SEQUENCES_MAX + MLA_STEP_MICROBATCHES_MAX,
        .table_count = MLA_STEP_SEQUENCES_MAX,
        .copy_count = MLA_STEP_SEQUENCES_MAX,
        .block_count = MLA_PLAN_BLOCKS_MAX,
        .run_count = MLA_STEP_SEQUENCES_MAX + MLA_STEP_MICROBATCHES_MAX,
    };
    return mla_plan_message_bytes(&largest);
}

static bool create_steps(struct mla_core *core)
{
    for (uint32_t i = 0; i < core->options.steps_open_max; i++) {
        struct step *step = &core->steps[i];
        step->sequences = calloc(MLA_STEP_SEQUENCES_MAX, sizeof *step->sequences);
        step->plans = calloc(core->options.groups, sizeof *step->plans);
        if (!step->sequences || !step->plans)
            return false;
        for (uint32_t g = 0; g < core->options.groups; g++)
            if (mla_plan_init(&step->plans[g]) != MLA_OK)
                return false;
    }
    return true;
}

static bool create_runs(struct mla_core *core)
{
    core->runs = calloc(RUNS_MAX, sizeof *core->runs);
    uint32_t *next = calloc((size_t)RUNS_MAX * core->options.groups, sizeof *next);
    if (!core->runs || !next) {
        free(next);
        return false;
    }
    for (uint32_t i = 0; i < RUNS_MAX; i++) {
        core->runs[i].next_microbatch = next + (size_t)i * core->options.groups;
        core->runs[i].next = i + 1 < RUNS_MAX ? i + 1 : NONE;
    }
    core->run_free = 0;
    return true;
}

/* Twice the tables of all groups: sequences that were lost wait for their clients beside live
 * ones. */
static bool create_sequences(struct mla_core *core)
{
    core->sequence_capacity = 2 * core->options.groups * core->options.sequences_max;
    core->sequence_buckets = 1;
    while (core->sequence_buckets < core->sequence_capacity)
        core->sequence_buckets *= 2;
    core->sequences = calloc(core->sequence_capacity, sizeof *core->sequences);
    core->sequence_heads = calloc(core->sequence_buckets, sizeof *core->sequence_heads);
    if (!core->sequences || !core->sequence_heads)
        return false;
    for (uint32_t i = 0; i < core->sequence_capacity; i++) {
        core->sequences[i].group = NONE;
        core->sequences[i].chain = i + 1 < core->sequence_capacity ? i + 1 : NONE;
    }
    core->sequence_free = 0;
    for (uint32_t i = 0; i < core->sequence_buckets; i++)
        core->sequence_heads[i] = NONE;
    return true;
}

static uint32_t *create_fds(void)
{
    uint32_t *fds = calloc(FDS_MAX, sizeof *fds);
    for (uint32_t i = 0; fds && i < FDS_MAX; i++)
        fds[i] = NONE;
    return fds;
}

static bool create_scratch(struct mla_core *core)
{
    core->client_fds = create_fds();
    core->worker_fds = create_fds();
    core->openings = calloc(MLA_STEP_SEQUENCES_MAX, sizeof *core->openings);
    core->plan_sequences = calloc(MLA_STEP_SEQUENCES_MAX, sizeof *core->plan_sequences);
    core->plan_tables = calloc(MLA_STEP_SEQUENCES_MAX, sizeof *core->plan_tables);
    core->plan_copies = calloc(MLA_STEP_SEQUENCES_MAX, sizeof *core->plan_copies);
    core->plan_blocks = calloc(MLA_PLAN_BLOCKS_MAX, sizeof *core->plan_blocks);
    core->plan_frame_bytes = plan_frame_bytes();
    core->plan_frame = malloc(core->plan_frame_bytes);
    return core->client_fds && core->worker_fds && core->openings && core->plan_sequences &&
           core->plan_tables && core->plan_copies && core->plan_blocks && core->plan_frame;
}

enum mla_status mla_core_create(const struct mla_core_options *options,
                                const struct mla_core_effects *effects, struct mla_core **out)
{
    char why[MLA_SENTENCE_BYTES_MAX];
    enum mla_status status = mla_core_options_check(options, why);
    if (status != MLA_OK) {
        fprintf(stderr, "%s\n", why);
        return status;
    }
    struct mla_core *core = calloc(1, sizeof *core);
    if (!core)
        return MLA_MEMORY;
    core->options = *options;
    core->effects = *effects;
    core->epoch = options->epoch;
    status = mla_blob_pool_create(options->payload_bytes_max / 2, &core->pool);
    if (status != MLA_OK || !create_steps(core) || !create_runs(core) || !create_sequences(core) ||
        !create_scratch(core))
        goto fail;
    for (uint32_t g = 0; g < options->groups; g++) {
        core->groups[g].works = calloc(options->credits, sizeof *core->groups[g].works);
        if (!core->groups[g].works)
            goto fail;
    }
    *out = core;
    return MLA_OK;
fail:
    mla_core_destroy(&core);
    return MLA_MEMORY;
}

void mla_core_destroy(struct mla_core **core_at)
{
    struct mla_core *core = *core_at;
    if (!core)
        return;
    for (uint32_t i = 0; i < core->session_bound; i++)
        if (core->sessions[i].used)
            session_end(core, i);
    for (uint32_t g = 0; g < core->options.groups; g++) {
        if (core->groups[g].state == GROUP_READY)
            works_lose(core, g);
        mla_ledger_destroy(&core->groups[g].ledger);
        free(core->groups[g].works);
    }
    for (uint32_t i = 0; i < core->session_bound; i++)
        if (core->sessions[i].region.grant.region != 0)
            core->effects.region_remove(core->effects.context,
                                        core->sessions[i].region.grant.region);
    for (uint32_t i = 0; i < core->run_bound; i++) {
        mla_blob_drop(core->runs[i].used ? core->runs[i].input : NULL);
        mla_blob_drop(core->runs[i].used ? core->runs[i].output : NULL);
    }
    for (uint32_t i = 0; i < core->options.steps_open_max; i++) {
        for (uint32_t g = 0; core->steps[i].plans && g < core->options.groups; g++)
            mla_plan_fini(&core->steps[i].plans[g]);
        free(core->steps[i].plans);
        free(core->steps[i].sequences);
    }
    if (core->runs)
        free(core->runs[0].next_microbatch);
    free(core->runs);
    free(core->sequences);
    free(core->sequence_heads);
    free(core->client_fds);
    free(core->worker_fds);
    free(core->openings);
    free(core->plan_sequences);
    free(core->plan_tables);
    free(core->plan_copies);
    free(core->plan_blocks);
    free(core->plan_frame);
    mla_blob_pool_destroy(&core->pool);
    free(core);
    *core_at = NULL;
}

/* One pass over what is doomed; true when there was something. */
static bool end_doomed(struct mla_core *core)
{
    bool any = false;
    for (uint32_t g = 0; g < core->options.groups; g++) {
        if (!core->groups[g].doomed)
            continue;
        group_lose(core, g,
                   core->groups[g].doomed_status ? core->groups[g].doomed_status : MLA_GROUP_LOST,
                   core->groups[g].doomed);
        any = true;
    }
    for (uint32_t i = 0; core->doomed_count > 0 && i < core->session_bound; i++) {
        if (!core->sessions[i].used || !core->sessions[i].doomed)
            continue;
        session_end(core, i);
        any = true;
    }
    return any;
}

void settle(struct mla_core *core)
{
    do
        dispatch(core);
    while (end_doomed(core));
}

void mla_core_stats(const struct mla_core *core, struct mla_stats *out)
{
    *out = core->stats;
    out->groups_ready = mla_core_groups_ready(core);
    for (uint32_t g = 0; g < core->options.groups; g++) {
        if (core->groups[g].state != GROUP_READY)
            continue;
        out->blocks_total += core->groups[g].kv_blocks;
        out->blocks_free += mla_ledger_blocks_free(core->groups[g].ledger);
    }
    out->blocks_used = out->blocks_total - out->blocks_free;
    out->heap_bytes = mla_blob_pool_bytes(core->pool) + core->input_bytes;
}

/* What sessions, steps and groups count of runs is what there is, and within bounds. */
static bool runs_check(const struct mla_core *core)
{
    uint32_t of_session[MLA_CLIENTS_MAX] = {0};
    uint32_t of_step[MLA_STEPS_OPEN_MAX] = {0};
    uint64_t count = 0;
    uint64_t out = 0;
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < core->run_bound; i++) {
        const struct run *run = &core->runs[i];
        if (!run->used)
            continue;
        if (!core->sessions[run->session].used || !core->steps[run->step].used)
            return false;
        count++;
        of_session[run->session]++;
        of_step[run->step]++;
        out += run->out;
        bytes += run->input ? run->input->bytes : 0;
    }
    for (uint32_t i = 0; i < core->session_bound; i++)
        if (core->sessions[i].used && (core->sessions[i].runs != of_session[i] ||
                                       of_session[i] > core->options.runs_queued_max))
            return false;
    for (uint32_t i = 0; i < core->options.steps_open_max; i++)
        if (core->steps[i].used && core->steps[i].runs != of_step[i])
            return false;
    for (uint32_t g = 0; g < core->options.groups; g++) {
        uint32_t working = 0;
        for (uint32_t i = 0; i < core->options.credits; i++)
            working += core->groups[g].works[i].ranks_left > 0;
        if (working != core->groups[g].works_out)
            return false;
        out -= working;
    }
    return count == core->stats.runs_in_flight && out == 0 && bytes == core->input_bytes;
}

bool mla_core_check(const struct mla_core *core)
{
    uint64_t steps = 0;
    uint64_t sequences = 0;
    uint64_t region_bytes = 0;
    for (uint32_t g = 0; g < core->options.groups; g++)
        if (core->groups[g].state == GROUP_READY && !mla_ledger_check(core->groups[g].ledger))
            return false;
    for (uint32_t i = 0; i < core->options.steps_open_max; i++)
        steps += core->steps[i].used;
    for (uint32_t i = 0; i < core->session_bound; i++) {
        if (!core->sessions[i].used)
            continue;
        region_bytes += core->sessions[i].region.grant.bytes;
        for (uint32_t at = core->sessions[i].sequence_first; at != NONE;
             at = core->sequences[at].next)
            sequences++;
    }
    return runs_check(core) && steps == core->stats.steps_open &&
           sequences == core->stats.sequences && region_bytes == core->region_bytes;
}
