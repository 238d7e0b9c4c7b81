/* Where a rank's rows are: in the frame that came with a WORK, or scattered over the client's
 * region of shared memory, as the step's plan says. Regions are mapped here. */
#ifndef MLA_WORKER_PAYLOAD_H
#define MLA_WORKER_PAYLOAD_H

#include "comm/blob.h"
#include "comm/region.h"
#include "proto/worker_message.h"

#include <stdbool.h>

/* Rows that stand together in host memory. */
struct mla_piece {
    uint8_t *data;
    int64_t rows;
};

/* This rank's rows of one WORK in the order of the microbatch. Without a region input is the frame
 * and output has no pieces yet. */
struct mla_pieces {
    uint32_t input_count, output_count;
    struct mla_piece *input, *output; /* [rows_max] */
};

/* Of one step slot: which of the client's rows the plan's microbatches have. */
struct mla_payload_step {
    uint64_t number; /* 0: none */
    uint32_t rows;   /* of the client's payload */
    uint32_t microbatch_count, run_capacity, microbatch_capacity;
    struct mla_plan_microbatch *microbatches;
    uint32_t *run_first; /* [microbatches] */
    struct mla_plan_run *runs;
};

struct mla_payload {
    uint32_t rank, ranks, hidden, step_count;
    struct mla_payload_step *steps;
    uint32_t region_count;
    struct mla_region regions[MLA_CLIENTS_MAX];
    struct mla_pieces pieces;
};

/* rows_max: own rows of a microbatch. MLA_MEMORY; then it is good for fini. */
enum mla_status mla_payload_init(struct mla_payload *payload, uint32_t rank, uint32_t ranks,
                                 uint32_t hidden, uint32_t steps, int64_t rows_max);
void mla_payload_fini(struct mla_payload *payload);

/* A plan, decoded, for a slot that exists. MLA_MEMORY. */
enum mla_status mla_payload_plan(struct mla_payload *payload, const struct mla_plan_message *plan);

/* Maps a region: MLA_UNSUPPORTED, MLA_TIMEOUT, MLA_MEMORY when that can't be done here. */
enum mla_status mla_payload_attach(struct mla_payload *payload, const struct mla_grant *grant);
/* One that is mapped, or NULL. */
const struct mla_region *mla_payload_region(const struct mla_payload *payload, uint64_t number);
/* Unmaps it: nothing may read or write it any more. */
void mla_payload_detach(struct mla_payload *payload, uint64_t region);

/* The pieces of a WORK; frame may be NULL. *out is valid until the next call. MLA_MALFORMED when
 * the WORK does not fit its plan, its frame or its region. */
enum mla_status mla_payload_resolve(struct mla_payload *payload, const struct mla_work *work,
                                    const struct mla_blob *frame, const struct mla_pieces **out);

#endif
