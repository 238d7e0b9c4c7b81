/* mla-check inside: steps over the sequences of a golden case, compared as they come back. */
#ifndef MLA_TESTS_TOOLS_CHECK_H
#define MLA_TESTS_TOOLS_CHECK_H

#include "proto/client.h"
#include "tests/lib/case.h"

#include <stdbool.h>
#include <stdint.h>

enum { CHECK_STEPS = 4, CHECK_SLOTS = 8, CHECK_TIMEOUT_MS = 60000 };

/* One sequence of the service that is given the inputs of one of the case. */
struct check_track {
    uint64_t id;
    bool live;                 /* not freed yet */
    uint32_t sequence;         /* of the case */
    uint32_t length;           /* where the case ends */
    uint32_t done;             /* committed tokens */
    double *difference, *norm; /* [layers] sums of squares over the rows compared */
};

/* A track's share of a step. The last `wrong` of its tokens get other inputs than the case's,
 * and are not compared. */
struct check_part {
    struct check_track *track;
    uint32_t tokens, wrong;
};

struct check_step {
    uint64_t id;
    uint32_t rows, part_count;
    struct check_part parts[MLA_STEP_SEQUENCES_MAX];
};

/* A RUN and its buffers: its part of the client's memory, or where that is too small others, which
 * grow as needed and are used again. */
struct check_slot {
    struct mla_client_run run;
    struct check_step *step;
    uint32_t layer; /* index into the case's layers */
    uint64_t request;
    bool in_flight;
    void *x, *y;
    uint8_t *part; /* [2, check.part_bytes]: x, y */
    void *x_grown, *y_grown;
    size_t x_bytes, y_bytes;
};

struct check {
    struct mla_client *client;
    const struct mla_hello_reply *info;
    struct mla_case golden;
    double tolerance;
    enum mla_dtype dtype, reply_dtype;
    uint64_t ids; /* step and sequence ids given out so far */
    float *rows;  /* [2, hidden]: golden and out; also one input row */
    struct check_step steps[CHECK_STEPS];
    struct check_slot slots[CHECK_SLOTS];
    size_t part_bytes;

    /* of the cut that is being run */
    const char *cut;
    struct check_track *tracks;
    uint32_t track_count, track_capacity;
    uint64_t compared; /* rows, over all layers */
    double row_worst;
    uint32_t differing; /* repeated RUNs that gave other bits */
    uint64_t told_ns;   /* when progress was last told */
};

/* Rows are judged one by one as well: a single bad one drowns in a long sequence. */
#define CHECK_ROW_TOLERANCE 10.0 /* times the sequence's */

/* A new sequence; it is in the service from its first step on. */
struct check_track *check_track_add(struct check *check, uint32_t sequence);
enum mla_status check_track_free(struct check *check, struct check_track *track);

/* Empties a step, and adds a part to it: cut down to what the step still holds. Returns the
 * tokens taken, 0 when it is full. */
void check_step_clear(struct check_step *step);
uint32_t check_step_add(struct check *check, struct check_step *step, struct check_track *track,
                        uint32_t tokens, uint32_t wrong);

/* OPEN; one RUN of every layer, compared, twice each where `repeat`; CLOSE. */
enum mla_status check_step_run(struct check *check, struct check_step *step,
                               enum mla_close_action action, bool repeat);
/* The first `count` of check->steps at once: all open, all layers of all of them in flight. */
enum mla_status check_steps_run(struct check *check, uint32_t count);

/* Logs what the client says about the call that just failed. Returns `status`. */
enum mla_status check_failed(const struct check *check, const char *what, enum mla_status status);

/* The cuts (check_cuts.c), in the order in which they are run. */
struct check_cut {
    const char *name;
    enum mla_status (*run)(struct check *check, uint32_t argument);
    uint32_t argument;
};
extern const struct check_cut check_cuts[];
extern const uint32_t check_cut_count;

#endif
