/* The state behind core.h, shared by the files that work on it. All of it is allocated by
 * mla_core_create; entities refer to each other by index. */
#ifndef MLA_COORDINATOR_STATE_H
#define MLA_COORDINATOR_STATE_H

#include "coordinator/core.h"
#include "coordinator/ledger.h"
#include "coordinator/metrics.h"
#include "proto/worker_message.h"

#define NONE     UINT32_MAX
#define RUNS_MAX 4096u  /* RUN requests in flight, all clients together */
#define FDS_MAX  65536u /* connections are found by their descriptor */

/* A client's region of shared memory. It may be named in RUNs once the workers have it. */
struct region {
    struct mla_grant grant; /* grant.region 0: there is none */
    bool pending;           /* SHARE is answered when the workers have said whether they have it */
    bool refused;           /* one of them has not */
    uint64_t request_id;
    uint64_t asked[MLA_GROUPS_MAX], mapped[MLA_GROUPS_MAX]; /* bit per rank */
};

/* A step that was closed: what its OPEN and CLOSE were answered, should they come again. */
struct closed {
    uint64_t step, open_request, digest; /* of OPEN's entries */
    struct mla_open_reply opened;
    enum mla_close_action action;
};

/* A connected client. */
struct session {
    bool used;
    bool doomed;  /* could not be sent to: is ended when the event has been handled */
    bool closing; /* its connection ended; it lives on until its RUNs have come back */
    struct mla_peer peer;
    uint32_t runs, steps;         /* in flight, open */
    uint32_t sequence_first;      /* list of its sequences */
    uint32_t run_first, run_last; /* queue of runs with microbatches left to dispatch */
    struct region region;
    uint32_t closed_count; /* so far; the ring holds the last of them */
    struct closed closed[MLA_STEPS_CLOSED_MAX];
};

struct sequence {
    uint64_t id;
    uint32_t session, group, table;
    uint32_t step;           /* the open step it is in, or NONE */
    bool lost;               /* its group died; group and table mean nothing */
    uint64_t stamp;          /* of the request that touched it last: finds repetitions */
    uint32_t chain;          /* next in the hash bucket, or in the free list */
    uint32_t previous, next; /* in the session's list */
};

/* An open step. plans[g] has microbatches where group g takes part. */
struct step {
    bool used;
    bool lost;
    uint64_t id;     /* the client's */
    uint64_t number; /* ours, never used twice */
    uint32_t session, rows, runs;
    uint32_t microbatches;         /* over all groups */
    uint64_t open_request, digest; /* of OPEN, to know it when it comes again */
    struct mla_open_reply opened;
    uint32_t count;
    uint32_t *sequences;    /* [MLA_STEP_SEQUENCES_MAX] */
    struct mla_plan *plans; /* [groups] */
};

/* A RUN request. */
struct run {
    bool used;
    bool answered; /* failed or cancelled; only waits for what is still out */
    bool direct;   /* the one result is the reply */
    bool shared;   /* input and output are at `place` */
    struct mla_run_place place;
    uint32_t session, step, layer;
    uint64_t request_id;
    enum mla_dtype dtype, reply_dtype;
    struct mla_blob *input, *output;
    uint64_t received_ns, dispatched_ns, done_ns;
    uint64_t compute_ns, collective_ns;
    uint32_t waiting, out;     /* microbatches to dispatch, at work */
    uint32_t next;             /* in the session's queue, or in the free list */
    uint32_t *next_microbatch; /* [groups] */
};

/* A microbatch of a run that is at work in a group. */
struct work {
    uint64_t number;
    uint32_t run, microbatch;
    uint32_t ranks_left;
    uint64_t rank_done;                 /* bit per rank */
    uint64_t compute_ns, collective_ns; /* of the slowest rank */
};

enum group_state { GROUP_EMPTY, GROUP_JOINING, GROUP_ADOPTED, GROUP_READY };

struct group {
    enum group_state state;
    const char *doomed;            /* why it is lost when the event has been handled, or NULL */
    enum mla_status doomed_status; /* what its ranks are told; MLA_OK: MLA_GROUP_LOST */
    uint64_t job, epoch;
    uint32_t ranks, joined, ready;
    uint64_t joined_set, ready_set; /* bit per rank */
    uint64_t loading_set;           /* those that beat and are not adopted yet */
    uint64_t since_ns;              /* when the first came, or one that was there went */
    struct mla_peer peers[MLA_RANKS_MAX];
    struct mla_peer beats[MLA_RANKS_MAX]; /* where heartbeats come from; size 0: none came */
    uint64_t heard_ns[MLA_RANKS_MAX];
    uint64_t moved_ns;        /* a rank's last result, or the first work after a rest */
    struct mla_join join;     /* of the first rank; the others must agree */
    uint32_t kv_blocks_asked; /* of each rank; 0: as many as fit */
    uint32_t kv_blocks;       /* the least that a rank has; 0: none has told yet */
    struct mla_plan_options plan;
    struct mla_ledger *ledger;
    uint64_t next_work;
    uint32_t works_out;
    struct work *works; /* ring of `credits` */
    uint32_t turn;      /* session to look at first */
};

/* What OPEN did to one sequence so far, to be undone when a later one fails. */
struct opening {
    uint32_t sequence;
    bool created, placed; /* the sequence; its place in a group */
    bool was_lost;
    struct mla_plan_copy copy;
};

struct mla_core {
    struct mla_core_options options;
    struct mla_core_effects effects;
    struct mla_blob_pool *pool;
    uint64_t epoch; /* newest */
    uint64_t next_step, next_stamp, next_region;
    size_t input_bytes;    /* payloads of clients held */
    uint64_t region_bytes; /* of all regions */
    struct mla_stats stats;
    struct mla_metrics metrics;

    bool model_known;
    struct mla_join model; /* dims and layers of the service */
    uint32_t context_max;

    uint32_t session_bound; /* sessions from here on were never used */
    uint32_t doomed_count;  /* of sessions */
    struct session sessions[MLA_CLIENTS_MAX];
    uint32_t sequence_capacity, sequence_free, sequence_buckets;
    struct sequence *sequences;
    uint32_t *sequence_heads;
    struct step steps[MLA_STEPS_OPEN_MAX];
    struct run *runs;
    uint32_t run_free, run_bound; /* runs from run_bound on were never used */
    struct group groups[MLA_GROUPS_MAX];
    /* What the newest connection at a descriptor is: a session, or group * MLA_RANKS_MAX + rank, or
     * NONE. Whoever owns it tells its connection's number. */
    uint32_t *client_fds, *worker_fds; /* [FDS_MAX] */

    struct mla_message request, reply;
    struct mla_worker_message incoming, outgoing;
    uint8_t frame[MLA_MESSAGE_BYTES_MAX];
    /* Scratch of OPEN, [MLA_STEP_SEQUENCES_MAX] each. */
    struct opening *openings;
    struct mla_plan_sequence *plan_sequences;
    struct mla_plan_table *plan_tables;
    struct mla_plan_copy *plan_copies;
    uint32_t *plan_blocks; /* [MLA_PLAN_BLOCKS_MAX] */
    uint8_t *plan_frame;
    size_t plan_frame_bytes;
};

/* ---- session.c: clients and replies */

/* Error replies carry a sentence; it is formatted here. */
struct failure {
    enum mla_status status;
    uint32_t index;
    char sentence[MLA_SENTENCE_BYTES_MAX];
};
enum mla_status fail_with(struct failure *failure, enum mla_status status, uint32_t index,
                          const char *format, ...) __attribute__((format(printf, 4, 5)));

/* Sends core->reply, whose body is set, as the answer to a request of this type and id. A client
 * that can't be sent to is doomed. */
void session_reply(struct mla_core *core, uint32_t session, uint16_t type, uint64_t request_id,
                   struct mla_blob *payload, size_t offset, size_t bytes);
void session_reply_failure(struct mla_core *core, uint32_t session, uint16_t type,
                           uint64_t request_id, const struct failure *failure);
/* Its steps are aborted and its sequences freed, as soon as its RUNs have come back. */
void session_end(struct mla_core *core, uint32_t session);
/* Called when a run or step of a closing session ended. */
void session_settle(struct mla_core *core, uint32_t session);
enum mla_status hello(struct mla_core *core, struct failure *failure);

/* ---- sequences.c: the clients' sequence ids; FORK, TRUNCATE, FREE */

uint32_t sequence_find(const struct mla_core *core, uint32_t session, uint64_t id);
/* NONE when the table is full. */
uint32_t sequence_add(struct mla_core *core, uint32_t session, uint64_t id);
/* Gives its blocks back too. */
void sequence_remove(struct mla_core *core, uint32_t sequence);
enum mla_status sequences_fork(struct mla_core *core, uint32_t session, struct failure *failure);
enum mla_status sequences_truncate(struct mla_core *core, uint32_t session,
                                   struct failure *failure);
enum mla_status sequences_free(struct mla_core *core, uint32_t session, struct failure *failure);

/* ---- steps.c: OPEN and CLOSE */

enum mla_status step_open(struct mla_core *core, uint32_t session, struct failure *failure);
enum mla_status step_close(struct mla_core *core, uint32_t session, struct failure *failure);
uint32_t step_find(const struct mla_core *core, uint32_t session, uint64_t id);
void step_end(struct mla_core *core, uint32_t step, enum mla_close_action action);

/* ---- dispatch.c: RUN, from request to reply */

/* Takes core->request; *payload is taken (set to NULL) when the run is queued. */
enum mla_status run_queue(struct mla_core *core, uint32_t session, uint64_t received_ns,
                          struct mla_blob **payload, struct failure *failure);
/* Gives the groups work as far as their credits go. */
void dispatch(struct mla_core *core);
/* A rank's rows. False when it is not what was asked for. */
bool work_done(struct mla_core *core, uint32_t group, uint32_t rank, const struct mla_done *done,
               struct mla_blob *payload);
/* Answers with an error (unless cancelled) and forgets what waits. */
void run_fail(struct mla_core *core, uint32_t run, enum mla_status status, const char *sentence);
void runs_cancel(struct mla_core *core, uint32_t session);
/* The group's microbatches at work will never come back. */
void works_lose(struct mla_core *core, uint32_t group);
/* Answers what took too long, and dooms groups that hang in it. */
void runs_expire(struct mla_core *core, uint64_t now_ns);

/* ---- regions.c: payloads in shared memory */

/* MLA_AGAIN: answered when the workers have it. */
enum mla_status region_share(struct mla_core *core, uint32_t session, struct failure *failure);
/* Tells the workers to unmap it. No RUN in flight may name it. */
void region_drop(struct mla_core *core, uint32_t session);
/* The place of a RUN must be this client's, and the step's workers must have the region. */
enum mla_status region_check(const struct mla_core *core, uint32_t session, const struct step *step,
                             const struct mla_run *request, struct failure *failure);
/* A group was adopted: it is to map all there are. */
void regions_tell(struct mla_core *core, uint32_t group);
/* A rank says that it has one, or that it can't. */
void region_attached(struct mla_core *core, uint32_t group, uint32_t rank,
                     const struct mla_attached *attached);
/* The group is no more, and what it had mapped is unmapped. */
void regions_forget(struct mla_core *core, uint32_t group);

/* ---- groups.c: workers */

/* status: MLA_GROUP_LOST, MLA_DEADLINE, or why the ranks shall not come back. */
void group_lose(struct mla_core *core, uint32_t group, enum mla_status status, const char *why);
/* The ready group with the most free blocks, or NONE. */
uint32_t group_choose(const struct mla_core *core);
/* To one rank. A group that can't be sent to is doomed. */
void group_send(struct mla_core *core, uint32_t group, uint32_t rank, const void *head,
                size_t bytes, struct mla_blob *payload, size_t offset, size_t payload_bytes);
/* Ends what is doomed and gives out work, until nothing is left to do. Called last by every
 * event. */
void settle(struct mla_core *core);
uint32_t blocks_free(const struct mla_core *core); /* over all ready groups */

static inline bool group_is_adopted(const struct group *group)
{
    return group->state == GROUP_ADOPTED || group->state == GROUP_READY;
}

static inline uint64_t all_ranks(const struct group *group)
{
    return group->ranks == 64 ? UINT64_MAX : (1ull << group->ranks) - 1;
}

static inline size_t row_bytes(const struct mla_core *core, enum mla_dtype dtype)
{
    return core->model.dims.hidden * mla_dtype_bytes(dtype);
}

#endif
