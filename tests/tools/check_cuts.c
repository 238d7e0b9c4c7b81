/* The ways in which mla-check cuts the sequences of a case into steps. */
#include "tests/tools/check.h"

#include <stddef.h>

enum {
    SINGLE_STEPS_MAX = 100, /* steps of one token in a row */
    CHUNKS_MAX = 300,       /* steps of a few tokens; what is before them is prefilled at once */
    DRAFT_TOKENS = 3,
    FORKS_MAX = 5,
};

enum order { FORWARD, REVERSED, SHUFFLED };

static uint32_t min_u32(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static uint32_t max_u32(uint32_t a, uint32_t b)
{
    return a > b ? a : b;
}

/* Takes one track to `position`, at most `tokens` a step. */
static enum mla_status advance(struct check *check, struct check_track *track, uint32_t position,
                               uint32_t tokens)
{
    struct check_step *step = &check->steps[0];
    enum mla_status status = MLA_OK;
    while (track->done < position && status == MLA_OK) {
        check_step_clear(step);
        check_step_add(check, step, track, min_u32(tokens, position - track->done), 0);
        status = check_step_run(check, step, MLA_COMMIT, false);
    }
    return status;
}

/* Each sequence alone, `tokens` at a time. */
static enum mla_status cut_chunks(struct check *check, uint32_t tokens)
{
    enum mla_status status = MLA_OK;
    for (uint32_t i = 0; i < check->golden.sequence_count && status == MLA_OK; i++) {
        struct check_track *track = check_track_add(check, i);
        uint64_t chunked = (uint64_t)tokens * CHUNKS_MAX;
        uint32_t prefix = track->length > chunked ? track->length - (uint32_t)chunked : 0;
        status = advance(check, track, prefix, prefix);
        if (status == MLA_OK)
            status = advance(check, track, track->length, tokens);
        if (status == MLA_OK)
            status = check_track_free(check, track);
    }
    return status;
}

/* Where one token at a time begins: past the half, but before the last block boundary. */
static uint32_t decode_start(uint32_t length)
{
    uint32_t start = length / 2;
    if (length > SINGLE_STEPS_MAX)
        start = max_u32(start, length - SINGLE_STEPS_MAX);
    if (length > MLA_BLOCK_TOKENS)
        start = min_u32(start, (length - 1) / MLA_BLOCK_TOKENS * MLA_BLOCK_TOKENS - 1);
    return start;
}

static enum mla_status cut_decode(struct check *check, uint32_t unused)
{
    (void)unused;
    enum mla_status status = MLA_OK;
    for (uint32_t i = 0; i < check->golden.sequence_count && status == MLA_OK; i++) {
        struct check_track *track = check_track_add(check, i);
        uint32_t start = decode_start(track->length);
        status = advance(check, track, start, start);
        if (status == MLA_OK)
            status = advance(check, track, track->length, 1);
        if (status == MLA_OK)
            status = check_track_free(check, track);
    }
    return status;
}

/* Draft tokens: of three, the last one or two are wrong, are taken back and given again. */
static enum mla_status draft(struct check *check, struct check_track *track)
{
    struct check_step *step = &check->steps[0];
    for (uint32_t round = 0; track->done < track->length; round++) {
        uint32_t tokens = min_u32(DRAFT_TOKENS, check->info->step_tokens_max);
        tokens = min_u32(tokens, track->length - track->done);
        uint32_t wrong = min_u32(1 + round % 2, tokens - 1);
        check_step_clear(step);
        check_step_add(check, step, track, tokens, wrong);
        enum mla_status status = check_step_run(check, step, MLA_COMMIT, false);
        if (status != MLA_OK)
            return status;
        if (wrong == 0)
            continue;
        struct mla_truncate_entry entry = {track->id, track->done - wrong};
        status = mla_client_truncate(check->client, &entry, 1);
        if (status != MLA_OK)
            return check_failed(check, "TRUNCATE", status);
        track->done = entry.length;
    }
    return MLA_OK;
}

static enum mla_status cut_drafts(struct check *check, uint32_t unused)
{
    (void)unused;
    enum mla_status status = MLA_OK;
    for (uint32_t i = 0; i < check->golden.sequence_count && status == MLA_OK; i++) {
        struct check_track *track = check_track_add(check, i);
        uint32_t start = decode_start(track->length);
        status = advance(check, track, start, start);
        if (status == MLA_OK)
            status = draft(check, track);
        if (status == MLA_OK)
            status = check_track_free(check, track);
    }
    return status;
}

/* Adds a track's share of a round in which decodes and prefills are together: one token or a
 * sixth of the sequence, in turn. */
static void add_share(struct check *check, struct check_step *step, uint32_t index, uint32_t round)
{
    struct check_track *track = &check->tracks[index];
    bool single = (index + round) % 2 == 1;
    check_step_add(check, step, track, single ? 1 : max_u32(2, track->length / 6), 0);
}

/* splitmix64 (Steele et al. 2014) */
static uint64_t random_next(uint64_t *state)
{
    uint64_t x = *state += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

static void order_fill(uint32_t *order, uint32_t count, enum order kind, uint64_t *seed)
{
    for (uint32_t i = 0; i < count; i++)
        order[i] = kind == REVERSED ? count - 1 - i : i;
    for (uint32_t i = count; kind == SHUFFLED && i > 1; i--) {
        uint32_t other = (uint32_t)(random_next(seed) % i);
        uint32_t kept = order[i - 1];
        order[i - 1] = order[other];
        order[other] = kept;
    }
}

/* All tracks from `first` on to their ends, in common steps. A track is freed at its end, while
 * others that share its blocks go on. */
static enum mla_status run_mixed(struct check *check, uint32_t first, enum order kind)
{
    uint32_t order[MLA_STEP_SEQUENCES_MAX];
    uint32_t count = check->track_count - first;
    struct check_step *step = &check->steps[0];
    uint64_t seed = 1;
    enum mla_status status = MLA_OK;
    for (uint32_t round = 0; status == MLA_OK; round++) {
        order_fill(order, count, kind, &seed);
        check_step_clear(step);
        for (uint32_t i = 0; i < count; i++)
            add_share(check, step, first + order[i], round);
        if (step->part_count == 0)
            break;
        status = check_step_run(check, step, MLA_COMMIT, false);
        for (uint32_t i = 0; i < step->part_count && status == MLA_OK; i++)
            if (step->parts[i].track->done == step->parts[i].track->length)
                status = check_track_free(check, step->parts[i].track);
    }
    return status;
}

static enum mla_status cut_mixed(struct check *check, uint32_t order)
{
    for (uint32_t i = 0; i < check->golden.sequence_count; i++)
        check_track_add(check, i);
    return run_mixed(check, 0, (enum order)order);
}

/* Lengths at which to fork a prefix: on block boundaries and off them, each once. */
static uint32_t fork_lengths(uint32_t prefix, uint32_t lengths[FORKS_MAX])
{
    const uint32_t wanted[FORKS_MAX] = {prefix, prefix - 1, prefix / 2,
                                        prefix / MLA_BLOCK_TOKENS * MLA_BLOCK_TOKENS, 1};
    uint32_t count = 0;
    for (uint32_t i = 0; i < FORKS_MAX; i++) {
        bool known = wanted[i] == 0 || wanted[i] > prefix;
        for (uint32_t j = 0; j < count; j++)
            known = known || lengths[j] == wanted[i];
        if (!known)
            lengths[count++] = wanted[i];
    }
    return count;
}

static enum mla_status fork_one(struct check *check, uint32_t sequence)
{
    uint32_t first = check->track_count;
    struct check_track *parent = check_track_add(check, sequence);
    /* The parent keeps some way to go beside its children. */
    uint32_t prefix =
        parent->length > MLA_BLOCK_TOKENS + 8 ? parent->length - 8 : parent->length - 1;
    enum mla_status status = advance(check, parent, prefix, prefix);
    if (status != MLA_OK)
        return status;
    struct mla_fork_entry entries[FORKS_MAX];
    uint32_t lengths[FORKS_MAX];
    uint32_t count = fork_lengths(prefix, lengths);
    for (uint32_t i = 0; i < count; i++) {
        struct check_track *child = check_track_add(check, sequence);
        child->done = lengths[i];
        entries[i] = (struct mla_fork_entry){parent->id, child->id, lengths[i]};
    }
    if (count > 0)
        status = mla_client_fork(check->client, entries, count);
    if (status != MLA_OK)
        return check_failed(check, "FORK", status);
    /* First something wrong from all of them: what is shared must survive it. */
    struct check_step *step = &check->steps[0];
    check_step_clear(step);
    check_step_add(check, step, parent, DRAFT_TOKENS, DRAFT_TOKENS);
    for (uint32_t i = 0; i < count; i++) {
        struct check_track *child = &check->tracks[first + 1 + i];
        child->live = true;
        check_step_add(check, step, child, DRAFT_TOKENS, DRAFT_TOKENS);
    }
    status = check_step_run(check, step, MLA_ABORT, false);
    return status == MLA_OK ? run_mixed(check, first, FORWARD) : status;
}

static enum mla_status cut_fork(struct check *check, uint32_t unused)
{
    (void)unused;
    enum mla_status status = MLA_OK;
    for (uint32_t i = 0; i < check->golden.sequence_count && status == MLA_OK; i++)
        status = fork_one(check, i);
    return status;
}

/* Runs wrong inputs and aborts, then takes the track to `position` with the right ones. */
static enum mla_status abort_then_advance(struct check *check, struct check_track *track,
                                          uint32_t position)
{
    struct check_step *step = &check->steps[0];
    uint32_t tokens = position - track->done;
    if (tokens == 0)
        return MLA_OK;
    check_step_clear(step);
    check_step_add(check, step, track, tokens, tokens);
    enum mla_status status = check_step_run(check, step, MLA_ABORT, false);
    return status == MLA_OK ? advance(check, track, position, tokens) : status;
}

static enum mla_status cut_abort(struct check *check, uint32_t unused)
{
    (void)unused;
    enum mla_status status = MLA_OK;
    for (uint32_t i = 0; i < check->golden.sequence_count && status == MLA_OK; i++) {
        struct check_track *track = check_track_add(check, i);
        status = abort_then_advance(check, track, track->length / 2);
        if (status == MLA_OK)
            status = abort_then_advance(check, track, track->length);
        if (status == MLA_OK)
            status = check_track_free(check, track);
    }
    return status;
}

static enum mla_status cut_several(struct check *check, uint32_t unused)
{
    (void)unused;
    uint32_t sequences = check->golden.sequence_count;
    uint32_t tracks = max_u32(CHECK_STEPS, sequences);
    uint32_t steps = min_u32(CHECK_STEPS, check->info->steps_open_max);
    steps = min_u32(steps, check->info->runs_queued_max);
    for (uint32_t i = 0; i < tracks; i++)
        check_track_add(check, i % sequences);
    enum mla_status status = MLA_OK;
    for (uint32_t round = 0; status == MLA_OK; round++) {
        uint32_t used = 0;
        for (uint32_t i = 0; i < steps; i++) {
            check_step_clear(&check->steps[used]);
            for (uint32_t t = i; t < tracks; t += steps)
                add_share(check, &check->steps[used], t, round);
            used += check->steps[used].part_count > 0;
        }
        if (used == 0)
            break;
        status = check_steps_run(check, used);
    }
    for (uint32_t i = 0; i < tracks && status == MLA_OK; i++)
        status = check_track_free(check, &check->tracks[i]);
    return status;
}

/* Every RUN twice, of a prefill and of the decode step that reads what both have written. */
static enum mla_status cut_repeat(struct check *check, uint32_t unused)
{
    (void)unused;
    struct check_step *step = &check->steps[0];
    enum mla_status status = MLA_OK;
    for (uint32_t i = 0; i < check->golden.sequence_count && status == MLA_OK; i++) {
        struct check_track *track = check_track_add(check, i);
        while (track->done < track->length && status == MLA_OK) {
            uint32_t left = track->length - track->done;
            check_step_clear(step);
            check_step_add(check, step, track, left > 1 ? left - 1 : 1, 0);
            status = check_step_run(check, step, MLA_COMMIT, true);
        }
        if (status == MLA_OK)
            status = check_track_free(check, track);
    }
    return status;
}

/* bf16 both ways, prefill and decode. */
static enum mla_status cut_bf16(struct check *check, uint32_t unused)
{
    (void)unused;
    check->dtype = MLA_BF16;
    check->reply_dtype = MLA_BF16;
    enum mla_status status = MLA_OK;
    for (uint32_t i = 0; i < check->golden.sequence_count && status == MLA_OK; i++) {
        struct check_track *track = check_track_add(check, i);
        uint32_t prefix = track->length - min_u32(DRAFT_TOKENS, track->length);
        status = advance(check, track, prefix, prefix);
        if (status == MLA_OK)
            status = advance(check, track, track->length, 1);
        if (status == MLA_OK)
            status = check_track_free(check, track);
    }
    return status;
}

const struct check_cut check_cuts[] = {
    {"whole prefill", cut_chunks, UINT32_MAX},
    {"prefill, 1 token a step", cut_chunks, 1},
    {"prefill, 63 tokens a step", cut_chunks, 63},
    {"prefill, 64 tokens a step", cut_chunks, 64},
    {"prefill, 65 tokens a step", cut_chunks, 65},
    {"prefix, then decode", cut_decode, 0},
    {"draft tokens, truncated", cut_drafts, 0},
    {"mixed, forward", cut_mixed, FORWARD},
    {"mixed, reversed", cut_mixed, REVERSED},
    {"mixed, shuffled", cut_mixed, SHUFFLED},
    {"forks of a prefix", cut_fork, 0},
    {"aborted, then done right", cut_abort, 0},
    {"several steps open", cut_several, 0},
    {"every RUN repeated", cut_repeat, 0},
    {"bf16 payloads", cut_bf16, 0},
};
const uint32_t check_cut_count = sizeof check_cuts / sizeof check_cuts[0];
