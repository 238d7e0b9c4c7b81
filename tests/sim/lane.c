/* What a client does: steps, forks, truncations and repetitions; and what may be answered to each,
 * from what it believes. */
#include "tests/sim/client.h"

#include <string.h>

#define MAY_FILL (BIT(MLA_KV_FULL) | BIT(MLA_SEQUENCES_FULL))

static struct mla_message message;

/* ---- Requests */

static void ask_open(struct sim *sim, struct sim_client *client, uint32_t at, uint64_t id,
                     bool late)
{
    struct lane *lane = &client->lanes[at];
    message.header = (struct mla_header){.type = MLA_OPEN, .request_id = id};
    message.u.open = lane->open;
    uint64_t allowed = BIT(MLA_OK);
    if (!late)
        allowed |= MAY_WAIT | MAY_FILL | BIT(MLA_KV_LOST);
    lane->open_request = client_ask(sim, client, &message, NULL,
                                    (struct request){.lane = at, .allowed = allowed, .late = late});
    lane->waiting += !late;
}

static void ask_close(struct sim *sim, struct sim_client *client, uint32_t at, uint64_t id,
                      bool late)
{
    struct lane *lane = &client->lanes[at];
    message.header = (struct mla_header){.type = MLA_CLOSE, .request_id = id};
    message.u.close = (struct mla_close){.step = lane->step, .action = lane->action};
    uint64_t allowed = BIT(MLA_OK);
    if (!late && lane->action == MLA_COMMIT)
        allowed |= BIT(MLA_STEP_LOST);
    if (!late && lane->failed)
        allowed |= BIT(MLA_STEP_BUSY);
    lane->close_request =
        client_ask(sim, client, &message, NULL,
                   (struct request){.lane = at, .allowed = allowed, .late = late});
    lane->waiting += !late;
}

static void ask_run(struct sim *sim, struct sim_client *client, uint32_t at, uint32_t layer,
                    uint64_t id)
{
    struct lane *lane = &client->lanes[at];
    uint64_t dice = mix(client->salt + lane->step, layer); /* the same for every copy */
    enum mla_dtype dtype = dice % 2 ? MLA_F32 : MLA_BF16;
    enum mla_dtype reply_dtype = dice % 10 < 7 ? MLA_F32 : MLA_BF16;
    size_t row = SIM_HIDDEN * mla_dtype_bytes(dtype);
    struct request asked = {.lane = at,
                            .layer = layer,
                            .reply_dtype = reply_dtype,
                            .allowed = BIT(MLA_OK) | BIT(MLA_BUSY) | BIT(MLA_GROUP_LOST) |
                                       BIT(MLA_STEP_LOST) | BIT(MLA_DEADLINE)};
    message.header = (struct mla_header){.type = MLA_RUN, .request_id = id};
    message.u.run = (struct mla_run){.step = lane->step,
                                     .layer = layer + 3,
                                     .dtype = dtype,
                                     .reply_dtype = reply_dtype,
                                     .rows = lane->rows,
                                     .hidden = SIM_HIDDEN};
    struct mla_blob *payload = NULL;
    uint8_t *data = NULL;
    if (!lane->in_frames && client_take(client, &asked)) {
        asked.allowed |= BIT(MLA_NOT_SHARED);
        sim->shared_runs++;
        data = region_find(sim, client->region)->data + asked.input * PLACE_BYTES;
        message.u.run.place_count = 1;
        message.u.run.places[0] = (struct mla_run_place){client->region, asked.input * PLACE_BYTES,
                                                         asked.output * PLACE_BYTES};
    } else {
        payload = blob_make(sim, lane->rows * row);
        data = payload->data;
    }
    for (uint32_t i = 0; i < lane->rows; i++) {
        uint64_t x = x_of(client, lane, layer, i);
        memcpy(data + i * row, &x, sizeof x);
    }
    (void)client_ask(sim, client, &message, payload, asked);
    lane->waiting++;
}

void lane_ask_one(struct sim *sim, struct sim_client *client, uint32_t at,
                  struct mla_message *request, struct mla_blob *payload, struct request asked)
{
    struct lane *lane = &client->lanes[at];
    lane->state = LANE_ONE;
    lane->one = *request;
    asked.lane = at;
    (void)client_ask(sim, client, request, payload, asked);
    lane->waiting++;
}

static void ask_one(struct sim *sim, struct sim_client *client, uint32_t at, uint64_t allowed)
{
    lane_ask_one(sim, client, at, &message, NULL, (struct request){.allowed = allowed});
}

/* ---- What to do next */

static bool choose_step(struct sim *sim, struct sim_client *client, uint32_t at)
{
    struct lane *lane = &client->lanes[at];
    const struct mla_core_options *options = &sim->core_options;
    uint32_t most = sim->faults ? 3 : 1;
    lane->open.count = 0;
    lane->rows = 0;
    uint32_t first = random_within(&sim->random, 0, LANE_SEQUENCES - 1);
    uint32_t wanted = random_within(&sim->random, 1, most);
    for (uint32_t k = 0; k < LANE_SEQUENCES && lane->open.count < wanted; k++) {
        uint32_t s = (first + k) % LANE_SEQUENCES;
        const struct belief *belief = &lane->sequences[s];
        uint32_t start = belief->lost ? 0 : belief->length;
        uint32_t tokens = start == 0 ? random_within(&sim->random, 1, sim->faults ? 140 : 40)
                          : random_chance(&sim->random, 700) ? 1
                                                             : random_within(&sim->random, 2, 50);
        if (start + tokens > SIM_CONTEXT_MAX || lane->rows + tokens > options->step_tokens_max)
            continue;
        lane->open.entries[lane->open.count++] =
            (struct mla_open_entry){id_of(client, at, s), start, tokens};
        lane->rows += tokens;
    }
    return lane->open.count > 0;
}

static void begin_step(struct sim *sim, struct sim_client *client, uint32_t at)
{
    struct lane *lane = &client->lanes[at];
    lane->closed = false;
    if (!choose_step(sim, client, at)) {
        lane_later(sim, client, at, 10, 100);
        return;
    }
    lane->step = lane->open.step = ++client->steps;
    lane->state = LANE_OPEN;
    lane->opened = lane->failed = lane->late = lane->in_frames = false;
    lane->layers_left = (1u << SIM_LAYERS) - 1;
    ask_open(sim, client, at, 0, false);
    if (random_chance(&sim->random, 80)) {
        sim->repeats++;
        ask_open(sim, client, at, random_chance(&sim->random, 500) ? lane->open_request : 0, false);
    }
}

void lane_free(struct sim *sim, struct sim_client *client, uint32_t at, bool only_one)
{
    struct lane *lane = &client->lanes[at];
    message.header = (struct mla_header){.type = MLA_FREE};
    message.u.free.count = 0;
    uint32_t first = random_within(&sim->random, 0, LANE_SEQUENCES - 1);
    for (uint32_t k = 0; k < LANE_SEQUENCES; k++)
        if (lane->sequences[(first + k) % LANE_SEQUENCES].exists &&
            !(only_one && message.u.free.count > 0))
            message.u.free.sequences[message.u.free.count++] =
                id_of(client, at, (first + k) % LANE_SEQUENCES);
    if (message.u.free.count > 0)
        ask_one(sim, client, at, BIT(MLA_OK));
    else
        lane_later(sim, client, at, 10, 100);
}

static void fork_or_truncate(struct sim *sim, struct sim_client *client, uint32_t at)
{
    struct lane *lane = &client->lanes[at];
    uint32_t s = 0;
    uint32_t child = 0;
    struct belief *belief = lane_some(sim, lane, &s);
    while (child < LANE_SEQUENCES && lane->sequences[child].exists)
        child++;
    if (belief && !belief->lost && belief->length > 0 && child < LANE_SEQUENCES &&
        random_chance(&sim->random, 600)) {
        message.header = (struct mla_header){.type = MLA_FORK};
        message.u.fork.count = 1;
        message.u.fork.entries[0] =
            (struct mla_fork_entry){id_of(client, at, s), id_of(client, at, child),
                                    random_within(&sim->random, 1, belief->length)};
        ask_one(sim, client, at, BIT(MLA_OK) | BIT(MLA_SEQUENCES_FULL) | BIT(MLA_KV_LOST));
    } else if (belief && !belief->lost) {
        message.header = (struct mla_header){.type = MLA_TRUNCATE};
        message.u.truncate.count = 1;
        message.u.truncate.entries[0] = (struct mla_truncate_entry){
            id_of(client, at, s), random_within(&sim->random, 0, belief->length)};
        ask_one(sim, client, at, BIT(MLA_OK) | BIT(MLA_KV_LOST));
    } else {
        lane_later(sim, client, at, 10, 100);
    }
}

/* Copies of OPEN and CLOSE that come when the step is over. */
static void repeat_late(struct sim *sim, struct sim_client *client, uint32_t at)
{
    struct lane *lane = &client->lanes[at];
    if (!lane->closed || !random_chance(&sim->random, 100))
        return;
    sim->repeats++;
    if (random_chance(&sim->random, 600))
        ask_open(sim, client, at, lane->open_request, true);
    if (random_chance(&sim->random, 600))
        ask_close(sim, client, at, random_chance(&sim->random, 500) ? lane->close_request : 0,
                  true);
}

static void choose(struct sim *sim, struct sim_client *client, uint32_t at)
{
    struct lane *lane = &client->lanes[at];
    repeat_late(sim, client, at);
    if (!sim->faults && lane->quiet_done) {
        for (uint32_t s = 0; s < LANE_SEQUENCES; s++)
            if (lane->sequences[s].exists) {
                lane_free(sim, client, at, false);
                return;
            }
        lane->state = LANE_DONE;
        message.header = (struct mla_header){.type = MLA_HELLO};
        message.u.hello = (struct mla_hello){.version_min = 1, .version_max = 1};
        (void)client_ask(
            sim, client, &message, NULL,
            (struct request){.lane = LANES_MAX, .allowed = BIT(MLA_OK) | BIT(MLA_NOT_READY)});
        return;
    }
    uint32_t dice = random_within(&sim->random, 0, 99);
    if (sim->faults && random_chance(&sim->random, 10))
        client_share(sim, client);
    if (dice < 70 || !sim->faults)
        begin_step(sim, client, at);
    else if (dice < 85)
        fork_or_truncate(sim, client, at);
    else if (dice < 93)
        lane_free(sim, client, at, true);
    else
        lane_mistake(sim, client, at);
}

static void run_some(struct sim *sim, struct sim_client *client, uint32_t at)
{
    struct lane *lane = &client->lanes[at];
    if (random_chance(&sim->random, 40))
        lane_touch_busy(sim, client, at);
    for (uint32_t layer = 0; layer < SIM_LAYERS; layer++) {
        if (!(lane->layers_left >> layer & 1) || lane->failed)
            continue;
        if (lane->waiting > 0 && random_chance(&sim->random, 500))
            break; /* one after the other */
        ask_run(sim, client, at, layer, 0);
        if (random_chance(&sim->random, 50)) {
            sim->repeats++;
            bool was_in_frames = lane->in_frames;
            uint64_t id = 0; /* copies in one place would need no reply of their own */
            if (!client->requests[client->request_count - 1].shared) {
                lane->in_frames = true;
                id = random_chance(&sim->random, 500) ? client->ids : 0;
            }
            ask_run(sim, client, at, layer, id);
            lane->in_frames = was_in_frames;
        }
    }
}

static void begin_close(struct sim *sim, struct sim_client *client, uint32_t at)
{
    struct lane *lane = &client->lanes[at];
    lane->state = LANE_CLOSE;
    lane->action = !lane->late && random_chance(&sim->random, lane->failed ? 200 : 900) ? MLA_COMMIT
                                                                                        : MLA_ABORT;
    ask_close(sim, client, at, 0, false);
    if (random_chance(&sim->random, 80)) {
        sim->repeats++;
        ask_close(sim, client, at, random_chance(&sim->random, 500) ? lane->close_request : 0,
                  false);
    }
}

void lane_go_on(struct sim *sim, struct sim_client *client, uint32_t at)
{
    struct lane *lane = &client->lanes[at];
    if (lane->waiting > 0)
        return;
    switch (lane->state) {
    case LANE_IDLE:
        choose(sim, client, at);
        break;
    case LANE_RUN:
        if (lane->failed || lane->layers_left == 0)
            begin_close(sim, client, at);
        else
            run_some(sim, client, at);
        break;
    case LANE_CLOSE:
        ask_close(sim, client, at, 0, false);
        break;
    default:
        break;
    }
}
