/* Requests that must be refused, each with the code it must have: they change nothing. */
#include "tests/sim/client.h"

#include <string.h>

static struct mla_message message;

static void ask(struct sim *sim, struct sim_client *client, uint32_t at, uint64_t allowed)
{
    lane_ask_one(sim, client, at, &message, NULL, (struct request){.allowed = allowed});
}

struct belief *lane_some(struct sim *sim, struct lane *lane, uint32_t *s)
{
    uint32_t first = random_within(&sim->random, 0, LANE_SEQUENCES - 1);
    for (uint32_t k = 0; k < LANE_SEQUENCES; k++) {
        *s = (first + k) % LANE_SEQUENCES;
        if (lane->sequences[*s].exists)
            return &lane->sequences[*s];
    }
    return NULL;
}

static void set_open(struct sim_client *client, uint64_t sequence, uint32_t start, uint32_t tokens)
{
    message.header = (struct mla_header){.type = MLA_OPEN};
    message.u.open = (struct mla_open){
        .step = ++client->steps, .count = 1, .entries = {{sequence, start, tokens}}};
}

/* Another client's sequences and steps have other numbers than ours: it is as if they were not. */
static const struct sim_client *foreigner(struct sim *sim, const struct sim_client *client)
{
    uint32_t first = random_within(&sim->random, 0, sim->client_count - 1);
    for (uint32_t k = 0; k < sim->client_count; k++) {
        const struct sim_client *other = &sim->clients[(first + k) % sim->client_count];
        if (other->ids_from != client->ids_from)
            return other;
    }
    return NULL;
}

static void touch_foreign(struct sim *sim, struct sim_client *client, uint32_t at)
{
    const struct sim_client *other = foreigner(sim, client);
    uint32_t lane = random_within(&sim->random, 0, LANES_MAX - 1);
    uint64_t theirs = other ? id_of(other, lane, random_within(&sim->random, 0, LANE_SEQUENCES - 1))
                            : id_of(client, at, 50);
    uint64_t step = other ? other->lanes[lane].step : 0;
    uint32_t kind = random_within(&sim->random, 0, step != 0 ? 5 : 3);
    if (kind == 0) {
        message.header = (struct mla_header){.type = MLA_FREE};
        message.u.free.count = 1;
        message.u.free.sequences[0] = theirs;
    } else if (kind == 1) {
        message.header = (struct mla_header){.type = MLA_TRUNCATE};
        message.u.truncate.count = 1;
        message.u.truncate.entries[0] = (struct mla_truncate_entry){theirs, 0};
    } else if (kind == 2) {
        message.header = (struct mla_header){.type = MLA_FORK};
        message.u.fork.count = 1;
        message.u.fork.entries[0] = (struct mla_fork_entry){theirs, id_of(client, at, 50), 1};
    } else if (kind == 3) {
        set_open(client, theirs, 1, 1);
        ask(sim, client, at, MAY_WAIT | BIT(MLA_SEQUENCE_UNKNOWN));
        return;
    } else if (kind == 4) {
        message.header = (struct mla_header){.type = MLA_CLOSE};
        message.u.close = (struct mla_close){.step = step, .action = MLA_ABORT};
    } else {
        message.header = (struct mla_header){.type = MLA_RUN};
        message.u.run = (struct mla_run){.step = step,
                                         .layer = 3,
                                         .dtype = MLA_F32,
                                         .reply_dtype = MLA_F32,
                                         .rows = 1,
                                         .hidden = SIM_HIDDEN};
        lane_ask_one(sim, client, at, &message, blob_make(sim, SIM_HIDDEN * sizeof(float)),
                     (struct request){.allowed = BIT(MLA_STEP_UNKNOWN)});
        return;
    }
    ask(sim, client, at, BIT(kind < 3 ? MLA_SEQUENCE_UNKNOWN : MLA_STEP_UNKNOWN));
}

/* Beyond what HELLO told, or not a message at all. */
static void break_limits(struct sim *sim, struct sim_client *client, uint32_t at)
{
    switch (random_within(&sim->random, 0, 3)) {
    case 0:
        set_open(client, id_of(client, at, 50), 0, sim->core_options.step_tokens_max + 1);
        ask(sim, client, at, MAY_WAIT | BIT(MLA_LIMIT));
        break;
    case 1:
        set_open(client, id_of(client, at, 50), SIM_CONTEXT_MAX - 10, 11);
        ask(sim, client, at, MAY_WAIT | BIT(MLA_CONTEXT));
        break;
    case 2:
        message.header = (struct mla_header){.type = MLA_SHARE};
        message.u.share.bytes = sim->core_options.region_bytes_max + 1;
        if (!client->sharing && client->region == 0) {
            ask(sim, client, at, BIT(MLA_LIMIT) | BIT(MLA_NOT_SHARED) | BIT(MLA_NOT_READY));
            break;
        }
        /* fall through */
    default: /* shorter than it says */
        message.header = (struct mla_header){.type = MLA_FREE};
        message.u.free.count = 1;
        message.u.free.sequences[0] = id_of(client, at, 0);
        lane_ask_one(sim, client, at, &message, NULL,
                     (struct request){.allowed = BIT(MLA_MALFORMED), .cut_bytes = 3});
    }
}

void lane_mistake(struct sim *sim, struct sim_client *client, uint32_t at)
{
    struct lane *lane = &client->lanes[at];
    uint32_t s = 0;
    struct belief *belief = lane_some(sim, lane, &s);
    uint32_t kind = random_within(&sim->random, 0, 6);
    if (kind == 0 && belief && !belief->lost && belief->length + 2 <= SIM_CONTEXT_MAX) {
        uint32_t start = belief->length > 1 && random_chance(&sim->random, 500)
                             ? belief->length - 1
                             : belief->length + 1;
        message.header = (struct mla_header){.type = MLA_OPEN};
        message.u.open = (struct mla_open){
            .step = ++client->steps, .count = 1, .entries = {{id_of(client, at, s), start, 1}}};
        ask(sim, client, at, MAY_WAIT | BIT(MLA_OUT_OF_ORDER) | BIT(MLA_KV_LOST));
    } else if (kind == 1) {
        message.header = (struct mla_header){.type = MLA_OPEN};
        message.u.open = (struct mla_open){
            .step = ++client->steps, .count = 1, .entries = {{id_of(client, at, 50), 5, 1}}};
        ask(sim, client, at, MAY_WAIT | BIT(MLA_SEQUENCE_UNKNOWN));
    } else if (kind == 2) {
        message.header = (struct mla_header){.type = MLA_CLOSE};
        message.u.close = (struct mla_close){.step = ++client->steps, .action = MLA_COMMIT};
        ask(sim, client, at, BIT(MLA_STEP_UNKNOWN));
    } else if (kind == 3) {
        message.header = (struct mla_header){.type = MLA_FREE};
        message.u.free.count = 2;
        message.u.free.sequences[0] = id_of(client, at, s);
        message.u.free.sequences[1] = id_of(client, at, 50);
        ask(sim, client, at, BIT(MLA_SEQUENCE_UNKNOWN));
    } else if (kind == 4) {
        touch_foreign(sim, client, at);
    } else if (kind == 5) {
        break_limits(sim, client, at);
    } else {
        message.header = (struct mla_header){.type = MLA_STATS};
        ask(sim, client, at, BIT(MLA_OK));
    }
}

void lane_touch_busy(struct sim *sim, struct sim_client *client, uint32_t at)
{
    const struct mla_open *open = &client->lanes[at].open;
    uint64_t id = open->entries[random_within(&sim->random, 0, open->count - 1)].sequence;
    struct request asked = {.lane = at, .late = true, .allowed = BIT(MLA_SEQUENCE_BUSY)};
    switch (random_within(&sim->random, 0, 3)) {
    case 0:
        message.header = (struct mla_header){.type = MLA_FREE};
        message.u.free.count = 1;
        message.u.free.sequences[0] = id;
        break;
    case 1:
        message.header = (struct mla_header){.type = MLA_TRUNCATE};
        message.u.truncate.count = 1;
        message.u.truncate.entries[0] = (struct mla_truncate_entry){id, 0};
        break;
    case 2:
        message.header = (struct mla_header){.type = MLA_FORK};
        message.u.fork.count = 1;
        message.u.fork.entries[0] = (struct mla_fork_entry){id, id_of(client, at, 50), 1};
        break;
    default:
        asked.allowed |= MAY_WAIT;
        message.header = (struct mla_header){.type = MLA_OPEN};
        message.u.open =
            (struct mla_open){.step = ++client->steps, .count = 1, .entries = {{id, 0, 1}}};
    }
    (void)client_ask(sim, client, &message, NULL, asked);
}
