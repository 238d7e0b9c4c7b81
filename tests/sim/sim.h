/* The coordinator's core in a simulated world: clients, workers, network, time and faults come from
 * a seed. Every message is really encoded and decoded; what workers compute is a hash over all
 * that a row of attention depends on, so that a wrong block, row or epoch gives a wrong reply. */
#ifndef MLA_TESTS_SIM_SIM_H
#define MLA_TESTS_SIM_SIM_H

#include "comm/connections.h"
#include "coordinator/core.h"
#include "proto/worker_message.h"
#include "tests/sim/random.h"

enum {
    SIM_LAYERS = 2,
    SIM_HIDDEN = 4,
    SIM_BLOCKS_MAX = 24,
    SIM_CONTEXT_MAX = 320,
    SIM_ROWS_MAX = 256,
    SIM_GROUPS_MAX = 3,
    SIM_RANKS_MAX = 3,
    SIM_CLIENTS_MAX = 4,
    SIM_LINKS_MAX = 128,
    SIM_JOBS_MAX = 12,
    SIM_QUEUE_MAX = 3, /* replies that wait for a client which doesn't read */
    SIM_SEQUENCES_MAX = 12,
    SIM_REGIONS_MAX = 256,
    SIM_MAPPED_MAX = 64,
    SIM_BLOCKS_A_SEQUENCE = (SIM_CONTEXT_MAX + 63) / 64,
};

#define SIM_MS 1000000ull
#define SIM_S  1000000000ull

struct sim;

/* What is to happen at some time. a and b are the function's to interpret. */
typedef void sim_action(struct sim *sim, uint64_t a, uint64_t b);

struct sim_event {
    uint64_t at_ns, order;
    sim_action *action;
    uint64_t a, b;
};

/* A message under way, or waiting. */
struct packet {
    struct packet *next;
    size_t head_bytes;
    struct mla_blob *payload; /* [offset, offset + bytes) of it, or NULL */
    size_t offset, bytes;
    uint8_t head[];
};

enum link_kind { LINK_CLIENT, LINK_WORK, LINK_BEAT, LINK_SILENT };

/* A connection to the coordinator. Messages of one direction arrive in their order. */
struct link {
    uint64_t number; /* 0: free; never used twice */
    enum link_kind kind;
    bool open;           /* at its own end */
    bool fd_free;        /* its descriptor is closed there, and may be another's by now */
    bool paused;         /* its end does not read */
    uint64_t resumed_ns; /* when it began to read again */
    bool refusing;       /* the next message to it gives MLA_AGAIN */
    bool dropped;        /* the coordinator found it so */
    int fd;
    uint32_t owner;          /* client; job * SIM_RANKS_MAX + rank */
    uint64_t up_ns, down_ns; /* when the last message of a direction arrives */
    uint32_t slow;           /* its messages take so many times as long */
    uint32_t queued;         /* messages to it that were not read */
    struct packet *up, **up_last, *down, **down_last;
};

/* Shared memory. */
struct sim_region {
    uint64_t number, bytes;
    bool granted; /* can still be mapped */
    uint8_t *data;
};

/* What a rank knows of one open step. */
struct sim_slot {
    uint64_t step;
    uint32_t microbatch_count, entry_count, run_count;
    struct mla_plan_microbatch microbatches[SIM_ROWS_MAX];
    struct mla_plan_entry entries[SIM_ROWS_MAX];
    struct mla_plan_run runs[SIM_ROWS_MAX];
};

struct sim_rank {
    bool alive, stopped;
    uint64_t stopped_ns;
    uint64_t work, beat;      /* numbers of links, 0: none */
    uint64_t epoch, heard_ns; /* 0: not adopted; when the coordinator answered last */
    bool over;                /* has lost the coordinator, inside a collective */
    uint64_t progress;
    uint32_t blocks; /* of its pool */
    struct packet *inbox, **inbox_last;
    uint64_t kv[SIM_LAYERS][SIM_BLOCKS_MAX][MLA_BLOCK_TOKENS];
    uint32_t tables[SIM_SEQUENCES_MAX][SIM_BLOCKS_A_SEQUENCE];
    struct sim_slot slots[4];
    struct sim_region *mapped[SIM_MAPPED_MAX];
};

/* One mpirun job: the ranks of a group, until all are dead. */
struct sim_job {
    uint64_t number; /* 0: free */
    uint32_t group, ranks;
    bool computing, ending, hangs, was_well;
    uint64_t computations;
    uint64_t closed_epoch; /* a rank has turned back in this one */
    uint64_t losses;       /* news of its group */
    bool harmed;           /* something was done to it: it may be lost */
    uint64_t returns_ns;   /* nothing but a coordinator's death: must be adopted again by then */
    struct sim_rank rank[SIM_RANKS_MAX];
};

/* One of the coordinator's two ends. */
struct sim_channel {
    struct mla_connections *connections;
    uint32_t news_count; /* not read yet */
    struct {
        int fd;
        bool accepted;
    } news[512];
};

struct sim_options {
    uint64_t seed;
    bool trace;
};

struct sim {
    struct sim_options options;
    uint64_t random, now_ns, order;
    struct sim_event *heap;
    uint32_t event_count, event_capacity;
    uint64_t events_done;

    struct mla_core_options core_options;
    struct mla_core *core;
    uint32_t group_count, ranks;
    bool faults;
    uint32_t fault_ms; /* between two faults, on average */
    uint32_t slow;     /* until then, work takes so many times as long */
    uint64_t quiet_ns; /* when faults end */

    struct sim_channel channels[2]; /* of clients, of workers */
    struct link links[SIM_LINKS_MAX];
    uint64_t links_made;
    struct sim_job *jobs;                          /* [SIM_JOBS_MAX] */
    uint64_t jobs_made, group_job[SIM_GROUPS_MAX]; /* the job that is supervised, or 0 */
    struct sim_region regions[SIM_REGIONS_MAX];
    uint32_t region_count;
    struct sim_client *clients; /* [SIM_CLIENTS_MAX] */
    uint32_t client_count, clients_done;

    uint64_t epochs_lost[4];    /* bit per epoch of this life */
    uint32_t losses;            /* groups that this event has ended */
    uint32_t replies, failures; /* that this event has sent; of these, errors */
    bool dropping;              /* a client could not be sent to in this event */
    bool leaving;               /* the coordinator shuts down */
    int64_t blobs;              /* alive that the simulation made */
    uint64_t replies_checked, rows_checked, shared_runs, ghosts, steps_committed, repeats, lost,
        faults_made, adopted_again;
};

/* ---- world.c: the core and what must always hold */

/* Runs one seed to its end. Ends the process where a promise is broken. */
void sim_run(struct sim *sim, const struct sim_options *options);
_Noreturn void sim_fail(struct sim *sim, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
void sim_trace(struct sim *sim, const char *format, ...) __attribute__((format(printf, 2, 3)));
bool sim_epoch_is_lost(const struct sim *sim, uint64_t epoch);
void sim_deliver(struct sim *sim, const struct link *link, const struct packet *packet);
/* The coordinator's side has accepted or closed it. */
void sim_news(struct sim *sim, const struct link *link, bool accepted);
void sim_tell_ends(struct sim *sim, uint64_t unused, uint64_t unused_too);
/* The number of the link with this routing id. */
uint64_t sim_route_of(const struct mla_peer *peer);

/* ---- events.c */

void sim_at(struct sim *sim, uint64_t delay_ns, sim_action *action, uint64_t a, uint64_t b);
/* False when nothing is left. */
bool sim_step(struct sim *sim);

/* ---- network.c */

struct link *link_connect(struct sim *sim, enum link_kind kind, uint32_t owner);
struct link *link_find(struct sim *sim, uint64_t number);
bool link_find_open(struct sim *sim, uint64_t number);
/* payload: the link's to drop. */
void link_send(struct sim *sim, struct link *link, const void *head, size_t head_bytes,
               struct mla_blob *payload);
/* From the coordinator. */
enum mla_status link_send_down(struct sim *sim, const struct mla_peer *peer, const void *head,
                               size_t head_bytes, struct mla_blob *payload, size_t offset,
                               size_t bytes);
/* Closes it at its own end. cut: what is under way is lost. */
void link_close(struct sim *sim, struct link *link, bool cut);
void link_resume(struct sim *sim, struct link *link); /* reads again */
void packet_free(struct packet *packet);
struct mla_blob *blob_make(struct sim *sim, size_t bytes);
void link_drop_all(struct link *link);
void links_cut_all(struct sim *sim); /* the coordinator died */

/* ---- region.c */

enum mla_status region_make(struct sim *sim, uint64_t number, uint64_t bytes,
                            struct mla_grant *out);
struct sim_region *region_find(struct sim *sim, uint64_t number);
void region_end(struct sim *sim, uint64_t number);
void regions_free(struct sim *sim);
bool rank_attach(struct sim *sim, struct sim_rank *rank, uint64_t number);
void rank_detach(struct sim *sim, struct sim_rank *rank, uint64_t number);
/* The rank's rows of a WORK in a region, which begin at row `first` of the microbatch. */
void rank_read(struct sim *sim, const struct sim_rank *rank, const struct mla_work *work,
               uint32_t first, uint64_t *x);
void rank_write(struct sim *sim, const struct sim_rank *rank, const struct mla_work *work,
                uint32_t first, const uint64_t *out, uint64_t epoch);

/* ---- rank.c */

void rank_plan(struct sim *sim, struct sim_rank *rank, const struct mla_plan_message *plan);
/* The share of rank r of the microbatch begins at row *first. */
void rank_check_work(struct sim *sim, const struct sim_rank *rank, const struct mla_work *work,
                     uint32_t ranks, uint32_t r, uint32_t *first);
/* All rows' latents arrive on every rank; each has its own cache and computes its own rows. */
void rank_compute(struct sim *sim, struct sim_rank *rank, const struct mla_work *work,
                  const uint64_t *x, uint64_t *out);

/* ---- work.c */

void job_arrived(struct sim *sim, const struct link *link, struct packet *packet); /* takes it */
void job_go_on(struct sim *sim, struct sim_job *job);

/* ---- worker.c */

void jobs_start(struct sim *sim);
void job_begin(struct sim *sim, uint64_t group, uint64_t unused);
struct sim_job *job_find(struct sim *sim, uint64_t number);
uint32_t job_owner(const struct sim_job *job, uint32_t rank);
void job_say(struct sim *sim, const struct sim_job *job, uint32_t rank,
             struct mla_worker_message *said, struct mla_blob *payload);
void job_doom(struct sim *sim, struct sim_job *job, uint32_t delay_ms_max);
void rank_die(struct sim *sim, struct sim_job *job, uint32_t r);
void rank_over(struct sim *sim, struct sim_job *job, uint32_t r);
void job_supervise(struct sim *sim, uint32_t group, bool lost, bool hung);
void job_link_ended(struct sim *sim, uint32_t owner, enum link_kind kind);
void jobs_fault(struct sim *sim);
void jobs_cut_all(struct sim *sim); /* and all other connections: the coordinator died */
void jobs_check(struct sim *sim);
void job_lost(struct sim *sim, uint64_t epoch); /* the core has given it up */
void jobs_check_end(struct sim *sim);
void jobs_free(struct sim *sim);

/* ---- client.c */

void clients_make(struct sim *sim);
void clients_start(struct sim *sim);
void client_arrived(struct sim *sim, uint32_t client, struct packet *packet); /* takes it */
void client_link_ended(struct sim *sim, uint32_t client, uint64_t link);
void clients_fault(struct sim *sim);
void clients_check(struct sim *sim);
void clients_free(struct sim *sim);

/* ---- What a layer computes: out depends on the layer, the row and all earlier rows' KV. */

static inline uint64_t layer_kv(uint32_t layer, uint64_t x, uint32_t position)
{
    return mix(x + layer, position);
}

static inline uint64_t layer_begin(uint32_t layer)
{
    return mix(layer, 77);
}

/* The next position's KV is attended to. */
static inline uint64_t layer_attend(uint64_t context, uint64_t kv)
{
    return (context ^ kv) * 0x9e3779b97f4a7c15u + (context >> 29);
}

static inline uint64_t layer_out(uint64_t context, uint64_t x)
{
    return mix(context, x);
}

#endif
