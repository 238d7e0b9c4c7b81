/* The coordinator's state machine: clients, sequences, steps, groups, dispatch and gathering.
 * It is told what arrived and says what to send; sockets, clock and memory limits are given from
 * outside, so a test can drive it with simulated ones. */
#ifndef MLA_COORDINATOR_CORE_H
#define MLA_COORDINATOR_CORE_H

#include "comm/channel.h"
#include "coordinator/plan.h"
#include "proto/message.h"
#include "proto/worker_message.h"

struct mla_core_options {
    struct mla_plan_options plan; /* ranks and pad_to_bucket are the group's to say */
    bool pad_to_bucket;           /* also where the workers don't ask for it */
    uint32_t groups;              /* ready when so many are there */
    uint32_t kv_blocks;           /* of one group; 0: from kv_memory_bytes */
    uint64_t kv_memory_bytes;     /* of one rank; 0: as much as the workers offer */
    uint32_t context_max;         /* 0: the model's */
    uint32_t sequences_max;       /* of one group */
    uint32_t clients_max;
    uint32_t steps_open_max;
    uint32_t step_tokens_max;
    uint32_t runs_queued_max; /* RUN requests of one client in flight */
    uint32_t credits;         /* microbatches in flight to one group */
    uint64_t payload_bytes_max;
    uint64_t region_bytes_max;     /* shared memory of all clients together; 0: none */
    uint32_t heartbeat_ms;         /* workers send one so often */
    uint32_t heartbeat_timeout_ms; /* without one a group is lost */
    uint32_t run_timeout_ms;       /* of a RUN, from request to reply */
    uint64_t epoch;                /* the newest that was ever given out */
};

void mla_core_options_default(struct mla_core_options *options);
/* MLA_OPTION with a sentence (MLA_SENTENCE_BYTES_MAX bytes) in `why`. */
enum mla_status mla_core_options_check(const struct mla_core_options *options, char *why);

/* What workers are told to make room for, as far as options and the model's context say. */
struct mla_adopt mla_core_sizes(const struct mla_core_options *options, uint32_t context_max);

/* Where effects go. send_*: as mla_channel_send. */
struct mla_core_effects {
    void *context;
    enum mla_status (*send_client)(void *context, const struct mla_peer *peer, const void *head,
                                   size_t head_bytes, struct mla_blob *payload, size_t offset,
                                   size_t bytes);
    enum mla_status (*send_worker)(void *context, const struct mla_peer *peer, const void *head,
                                   size_t head_bytes, struct mla_blob *payload, size_t offset,
                                   size_t bytes);
    uint64_t (*now_ns)(void *context); /* monotonic */
    /* A region of shared memory that whoever has the grant can map. */
    enum mla_status (*region_add)(void *context, uint64_t number, uint64_t bytes,
                                  struct mla_grant *out);
    /* Nobody can map it any more; who has, keeps it. */
    void (*region_remove)(void *context, uint64_t number);
    /* All ranks of a group have joined; a group was given up, `hung`: its ranks can't be expected
     * to end by themselves. Either may be NULL. */
    void (*group_joined)(void *context, uint32_t group);
    void (*group_lost)(void *context, uint32_t group, bool hung);
};

struct mla_core;

/* MLA_OPTION, MLA_MEMORY. */
enum mla_status mla_core_create(const struct mla_core_options *options,
                                const struct mla_core_effects *effects, struct mla_core **out);
void mla_core_destroy(struct mla_core **core);

/* A message came in; its payload is the core's to drop. */
void mla_core_client_message(struct mla_core *core, const struct mla_incoming *incoming);
void mla_core_worker_message(struct mla_core *core, const struct mla_incoming *incoming);
/* A connection ended: its descriptor and number. */
void mla_core_client_gone(struct mla_core *core, int fd, uint64_t number);
void mla_core_worker_gone(struct mla_core *core, int fd, uint64_t number);
/* Time passed: call at least every heartbeat_ms. */
void mla_core_tick(struct mla_core *core);

/* Groups that can be given work. */
uint32_t mla_core_groups_ready(const struct mla_core *core);
/* Tells every worker to end, over so many connections. */
uint32_t mla_core_shutdown(struct mla_core *core);
void mla_core_stats(const struct mla_core *core, struct mla_stats *out);

/* Recounts what can be counted twice; false on a broken invariant. For tests. */
bool mla_core_check(const struct mla_core *core);

#endif
