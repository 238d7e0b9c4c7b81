/* What executor.c and life.c share: a rank, and what it has while a coordinator has adopted it. */
#ifndef MLA_WORKER_STATE_H
#define MLA_WORKER_STATE_H

#include "comm/channel.h"
#include "proto/worker_message.h"
#include "worker/executor.h"
#include "worker/flights.h"
#include "worker/gate.h"
#include "worker/heartbeat.h"
#include "worker/trace.h"

/* From JOIN until the coordinator is gone. A zeroed one is none. */
struct life {
    struct mla_channel_context *context;
    struct mla_channel *channel;
    bool adopted;
    bool over;     /* the coordinator is gone */
    bool given_up; /* this or another rank turned back: no more microbatches */
    struct mla_adopt adopt;
    struct mla_kvcache cache;
    struct mla_layer layer;
    struct mla_step *steps; /* [adopt.steps] */
    struct mla_payload payload;
    struct mla_flights flights;
    struct mla_graphs graphs;
    struct mla_heartbeat_thread *heartbeat;
};

struct executor {
    const struct mla_executor_options *options;
    struct mla_backend *backend;
    struct mla_collective *collective; /* behind the gate, if there is one */
    struct mla_gated_collective gated;
    struct mla_gate *gate;
    struct mla_shard *shard;
    struct mla_trace *trace; /* or NULL */
    struct mla_watch watch;
    struct mla_watchdog *watchdog;
    uint64_t poll_until_ns; /* when to sleep if nothing came */
    bool stopping;          /* a signal, or the coordinator's order */
    struct mla_worker_message incoming, outgoing;
    struct life life;
};

/* Begins executor->outgoing. */
void outgoing_begin(struct executor *executor, enum mla_worker_message_type type);
/* Sends it. */
enum mla_status outgoing_send(struct executor *executor, struct mla_blob *payload);

/* Connects and says JOIN. MLA_TIMEOUT: no coordinator came. */
enum mla_status life_begin(struct executor *executor);
/* The decode buckets as they are padded for the ranks; `padded` has room for all. */
uint32_t life_buckets(const struct mla_adopt *adopt, uint32_t ranks, uint32_t *padded);
/* Everything that lasts as long as the epoch, from the coordinator's sizes, with pools of one
 * block. */
enum mla_status life_allocate(struct executor *executor);
/* Then the pools, of what is left or as many blocks as asked for, and the graphs. */
enum mla_status life_fill(struct executor *executor);
/* Gives all of it back; the weights stay. */
void life_end(struct executor *executor);
/* Unmaps a region; all RUNs that named it were answered. */
void life_detach(struct executor *executor, uint64_t number);
/* Whether the coordinator is gone: its connection ended, or it has not been heard for too long. */
bool life_is_over(struct executor *executor);
/* Whether a signal came. */
bool executor_is_stopped(void);

#endif
