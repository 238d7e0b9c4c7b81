/* The way of payloads through a device with memory of its own. The CPU backend plays one; what it
 * is asked for is noted, because its queues are all alike. */
#include "worker/flights.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

enum { HIDDEN = 8, ROWS_MAX = 70000, ROWS = 6, PADDED = 8 };

static struct mla_backend *backend;
static const struct mla_backend_ops *inner;
static struct mla_backend_ops noted;
static struct mla_flights flights;
/* How often: bytes by the queue that computes; bytes beside; rows of zeros; a queue waits for a
 * fence; `copy`. */
static uint32_t with_computing, beside, padded_with, waits, copies;

static void forget(void)
{
    with_computing = beside = padded_with = waits = copies = 0;
}

static enum mla_status note_upload(struct mla_backend *b, void *dst, const void *src, size_t bytes)
{
    with_computing++;
    return inner->upload(b, dst, src, bytes);
}

static enum mla_status note_download(struct mla_backend *b, void *dst, const void *src,
                                     size_t bytes)
{
    with_computing++;
    return inner->download(b, dst, src, bytes);
}

static enum mla_status note_move(struct mla_backend *b, void *dst, const void *src, size_t bytes)
{
    padded_with += (uint32_t)(bytes / (HIDDEN * sizeof(float)));
    return inner->move(b, dst, src, bytes);
}

static enum mla_status note_in(struct mla_backend *b, void *dst, const void *src, size_t bytes)
{
    beside++;
    return inner->copy_in(b, dst, src, bytes);
}

static enum mla_status note_out(struct mla_backend *b, void *dst, const void *src, size_t bytes)
{
    beside++;
    return inner->copy_out(b, dst, src, bytes);
}

static enum mla_status note_wait(struct mla_backend *b, enum mla_queue queue,
                                 struct mla_fence *fence)
{
    waits++;
    return inner->fence_wait(b, queue, fence);
}

static enum mla_status note_copy(struct mla_backend *b, const struct mla_copy *copy)
{
    copies++;
    return inner->copy(b, copy);
}

static void setup(void)
{
    cr_assert_eq(mla_backend_cpu_create(1, &backend), MLA_OK);
    inner = backend->ops;
    noted = *inner;
    noted.upload = note_upload;
    noted.download = note_download;
    noted.move = note_move;
    noted.copy_in = note_in;
    noted.copy_out = note_out;
    noted.fence_wait = note_wait;
    noted.copy = note_copy;
    backend->unified = false;
    cr_assert_eq(mla_flights_init(&flights, backend, ROWS_MAX, HIDDEN, 2), MLA_OK);
    backend->ops = &noted;
}

static void teardown(void)
{
    backend->ops = inner;
    mla_flights_fini(&flights);
    backend->unified = true;
    inner->destroy(&backend);
}

TestSuite(flights, .init = setup, .fini = teardown, .timeout = 60);

/* A client's region: rows in two pieces each way, with others between. */
struct region {
    float x[3 * ROWS][HIDDEN];
    uint16_t narrow_x[3 * ROWS][HIDDEN];
    float y[3 * ROWS][HIDDEN];
    uint16_t narrow_y[3 * ROWS][HIDDEN];
    struct mla_piece input[2], output[2];
    struct mla_pieces pieces;
};

static const uint32_t first_row[] = {1, 9}, rows_of[] = {2, 4};

static uint32_t client_row(uint32_t row)
{
    return row < rows_of[0] ? first_row[0] + row : first_row[1] + row - rows_of[0];
}

static void fill(struct region *region, enum mla_dtype in, enum mla_dtype out, float seed)
{
    memset(region, 0, sizeof *region);
    for (uint32_t i = 0; i < 3 * ROWS; i++) {
        for (uint32_t j = 0; j < HIDDEN; j++) {
            region->x[i][j] = seed + (float)(i * HIDDEN + j); /* few bits, also in bf16 */
            region->narrow_x[i][j] = mla_f32_to_bf16(region->x[i][j]);
        }
    }
    for (uint32_t i = 0; i < 2; i++) {
        uint32_t row = first_row[i];
        region->input[i] = (struct mla_piece){in == MLA_F32 ? (uint8_t *)region->x[row]
                                                            : (uint8_t *)region->narrow_x[row],
                                              rows_of[i]};
        region->output[i] = (struct mla_piece){out == MLA_F32 ? (uint8_t *)region->y[row]
                                                              : (uint8_t *)region->narrow_y[row],
                                               rows_of[i]};
    }
    region->pieces = (struct mla_pieces){2, 2, region->input, region->output};
}

static struct mla_flight *begin(struct region *region, enum mla_dtype in, enum mla_dtype out)
{
    struct mla_work work = {.rows = ROWS, .dtype = in, .reply_dtype = out, .region = 1};
    struct mla_flight *flight = NULL;
    cr_assert_eq(mla_flights_begin(&flights, &work, &region->pieces, PADDED, &flight), MLA_OK);
    const float *x = flights.x[flight->turn];
    for (uint32_t i = 0; i < PADDED; i++)
        for (uint32_t j = 0; j < HIDDEN; j++)
            cr_assert_float_eq(x[i * HIDDEN + j], i < ROWS ? region->x[client_row(i)][j] : 0, 0,
                               "row %u, column %u", i, j);
    return flight;
}

/* The layer doubles what it reads. Its result stays there until the turn comes again. */
static void end(struct mla_flight *flight, const struct region *region)
{
    static float results[MLA_TURNS][PADDED][HIDDEN];
    float(*result)[HIDDEN] = results[flight->turn];
    for (uint32_t i = 0; i < PADDED; i++)
        for (uint32_t j = 0; j < HIDDEN; j++)
            result[i][j] = 2 * ((const float *)flights.x[flight->turn])[i * HIDDEN + j];
    cr_assert_eq(mla_flights_end(&flights, flight, &region->pieces, result), MLA_OK);
}

static float widen(uint16_t bits)
{
    uint32_t wide = (uint32_t)bits << 16;
    float value = 0;
    memcpy(&value, &wide, sizeof value);
    return value;
}

static void land(const struct region *region, enum mla_dtype out)
{
    bool landed = false;
    struct mla_flight flight;
    uint64_t ns = 0;
    cr_assert_eq(mla_flights_landed(&flights, &landed), MLA_OK);
    cr_assert(landed);
    cr_assert_eq(mla_flights_take(&flights, &flight, &ns), MLA_OK);
    bool own[3 * ROWS] = {false};
    for (uint32_t i = 0; i < ROWS; i++)
        own[client_row(i)] = true;
    for (uint32_t i = 0; i < 3 * ROWS; i++)
        for (uint32_t j = 0; j < HIDDEN; j++)
            cr_assert_float_eq(out == MLA_F32 ? region->y[i][j] : widen(region->narrow_y[i][j]),
                               own[i] ? 2 * region->x[i][j] : 0, 0, "row %u, column %u", i, j);
}

/* Each finds the device idle: a copy for each piece, and nothing beside. */
Test(flights, one_after_the_other)
{
    static struct region region;
    for (int i = 0; i < 4; i++) {
        enum mla_dtype in = i & 1 ? MLA_BF16 : MLA_F32;
        enum mla_dtype out = i & 2 ? MLA_BF16 : MLA_F32;
        forget();
        fill(&region, in, out, (float)i);
        end(begin(&region, in, out), &region);
        land(&region, out);
        cr_expect(with_computing == 0 && beside == 0 && waits == 0, "%u, %u, %u", with_computing,
                  beside, waits);
        cr_expect_eq(copies, 4);
    }
}

/* Those that join one have their copies beside. Payloads of the layer's dtype go straight, others
 * are converted in between. Who has a turn waits for the last one that had it. */
Test(flights, at_the_same_time)
{
    static struct region regions[MLA_FLIGHTS_MAX];
    for (int round = 0; round < 4; round++) {
        enum mla_dtype in = round & 1 ? MLA_BF16 : MLA_F32;
        enum mla_dtype out = round & 2 ? MLA_BF16 : MLA_F32;
        uint32_t conversions = (in != MLA_F32) + (out != MLA_F32);
        for (int i = 0; i < MLA_FLIGHTS_MAX; i++) {
            forget();
            fill(&regions[i], in, out, (float)i);
            struct mla_flight *flight = begin(&regions[i], in, out);
            cr_expect_eq(flight->turn, (uint32_t)(round * MLA_FLIGHTS_MAX + i) % MLA_TURNS);
            end(flight, &regions[i]);
            cr_expect_eq(with_computing, 0);
            cr_expect_eq(beside, i == 0 ? 0 : 4);
            cr_expect_eq(copies, i == 0 ? 4 : conversions);
            uint32_t of_turn = i < MLA_TURNS ? 0 : 1 + (in == MLA_F32);
            cr_expect_eq(waits, i == 0 ? 0 : 2 + of_turn, "round %d, flight %d: %u", round, i,
                         waits);
        }
        for (int i = 0; i < MLA_FLIGHTS_MAX; i++)
            land(&regions[i], out);
    }
}

/* Rows past the last are zero, and are not made so again. */
Test(flights, padding)
{
    static const struct {
        uint32_t rows, padded, zeros;
    } steps[] = {
        /* In one turn and in the other: nothing is known, */
        {6, 8, 2},
        {6, 8, 2},
        /* they are zero, */
        {6, 8, 0},
        {6, 8, 0},
        {7, 8, 0},
        {6, 8, 0},
        /* one or all of them are not. */
        {6, 8, 2},
        {2, 4, 2},
        {6, 16, 10},
        {1, 2, 1},
        {0, 8, 8},
        {1, 8, 7},
        {8, 8, 0},
        {1, 8, 0},
        {7, 8, 1},
        {1, 8, 0},
    };
    float rows[16][HIDDEN];
    struct mla_piece piece = {(uint8_t *)rows, 0};
    struct mla_pieces pieces = {1, 1, &piece, &piece};
    for (size_t i = 0; i < sizeof rows / sizeof **rows; i++)
        rows[i / HIDDEN][i % HIDDEN] = 1;
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
        struct mla_work work = {
            .rows = steps[i].rows, .dtype = MLA_F32, .reply_dtype = MLA_F32, .region = 1};
        struct mla_flight *flight = NULL;
        struct mla_flight landed;
        uint64_t ns = 0;
        piece.rows = steps[i].rows;
        forget();
        cr_assert_eq(mla_flights_begin(&flights, &work, &pieces, steps[i].padded, &flight), MLA_OK);
        const float *x = flights.x[flight->turn];
        for (uint32_t k = 0; k < steps[i].padded * HIDDEN; k++)
            cr_assert_eq(x[k], k < steps[i].rows * HIDDEN, "step %zu, value %u", i, k);
        cr_expect_eq(padded_with, steps[i].zeros, "step %zu: %u", i, padded_with);
        cr_assert_eq(mla_flights_end(&flights, flight, &pieces, x), MLA_OK);
        cr_assert_eq(mla_flights_take(&flights, &landed, &ns), MLA_OK);
    }
}

/* One whose copies take long has them beside, for who comes next. */
Test(flights, large)
{
    float *rows = calloc((size_t)ROWS_MAX * HIDDEN, sizeof *rows);
    struct mla_piece piece = {(uint8_t *)rows, ROWS_MAX};
    struct mla_pieces pieces = {1, 1, &piece, &piece};
    struct mla_work work = {
        .rows = ROWS_MAX, .dtype = MLA_F32, .reply_dtype = MLA_F32, .region = 1};
    struct mla_flight *flight = NULL;
    cr_assert_eq(mla_flights_begin(&flights, &work, &pieces, ROWS_MAX, &flight), MLA_OK);
    cr_assert_eq(mla_flights_end(&flights, flight, &pieces, flights.x[flight->turn]), MLA_OK);
    cr_expect_eq(beside, 2);
    cr_expect_eq(with_computing, 0);
    free(rows);
}

/* Frames are the caller's again at once; a reply is a buffer of ours. */
Test(flights, frames)
{
    float frame[ROWS][HIDDEN], was[ROWS][HIDDEN];
    struct mla_piece piece = {(uint8_t *)frame, ROWS};
    struct mla_pieces pieces = {1, 0, &piece, NULL};
    struct mla_work work = {.rows = ROWS, .dtype = MLA_F32, .reply_dtype = MLA_F32};
    struct mla_flight *flight = NULL;
    struct mla_flight landed;
    uint64_t ns = 0;
    for (uint32_t i = 0; i < ROWS; i++)
        for (uint32_t j = 0; j < HIDDEN; j++)
            was[i][j] = frame[i][j] = (float)(i + j);
    cr_assert_eq(mla_flights_begin(&flights, &work, &pieces, ROWS, &flight), MLA_OK);
    memset(frame, 0, sizeof frame);
    cr_assert_eq(mla_flights_end(&flights, flight, &pieces, flights.x[flight->turn]), MLA_OK);
    cr_assert_eq(mla_flights_take(&flights, &landed, &ns), MLA_OK);
    cr_assert_not_null(landed.reply);
    cr_assert_eq(landed.reply->bytes, sizeof frame);
    const float *reply = (const float *)(const void *)landed.reply->data;
    for (uint32_t i = 0; i < ROWS * HIDDEN; i++)
        cr_expect_float_eq(reply[i], was[i / HIDDEN][i % HIDDEN], 0);
    mla_blob_drop(landed.reply);
}
