/* A small upstream scheduler: continuous batching, chunked prefill, preemption. Pure: the caller
 * talks to the service and tells the time. */
#ifndef MLA_TESTS_BENCH_SCHEDULER_H
#define MLA_TESTS_BENCH_SCHEDULER_H

#include "proto/status.h"
#include "tests/bench/series.h"

#include <stdbool.h>
#include <stdint.h>

enum mla_request_state {
    MLA_REQUEST_WAITING,
    MLA_REQUEST_ACTIVE,
    MLA_REQUEST_DONE,
    MLA_REQUEST_GIVEN_UP,
};

struct mla_request {
    uint32_t prompt, output;        /* tokens, each >= 1 */
    uint32_t computed;              /* tokens in the service's cache */
    uint32_t emitted;               /* output tokens so far */
    uint64_t sequence;              /* the service's; another one after a preemption */
    double sent_s, first_s, last_s; /* admission, first and last output token */
    enum mla_request_state state;
    bool sent; /* was admitted once, at sent_s */
};

struct mla_scheduler_options {
    uint32_t concurrency;     /* active requests */
    uint32_t prefill_budget;  /* prompt tokens of one step */
    uint32_t step_tokens_max; /* >= concurrency */
    uint32_t context_max;     /* longer requests are given up */
};

/* Of requests that are done. In seconds. */
struct mla_latencies {
    struct mla_series ttft; /* sent to first token */
    struct mla_series tpot; /* per request: mean time of the tokens after the first */
    struct mla_series itl;  /* every gap between two tokens */
};

/* A request's part of a step: its tokens from `computed` on. */
struct mla_share {
    uint32_t request, tokens;
    bool decode;
};

struct mla_scheduler {
    struct mla_scheduler_options options;
    struct mla_request *requests;
    uint32_t request_count, finished_count, preemptions;
    uint32_t waiting_first; /* no request before it waits */
    uint32_t *active;       /* [concurrency] requests, the longest admitted first */
    uint32_t active_count;
    bool crowded;             /* after a preemption nobody is admitted until somebody ends */
    uint64_t sequences;       /* ids given out so far */
    struct mla_share *shares; /* [concurrency] the step: decodes, then prompt chunks */
    uint32_t share_count;
    uint64_t *leaving; /* [concurrency] sequences to FREE */
    uint32_t leaving_count;
    struct mla_latencies latencies;
};

/* `requests` stay the caller's. MLA_MEMORY. */
enum mla_status mla_scheduler_init(struct mla_scheduler *scheduler,
                                   const struct mla_scheduler_options *options,
                                   struct mla_request *requests, uint32_t count);
void mla_scheduler_fini(struct mla_scheduler *scheduler);

/* Admits requests and fills shares. No shares: everything is finished. */
void mla_scheduler_next(struct mla_scheduler *scheduler, double now_s);
/* The service had no room for shares[index]: a prompt chunk is left out of the step; where a
 * decode or the last chunk has no room, the newest request is preempted, or given up when it is
 * the only one. Afterwards the step may be empty and something may leave. */
void mla_scheduler_no_room(struct mla_scheduler *scheduler, uint32_t index);
/* The service lost the cache of shares[index]: its request begins again. */
void mla_scheduler_lost(struct mla_scheduler *scheduler, uint32_t index);
/* The step was committed. MLA_MEMORY. */
enum mla_status mla_scheduler_commit(struct mla_scheduler *scheduler, double now_s);
/* What leaves was freed. */
void mla_scheduler_left(struct mla_scheduler *scheduler);

#endif
