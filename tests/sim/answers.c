/* What a client learns from a reply, and what it must be. */
#include "tests/sim/client.h"

#include <string.h>

static void believe_lost(struct sim *sim, struct belief *belief)
{
    if (belief->epoch != 0 && !sim_epoch_is_lost(sim, belief->epoch))
        sim_fail(sim, "a sequence of epoch %llu is lost, and the group is not",
                 (unsigned long long)belief->epoch);
    belief->lost = true;
    sim->lost++;
}

static void check_rows(struct sim *sim, struct sim_client *client, struct lane *lane,
                       const struct request *request, const struct packet *packet)
{
    size_t row = SIM_HIDDEN * mla_dtype_bytes(request->reply_dtype);
    if (packet->bytes != (request->shared ? 0 : lane->rows * row))
        sim_fail(sim, "%zu bytes for %u rows", packet->bytes, lane->rows);
    const uint8_t *data =
        request->shared ? region_find(sim, client->region)->data + request->output * PLACE_BYTES
                        : packet->payload->data + packet->offset;
    uint32_t i = 0;
    for (uint32_t e = 0; e < lane->open.count; e++) {
        const struct mla_open_entry *entry = &lane->open.entries[e];
        struct belief *belief = belief_of(lane, entry->sequence);
        uint64_t context = belief->context[request->layer][entry->start];
        for (uint32_t t = 0; t < entry->tokens; t++, i++, data += row) {
            uint64_t x = x_of(client, lane, request->layer, i);
            uint64_t out = 0;
            context = layer_attend(context, layer_kv(request->layer, x, entry->start + t));
            memcpy(&out, data, sizeof out);
            if (out != layer_out(context, x))
                sim_fail(sim, "layer %u, row %u (sequence %llu, position %u) is wrong",
                         request->layer, i, (unsigned long long)entry->sequence, entry->start + t);
            if (request->reply_dtype != MLA_F32)
                continue;
            uint64_t epoch = 0;
            memcpy(&epoch, data + sizeof out, sizeof epoch);
            if (belief->epoch != 0 && belief->epoch != epoch)
                sim_fail(sim, "sequence %llu crossed from epoch %llu to %llu",
                         (unsigned long long)entry->sequence, (unsigned long long)belief->epoch,
                         (unsigned long long)epoch);
            belief->epoch = epoch;
        }
    }
    sim->rows_checked += lane->rows;
}

static void opened(const struct sim *sim, struct lane *lane)
{
    lane->opened = true;
    for (uint32_t e = 0; e < lane->open.count; e++) {
        struct belief *belief = belief_of(lane, lane->open.entries[e].sequence);
        bool again = lane->open.entries[e].start == 0 && sim_epoch_is_lost(sim, belief->epoch);
        if (belief->exists && !belief->lost && !again)
            continue;
        *belief = (struct belief){.exists = true};
        for (uint32_t layer = 0; layer < SIM_LAYERS; layer++)
            belief->context[layer][0] = layer_begin(layer);
    }
}

static void open_answered(struct sim *sim, struct sim_client *client, uint32_t at,
                          const struct mla_message *reply)
{
    struct lane *lane = &client->lanes[at];
    enum mla_status status = (enum mla_status)reply->header.status;
    if (lane->opened && status != MLA_OK)
        sim_fail(sim, "OPEN again is %s", mla_status_name(status));
    if (status == MLA_OK) {
        const struct mla_open_reply *open = &reply->u.open_reply;
        if (open->step != lane->step || open->decode_rows + open->prefill_rows != lane->rows)
            sim_fail(sim, "OPEN of %u rows is answered %u and %u", lane->rows, open->decode_rows,
                     open->prefill_rows);
        if (!lane->opened) {
            opened(sim, lane);
            lane->open_request = reply->header.request_id;
        }
    } else if (status == MLA_KV_LOST) {
        believe_lost(sim, belief_of(lane, lane->open.entries[reply->header.index].sequence));
    }
    if (lane->waiting > 0)
        return;
    lane->state = lane->opened ? LANE_RUN : LANE_IDLE;
    if (lane->opened)
        lane_go_on(sim, client, at);
    else if (status == MLA_KV_FULL || status == MLA_SEQUENCES_FULL)
        lane_free(sim, client, at, sim->faults && random_chance(&sim->random, 800));
    else
        lane_later(sim, client, at, 200, 20000);
}

static void run_answered(struct sim *sim, struct sim_client *client, const struct request *request,
                         enum mla_status status, const struct packet *packet)
{
    struct lane *lane = &client->lanes[request->lane];
    if (status == MLA_OK) {
        check_rows(sim, client, lane, request, packet);
        lane->layers_left &= ~(1u << request->layer);
    } else if (status == MLA_NOT_SHARED) {
        lane->in_frames = true;
    } else if (status != MLA_BUSY) {
        lane->failed = true;
        lane->late = lane->late || status == MLA_DEADLINE;
    }
    if (status == MLA_BUSY)
        lane_later(sim, client, request->lane, 500, 5000);
    else
        lane_go_on(sim, client, request->lane);
}

static void committed(struct sim *sim, const struct sim_client *client, struct lane *lane)
{
    uint32_t row = 0;
    for (uint32_t e = 0; e < lane->open.count; e++) {
        const struct mla_open_entry *entry = &lane->open.entries[e];
        struct belief *belief = belief_of(lane, entry->sequence);
        for (uint32_t layer = 0; layer < SIM_LAYERS; layer++)
            for (uint32_t t = 0; t < entry->tokens; t++) {
                uint32_t p = entry->start + t;
                belief->context[layer][p + 1] =
                    layer_attend(belief->context[layer][p],
                                 layer_kv(layer, x_of(client, lane, layer, row + t), p));
            }
        row += entry->tokens;
        belief->length = entry->start + entry->tokens;
    }
    sim->steps_committed++;
    lane->quiet_done = lane->quiet_done || !sim->faults;
}

static void close_answered(struct sim *sim, struct sim_client *client, uint32_t at,
                           enum mla_status status)
{
    struct lane *lane = &client->lanes[at];
    if (lane->closed && status != MLA_OK)
        sim_fail(sim, "CLOSE again is %s", mla_status_name(status));
    if (status == MLA_OK && !lane->closed && lane->action == MLA_COMMIT) {
        if (lane->failed)
            sim_fail(sim, "a step that lost its group is committed");
        committed(sim, client, lane);
    }
    lane->closed = lane->closed || status == MLA_OK;
    if (lane->waiting > 0)
        return;
    if (lane->closed) {
        lane->state = LANE_IDLE;
    } else {
        lane->failed = true;
        if (status == MLA_STEP_LOST)
            lane->action = MLA_ABORT;
    }
    lane_later(sim, client, at, 50, 3000);
}

static void one_answered(struct sim *sim, struct sim_client *client, uint32_t at,
                         enum mla_status status)
{
    struct lane *lane = &client->lanes[at];
    const struct mla_message *one = &lane->one;
    lane->state = LANE_IDLE;
    if (one->header.type == MLA_FREE && status == MLA_OK) {
        for (uint32_t i = 0; i < one->u.free.count; i++)
            belief_of(lane, one->u.free.sequences[i])->exists = false;
        for (uint32_t s = 0; s < LANE_SEQUENCES; s++)
            if (!lane->sequences[s].exists)
                lane->sequences[s].length = lane->sequences[s].lost = 0;
    } else if (one->header.type == MLA_TRUNCATE) {
        struct belief *belief = belief_of(lane, one->u.truncate.entries[0].sequence);
        if (status == MLA_OK)
            belief->length = one->u.truncate.entries[0].length;
        else if (status == MLA_KV_LOST)
            believe_lost(sim, belief);
    } else if (one->header.type == MLA_FORK) {
        const struct mla_fork_entry *entry = &one->u.fork.entries[0];
        struct belief *child = belief_of(lane, entry->child);
        if (status == MLA_OK) {
            *child = *belief_of(lane, entry->parent);
            child->length = entry->length;
        } else if (status == MLA_KV_LOST) {
            believe_lost(sim, belief_of(lane, entry->parent));
        }
    } else if (one->header.type == MLA_OPEN && status == MLA_KV_LOST) {
        believe_lost(sim, belief_of(lane, one->u.open.entries[0].sequence));
    }
    lane_later(sim, client, at, 50, 3000);
}

void lane_answered(struct sim *sim, struct sim_client *client, const struct request *request,
                   const struct mla_message *reply, const struct packet *packet)
{
    struct lane *lane = &client->lanes[request->lane];
    enum mla_status status = (enum mla_status)reply->header.status;
    lane->waiting--;
    if (lane->state == LANE_OPEN)
        open_answered(sim, client, request->lane, reply);
    else if (lane->state == LANE_RUN)
        run_answered(sim, client, request, status, packet);
    else if (lane->state == LANE_CLOSE)
        close_answered(sim, client, request->lane, status);
    else if (lane->state == LANE_ONE)
        one_answered(sim, client, request->lane, status);
    else
        sim_fail(sim, "a reply of type %u to a lane that waits for none", reply->header.type);
}
