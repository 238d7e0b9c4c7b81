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
static uint32_t with_computing, beside, waits, copies;

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
    const float *x = flights.x;
    for (uint32_t i = 0; i < PADDED; i++)
        for (uint32_t j = 0; j < HIDDEN; j++)
            cr_assert_float_eq(x[i * HIDDEN + j], i < ROWS ? region->x[client_row(i)][j] : 0, 0,
                               "row %u, column %u", i, j);
    return flight;
}

/* The layer doubles what it reads. */
static void end(struct mla_flight *flight, const struct region *region)
{
    static float result[PADDED][HIDDEN];
    for (uint32_t i = 0; i < PADDED; i++)
        for (uint32_t j = 0; j < HIDDEN; j++)
            result[i][j] = 2 * ((const float *)flights.x)[i * HIDDEN + j];
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

Test(flights, one_after_the_other)
{
    static struct region region;
    for (int i = 0; i < 4; i++) {
        enum mla_dtype in = i & 1 ? MLA_BF16 : MLA_F32;
        enum mla_dtype out = i & 2 ? MLA_BF16 : MLA_F32;
        with_computing = beside = waits = copies = 0;
        fill(&region, in, out, (float)i);
        end(begin(&region, in, out), &region);
        land(&region, out);
        cr_expect(with_computing == 4 && beside == 0 && waits == 0, "%u, %u, %u", with_computing,
                  beside, waits);
        cr_expect_eq(copies, (in != MLA_F32) + (out != MLA_F32));
    }
}

/* The first has its copies with its computing, those that join it have theirs beside. */
Test(flights, at_the_same_time)
{
    static struct region regions[MLA_FLIGHTS_MAX];
    for (int i = 0; i < MLA_FLIGHTS_MAX; i++) {
        with_computing = beside = waits = copies = 0;
        fill(&regions[i], MLA_F32, MLA_F32, (float)i);
        end(begin(&regions[i], MLA_F32, MLA_F32), &regions[i]);
        cr_expect_eq(with_computing, i == 0 ? 4 : 0);
        cr_expect_eq(beside, i == 0 ? 0 : 4);
        cr_expect_eq(waits, i == 0 ? 0 : 2);
        cr_expect_eq(copies, i == 0 ? 0 : 2);
    }
    for (int i = 0; i < MLA_FLIGHTS_MAX; i++)
        land(&regions[i], MLA_F32);
}

/* One whose copies take long has them beside, for who comes next. */
Test(flights, large_and_alone)
{
    float *rows = calloc((size_t)ROWS_MAX * HIDDEN, sizeof *rows);
    struct mla_piece piece = {(uint8_t *)rows, ROWS_MAX};
    struct mla_pieces pieces = {1, 1, &piece, &piece};
    struct mla_work work = {
        .rows = ROWS_MAX, .dtype = MLA_F32, .reply_dtype = MLA_F32, .region = 1};
    struct mla_flight *flight = NULL;
    cr_assert_eq(mla_flights_begin(&flights, &work, &pieces, ROWS_MAX, &flight), MLA_OK);
    cr_assert_eq(mla_flights_end(&flights, flight, &pieces, flights.x), MLA_OK);
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
    cr_assert_eq(mla_flights_end(&flights, flight, &pieces, flights.x), MLA_OK);
    cr_assert_eq(mla_flights_take(&flights, &landed, &ns), MLA_OK);
    cr_assert_not_null(landed.reply);
    cr_assert_eq(landed.reply->bytes, sizeof frame);
    const float *reply = (const float *)(const void *)landed.reply->data;
    for (uint32_t i = 0; i < ROWS * HIDDEN; i++)
        cr_expect_float_eq(reply[i], was[i / HIDDEN][i % HIDDEN], 0);
    mla_blob_drop(landed.reply);
}
