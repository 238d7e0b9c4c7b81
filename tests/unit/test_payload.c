/* Where a rank's rows are, against a naive walk; and what is refused. */
#include "tests/unit/plans.h"
#include "worker/payload.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

enum { HIDDEN = 8, SLOTS = 2, ROWS_MAX = 64, CLIENT_ROWS = 100, REGION = 1 << 16, IN = 160 };

static const size_t input_row = HIDDEN * sizeof(float), output_row = HIDDEN * sizeof(uint16_t);

static struct mla_payload payload;
static struct plan plan;
static struct mla_plan_run runs[PLAN_PARTS_MAX];
static uint32_t client_rows[2][CLIENT_ROWS]; /* [microbatch][row] */
static uint8_t memory[REGION];

/* Two microbatches of random runs, padded for the ranks; the region is `memory`. */
static void start(uint32_t rank, uint32_t ranks, unsigned seed)
{
    cr_assert_eq(mla_payload_init(&payload, rank, ranks, HIDDEN, SLOTS, ROWS_MAX), MLA_OK);
    payload.regions[payload.region_count++] =
        (struct mla_region){.number = 9, .data = memory, .bytes = REGION};
    memset(&plan, 0, sizeof plan);
    plan_begin(&plan, 77);
    srand(seed);
    for (uint32_t i = 0; i < 2; i++) {
        uint32_t rows = 0;
        plan_microbatch(&plan, MLA_PREFILL);
        for (uint32_t k = 0; k < 3; k++) {
            uint32_t count = 1 + (uint32_t)rand() % 7;
            uint32_t first = (uint32_t)rand() % (CLIENT_ROWS - 7);
            runs[plan.message.run_count++] = (struct mla_plan_run){rows, first, count};
            plan_entry(&plan, 0, 0, count);
            for (uint32_t row = 0; row < count; row++)
                client_rows[i][rows++] = first + row;
        }
        plan_pad(&plan, (rows + ranks - 1) / ranks * ranks);
    }
    plan.message.runs = runs;
    plan.message.rows = CLIENT_ROWS;
    plan.message.slot = 1;
    cr_assert_eq(mla_payload_plan(&payload, &plan.message), MLA_OK);
}

static void end(void)
{
    payload.region_count = 0; /* `memory` is no mapping */
    mla_payload_fini(&payload);
}

static struct mla_work work_of(uint32_t microbatch)
{
    const struct mla_plan_microbatch *mb = &plan.microbatches[microbatch];
    uint32_t share = mb->padded / payload.ranks;
    uint32_t first = share * payload.rank;
    uint32_t left = first < mb->rows ? mb->rows - first : 0;
    return (struct mla_work){.step = 77,
                             .slot = 1,
                             .microbatch = microbatch,
                             .dtype = MLA_F32,
                             .reply_dtype = MLA_BF16,
                             .rows = left < share ? left : share,
                             .region = 9,
                             .input_at = IN,
                             .output_at = 32768};
}

static void check(const struct mla_work *work, const struct mla_piece *pieces, uint32_t count,
                  const uint8_t *base, size_t row_bytes)
{
    uint32_t row = plan.microbatches[work->microbatch].padded / payload.ranks * payload.rank;
    uint32_t end_row = row + work->rows;
    for (uint32_t i = 0; i < count; i++)
        for (int64_t k = 0; k < pieces[i].rows; k++, row++)
            cr_assert_eq(pieces[i].data + (size_t)k * row_bytes,
                         base + client_rows[work->microbatch][row] * row_bytes);
    cr_assert_eq(row, end_row);
}

Test(payload, pieces_are_the_clients_rows)
{
    for (unsigned seed = 0; seed < 200; seed++) {
        for (uint32_t ranks = 1; ranks <= 5; ranks++) {
            for (uint32_t rank = 0; rank < ranks; rank++) {
                start(rank, ranks, seed);
                for (uint32_t i = 0; i < 2; i++) {
                    const struct mla_pieces *pieces = NULL;
                    struct mla_work work = work_of(i);
                    cr_assert_eq(mla_payload_resolve(&payload, &work, NULL, &pieces), MLA_OK);
                    check(&work, pieces->input, pieces->input_count, memory + IN, input_row);
                    check(&work, pieces->output, pieces->output_count, memory + 32768, output_row);
                }
                end();
            }
        }
    }
}

Test(payload, a_frame_is_one_piece)
{
    start(0, 2, 3);
    struct mla_work work = work_of(0);
    work.region = work.input_at = work.output_at = 0;
    struct mla_blob frame = {.data = memory, .bytes = work.rows * input_row};
    const struct mla_pieces *pieces = NULL;
    cr_assert_eq(mla_payload_resolve(&payload, &work, &frame, &pieces), MLA_OK);
    cr_assert_eq(pieces->input_count, 1);
    cr_assert_eq(pieces->input[0].data, memory);
    cr_assert_eq(pieces->input[0].rows, work.rows);
    cr_assert_eq(pieces->output_count, 0);
    frame.bytes--;
    cr_assert_eq(mla_payload_resolve(&payload, &work, &frame, &pieces), MLA_MALFORMED);
    cr_assert_eq(mla_payload_resolve(&payload, &work, NULL, &pieces), MLA_MALFORMED);
    end();
}

/* The coordinator has checked all this: the rank does not rely on it. */
Test(payload, what_does_not_fit_is_refused)
{
    start(1, 2, 4);
    const struct mla_work good = work_of(1);
    const uint64_t in_bytes = CLIENT_ROWS * input_row, out_bytes = CLIENT_ROWS * output_row;
    const struct mla_pieces *pieces = NULL;
    struct mla_work wrong[16];
    uint32_t count = 0;
#define WRONG(field, value)                                                                        \
    do {                                                                                           \
        wrong[count] = good;                                                                       \
        wrong[count++].field = (value);                                                            \
    } while (0)
    WRONG(step, 76);
    WRONG(slot, 0);
    WRONG(slot, SLOTS);
    WRONG(microbatch, 2);
    WRONG(rows, good.rows + 1);
    WRONG(rows, good.rows - 1);
    WRONG(region, 8);
    WRONG(input_at, REGION - in_bytes + 16);
    WRONG(input_at, REGION);
    WRONG(input_at, UINT64_MAX - 15);
    WRONG(output_at, REGION - out_bytes + 16);
    WRONG(output_at, UINT64_MAX - in_bytes + 1);
    for (uint32_t i = 0; i < count; i++)
        cr_assert_eq(mla_payload_resolve(&payload, &wrong[i], NULL, &pieces), MLA_MALFORMED,
                     "case %u", i);
    struct mla_blob frame = {.data = memory, .bytes = good.rows * input_row};
    cr_assert_eq(mla_payload_resolve(&payload, &good, &frame, &pieces), MLA_MALFORMED);
    struct mla_work last = good;
    last.input_at = REGION - in_bytes;
    last.output_at = REGION - out_bytes;
    cr_assert_eq(mla_payload_resolve(&payload, &last, NULL, &pieces), MLA_OK);
    end();
}

Test(payload, regions_come_and_go)
{
    struct mla_grant nowhere = {.region = 5, .bytes = 1, .path_bytes = 5, .path = "/none"};
    start(0, 1, 1);
    cr_assert_eq(mla_payload_attach(&payload, &nowhere), MLA_UNSUPPORTED);
    nowhere.region = 9;
    cr_assert_eq(mla_payload_attach(&payload, &nowhere), MLA_UNSUPPORTED, "it is there already");
    cr_assert_eq(payload.region_count, 1);
    mla_payload_detach(&payload, 5);
    cr_assert_eq(payload.region_count, 1);
    end();
}
