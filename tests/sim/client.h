/* A simulated client: what it believes, and what it has asked. Its lanes are schedulers of their
 * own, each with sequences of its own, side by side over one connection. */
#ifndef MLA_TESTS_SIM_CLIENT_H
#define MLA_TESTS_SIM_CLIENT_H

#include "tests/sim/sim.h"

enum { LANES_MAX = 3, LANE_SEQUENCES = 4, REQUESTS_MAX = 128, PLACES = 24 };

/* A region is cut into places, each for one payload. */
#define PLACE_BYTES ((uint64_t)SIM_ROWS_MAX * SIM_HIDDEN * sizeof(float))

#define BIT(status) (1ull << (status))
/* Anything that needs a group may find none, or one that is full or gone. */
#define MAY_WAIT (BIT(MLA_NOT_READY) | BIT(MLA_BUSY))

enum lane_state { LANE_IDLE, LANE_OPEN, LANE_RUN, LANE_CLOSE, LANE_ONE, LANE_DONE };

/* A sequence as its client sees it. */
struct belief {
    bool exists, lost;
    uint32_t length;
    uint64_t epoch;                                    /* whose rows it has got; 0: none yet */
    uint64_t context[SIM_LAYERS][SIM_CONTEXT_MAX + 1]; /* after so many tokens */
};

struct lane {
    enum lane_state state;
    uint32_t waiting; /* replies to come, but for those to late repetitions */
    bool opened, failed, closed, quiet_done;
    bool late;      /* a RUN passed its deadline */
    bool in_frames; /* the workers don't have the region */
    uint64_t step, open_request, close_request;
    enum mla_close_action action;
    uint32_t layers_left; /* bits: not run yet */
    struct mla_open open;
    uint32_t rows;
    struct mla_message one; /* FORK, TRUNCATE, FREE under way */
    struct belief sequences[LANE_SEQUENCES];
};

struct request {
    uint64_t id, allowed, sent_ns;
    uint16_t type;
    uint32_t lane, layer;
    enum mla_dtype reply_dtype;
    bool late;          /* a repetition nobody waits for */
    uint32_t cut_bytes; /* its frame lacks so many */
    bool shared;
    uint32_t input, output; /* its places */
};

struct sim_client {
    uint64_t link, life; /* life: grows with every connection */
    uint64_t salt, ids, steps;
    uint64_t ids_from; /* of sequences and steps: every other client has the same */
    bool greeted, done;
    uint64_t region; /* 0: none that may be used */
    bool sharing;    /* SHARE is under way */
    bool taken[PLACES];
    uint32_t lane_count, request_count;
    struct request requests[REQUESTS_MAX];
    struct lane lanes[LANES_MAX];
};

/* ---- client.c */

/* Sends `request` (an id of its own unless it has one) and remembers what may come back. */
uint64_t client_ask(struct sim *sim, struct sim_client *client, struct mla_message *request,
                    struct mla_blob *payload, struct request asked);
/* The lane goes on after a while. */
void lane_later(struct sim *sim, struct sim_client *client, uint32_t lane, uint32_t least_us,
                uint32_t most_us);

/* Ids of a lane's sequences. */
static inline uint64_t id_of(const struct sim_client *client, uint32_t lane, uint32_t sequence)
{
    return client->ids_from + lane * 100ull + sequence + 1;
}

static inline struct belief *belief_of(struct lane *lane, uint64_t id)
{
    return &lane->sequences[(id - 1) % 100];
}

/* What the lane's step has as input. */
static inline uint64_t x_of(const struct sim_client *client, const struct lane *lane,
                            uint32_t layer, uint32_t row)
{
    return mix(client->salt + lane->step, (uint64_t)layer << 32 | row);
}

/* Asks for a region, or gives it back. */
void client_share(struct sim *sim, struct sim_client *client);
/* Two places for a RUN; false: use frames. */
bool client_take(struct sim_client *client, struct request *request);

/* ---- lane.c */

void lane_free(struct sim *sim, struct sim_client *client, uint32_t lane, bool only_one);

/* One request, and the lane waits for its reply. */
void lane_ask_one(struct sim *sim, struct sim_client *client, uint32_t at,
                  struct mla_message *request, struct mla_blob *payload, struct request asked);

void lane_go_on(struct sim *sim, struct sim_client *client, uint32_t lane);

/* ---- mistakes.c */

/* Of a sequence that exists, or NULL. */
struct belief *lane_some(struct sim *sim, struct lane *lane, uint32_t *s);
/* A request that must be refused. */
void lane_mistake(struct sim *sim, struct sim_client *client, uint32_t at);
/* Requests about a sequence that is in the open step, which changes nothing. */
void lane_touch_busy(struct sim *sim, struct sim_client *client, uint32_t at);

/* ---- answers.c */

void lane_answered(struct sim *sim, struct sim_client *client, const struct request *request,
                   const struct mla_message *reply, const struct packet *packet);

#endif
