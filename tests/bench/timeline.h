/* What each step of a replay was like, in the order of its end. */
#ifndef MLA_TESTS_BENCH_TIMELINE_H
#define MLA_TESTS_BENCH_TIMELINE_H

#include "proto/status.h"

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

struct mla_timeline_step {
    double ended_s;
    uint32_t lane;
    uint32_t decode_rows, prefill_rows;
    uint32_t active;      /* requests that are under way */
    uint32_t blocks_used; /* of the whole service, while it was open */
};

/* Zeroed: empty. */
struct mla_timeline {
    struct mla_timeline_step *steps;
    size_t count, capacity;
};

/* MLA_MEMORY. */
enum mla_status mla_timeline_add(struct mla_timeline *timeline,
                                 const struct mla_timeline_step *step);
/* All steps of another one. MLA_MEMORY. */
enum mla_status mla_timeline_append(struct mla_timeline *timeline, const struct mla_timeline *from);
void mla_timeline_fini(struct mla_timeline *timeline);

/* One array for each field; seconds count from started_s. NULL without memory. */
json_t *mla_timeline_json(const struct mla_timeline *timeline, double started_s);

#endif
