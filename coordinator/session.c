#include "coordinator/state.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>

enum mla_status fail_with(struct failure *failure, enum mla_status status, uint32_t index,
                          const char *format, ...)
{
    failure->status = status;
    failure->index = index;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(failure->sentence, sizeof failure->sentence, format, arguments);
    va_end(arguments);
    return status;
}

static enum mla_status reply_to(struct mla_core *core, const struct mla_peer *peer, uint16_t type,
                                uint64_t request_id, struct mla_blob *payload, size_t offset,
                                size_t payload_bytes)
{
    struct mla_header *header = &core->reply.header;
    header->type = type | MLA_REPLY;
    header->request_id = request_id;
    header->epoch = core->epoch;
    header->payload_bytes = payload ? payload_bytes : 0;
    size_t bytes = 0;
    enum mla_status status =
        mla_message_encode(&core->reply, core->frame, sizeof core->frame, &bytes);
    assert(status == MLA_OK);
    status = core->effects.send_client(core->effects.context, peer, core->frame, bytes, payload,
                                       offset, payload_bytes);
    return status;
}

static void doom(struct mla_core *core, struct session *session)
{
    session->doomed = true;
    core->doomed_count++;
}

void session_reply(struct mla_core *core, uint32_t index, uint16_t type, uint64_t request_id,
                   struct mla_blob *payload, size_t offset, size_t bytes)
{
    struct session *session = &core->sessions[index];
    core->reply.header.status = MLA_OK;
    core->reply.header.index = MLA_INDEX_NONE;
    /* A client that doesn't read loses its connection's state, and nobody else's. */
    if (!session->doomed && !session->closing &&
        reply_to(core, &session->peer, type, request_id, payload, offset, bytes) != MLA_OK)
        doom(core, session);
}

static void set_failure(struct mla_core *core, const struct failure *failure)
{
    core->stats.errors++;
    mla_metrics_error(&core->metrics, failure->status);
    core->reply.header.status = failure->status;
    core->reply.header.index = failure->index;
    memcpy(core->reply.u.sentence, failure->sentence, sizeof core->reply.u.sentence);
}

void session_reply_failure(struct mla_core *core, uint32_t index, uint16_t type,
                           uint64_t request_id, const struct failure *failure)
{
    struct session *session = &core->sessions[index];
    set_failure(core, failure);
    if (!session->doomed && !session->closing &&
        reply_to(core, &session->peer, type, request_id, NULL, 0, 0) != MLA_OK)
        doom(core, session);
}

void session_settle(struct mla_core *core, uint32_t index)
{
    struct session *session = &core->sessions[index];
    if (!session->closing || session->runs > 0)
        return;
    for (uint32_t i = 0; i < core->options.steps_open_max && session->steps > 0; i++)
        if (core->steps[i].used && core->steps[i].session == index)
            step_end(core, i, MLA_ABORT);
    while (session->sequence_first != NONE)
        sequence_remove(core, session->sequence_first);
    region_drop(core, index);
    session->used = false;
    core->stats.clients--;
}

void session_end(struct mla_core *core, uint32_t index)
{
    struct session *session = &core->sessions[index];
    if (session->peer.fd >= 0 && core->client_fds[session->peer.fd] == index)
        core->client_fds[session->peer.fd] = NONE;
    session->closing = true;
    core->doomed_count -= session->doomed;
    session->doomed = false;
    runs_cancel(core, index);
    if (session->used)
        session_settle(core, index);
}

static uint32_t session_create(struct mla_core *core, const struct mla_peer *peer)
{
    uint32_t index = 0;
    while (index < core->options.clients_max && core->sessions[index].used)
        index++;
    if (index == core->options.clients_max)
        return NONE;
    core->sessions[index] = (struct session){
        .used = true, .peer = *peer, .sequence_first = NONE, .run_first = NONE, .run_last = NONE};
    if (index >= core->session_bound)
        core->session_bound = index + 1;
    core->client_fds[peer->fd] = index;
    core->stats.clients++;
    return index;
}

enum mla_status hello(struct mla_core *core, struct failure *failure)
{
    const struct mla_hello *request = &core->request.u.hello;
    if (request->version_min > MLA_PROTOCOL_VERSION || request->version_max < MLA_PROTOCOL_VERSION)
        return fail_with(failure, MLA_VERSION, MLA_INDEX_NONE,
                         "version %u is spoken here, not %u to %u", MLA_PROTOCOL_VERSION,
                         request->version_min, request->version_max);
    if (group_choose(core) == NONE)
        return fail_with(failure, MLA_NOT_READY, MLA_INDEX_NONE, "no group of workers is ready");
    const struct mla_core_options *options = &core->options;
    struct mla_hello_reply *reply = &core->reply.u.hello_reply;
    *reply = (struct mla_hello_reply){
        .version = MLA_PROTOCOL_VERSION,
        .payload_modes =
            MLA_PAYLOAD_INLINE | (options->region_bytes_max > 0 ? MLA_PAYLOAD_SHARED : 0),
        .dims = core->model.dims,
        .groups = mla_core_groups_ready(core),
        .ranks = core->groups[group_choose(core)].ranks,
        .block_tokens = MLA_BLOCK_TOKENS,
        .blocks_free = blocks_free(core),
        .context_max = core->context_max,
        .step_tokens_max = options->step_tokens_max,
        .step_sequences_max = MLA_STEP_SEQUENCES_MAX,
        .steps_open_max = options->steps_open_max,
        .runs_queued_max = options->runs_queued_max,
        .decode_tokens_max = options->plan.decode_tokens_max,
        .prefill_tokens_max = options->plan.prefill_tokens_max,
        .decode_rows_max = options->plan.buckets[options->plan.bucket_count - 1],
        .layer_count = core->model.layer_count,
    };
    for (uint32_t i = 0; i < options->groups; i++)
        if (core->groups[i].state == GROUP_READY)
            reply->blocks_total += core->groups[i].kv_blocks;
    memcpy(reply->layers, core->model.layers, sizeof reply->layers);
    return MLA_OK;
}

/* One or two frames as the header says. */
static enum mla_status check_frames(const struct mla_core *core,
                                    const struct mla_incoming *incoming, struct failure *failure)
{
    uint64_t announced = core->request.header.payload_bytes;
    if (incoming->frames > 2)
        return fail_with(failure, MLA_FRAMES, MLA_INDEX_NONE, "more than two frames");
    if ((announced > 0) != (incoming->frames == 2))
        return fail_with(failure, MLA_FRAMES, MLA_INDEX_NONE, "%u frames, payload_bytes is %llu",
                         incoming->frames, (unsigned long long)announced);
    if (incoming->payload && incoming->payload->bytes != announced)
        return fail_with(failure, MLA_LENGTH, MLA_INDEX_NONE,
                         "a payload of %zu bytes, payload_bytes is %llu", incoming->payload->bytes,
                         (unsigned long long)announced);
    return MLA_OK;
}

/* MLA_AGAIN: the workers have to do something before there is an answer. */
static enum mla_status handle(struct mla_core *core, uint32_t session, uint64_t received_ns,
                              struct mla_blob **payload, struct failure *failure)
{
    enum mla_status status = MLA_OK;
    switch (core->request.header.type) {
    case MLA_HELLO:
        return hello(core, failure);
    case MLA_OPEN:
        return step_open(core, session, failure);
    case MLA_RUN:
        status = run_queue(core, session, received_ns, payload, failure);
        return status == MLA_OK ? MLA_AGAIN : status;
    case MLA_CLOSE:
        return step_close(core, session, failure);
    case MLA_FORK:
        return sequences_fork(core, session, failure);
    case MLA_TRUNCATE:
        return sequences_truncate(core, session, failure);
    case MLA_FREE:
        return sequences_free(core, session, failure);
    case MLA_STATS:
        mla_core_stats(core, &core->reply.u.stats_reply);
        return MLA_OK;
    case MLA_SHARE:
        return region_share(core, session, failure);
    default:
        return fail_with(failure, MLA_TYPE, MLA_INDEX_NONE, "type %u is not a request",
                         core->request.header.type);
    }
}

/* The client at this connection, or NONE. Another connection at its descriptor means that the one
 * it had is over, and that we have yet to be told. */
static uint32_t session_of(struct mla_core *core, const struct mla_peer *peer)
{
    uint32_t session = core->client_fds[peer->fd];
    if (session == NONE || core->sessions[session].peer.number == peer->number)
        return session;
    session_end(core, session);
    return NONE;
}

/* To a client that may have no session. */
static void respond(struct mla_core *core, uint32_t session, const struct mla_peer *peer,
                    uint16_t type, uint64_t request_id, enum mla_status status,
                    const struct failure *failure)
{
    if (status != MLA_OK && session == NONE) {
        set_failure(core, failure);
        (void)reply_to(core, peer, type, request_id, NULL, 0, 0);
    } else if (status != MLA_OK) {
        session_reply_failure(core, session, type, request_id, failure);
    } else {
        session_reply(core, session, type, request_id, NULL, 0, 0);
    }
}

void mla_core_client_message(struct mla_core *core, const struct mla_incoming *incoming)
{
    uint64_t received_ns = core->effects.now_ns(core->effects.context);
    struct mla_blob *payload = incoming->payload;
    struct failure failure = {0};
    if (incoming->peer.fd < 0 || incoming->peer.fd >= (int)FDS_MAX) {
        mla_blob_drop(payload);
        return;
    }
    core->stats.requests++;
    uint32_t session = session_of(core, &incoming->peer);
    enum mla_status status =
        mla_message_decode(incoming->head, incoming->head_bytes, &core->request);
    const struct mla_header *header = &core->request.header;
    uint16_t type = header->type;
    uint64_t request_id = header->request_id;
    mla_metrics_request(&core->metrics, type);
    if (status != MLA_OK)
        (void)fail_with(&failure, status, header->index, "%s", mla_status_sentence(status));
    else
        status = check_frames(core, incoming, &failure);
    if (status == MLA_OK && session == NONE && type != MLA_HELLO)
        status = fail_with(&failure, MLA_HELLO_REQUIRED, MLA_INDEX_NONE,
                           "the first request of a connection is HELLO");
    if (status == MLA_OK)
        status = handle(core, session, received_ns, &payload, &failure);
    if (status == MLA_OK && session == NONE &&
        (session = session_create(core, &incoming->peer)) == NONE)
        status = fail_with(&failure, MLA_BUSY, MLA_INDEX_NONE, "%u clients are connected",
                           core->options.clients_max);

    if (status != MLA_AGAIN) /* else it is answered when the workers have done it */
        respond(core, session, &incoming->peer, type, request_id, status, &failure);
    mla_blob_drop(payload);
    settle(core);
}

void mla_core_client_gone(struct mla_core *core, int fd, uint64_t number)
{
    if (fd < 0 || fd >= (int)FDS_MAX)
        return;
    uint32_t session = core->client_fds[fd];
    if (session != NONE && core->sessions[session].peer.number == number)
        session_end(core, session);
    settle(core);
}
