/* The messages between a client and the coordinator. proto/README.md specifies their bytes.
 *
 * A message is one frame (header, fields, entries) and, where payload_bytes says so, a second
 * one with the payload. Decoding allocates nothing; every length is checked against limits.h and
 * the bytes that are there before it is used. */
#ifndef MLA_PROTO_MESSAGE_H
#define MLA_PROTO_MESSAGE_H

#include "proto/dtype.h"
#include "proto/grant.h"
#include "proto/limits.h"
#include "proto/status.h"

#include <stddef.h>
#include <stdint.h>

#define MLA_MAGIC            0x31414c4du /* "MLA1" */
#define MLA_PROTOCOL_VERSION 1u
#define MLA_HEADER_BYTES     48u
#define MLA_REPLY            0x80u /* a reply's type is its request's with this bit */
#define MLA_INDEX_NONE       0xffffffffu

enum mla_message_type {
    MLA_HELLO = 1,
    MLA_OPEN = 2,
    MLA_RUN = 3,
    MLA_CLOSE = 4,
    MLA_FORK = 5,
    MLA_TRUNCATE = 6,
    MLA_FREE = 7,
    MLA_STATS = 8,
    MLA_SHARE = 9,
};

/* Every message begins with this. */
struct mla_header {
    uint16_t type;
    uint64_t request_id;    /* the client's own; its reply carries it */
    uint64_t epoch;         /* requests: 0. replies: the newest group epoch of the service */
    uint32_t status;        /* requests: 0. replies: enum mla_status */
    uint32_t index;         /* error replies: the offending entry, or MLA_INDEX_NONE */
    uint32_t count;         /* entries in this frame */
    uint32_t body_bytes;    /* bytes after the header in this frame */
    uint64_t payload_bytes; /* bytes of the payload frame; 0: there is none */
};

struct mla_hello {
    uint32_t version_min, version_max; /* protocol versions the client speaks */
};

/* Model dimensions as they travel (all ranks together). */
struct mla_model_dims {
    uint32_t hidden, heads, q_lora, latent, nope, rope, v;
};

/* Bits of payload_modes. */
#define MLA_PAYLOAD_INLINE 1u /* a frame */
#define MLA_PAYLOAD_SHARED 2u /* a place in a region of shared memory */

/* Entries: the served layers, u32 each, ascending. */
struct mla_hello_reply {
    uint32_t version;
    uint32_t payload_modes; /* MLA_PAYLOAD_... bits */
    struct mla_model_dims dims;
    uint32_t groups, ranks; /* ready groups; ranks of one */
    uint32_t block_tokens;
    uint32_t blocks_total, blocks_free; /* over all ready groups */
    uint32_t context_max;               /* tokens of one sequence */
    uint32_t step_tokens_max, step_sequences_max, steps_open_max, runs_queued_max;
    uint32_t decode_tokens_max, prefill_tokens_max, decode_rows_max;
    uint32_t layer_count;
    uint32_t layers[MLA_LAYERS_MAX];
};

struct mla_open_entry {
    uint64_t sequence; /* the client's own id; a new one with start 0 makes a sequence */
    uint32_t start;    /* the committed length */
    uint32_t tokens;   /* new tokens, >= 1 */
};

/* Rows of the step's payloads are the entries' tokens, entry after entry. */
struct mla_open {
    uint64_t step; /* the client's own id */
    uint32_t count;
    struct mla_open_entry entries[MLA_STEP_SEQUENCES_MAX];
};

struct mla_open_reply {
    uint64_t step;
    uint32_t decode_rows, prefill_rows, microbatches;
    uint32_t blocks_free; /* after this step's reservation, over all ready groups */
};

/* Where input and output of a RUN are, in bytes from the beginning of the region. Both are
 * multiples of MLA_REGION_ALIGNMENT and don't overlap. */
struct mla_run_place {
    uint64_t region, input_at, output_at;
};

/* Payload: [rows, hidden] of dtype, as a frame or, with one place (place_count 1), in a region;
 * then the reply's is there too. */
struct mla_run {
    uint64_t step;
    uint32_t layer;
    uint32_t dtype;       /* MLA_F32 or MLA_BF16 */
    uint32_t reply_dtype; /* likewise */
    uint32_t rows, hidden;
    uint32_t place_count; /* 0 or 1 */
    struct mla_run_place places[1];
};

/* Where the time of a RUN went. received and replied are CLOCK_MONOTONIC of the coordinator's
 * host; the others are spans. */
struct mla_run_times {
    uint64_t received_ns, replied_ns;
    uint32_t queued_ns;     /* from received to the last dispatch to the workers */
    uint32_t compute_ns;    /* slowest rank: layer without collectives */
    uint32_t collective_ns; /* the same rank: inside collectives */
    uint32_t gathered_ns;   /* from the last rank's result to replied */
};

/* Payload: [rows, hidden] of dtype, in the order of the request's rows. */
struct mla_run_reply {
    uint64_t step;
    uint32_t layer, dtype, rows, hidden;
    struct mla_run_times times;
};

enum mla_close_action { MLA_COMMIT = 1, MLA_ABORT = 2 };

struct mla_close {
    uint64_t step;
    uint32_t action;
};

struct mla_close_reply {
    uint64_t step;
    uint32_t blocks_free;
};

struct mla_fork_entry {
    uint64_t parent, child;
    uint32_t length; /* tokens shared, <= the parent's committed length, >= 1 */
};

struct mla_fork {
    uint32_t count;
    struct mla_fork_entry entries[MLA_STEP_SEQUENCES_MAX];
};

struct mla_truncate_entry {
    uint64_t sequence;
    uint32_t length; /* what stays, <= the committed length */
};

struct mla_truncate {
    uint32_t count;
    struct mla_truncate_entry entries[MLA_STEP_SEQUENCES_MAX];
};

struct mla_free {
    uint32_t count;
    uint64_t sequences[MLA_STEP_SEQUENCES_MAX];
};

/* The client's region of shared memory; 0 bytes: give it back. Its reply is a struct mla_grant,
 * all zeros after a region was given back. */
struct mla_share_request {
    uint64_t bytes;
};

/* FORK, TRUNCATE and FREE answer with this. */
struct mla_blocks_reply {
    uint32_t blocks_free;
};

/* Counters since start-up, then gauges, u64 each, in this order on the wire. */
struct mla_stats {
    uint64_t requests, errors, runs, rows_decode, rows_prefill, microbatches;
    uint64_t bytes_in, bytes_out, bytes_copied; /* payload; copied: by the coordinator */
    uint64_t groups_ready, clients, steps_open, runs_in_flight, sequences;
    uint64_t blocks_total, blocks_used, blocks_free;
    uint64_t heap_bytes; /* payload buffers held by the coordinator */
};

#define MLA_STATS_FIELDS (sizeof(struct mla_stats) / sizeof(uint64_t))

/* One decoded message. A reply with a status other than MLA_OK has `sentence` and nothing else.
 * About 24 KiB: keep one, don't put many on a stack. */
struct mla_message {
    struct mla_header header;
    union {
        struct mla_hello hello;
        struct mla_hello_reply hello_reply;
        struct mla_open open;
        struct mla_open_reply open_reply;
        struct mla_run run;
        struct mla_run_reply run_reply;
        struct mla_close close;
        struct mla_close_reply close_reply;
        struct mla_fork fork;
        struct mla_truncate truncate;
        struct mla_free free;
        struct mla_blocks_reply blocks_reply;
        struct mla_stats stats_reply;
        struct mla_share_request share;
        struct mla_grant share_reply;
        char sentence[MLA_SENTENCE_BYTES_MAX]; /* NUL-terminated */
    } u;
};

/* The largest first frame there is. */
#define MLA_MESSAGE_BYTES_MAX                                                                      \
    (MLA_HEADER_BYTES + 64u + MLA_STEP_SEQUENCES_MAX * 20u + MLA_LAYERS_MAX * 4u)

/* Writes header and body of `message` to `frame`; fills magic, version, header.count and
 * header.body_bytes from the body (also in `message`). payload_bytes is the caller's.
 * MLA_LIMIT when a count is over its limit or `capacity` is too small. */
enum mla_status mla_message_encode(struct mla_message *message, uint8_t *frame, size_t capacity,
                                   size_t *bytes);

/* Reads a frame. On failure `out->header` holds what could be read of the header (zeros where
 * nothing could): type and request_id serve to address the error reply.
 * MLA_MALFORMED, MLA_VERSION, MLA_TYPE, MLA_LIMIT, MLA_FIELD; out->header.index names the
 * offending entry of FIELD. Checked here: lengths, counts within limits.h, enumerations, reserved
 * fields, that requests carry status 0. Whether ids and shapes make sense is the coordinator's
 * to say. */
enum mla_status mla_message_decode(const uint8_t *frame, size_t bytes, struct mla_message *out);

#endif
