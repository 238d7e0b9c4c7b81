/* The messages between coordinator and workers. Same header and rules as proto/message.h, types
 * from 32 on; header.epoch is the group's epoch (0 before ADOPT) and a message of another epoch
 * is dropped. proto/README.md specifies their bytes. */
#ifndef MLA_PROTO_WORKER_MESSAGE_H
#define MLA_PROTO_WORKER_MESSAGE_H

#include "proto/message.h"

#include <string.h>

enum mla_worker_message_type {
    MLA_JOIN = 32,      /* worker: I am rank r of group g */
    MLA_ADOPT = 33,     /* coordinator: the epoch and the sizes to allocate */
    MLA_READY = 34,     /* worker: allocated, may be given work */
    MLA_PLAN = 35,      /* coordinator: a step */
    MLA_WORK = 36,      /* coordinator: one microbatch of one layer; payload: this rank's rows */
    MLA_DONE = 37,      /* worker: its finished rows; payload likewise */
    MLA_HEARTBEAT = 38, /* worker */
    MLA_FAILED = 39,    /* worker: the group can't go on */
    MLA_SHUTDOWN = 40,  /* coordinator: the service ends, end in order */
    MLA_ATTACH = 41,    /* coordinator: map this region of shared memory */
    MLA_ATTACHED = 42,  /* worker: it is mapped, or can't be */
    MLA_DETACH = 43,    /* coordinator: unmap it, no WORK names it any more */
    MLA_ALIVE = 44,     /* coordinator: the answer to a HEARTBEAT of an epoch that lives */
    MLA_DISMISS = 45,   /* coordinator: the group is given up, end at once */
};

#define MLA_WORKER_GRAPHS 1u /* flag of JOIN: decode microbatches are padded to buckets */

/* Entries: the layers, u32 each, ascending. */
struct mla_join {
    uint64_t job; /* one number on all ranks of an mpirun job; a later job's is larger */
    uint32_t group, rank, ranks;
    uint32_t flags;
    struct mla_model_dims dims;
    uint32_t context_max;    /* of the model */
    uint32_t kv_blocks_max;  /* that may fit this rank's memory; 0: any number */
    uint64_t kv_block_bytes; /* one block id, all layers */
    uint32_t layer_count;
    uint32_t layers[MLA_LAYERS_MAX];
};

/* Entries: decode buckets, u32 each, ascending. */
struct mla_adopt {
    uint64_t epoch;                  /* the new one */
    uint32_t kv_blocks;              /* of the pool; 0: as many as fit */
    uint32_t sequences, context_max; /* sequences = block tables */
    uint32_t steps;                  /* step slots */
    uint32_t step_tokens_max;        /* rows of one step */
    uint32_t prefill_tokens_max;     /* rows of one prefill microbatch */
    uint32_t decode_tokens_max;      /* rows of one sequence in a decode microbatch */
    uint32_t credits;                /* WORK messages in flight to one rank */
    uint32_t heartbeat_ms;
    uint32_t silence_ms; /* heard nothing for so long: the other side is gone */
    uint32_t stall_ms;   /* a microbatch that takes so long will never end */
    uint32_t bucket_count;
    uint32_t buckets[MLA_DECODE_BUCKETS_MAX];
};

struct mla_ready {
    uint32_t group, rank;
    uint32_t kv_blocks; /* of its pool: all that ADOPT asked for, or as many as fit */
};

enum mla_microbatch_kind { MLA_DECODE = 1, MLA_PREFILL = 2 };

/* Rows of a microbatch are its entries' tokens, entry after entry. Rank r of R owns the rows
 * [r * padded / R, (r + 1) * padded / R) of it; rows from `rows` on are padding and don't
 * travel. */
struct mla_plan_microbatch {
    uint32_t kind;
    uint32_t rows, padded; /* padded: a multiple of the ranks */
    uint32_t entry_first, entry_count;
};

struct mla_plan_entry {
    uint32_t table;  /* block table of the sequence */
    uint32_t start;  /* position of its first token here */
    uint32_t tokens; /* >= 1 */
};

/* tables[table][first .. first + count) = the next `count` block ids of the message. */
struct mla_plan_table {
    uint32_t table, first, count;
};

struct mla_plan_copy {
    uint32_t src, dst; /* whole blocks, in every layer, before the step */
};

/* A run of rows that is contiguous both in the microbatch and in the client's payload. A
 * microbatch's runs follow each other and cover its rows. */
struct mla_plan_run {
    uint32_t microbatch_row, client_row, count;
};

/* The arrays stand in the frame one after the other in this order, little-endian u32s. The
 * pointers lead into the decoded frame, or to the sender's own arrays: decode's are NOT aligned,
 * read them with the functions below. */
struct mla_plan_message {
    uint64_t step; /* the coordinator's own number, never used twice in an epoch */
    uint32_t slot; /* step slot, < adopt.steps */
    uint32_t microbatch_count, entry_count, table_count, copy_count, block_count, run_count;
    uint32_t rows;            /* of the client's payload: of the whole step, in all groups */
    const void *microbatches; /* struct mla_plan_microbatch */
    const void *entries;      /* struct mla_plan_entry */
    const void *tables;       /* struct mla_plan_table */
    const void *copies;       /* struct mla_plan_copy */
    const void *blocks;       /* u32 */
    const void *runs;         /* struct mla_plan_run */
};

struct mla_work {
    uint64_t step, work; /* work: the coordinator's number of this message */
    uint32_t slot, layer, microbatch;
    uint32_t dtype, reply_dtype;
    uint32_t rows; /* this rank's own, without padding; may be 0 */
    /* 0: rows travel as payloads. Else they are in this region, where the client's payloads begin
     * at these offsets; the plan's runs tell which rows are this rank's. */
    uint64_t region, input_at, output_at;
};

/* ATTACH is a struct mla_grant. */
struct mla_attached {
    uint64_t region;
    uint32_t status; /* MLA_OK, or why not */
};

struct mla_detach {
    uint64_t region;
};

struct mla_done {
    uint64_t step, work;
    uint32_t rank, rows, dtype;
    uint32_t compute_ns, collective_ns;
};

struct mla_heartbeat {
    uint32_t group, rank;
    uint64_t progress; /* grows with every WORK finished */
};

struct mla_failed {
    uint32_t group, rank;
    uint32_t status;
};

struct mla_dismiss {
    uint32_t status; /* why; the rank's exit code follows from it */
};

struct mla_worker_message {
    struct mla_header header;
    union {
        struct mla_join join;
        struct mla_adopt adopt;
        struct mla_ready ready;
        struct mla_plan_message plan;
        struct mla_work work;
        struct mla_done done;
        struct mla_heartbeat heartbeat;
        struct mla_failed failed;
        struct mla_grant attach;
        struct mla_attached attached;
        struct mla_detach detach;
        struct mla_dismiss dismiss;
    } u;
};

/* Bytes of a first frame other than PLAN are at most this. */
#define MLA_WORKER_MESSAGE_BYTES_MAX (MLA_HEADER_BYTES + 128u + MLA_LAYERS_MAX * 4u)

/* Bytes a PLAN with these counts takes. */
size_t mla_plan_message_bytes(const struct mla_plan_message *plan);

/* As mla_message_encode and mla_message_decode. PLAN is checked in itself: entry ranges of the
 * microbatches follow each other and cover all entries, each microbatch's rows are the sum of its
 * entries' tokens, padded >= rows, its runs cover exactly its rows and lie within the client's,
 * the tables' counts sum to block_count. Of JOIN: rank < ranks <= MLA_RANKS_MAX,
 * kv_block_bytes > 0. Of WORK: offsets are 0 without a region, and aligned. */
enum mla_status mla_worker_message_encode(struct mla_worker_message *message, uint8_t *frame,
                                          size_t capacity, size_t *bytes);
enum mla_status mla_worker_message_decode(const uint8_t *frame, size_t bytes,
                                          struct mla_worker_message *out);

struct mla_plan_microbatch mla_plan_microbatch_at(const struct mla_plan_message *plan, uint32_t i);
struct mla_plan_entry mla_plan_entry_at(const struct mla_plan_message *plan, uint32_t i);
struct mla_plan_table mla_plan_table_at(const struct mla_plan_message *plan, uint32_t i);
struct mla_plan_copy mla_plan_copy_at(const struct mla_plan_message *plan, uint32_t i);
struct mla_plan_run mla_plan_run_at(const struct mla_plan_message *plan, uint32_t i);
/* Here, because a plan has tens of thousands of these when whole tables are new. */
static inline uint32_t mla_plan_block_at(const struct mla_plan_message *plan, uint32_t i)
{
    uint32_t block;
    memcpy(&block, (const uint8_t *)plan->blocks + (size_t)i * sizeof block, sizeof block);
    return block;
}

#endif
