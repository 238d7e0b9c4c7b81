#include "worker/payload.h"

#include "proto/dtype.h"

#include <stdlib.h>
#include <string.h>

enum { MAP_TIMEOUT_MS = 2000 };

enum mla_status mla_payload_init(struct mla_payload *payload, uint32_t rank, uint32_t ranks,
                                 uint32_t hidden, uint32_t steps, int64_t rows_max)
{
    *payload =
        (struct mla_payload){.rank = rank, .ranks = ranks, .hidden = hidden, .step_count = steps};
    payload->steps = calloc(steps, sizeof *payload->steps);
    payload->pieces.input = calloc((size_t)rows_max, sizeof *payload->pieces.input);
    payload->pieces.output = calloc((size_t)rows_max, sizeof *payload->pieces.output);
    return payload->steps && payload->pieces.input && payload->pieces.output ? MLA_OK : MLA_MEMORY;
}

void mla_payload_fini(struct mla_payload *payload)
{
    for (uint32_t i = 0; payload->steps && i < payload->step_count; i++) {
        free(payload->steps[i].microbatches);
        free(payload->steps[i].run_first);
        free(payload->steps[i].runs);
    }
    free(payload->steps);
    free(payload->pieces.input);
    free(payload->pieces.output);
    while (payload->region_count > 0)
        mla_region_unmap(&payload->regions[--payload->region_count]);
    *payload = (struct mla_payload){0};
}

static enum mla_status grow(struct mla_payload_step *step, const struct mla_plan_message *plan)
{
    if (plan->microbatch_count > step->microbatch_capacity) {
        free(step->microbatches);
        free(step->run_first);
        step->microbatches = calloc(plan->microbatch_count, sizeof *step->microbatches);
        step->run_first = calloc(plan->microbatch_count, sizeof *step->run_first);
        step->microbatch_capacity =
            step->microbatches && step->run_first ? plan->microbatch_count : 0;
        if (step->microbatch_capacity == 0)
            return MLA_MEMORY;
    }
    if (plan->run_count > step->run_capacity) {
        free(step->runs);
        step->runs = calloc(plan->run_count, sizeof *step->runs);
        step->run_capacity = step->runs ? plan->run_count : 0;
        if (step->run_capacity == 0)
            return MLA_MEMORY;
    }
    return MLA_OK;
}

enum mla_status mla_payload_plan(struct mla_payload *payload, const struct mla_plan_message *plan)
{
    struct mla_payload_step *step = &payload->steps[plan->slot];
    uint32_t run = 0;
    step->number = 0;
    if (grow(step, plan) != MLA_OK)
        return MLA_MEMORY;
    for (uint32_t i = 0; i < plan->run_count; i++)
        step->runs[i] = mla_plan_run_at(plan, i);
    for (uint32_t i = 0; i < plan->microbatch_count; i++) {
        step->microbatches[i] = mla_plan_microbatch_at(plan, i);
        step->run_first[i] = run;
        /* Decoding saw to it that runs cover the rows. */
        for (uint32_t rows = 0; rows < step->microbatches[i].rows; run++)
            rows += step->runs[run].count;
    }
    step->microbatch_count = plan->microbatch_count;
    step->rows = plan->rows;
    step->number = plan->step;
    return MLA_OK;
}

const struct mla_region *mla_payload_region(const struct mla_payload *payload, uint64_t number)
{
    for (uint32_t i = 0; i < payload->region_count; i++)
        if (payload->regions[i].number == number)
            return &payload->regions[i];
    return NULL;
}

enum mla_status mla_payload_attach(struct mla_payload *payload, const struct mla_grant *grant)
{
    if (payload->region_count == MLA_CLIENTS_MAX || mla_payload_region(payload, grant->region))
        return MLA_UNSUPPORTED;
    enum mla_status status =
        mla_region_map(grant, MAP_TIMEOUT_MS, &payload->regions[payload->region_count]);
    if (status == MLA_OK)
        payload->region_count++;
    return status;
}

void mla_payload_detach(struct mla_payload *payload, uint64_t number)
{
    uint32_t at = 0;
    while (at < payload->region_count && payload->regions[at].number != number)
        at++;
    if (at == payload->region_count)
        return;
    mla_region_unmap(&payload->regions[at]);
    payload->regions[at] = payload->regions[--payload->region_count];
    payload->regions[payload->region_count] = (struct mla_region){0};
}

/* The client's payload at `at`, of all the step's rows, or NULL where that is not in the region. */
static uint8_t *place(const struct mla_region *region, uint64_t at, uint64_t rows, size_t row)
{
    return at <= region->bytes && rows * row <= region->bytes - at ? region->data + at : NULL;
}

/* Own rows [first, first + count) of a microbatch as runs of the client's rows. */
static void scatter(const struct mla_payload_step *step, uint32_t microbatch, uint32_t first,
                    uint32_t count, uint8_t *input, size_t input_row, uint8_t *output,
                    size_t output_row, struct mla_pieces *out)
{
    const struct mla_plan_run *run = &step->runs[step->run_first[microbatch]];
    uint32_t pieces = 0;
    for (uint32_t done = 0; done < count; run++) {
        uint32_t end = run->microbatch_row + run->count;
        if (end <= first + done)
            continue;
        uint32_t skipped = first + done - run->microbatch_row;
        uint32_t rows = run->count - skipped < count - done ? run->count - skipped : count - done;
        size_t client_row = (size_t)run->client_row + skipped;
        out->input[pieces] = (struct mla_piece){input + client_row * input_row, rows};
        out->output[pieces++] = (struct mla_piece){output + client_row * output_row, rows};
        done += rows;
    }
    out->input_count = out->output_count = pieces;
}

enum mla_status mla_payload_resolve(struct mla_payload *payload, const struct mla_work *work,
                                    const struct mla_blob *frame, const struct mla_pieces **out)
{
    size_t input_row = payload->hidden * mla_dtype_bytes((enum mla_dtype)work->dtype);
    size_t output_row = payload->hidden * mla_dtype_bytes((enum mla_dtype)work->reply_dtype);
    struct mla_pieces *pieces = &payload->pieces;
    const struct mla_payload_step *step =
        work->slot < payload->step_count ? &payload->steps[work->slot] : NULL;
    if (!step || step->number != work->step || work->microbatch >= step->microbatch_count)
        return MLA_MALFORMED;
    const struct mla_plan_microbatch *microbatch = &step->microbatches[work->microbatch];
    uint32_t share = microbatch->padded / payload->ranks;
    uint32_t first = share * payload->rank;
    uint32_t left = first < microbatch->rows ? microbatch->rows - first : 0;
    if (work->rows != (left < share ? left : share))
        return MLA_MALFORMED;
    pieces->input_count = pieces->output_count = 0;
    *out = pieces;
    if (work->region == 0) {
        if ((frame ? frame->bytes : 0) != work->rows * input_row)
            return MLA_MALFORMED;
        if (frame)
            pieces->input[pieces->input_count++] = (struct mla_piece){frame->data, work->rows};
        return MLA_OK;
    }
    const struct mla_region *region = mla_payload_region(payload, work->region);
    uint8_t *input = region ? place(region, work->input_at, step->rows, input_row) : NULL;
    uint8_t *output = region ? place(region, work->output_at, step->rows, output_row) : NULL;
    if (!input || !output || frame)
        return MLA_MALFORMED;
    scatter(step, work->microbatch, first, work->rows, input, input_row, output, output_row,
            pieces);
    return MLA_OK;
}
