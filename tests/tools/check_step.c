#include "proto/clock.h"
#include "tests/tools/check.h"

#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PROGRESS_SECONDS = 5 };

enum mla_status check_failed(const struct check *check, const char *what, enum mla_status status)
{
    const struct mla_client_error *error = mla_client_error(check->client);
    fprintf(stderr, "mla-check: %s: %s failed: %s: %s", check->cut, what, mla_status_name(status),
            error->status == status && error->sentence[0] ? error->sentence
                                                          : mla_status_sentence(status));
    if (error->status == status && error->index != MLA_INDEX_NONE)
        fprintf(stderr, " (entry %" PRIu32 ")", error->index);
    fputc('\n', stderr);
    return status;
}

/* On long work, a line now and then. */
static void tell_progress(struct check *check)
{
    uint64_t now_ns = mla_now_ns();
    if (now_ns - check->told_ns < PROGRESS_SECONDS * 1000000000ull)
        return;
    if (check->told_ns != 0)
        fprintf(stderr, "mla-check: %s: %" PRIu64 " rows compared so far\n", check->cut,
                check->compared);
    check->told_ns = now_ns;
}

struct check_track *check_track_add(struct check *check, uint32_t sequence)
{
    assert(check->track_count < check->track_capacity);
    struct check_track *track = &check->tracks[check->track_count++];
    memset(track->difference, 0, check->golden.layer_count * sizeof *track->difference);
    memset(track->norm, 0, check->golden.layer_count * sizeof *track->norm);
    track->id = ++check->ids;
    track->live = false;
    track->sequence = sequence;
    track->length = check->golden.lengths[sequence];
    track->done = 0;
    return track;
}

enum mla_status check_track_free(struct check *check, struct check_track *track)
{
    if (!track->live)
        return MLA_OK;
    enum mla_status status = mla_client_free(check->client, &track->id, 1);
    if (status != MLA_OK)
        return check_failed(check, "FREE", status);
    track->live = false;
    return MLA_OK;
}

void check_step_clear(struct check_step *step)
{
    step->rows = 0;
    step->part_count = 0;
}

uint32_t check_step_add(struct check *check, struct check_step *step, struct check_track *track,
                        uint32_t tokens, uint32_t wrong)
{
    if (tokens > track->length - track->done)
        tokens = track->length - track->done;
    if (tokens > check->info->step_tokens_max - step->rows)
        tokens = check->info->step_tokens_max - step->rows;
    if (tokens == 0 || step->part_count == check->info->step_sequences_max)
        return 0;
    struct check_part part = {track, tokens, wrong < tokens ? wrong : tokens};
    step->parts[step->part_count++] = part;
    step->rows += tokens;
    return tokens;
}

/* `count` rows of inputs at *x, and *x behind them. */
static void put_inputs(struct check *check, const char *word, uint32_t layer,
                       const struct check_track *track, uint32_t first, uint32_t count,
                       enum mla_dtype dtype, uint8_t **x)
{
    size_t hidden = check->info->dims.hidden;
    if (dtype == MLA_F32) {
        mla_case_input(&check->golden, word, layer, track->sequence, first, count, (float *)*x);
        *x += count * hidden * sizeof(float);
        return;
    }
    uint16_t *bits = (uint16_t *)*x;
    for (uint32_t row = 0; row < count; row++) {
        mla_case_input(&check->golden, word, layer, track->sequence, first + row, 1, check->rows);
        for (size_t i = 0; i < hidden; i++)
            bits[row * hidden + i] = mla_f32_to_bf16(check->rows[i]);
    }
    *x += count * hidden * sizeof(uint16_t);
}

static bool grow(void **buffer, size_t *bytes, size_t wanted)
{
    if (wanted <= *bytes)
        return true;
    void *grown = realloc(*buffer, wanted);
    if (!grown)
        return false;
    *buffer = grown;
    *bytes = wanted;
    return true;
}

/* Sets the slot's x and y. */
static bool find_room(const struct check *check, struct check_slot *slot, size_t x_bytes,
                      size_t y_bytes)
{
    if (x_bytes <= check->part_bytes && y_bytes <= check->part_bytes) {
        slot->x = slot->part;
        slot->y = slot->part + check->part_bytes;
        return true;
    }
    if (!grow(&slot->x_grown, &slot->x_bytes, x_bytes) ||
        !grow(&slot->y_grown, &slot->y_bytes, y_bytes))
        return false;
    slot->x = slot->x_grown;
    slot->y = slot->y_grown;
    return true;
}

static enum mla_status slot_fill(struct check *check, struct check_slot *slot,
                                 struct check_step *step, uint32_t layer)
{
    size_t values = (size_t)step->rows * check->info->dims.hidden;
    if (!find_room(check, slot, values * mla_dtype_bytes(check->dtype),
                   values * mla_dtype_bytes(check->reply_dtype))) {
        fprintf(stderr, "mla-check: %s: out of memory\n", check->cut);
        return MLA_MEMORY;
    }
    slot->step = step;
    slot->layer = layer;
    slot->run = (struct mla_client_run){
        .step = step->id,
        .layer = check->golden.layers[layer],
        .dtype = check->dtype,
        .reply_dtype = check->reply_dtype,
        .rows = step->rows,
        .x = slot->x,
        .y = slot->y,
    };
    uint8_t *x = slot->x;
    for (uint32_t i = 0; i < step->part_count; i++) {
        const struct check_part *part = &step->parts[i];
        uint32_t right = part->tokens - part->wrong;
        put_inputs(check, "input", layer, part->track, part->track->done, right, check->dtype, &x);
        put_inputs(check, "wrong", layer, part->track, part->track->done + right, part->wrong,
                   check->dtype, &x);
    }
    /* What the service does not write must not look like an earlier result. */
    memset(slot->y, 0xff, values * mla_dtype_bytes(check->reply_dtype));
    return MLA_OK;
}

static void compare_row(struct check *check, struct check_track *track, uint32_t layer,
                        const uint8_t *y)
{
    size_t hidden = check->info->dims.hidden;
    const float *golden = check->rows;
    float *out = check->rows + hidden;
    if (check->reply_dtype == MLA_F32) {
        memcpy(out, y, hidden * sizeof *out);
    } else {
        for (size_t i = 0; i < hidden; i++) {
            uint16_t bits;
            memcpy(&bits, y + i * sizeof bits, sizeof bits);
            out[i] = mla_bf16_to_f32(bits);
        }
    }
    double difference = 0, norm = 0;
    for (size_t i = 0; i < hidden; i++) {
        double d = (double)out[i] - golden[i];
        difference += d * d;
        norm += (double)golden[i] * golden[i];
    }
    track->difference[layer] += difference;
    track->norm[layer] += norm;
    double error = sqrt(difference / norm);
    if (isnan(error) || error > check->row_worst) /* a NaN stays: nothing is greater */
        check->row_worst = error;
    check->compared++;
}

static void slot_compare(struct check *check, const struct check_slot *slot)
{
    size_t row_bytes = check->info->dims.hidden * mla_dtype_bytes(check->reply_dtype);
    const uint8_t *y = slot->y;
    for (uint32_t i = 0; i < slot->step->part_count; i++) {
        const struct check_part *part = &slot->step->parts[i];
        struct check_track *track = part->track;
        for (uint32_t t = 0; t < part->tokens - part->wrong; t++)
            if (mla_case_golden(&check->golden, slot->layer, track->sequence, track->done + t,
                                check->rows))
                compare_row(check, track, slot->layer, y + t * row_bytes);
        y += part->tokens * row_bytes;
    }
}

static uint32_t step_entries(struct check *check, struct check_step *step,
                             struct mla_open_entry *entries)
{
    step->id = ++check->ids;
    for (uint32_t i = 0; i < step->part_count; i++) {
        const struct check_part *part = &step->parts[i];
        entries[i] = (struct mla_open_entry){part->track->id, part->track->done, part->tokens};
    }
    return step->part_count;
}

static void step_opened(struct check_step *step)
{
    for (uint32_t i = 0; i < step->part_count; i++)
        step->parts[i].track->live = true;
}

static void step_committed(struct check *check, struct check_step *step)
{
    for (uint32_t i = 0; i < step->part_count; i++)
        step->parts[i].track->done += step->parts[i].tokens;
    tell_progress(check);
}

enum mla_status check_step_run(struct check *check, struct check_step *step,
                               enum mla_close_action action, bool repeat)
{
    struct mla_open_entry entries[MLA_STEP_SEQUENCES_MAX];
    uint32_t layers = check->golden.layer_count;
    uint32_t count = step_entries(check, step, entries);
    enum mla_status status = mla_client_open(check->client, step->id, entries, count, NULL);
    if (status != MLA_OK)
        return check_failed(check, "OPEN", status);
    step_opened(step);
    for (uint32_t i = 0; i < layers; i++) {
        /* Every step starts with another layer: they may be run in any order. */
        uint32_t layer = (uint32_t)((i + step->id) % layers);
        struct check_slot *first = &check->slots[0], *second = &check->slots[1];
        status = slot_fill(check, first, step, layer);
        if (status != MLA_OK)
            return status;
        status = mla_client_run(check->client, &first->run, NULL);
        if (status != MLA_OK)
            return check_failed(check, "RUN", status);
        slot_compare(check, first);
        if (!repeat)
            continue;
        status = slot_fill(check, second, step, layer);
        if (status != MLA_OK)
            return status;
        status = mla_client_run(check->client, &second->run, NULL);
        if (status != MLA_OK)
            return check_failed(check, "repeated RUN", status);
        size_t bytes =
            (size_t)step->rows * check->info->dims.hidden * mla_dtype_bytes(check->reply_dtype);
        if (memcmp(first->y, second->y, bytes) != 0)
            check->differing++;
    }
    status = mla_client_close(check->client, step->id, action);
    if (status != MLA_OK)
        return check_failed(check, "CLOSE", status);
    if (action == MLA_COMMIT)
        step_committed(check, step);
    return MLA_OK;
}

/* Waits for one completion, of a RUN compares the result. */
static enum mla_status complete_one(struct check *check)
{
    struct mla_completion completion;
    enum mla_status status = mla_client_poll(check->client, CHECK_TIMEOUT_MS, &completion);
    if (status != MLA_OK)
        return check_failed(check, "waiting", status == MLA_AGAIN ? MLA_TIMEOUT : status);
    if (completion.error.status != MLA_OK) {
        fprintf(stderr, "mla-check: %s: request of type %u failed: %s: %s\n", check->cut,
                (unsigned)completion.type, mla_status_name(completion.error.status),
                completion.error.sentence);
        return completion.error.status;
    }
    for (uint32_t i = 0; i < CHECK_SLOTS; i++) {
        struct check_slot *slot = &check->slots[i];
        if (slot->in_flight && slot->request == completion.request) {
            slot->in_flight = false;
            slot_compare(check, slot);
        }
    }
    return MLA_OK;
}

static struct check_slot *slot_free(struct check *check)
{
    for (uint32_t i = 0; i < CHECK_SLOTS; i++)
        if (!check->slots[i].in_flight)
            return &check->slots[i];
    return NULL;
}

/* In flight: *pending. When there is no more room, results are waited for. */
static enum mla_status submit_run(struct check *check, struct check_step *step, uint32_t layer,
                                  uint32_t *pending)
{
    struct check_slot *slot;
    enum mla_status status;
    while (!(slot = slot_free(check))) {
        status = complete_one(check);
        if (status != MLA_OK)
            return status;
        --*pending;
    }
    status = slot_fill(check, slot, step, layer);
    if (status != MLA_OK)
        return status;
    while ((status = mla_client_submit_run(check->client, &slot->run, &slot->request)) ==
               MLA_AGAIN &&
           *pending > 0) {
        status = complete_one(check);
        if (status != MLA_OK)
            return status;
        --*pending;
    }
    if (status != MLA_OK)
        return check_failed(check, "submitting RUN", status);
    slot->in_flight = true;
    ++*pending;
    return MLA_OK;
}

static enum mla_status complete_all(struct check *check, uint32_t *pending)
{
    for (; *pending > 0; --*pending) {
        enum mla_status status = complete_one(check);
        if (status != MLA_OK)
            return status;
    }
    return MLA_OK;
}

enum mla_status check_steps_run(struct check *check, uint32_t count)
{
    struct mla_open_entry entries[MLA_STEP_SEQUENCES_MAX];
    uint32_t layers = check->golden.layer_count;
    uint32_t pending = 0;
    uint64_t request;
    enum mla_status status;
    assert(count <= CHECK_STEPS);
    for (uint32_t i = 0; i < count; i++, pending++) {
        struct check_step *step = &check->steps[i];
        uint32_t parts = step_entries(check, step, entries);
        status = mla_client_submit_open(check->client, step->id, entries, parts, &request);
        if (status != MLA_OK)
            return check_failed(check, "submitting OPEN", status);
        step_opened(step);
    }
    status = complete_all(check, &pending);
    for (uint32_t layer = 0; layer < layers && status == MLA_OK; layer++)
        for (uint32_t i = 0; i < count && status == MLA_OK; i++)
            status = submit_run(check, &check->steps[i], (layer + i) % layers, &pending);
    if (status == MLA_OK)
        status = complete_all(check, &pending);
    if (status != MLA_OK)
        return status;
    for (uint32_t i = 0; i < count; i++, pending++) {
        status = mla_client_submit_close(check->client, check->steps[i].id, MLA_COMMIT, &request);
        if (status != MLA_OK)
            return check_failed(check, "submitting CLOSE", status);
    }
    status = complete_all(check, &pending);
    for (uint32_t i = 0; i < count && status == MLA_OK; i++)
        step_committed(check, &check->steps[i]);
    return status;
}
