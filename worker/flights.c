#include "worker/flights.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* Two of these take 80 us on PCI Express: so long may a microbatch that comes meanwhile be kept
 * from computing by copies on the queue that computes. */
enum { DIRECT_BYTES_MAX = 2 << 20 };

static enum mla_status reply_alloc(void *context, size_t bytes, void **out)
{
    struct mla_backend *backend = context;
    return backend->ops->host_alloc(backend, bytes, out);
}

static void reply_free(void *context, void *memory)
{
    struct mla_backend *backend = context;
    backend->ops->host_free(backend, memory);
}

static enum mla_status make_zeros(struct mla_flights *flights, size_t bytes)
{
    struct mla_backend *backend = flights->backend;
    void *host = calloc(1, bytes);
    enum mla_status status =
        host ? backend->ops->alloc(backend, bytes, &flights->zeros) : MLA_MEMORY;
    if (status == MLA_OK)
        status = backend->ops->upload(backend, flights->zeros, host, bytes);
    if (status == MLA_OK)
        status = backend->ops->synchronize(backend);
    free(host);
    return status;
}

static enum mla_status flight_init(const struct mla_flights *flights, struct mla_flight *flight)
{
    struct mla_backend *backend = flights->backend;
    const struct mla_backend_ops *ops = backend->ops;
    size_t bytes = (size_t)(flights->rows_max * flights->hidden) * sizeof(float);
    struct mla_fence **const fences[] = {&flight->arrived, &flight->begun, &flight->computed,
                                         &flight->gone};
    enum mla_status status = MLA_OK;
    for (size_t i = 0; status == MLA_OK && i < sizeof fences / sizeof *fences; i++)
        status = ops->fence_create(backend, fences[i]);
    if (status == MLA_OK)
        status = ops->host_alloc(backend, bytes, &flight->arrival);
    if (backend->unified)
        return status;
    if (status == MLA_OK)
        status = ops->alloc(backend, bytes, &flight->stage_in);
    if (status == MLA_OK)
        status = ops->alloc(backend, bytes, &flight->stage);
    return status;
}

enum mla_status mla_flights_init(struct mla_flights *flights, struct mla_backend *backend,
                                 int64_t rows_max, int64_t hidden, uint32_t replies_max)
{
    const struct mla_blob_memory memory = {backend, reply_alloc, reply_free};
    size_t values = (size_t)(rows_max * hidden);
    *flights = (struct mla_flights){.backend = backend, .rows_max = rows_max, .hidden = hidden};
    /* A reply's buffer has up to twice its size. */
    enum mla_status status = mla_blob_pool_create_in(
        replies_max * (values * sizeof(float) * 2 + 8192), &memory, &flights->replies);
    size_t x_bytes = values * mla_dtype_bytes(backend->activation);
    for (uint32_t i = 0; status == MLA_OK && i < mla_turns(backend); i++)
        status = backend->ops->alloc(backend, x_bytes, &flights->x[i]);
    if (status == MLA_OK)
        status = make_zeros(flights, x_bytes);
    for (uint32_t i = 0; status == MLA_OK && i < MLA_FLIGHTS_MAX; i++)
        status = flight_init(flights, &flights->ring[i]);
    if (status != MLA_OK)
        mla_flights_fini(flights);
    return status;
}

void mla_flights_fini(struct mla_flights *flights)
{
    struct mla_backend *backend = flights->backend;
    if (!backend)
        return;
    const struct mla_backend_ops *ops = backend->ops;
    (void)ops->synchronize(backend); /* of copies into memory that is freed here */
    for (uint32_t i = 0; i < MLA_FLIGHTS_MAX; i++) {
        struct mla_flight *flight = &flights->ring[i];
        mla_blob_drop(flight->reply);
        ops->host_free(backend, flight->arrival);
        ops->free(backend, flight->stage_in);
        ops->free(backend, flight->stage);
        ops->fence_destroy(backend, flight->arrived);
        ops->fence_destroy(backend, flight->begun);
        ops->fence_destroy(backend, flight->computed);
        ops->fence_destroy(backend, flight->gone);
    }
    for (uint32_t i = 0; i < MLA_TURNS; i++)
        ops->free(backend, flights->x[i]);
    ops->free(backend, flights->zeros);
    mla_blob_pool_destroy(&flights->replies);
    *flights = (struct mla_flights){0};
}

static enum mla_status convert(const struct mla_flights *flights, int64_t rows, const void *src,
                               enum mla_dtype src_dtype, void *dst, enum mla_dtype dst_dtype)
{
    struct mla_copy copy = {.rows = rows,
                            .n = flights->hidden,
                            .src = src,
                            .src_stride = flights->hidden,
                            .src_dtype = src_dtype,
                            .dst = dst,
                            .dst_stride = flights->hidden,
                            .dst_dtype = dst_dtype};
    return flights->backend->ops->copy(flights->backend, &copy);
}

/* Whether copies bring the payload of this dtype straight to or from what the layer has. */
static bool is_straight(const struct mla_flights *flights, const struct mla_flight *flight,
                        uint32_t dtype)
{
    return !flight->direct && (enum mla_dtype)dtype == flights->backend->activation;
}

/* Who had this flight's turn before and is still at work, or NULL. */
static const struct mla_flight *last_of_turn(const struct mla_flights *flights,
                                             const struct mla_flight *flight)
{
    uint32_t at = (uint32_t)(flight - flights->ring) + MLA_FLIGHTS_MAX - MLA_TURNS;
    return flights->count > MLA_TURNS ? &flights->ring[at % MLA_FLIGHTS_MAX] : NULL;
}

/* The input by copies beside the computing: to x, or to stage_in. */
static enum mla_status arrive(struct mla_flights *flights, struct mla_flight *flight,
                              const struct mla_pieces *pieces, size_t row)
{
    struct mla_backend *backend = flights->backend;
    const struct mla_backend_ops *ops = backend->ops;
    const struct mla_flight *last = last_of_turn(flights, flight);
    bool straight = is_straight(flights, flight, flight->work.dtype);
    char *to = straight ? flights->x[flight->turn] : flight->stage_in;
    enum mla_status status = MLA_OK;
    if (straight && last)
        status = ops->fence_wait(backend, MLA_QUEUE_IN, last->computed);
    for (uint32_t i = 0; status == MLA_OK && i < pieces->input_count; i++) {
        const void *src = pieces->input[i].data;
        size_t bytes = (size_t)pieces->input[i].rows * row;
        if (flight->work.region == 0) /* frames are anywhere, and gone when we return */
            src = memcpy(flight->arrival, src, bytes);
        status = ops->copy_in(backend, to, src, bytes);
        to += bytes;
    }
    if (status == MLA_OK)
        status = ops->fence_record(backend, MLA_QUEUE_IN, flight->arrived);
    if (status == MLA_OK)
        status = ops->fence_wait(backend, MLA_QUEUE_COMPUTE, flight->arrived);
    return status;
}

/* Where operations can read a piece. Frames come at any address of any memory, and are gone when we
 * return. */
static const void *readable(const struct mla_flights *flights, const struct mla_flight *flight,
                            const struct mla_piece *piece, size_t row)
{
    bool stays = flights->backend->unified ? (uintptr_t)piece->data % sizeof(float) == 0
                                           : flight->work.region != 0;
    return stays ? piece->data : memcpy(flight->arrival, piece->data, (size_t)piece->rows * row);
}

/* The input from where it is to x. */
static enum mla_status read_direct(struct mla_flights *flights, struct mla_flight *flight,
                                   const struct mla_pieces *pieces, size_t input_row)
{
    enum mla_dtype activation = flights->backend->activation;
    size_t row = (size_t)flights->hidden * mla_dtype_bytes(activation);
    enum mla_status status = MLA_OK;
    char *to = flights->x[flight->turn];
    for (uint32_t i = 0; status == MLA_OK && i < pieces->input_count; i++) {
        const struct mla_piece *piece = &pieces->input[i];
        status = convert(flights, piece->rows, readable(flights, flight, piece, input_row),
                         (enum mla_dtype)flight->work.dtype, to, activation);
        to += (size_t)piece->rows * row;
    }
    return status;
}

/* Finished rows to where they belong. */
static enum mla_status write_direct(struct mla_flights *flights, const struct mla_flight *flight,
                                    const struct mla_piece *pieces, uint32_t count,
                                    const void *rows)
{
    enum mla_dtype activation = flights->backend->activation;
    size_t row = (size_t)flights->hidden * mla_dtype_bytes(activation);
    enum mla_status status = MLA_OK;
    const char *from = rows;
    for (uint32_t i = 0; status == MLA_OK && i < count; i++) {
        status = convert(flights, pieces[i].rows, from, activation, pieces[i].data,
                         (enum mla_dtype)flight->work.reply_dtype);
        from += (size_t)pieces[i].rows * row;
    }
    return status;
}

/* Rows [rows, padded) of x become zero, unless they are: the layers of a step find them so. */
static enum mla_status pad(struct mla_flights *flights, uint32_t turn, int64_t rows, int64_t padded)
{
    struct mla_backend *backend = flights->backend;
    size_t row = (size_t)flights->hidden * mla_dtype_bytes(backend->activation);
    if (flights->zero[turn].first < rows)
        flights->zero[turn].first = rows;
    if (rows == padded || (flights->zero[turn].first == rows && flights->zero[turn].end >= padded))
        return MLA_OK;
    flights->zero[turn].first = rows;
    flights->zero[turn].end = padded;
    return backend->ops->move(backend, (char *)flights->x[turn] + (size_t)rows * row,
                              flights->zeros, (size_t)(padded - rows) * row);
}

/* Whether a flight that has just begun had better not use the queues for copies. */
static bool is_direct(const struct mla_flights *flights, const struct mla_work *work)
{
    size_t row = (size_t)flights->hidden * mla_dtype_bytes((enum mla_dtype)work->dtype);
    size_t reply_row = (size_t)flights->hidden * mla_dtype_bytes((enum mla_dtype)work->reply_dtype);
    return flights->backend->unified ||
           (flights->count == 1 &&
            work->rows * (row > reply_row ? row : reply_row) <= DIRECT_BYTES_MAX);
}

enum mla_status mla_flights_begin(struct mla_flights *flights, const struct mla_work *work,
                                  const struct mla_pieces *pieces, int64_t padded,
                                  struct mla_flight **out)
{
    assert(!mla_flights_full(flights) && padded <= flights->rows_max);
    struct mla_backend *backend = flights->backend;
    const struct mla_backend_ops *ops = backend->ops;
    struct mla_flight *flight =
        &flights->ring[(flights->first + flights->count++) % MLA_FLIGHTS_MAX];
    flight->work = *work;
    flight->collective_ns = 0;
    flight->turn = flights->turn;
    flights->turn = (flights->turn + 1) % mla_turns(backend);
    flight->direct = is_direct(flights, work);
    size_t input_row = (size_t)flights->hidden * mla_dtype_bytes((enum mla_dtype)work->dtype);
    const struct mla_flight *last = last_of_turn(flights, flight);
    enum mla_status status = MLA_OK;
    if (last) /* its result leaves from where this one's comes to */
        status = ops->fence_wait(backend, MLA_QUEUE_COMPUTE, last->gone);
    if (status == MLA_OK && work->rows > 0)
        status = (flight->direct ? read_direct : arrive)(flights, flight, pieces, input_row);
    if (status == MLA_OK)
        status = ops->fence_record(backend, MLA_QUEUE_COMPUTE, flight->begun);
    if (status == MLA_OK && work->rows > 0 && !flight->direct &&
        !is_straight(flights, flight, work->dtype))
        status = convert(flights, work->rows, flight->stage_in, (enum mla_dtype)work->dtype,
                         flights->x[flight->turn], backend->activation);
    if (status == MLA_OK)
        status = pad(flights, flight->turn, work->rows, padded);
    *out = flight;
    return status;
}

/* Finished rows by copies beside what computes next, from `from`. */
static enum mla_status leave(struct mla_flights *flights, const struct mla_flight *flight,
                             const struct mla_piece *pieces, uint32_t count, size_t row,
                             const void *from)
{
    struct mla_backend *backend = flights->backend;
    const struct mla_backend_ops *ops = backend->ops;
    const char *at = from;
    enum mla_status status = ops->fence_wait(backend, MLA_QUEUE_OUT, flight->computed);
    for (uint32_t i = 0; status == MLA_OK && i < count; i++) {
        size_t bytes = (size_t)pieces[i].rows * row;
        status = ops->copy_out(backend, pieces[i].data, at, bytes);
        at += bytes;
    }
    return status;
}

enum mla_status mla_flights_end(struct mla_flights *flights, struct mla_flight *flight,
                                const struct mla_pieces *pieces, const void *rows)
{
    struct mla_backend *backend = flights->backend;
    const struct mla_backend_ops *ops = backend->ops;
    enum mla_dtype dtype = (enum mla_dtype)flight->work.reply_dtype;
    size_t row = (size_t)flights->hidden * mla_dtype_bytes(dtype);
    uint32_t count = pieces->output_count;
    const struct mla_piece *output = pieces->output;
    struct mla_piece reply = {.rows = flight->work.rows};
    enum mla_status status = MLA_OK;
    if (flight->work.region == 0 && flight->work.rows > 0) {
        status = mla_blob_pool_get(flights->replies, (size_t)reply.rows * row, &flight->reply);
        reply.data = status == MLA_OK ? flight->reply->data : NULL;
        output = &reply;
        count = 1;
    }
    bool staged = !flight->direct && !is_straight(flights, flight, dtype);
    if (status == MLA_OK && staged && flight->work.rows > 0)
        status =
            convert(flights, flight->work.rows, rows, backend->activation, flight->stage, dtype);
    if (status == MLA_OK)
        status = ops->fence_record(backend, MLA_QUEUE_COMPUTE, flight->computed);
    if (status == MLA_OK)
        status = flight->direct
                     ? write_direct(flights, flight, output, count, rows)
                     : leave(flights, flight, output, count, row, staged ? flight->stage : rows);
    if (status == MLA_OK)
        status = ops->fence_record(backend, flight->direct ? MLA_QUEUE_COMPUTE : MLA_QUEUE_OUT,
                                   flight->gone);
    return status;
}

enum mla_status mla_flights_landed(struct mla_flights *flights, bool *landed)
{
    *landed = false;
    if (flights->count == 0)
        return MLA_OK;
    return flights->backend->ops->fence_reached(flights->backend,
                                                flights->ring[flights->first].gone, landed);
}

enum mla_status mla_flights_take(struct mla_flights *flights, struct mla_flight *out,
                                 uint64_t *compute_ns)
{
    assert(flights->count > 0);
    struct mla_flight *flight = &flights->ring[flights->first];
    enum mla_status status = flights->backend->ops->fence_span(flights->backend, flight->begun,
                                                               flight->computed, compute_ns);
    if (status != MLA_OK)
        return status;
    flights->first = (flights->first + 1) % MLA_FLIGHTS_MAX;
    flights->count--;
    *out = *flight;
    flight->reply = NULL;
    return MLA_OK;
}
