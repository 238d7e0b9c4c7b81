/* The microbatches at work on the device, oldest first. Copies to the device for the next one and
 * from the device for the last one run beside the computing of the one between them: straight to
 * what the layer reads and from what it writes, of which there are two that take turns, where the
 * payload has the layer's dtype. A small one that finds the device idle has nothing to run beside:
 * operations read and write its payload where it is, in the host's memory, which saves the way from
 * queue to queue, twice. */
#ifndef MLA_WORKER_FLIGHTS_H
#define MLA_WORKER_FLIGHTS_H

#include "kernels/backend.h"
#include "worker/layer.h"
#include "worker/payload.h"

enum { MLA_FLIGHTS_MAX = 3 }; /* one comes in, one computes, one goes out */

struct mla_flight {
    struct mla_work work;
    struct mla_blob *reply; /* own rows that go back as a frame, or NULL */
    uint64_t collective_ns; /* where the host waits for collectives; else 0 */
    void *arrival;          /* host: a frame, aligned */
    uint32_t turn;          /* whose x and partial it has */
    bool direct;            /* operations read and write the payload where it is */
    /* Not on a backend whose memory is the host's: */
    void *stage_in, *stage; /* device: the payload as it came, the reply as it goes */
    struct mla_fence *arrived, *begun, *computed, *gone;
};

struct mla_flights {
    struct mla_backend *backend;
    struct mla_blob_pool *replies;
    int64_t rows_max, hidden; /* own rows */
    void *x[MLA_TURNS];       /* [rows_max, hidden] activation: what the layer reads */
    struct {
        int64_t first, end;
    } zero[MLA_TURNS];     /* rows of x that are known to be zero */
    void *zeros;           /* [rows_max, hidden], for padding rows */
    uint32_t turn;         /* the next flight's */
    uint32_t first, count; /* a ring */
    struct mla_flight ring[MLA_FLIGHTS_MAX];
};

/* replies_max: reply payloads that may be on their way at a time. MLA_MEMORY. */
enum mla_status mla_flights_init(struct mla_flights *flights, struct mla_backend *backend,
                                 int64_t rows_max, int64_t hidden, uint32_t replies_max);
/* All sockets that replies were sent through must be closed. */
void mla_flights_fini(struct mla_flights *flights);

static inline bool mla_flights_full(const struct mla_flights *flights)
{
    return flights->count == MLA_FLIGHTS_MAX;
}

/* Of one or more. */
static inline const struct mla_flight *mla_flights_oldest(const struct mla_flights *flights)
{
    return &flights->ring[flights->first];
}

/* Not when full. Brings the input's rows to the x of the flight's turn, `padded` rows in all, those
 * past work->rows zero; *out is the newest flight. A frame is the caller's again; a region is read
 * until the flight has landed. */
enum mla_status mla_flights_begin(struct mla_flights *flights, const struct mla_work *work,
                                  const struct mla_pieces *pieces, int64_t padded,
                                  struct mla_flight **out);
/* Takes work.rows of `rows` (activation, on the device, left alone until the flight after the next)
 * to the output's pieces, or to the flight's reply where there are none. MLA_MEMORY. */
enum mla_status mla_flights_end(struct mla_flights *flights, struct mla_flight *flight,
                                const struct mla_pieces *pieces, const void *rows);
/* Whether the oldest flight has its reply. */
enum mla_status mla_flights_landed(struct mla_flights *flights, bool *landed);
/* The oldest flight, landed: its work, its times and its reply, which is the caller's to drop.
 * *compute_ns: from its payload's arrival on the device to its result. */
enum mla_status mla_flights_take(struct mla_flights *flights, struct mla_flight *out,
                                 uint64_t *compute_ns);

#endif
