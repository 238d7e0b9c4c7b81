/* worker/flights on a device, with as many at work as there may be: rows that come too late, leave
 * too late, or are somebody else's show. What stands for the layer takes its time at random. */
#include "tests/conformance/gpu.h"
#include "worker/flights.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum {
    HIDDEN = 1024,
    ROWS_MAX = 700, /* in f32 more than what is read in the host's memory */
    FLIGHTS = 300,
    DELAY_BYTES = 16 << 20,
};

/* What a client has of a flight: payloads in two pieces, the second before the first. */
struct job {
    uint32_t rows, first_rows;
    enum mla_dtype in, out;
    int seed;
    uint8_t *input, *output;
    struct mla_piece pieces_in[2], pieces_out[2];
    struct mla_pieces pieces;
};

static const size_t PAYLOAD_BYTES = (size_t)ROWS_MAX * HIDDEN * sizeof(float);
static const size_t REGION_BYTES = (size_t)2 * MLA_FLIGHTS_MAX * ROWS_MAX * HIDDEN * sizeof(float);
static struct mla_backend *backend;
static struct job jobs[MLA_FLIGHTS_MAX];
static void *delay_memory[2];
static void *results[MLA_TURNS];

/* In [low, high], the same in every run. */
static int64_t random_int(int64_t low, int64_t high)
{
    static uint64_t state = 1;
    state = state * 6364136223846793005u + 1442695040888963407u;
    return low + (int64_t)((state >> 33) % (uint64_t)(high - low + 1));
}

/* Few enough bits for bf16. */
static float value_of(const struct job *job, size_t row, size_t column)
{
    return (float)((row * 31 + column + (size_t)job->seed * 17) % 255);
}

/* Where row i of the microbatch is in the client's payload. */
static size_t client_row(const struct job *job, uint32_t row)
{
    return row < job->first_rows ? job->rows - job->first_rows + row : row - job->first_rows;
}

static void set_pieces(struct job *job, uint8_t *payload, enum mla_dtype dtype,
                       struct mla_piece out[2])
{
    size_t row = HIDDEN * mla_dtype_bytes(dtype);
    out[0] = (struct mla_piece){payload + client_row(job, 0) * row, job->first_rows};
    out[1] = (struct mla_piece){payload, job->rows - job->first_rows};
}

static void make_job(struct job *job, int seed)
{
    job->seed = seed;
    job->rows = (uint32_t)random_int(1, random_int(0, 2) ? 40 : ROWS_MAX);
    job->first_rows = (uint32_t)random_int(1, job->rows);
    job->in = random_int(0, 2) ? MLA_BF16 : MLA_F32;
    job->out = random_int(0, 2) ? MLA_BF16 : MLA_F32;
    set_pieces(job, job->input, job->in, job->pieces_in);
    set_pieces(job, job->output, job->out, job->pieces_out);
    uint32_t count = job->first_rows < job->rows ? 2 : 1;
    job->pieces = (struct mla_pieces){count, count, job->pieces_in, job->pieces_out};
    for (uint32_t i = 0; i < job->rows; i++)
        for (size_t k = 0; k < HIDDEN; k++) {
            size_t at = client_row(job, i) * HIDDEN + k;
            if (job->in == MLA_F32)
                ((float *)(void *)job->input)[at] = value_of(job, i, k);
            else
                ((uint16_t *)(void *)job->input)[at] = mla_f32_to_bf16(value_of(job, i, k));
        }
    memset(job->output, 0xff, PAYLOAD_BYTES);
}

static void check_job(const struct job *job, int number)
{
    for (uint32_t i = 0; i < job->rows; i++)
        for (size_t k = 0; k < HIDDEN; k++) {
            size_t at = client_row(job, i) * HIDDEN + k;
            float got = job->out == MLA_F32
                            ? ((const float *)(void *)job->output)[at]
                            : mla_bf16_to_f32(((const uint16_t *)(void *)job->output)[at]);
            cr_assert_eq(got, value_of(job, i, k), "flight %d of %u rows, row %u, column %zu: %g",
                         number, job->rows, i, k, (double)got);
        }
}

/* The result is x, a while later. */
static void compute(const struct mla_flights *flights, uint32_t turn, int64_t padded)
{
    size_t bytes = (size_t)padded * HIDDEN * mla_dtype_bytes(backend->activation);
    for (int64_t i = random_int(0, 4); i > 0; i--)
        cr_assert_eq(backend->ops->move(backend, delay_memory[0], delay_memory[1], DELAY_BYTES),
                     MLA_OK);
    cr_assert_eq(backend->ops->move(backend, results[turn], flights->x[turn], bytes), MLA_OK);
}

static void land(struct mla_flights *flights, int number)
{
    bool landed = false;
    struct mla_flight flight;
    uint64_t ns = 0;
    while (!landed)
        cr_assert_eq(mla_flights_landed(flights, &landed), MLA_OK);
    cr_assert_eq(mla_flights_take(flights, &flight, &ns), MLA_OK);
    check_job(&jobs[number % MLA_FLIGHTS_MAX], number);
}

static void *make(size_t bytes)
{
    void *memory = NULL;
    cr_assert_eq(backend->ops->alloc(backend, bytes, &memory), MLA_OK);
    return memory;
}

static void begin(struct mla_flights *flights, uint8_t *region)
{
    cr_assert_eq(backend->ops->host_register(backend, region, REGION_BYTES), MLA_OK);
    cr_assert_eq(mla_flights_init(flights, backend, ROWS_MAX, HIDDEN, 4), MLA_OK);
    for (int i = 0; i < 2; i++)
        delay_memory[i] = make(DELAY_BYTES);
    for (int i = 0; i < MLA_TURNS; i++)
        results[i] = make(PAYLOAD_BYTES);
    for (size_t i = 0; i < MLA_FLIGHTS_MAX; i++) {
        jobs[i].input = region + 2 * i * PAYLOAD_BYTES;
        jobs[i].output = jobs[i].input + PAYLOAD_BYTES;
    }
}

static void end(struct mla_flights *flights, uint8_t *region)
{
    mla_flights_fini(flights);
    for (int i = 0; i < 2; i++)
        backend->ops->free(backend, delay_memory[i]);
    for (int i = 0; i < MLA_TURNS; i++)
        backend->ops->free(backend, results[i]);
    backend->ops->host_unregister(backend, region);
    backend->ops->destroy(&backend);
}

static void fly(void)
{
    struct mla_flights flights;
    uint8_t *region =
        mmap(NULL, REGION_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    cr_assert_neq((void *)region, MAP_FAILED);
    begin(&flights, region);
    int landed = 0;
    for (int i = 0; i < FLIGHTS; i++) {
        struct job *job = &jobs[i % MLA_FLIGHTS_MAX];
        struct mla_flight *flight = NULL;
        /* Now and then more of them land, so that one finds the device idle. */
        while (mla_flights_full(&flights) || (flights.count > 0 && random_int(0, 4) == 0))
            land(&flights, landed++);
        make_job(job, i);
        int64_t padded = random_int(job->rows, ROWS_MAX);
        struct mla_work work = {
            .rows = job->rows, .dtype = job->in, .reply_dtype = job->out, .region = 1};
        cr_assert_eq(mla_flights_begin(&flights, &work, &job->pieces, padded, &flight), MLA_OK);
        compute(&flights, flight->turn, padded);
        cr_assert_eq(mla_flights_end(&flights, flight, &job->pieces, results[flight->turn]),
                     MLA_OK);
    }
    while (flights.count > 0)
        land(&flights, landed++);
    end(&flights, region);
    munmap(region, REGION_BYTES);
}

Test(flights_device, cpu)
{
    cr_assert_eq(mla_backend_cpu_create(1, &backend), MLA_OK);
    fly();
}

/* The same memory of the host's, with turns. */
Test(flights_device, cpu_like_a_device)
{
    cr_assert_eq(mla_backend_cpu_create(1, &backend), MLA_OK);
    backend->unified = false;
    fly();
}

Test(flights_device, cuda)
{
    if (!mla_test_has_gpu())
        return;
    cr_assert_eq(mla_backend_cuda_create(0, &backend), MLA_OK);
    fly();
}
