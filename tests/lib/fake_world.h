/* A coordinator core without sockets: clients are calls, workers are played here, time stands
 * still unless a test moves it. A fake worker answers with the rows it got, negated, so a test sees
 * whether every row came back to its place. */
#ifndef MLA_TESTS_LIB_FAKE_WORLD_H
#define MLA_TESTS_LIB_FAKE_WORLD_H

#include "coordinator/core.h"
#include "proto/worker_message.h"

enum { WORLD_HIDDEN = 8, WORLD_LAYERS = 2, WORLD_REPLIES_MAX = 4096, WORLD_ROWS_MAX = 1024 };

/* One reply that a client got. */
struct world_reply {
    int client;
    struct mla_header header;
    char sentence[MLA_SENTENCE_BYTES_MAX];
    uint32_t rows;
    float values[WORLD_ROWS_MAX]; /* the first value of each row */
};

struct world {
    struct mla_core *core;
    uint64_t now_ns;
    uint32_t ranks;
    uint64_t opens;                                /* their request ids */
    uint32_t reply_count;                          /* all so far */
    struct world_reply replies[WORLD_REPLIES_MAX]; /* ring */
    struct world_work *first, *last;               /* messages that workers have not looked at */
    uint64_t regions_made, regions_removed;
    bool refuse_region;                  /* none can be made */
    bool refuse_attach[32];              /* ranks with this number can't map any */
    uint8_t *memory[64];                 /* region N, as its client and the workers see it */
    uint64_t attached[64], detached[64]; /* messages about region N */
    uint8_t generation[64];   /* another one: another connection at the same descriptor */
    uint32_t pool_blocks[32]; /* of rank N; 0: as many as it is asked for, or 64 */
    bool mute;                /* workers are adopted and never ready */
    bool repeat_done;         /* workers send every result twice */
    bool refuse_client[64];   /* sending to this client fails */
    uint32_t dismissals_seen, dismissed_status, alive_seen;
    uint32_t groups_joined, groups_lost, groups_hung; /* as told to a supervisor */
    uint32_t missing;                                 /* ranks that don't join, the last ones */
    uint32_t shutdowns_seen, microbatches_seen, padded_rows_seen;
    uint64_t works_order[4096]; /* request layers in the order of dispatch, rank 0 */
    uint32_t works_count;
    uint64_t counted_allocations; /* made by the core while `counting` */
};

/* options NULL: small defaults. Workers have joined and are ready. */
void world_init(struct world *world, const struct mla_core_options *options, uint32_t ranks);
void world_fini(struct world *world);
void world_small_options(struct mla_core_options *options);

/* Ranks of a group join under this job. */
void world_join(struct world *world, uint32_t group, uint64_t job);
/* Lets the workers do what was sent to them; at most `most` messages. */
void world_work(struct world *world, uint32_t most);

/* Sends request (encoded, payload may be NULL) and returns its reply, NULL while there is none. */
const struct world_reply *world_send(struct world *world, int client, struct mla_message *request,
                                     const void *payload, size_t payload_bytes);
/* Raw frames. */
void world_send_frames(struct world *world, int client, const uint8_t *head, size_t head_bytes,
                       uint32_t frames, const void *payload, size_t payload_bytes);
void world_client_gone(struct world *world, int client);
/* The end of the connection that the client had in that generation. */
void world_generation_gone(struct world *world, int client, uint8_t generation);
void world_group_gone(struct world *world, uint32_t group);
/* A heartbeat of a rank, over a connection of its own. */
void world_beat(struct world *world, uint32_t group, uint32_t rank, uint64_t epoch);

/* Requests; the status of the reply (MLA_AGAIN: none yet). */
enum mla_status world_hello(struct world *world, int client);
enum mla_status world_open(struct world *world, int client, uint64_t step,
                           const struct mla_open_entry *entries, uint32_t count);
/* x: row i has the value base + i everywhere. */
enum mla_status world_run(struct world *world, int client, uint64_t step, uint32_t layer,
                          uint32_t rows, float base);
/* Asks for a region; MLA_AGAIN until world_work. Its number is world->regions_made then. */
enum mla_status world_share(struct world *world, int client, uint64_t bytes);
/* The same RUN, of f32, in a region: input and output at these places. */
const struct world_reply *world_run_at(struct world *world, int client, uint64_t step,
                                       uint32_t layer, uint32_t rows,
                                       const struct mla_run_place *place);
enum mla_status world_close(struct world *world, int client, uint64_t step,
                            enum mla_close_action action);
enum mla_status world_free(struct world *world, int client, const uint64_t *sequences,
                           uint32_t count);
void world_stats(struct world *world, struct mla_stats *out);

/* The newest reply. */
const struct world_reply *world_last(const struct world *world);

#endif
