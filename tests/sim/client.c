/* Clients: connections, requests and replies, vanishing and not reading. */
#include "tests/sim/client.h"

#include <stdlib.h>
#include <string.h>

static struct mla_message message;

static uint32_t index_of(const struct sim *sim, const struct sim_client *client)
{
    return (uint32_t)(client - sim->clients);
}

static void hello(struct sim *sim, struct sim_client *client)
{
    message.header = (struct mla_header){.type = MLA_HELLO};
    message.u.hello = (struct mla_hello){.version_min = 1, .version_max = 1};
    uint64_t allowed = BIT(MLA_OK) | BIT(MLA_NOT_READY);
    if (sim->core_options.clients_max <= sim->client_count) /* also those that just ended count */
        allowed |= BIT(MLA_BUSY);
    (void)client_ask(sim, client, &message, NULL,
                     (struct request){.lane = LANES_MAX, .allowed = allowed});
}

static void connect_again(struct sim *sim, uint64_t at, uint64_t unused)
{
    (void)unused;
    struct sim_client *client = &sim->clients[at];
    if (client->link == 0) {
        client->link = link_connect(sim, LINK_CLIENT, (uint32_t)at)->number;
        hello(sim, client);
    }
}

/* All that it had is over. Its next connection is a new client's. */
static void forget(struct sim *sim, struct sim_client *client)
{
    uint64_t life = client->life + 1;
    uint64_t ids = client->ids;
    uint64_t steps = client->steps;
    bool done = client->done;
    uint64_t ids_from = index_of(sim, client) % 2 * 1000000ull;
    memset(client, 0, sizeof *client);
    *client = (struct sim_client){.life = life, .ids = ids, .steps = steps, .done = done};
    client->ids_from = ids_from;
    client->steps = steps > 0 ? steps : ids_from;
    client->salt = random_next(&sim->random);
    client->lane_count = random_within(&sim->random, 1, LANES_MAX);
    if (!done)
        sim_at(sim, random_within(&sim->random, 0, 40) * SIM_MS, connect_again,
               index_of(sim, client), 0);
}

void clients_make(struct sim *sim)
{
    sim->clients = calloc(SIM_CLIENTS_MAX, sizeof *sim->clients);
    if (!sim->clients)
        sim_fail(sim, "no memory for clients");
}

void clients_start(struct sim *sim)
{
    for (uint32_t i = 0; i < sim->client_count; i++)
        forget(sim, &sim->clients[i]);
}

void client_link_ended(struct sim *sim, uint32_t client, uint64_t link)
{
    if (sim->clients[client].link == link)
        forget(sim, &sim->clients[client]);
}

uint64_t client_ask(struct sim *sim, struct sim_client *client, struct mla_message *request,
                    struct mla_blob *payload, struct request asked)
{
    uint8_t frame[MLA_HEADER_BYTES + 512];
    size_t bytes = 0;
    struct link *link = link_find(sim, client->link);
    if (!link || !link->open)
        sim_fail(sim, "a client without a connection asks");
    if (client->request_count == REQUESTS_MAX)
        sim_fail(sim, "%u requests without a reply", REQUESTS_MAX);
    if (request->header.request_id == 0)
        request->header.request_id = ++client->ids;
    request->header.payload_bytes = payload ? payload->bytes : 0;
    if (mla_message_encode(request, frame, sizeof frame, &bytes) != MLA_OK)
        sim_fail(sim, "a request can't be encoded");
    asked.id = request->header.request_id;
    asked.type = request->header.type;
    asked.sent_ns = sim->now_ns;
    client->requests[client->request_count++] = asked;
    link_send(sim, link, frame, bytes - asked.cut_bytes, payload);
    return asked.id;
}

void client_share(struct sim *sim, struct sim_client *client)
{
    bool back = client->region != 0;
    if (client->sharing)
        return;
    client->sharing = true;
    message.header = (struct mla_header){.type = MLA_SHARE};
    message.u.share.bytes = back ? 0 : PLACES * PLACE_BYTES;
    uint64_t allowed = BIT(MLA_OK) | BIT(MLA_BUSY);
    if (!back)
        allowed |= BIT(MLA_NOT_READY) | BIT(MLA_NOT_SHARED);
    (void)client_ask(sim, client, &message, NULL,
                     (struct request){.lane = LANES_MAX, .allowed = allowed});
}

/* All places are free in a new region; one whose RUN was lost is not before. */
static void shared(struct sim_client *client, const struct mla_message *reply)
{
    client->sharing = false;
    if (reply->header.status != MLA_OK)
        return;
    client->region = reply->u.share_reply.region;
    memset(client->taken, 0, sizeof client->taken);
}

bool client_take(struct sim_client *client, struct request *request)
{
    uint32_t found[2];
    uint32_t count = 0;
    for (uint32_t i = 0; client->region && !client->sharing && i < PLACES && count < 2; i++)
        if (!client->taken[i])
            found[count++] = i;
    if (count < 2)
        return false;
    client->taken[found[0]] = client->taken[found[1]] = true;
    request->shared = true;
    request->input = found[0];
    request->output = found[1];
    return true;
}

static void lane_event(struct sim *sim, uint64_t at, uint64_t life)
{
    struct sim_client *client = &sim->clients[at / LANES_MAX];
    if (client->life == life && client->link != 0)
        lane_go_on(sim, client, at % LANES_MAX);
}

void lane_later(struct sim *sim, struct sim_client *client, uint32_t lane, uint32_t least_us,
                uint32_t most_us)
{
    sim_at(sim, random_within(&sim->random, least_us, most_us) * 1000ull, lane_event,
           (uint64_t)index_of(sim, client) * LANES_MAX + lane, client->life);
}

static void hello_again(struct sim *sim, uint64_t at, uint64_t life)
{
    if (sim->clients[at].life == life && sim->clients[at].link != 0)
        hello(sim, &sim->clients[at]);
}

static void greeted(struct sim *sim, struct sim_client *client, enum mla_status status)
{
    if (client->greeted)
        return;
    if (status != MLA_OK) {
        sim_at(sim, 20 * SIM_MS, hello_again, index_of(sim, client), client->life);
        return;
    }
    client->greeted = true;
    if (random_chance(&sim->random, 500))
        client_share(sim, client);
    for (uint32_t lane = 0; lane < client->lane_count; lane++)
        lane_later(sim, client, lane, 0, 2000);
}

void client_arrived(struct sim *sim, uint32_t at, struct packet *packet)
{
    struct sim_client *client = &sim->clients[at];
    if (mla_message_decode(packet->head, packet->head_bytes, &message) != MLA_OK)
        sim_fail(sim, "a reply can't be decoded");
    const struct mla_header *header = &message.header;
    uint32_t i = 0;
    while (i < client->request_count && (client->requests[i].id != header->request_id ||
                                         (client->requests[i].type | MLA_REPLY) != header->type))
        i++;
    if (i == client->request_count)
        sim_fail(sim, "client %u got a reply (type %u) to a request %llu that has none to come", at,
                 header->type, (unsigned long long)header->request_id);
    struct request request = client->requests[i];
    memmove(&client->requests[i], &client->requests[i + 1],
            (--client->request_count - i) * sizeof *client->requests);
    sim_trace(sim, "client %u: type %u, request %llu: %s%s%s", at, request.type,
              (unsigned long long)request.id, mla_status_name((enum mla_status)header->status),
              header->status ? ": " : "", header->status ? message.u.sentence : "");
    if (header->status >= 64 || !(request.allowed >> header->status & 1))
        sim_fail(sim, "client %u: type %u is answered %s (%s)", at, request.type,
                 mla_status_name((enum mla_status)header->status),
                 header->status ? message.u.sentence : "");
    sim->replies_checked++;
    if (request.type == MLA_SHARE && request.lane == LANES_MAX)
        shared(client, &message);
    else if (request.lane == LANES_MAX)
        greeted(sim, client, (enum mla_status)header->status);
    else if (!request.late)
        lane_answered(sim, client, &request, &message, packet);
    if (request.shared) { /* who is cut off may still write after GROUP_LOST */
        client->taken[request.input] = false;
        client->taken[request.output] =
            header->status == MLA_GROUP_LOST || header->status == MLA_DEADLINE;
    }
    packet_free(packet);
    bool all_done = !sim->faults && client->request_count == 0 && client->greeted;
    for (uint32_t lane = 0; lane < client->lane_count; lane++)
        all_done = all_done && client->lanes[lane].state == LANE_DONE;
    if (all_done) {
        client->done = true;
        sim->clients_done++;
        link_close(sim, link_find(sim, client->link), false);
    }
}

/* ---- Faults */

static void vanish(struct sim *sim, struct sim_client *client, bool cut)
{
    struct link *link = link_find(sim, client->link);
    if (!link || client->done)
        return;
    link_close(sim, link, cut);
    forget(sim, client);
}

static void read_again(struct sim *sim, uint64_t at, uint64_t number)
{
    struct link *link = link_find(sim, number);
    if (!link)
        return;
    if (link->dropped)
        vanish(sim, &sim->clients[at], true); /* it times out, and comes back as another */
    else
        link_resume(sim, link);
}

static void silent_end(struct sim *sim, uint64_t number, uint64_t unused)
{
    (void)unused;
    struct link *link = link_find(sim, number);
    if (link)
        link_close(sim, link, false);
}

void clients_fault(struct sim *sim)
{
    uint32_t at = random_within(&sim->random, 0, sim->client_count - 1);
    struct sim_client *client = &sim->clients[at];
    struct link *link = link_find(sim, client->link);
    uint32_t kind = random_within(&sim->random, 0, 3);
    sim_trace(sim, "fault: client %u %s", at,
              kind == 0   ? "vanishes"
              : kind == 1 ? "leaves"
              : kind == 2 ? "does not read"
                          : "has a silent neighbour");
    if (kind == 2 && link) {
        link->paused = true;
        sim_at(sim, random_within(&sim->random, 20, 600) * SIM_MS, read_again, at, client->link);
    } else if (kind == 3) {
        uint64_t silent = link_connect(sim, LINK_SILENT, 0)->number;
        sim_at(sim, random_within(&sim->random, 0, 30) * SIM_MS, silent_end, silent, 0);
    } else if (kind < 2) {
        vanish(sim, client, kind == 0);
    }
}

void clients_check(struct sim *sim)
{
    for (uint32_t at = 0; at < sim->client_count; at++) {
        const struct sim_client *client = &sim->clients[at];
        const struct link *link = link_find(sim, client->link);
        /* One that did not read has its replies in a moment. */
        if (!link || link->paused || link->dropped ||
            (link->resumed_ns > 0 && sim->now_ns - link->resumed_ns < 50 * SIM_MS))
            continue;
        for (uint32_t i = 0; i < client->request_count; i++) {
            const struct request *request = &client->requests[i];
            uint64_t most_ms =
                request->type == MLA_RUN ? sim->core_options.run_timeout_ms + 300 : 2000;
            if (sim->now_ns - request->sent_ns > most_ms * SIM_MS)
                sim_fail(sim, "client %u has no reply to request %llu of type %u for %llu ms", at,
                         (unsigned long long)request->id, request->type,
                         (unsigned long long)most_ms);
        }
    }
}

void clients_free(struct sim *sim)
{
    free(sim->clients);
}
