#include "tests/unit/fake_service.h"

TestSuite(client, .fini = stop, .timeout = 60);

Test(client, synchronous_calls)
{
    const struct mla_open_entry entries[] = {{.sequence = 1, .start = 0, .tokens = 5}};
    const struct mla_fork_entry forks[] = {{.parent = 1, .child = 2, .length = 3}};
    const struct mla_truncate_entry cuts[] = {{.sequence = 1, .length = 2}};
    const uint64_t sequences[] = {1, 2};
    struct mla_open_reply open;
    struct mla_run_times times;
    struct mla_stats stats;
    start(NULL, 0);
    cr_assert_eq(mla_client_info(client)->ranks, 2);
    cr_assert_eq(mla_client_info(client)->dims.hidden, HIDDEN);
    cr_assert_eq(mla_client_info(client)->layers[1], 7);

    cr_assert_eq(mla_client_open(client, 100, entries, 1, &open), MLA_OK);
    cr_assert_eq(open.step, 100);
    cr_assert_eq(open.blocks_free, 7);
    struct mla_client_run run = make_run(100, 7, 5);
    cr_assert_eq(mla_client_run(client, &run, &times), MLA_OK);
    cr_assert_eq(times.compute_ns, 12);
    for (int i = 0; i < 5 * HIDDEN; i++)
        cr_assert_eq(y[i], 2 * x[i]);
    cr_assert_eq(mla_client_close(client, 100, MLA_COMMIT), MLA_OK);
    cr_assert_eq(mla_client_fork(client, forks, 1), MLA_OK);
    cr_assert_eq(mla_client_truncate(client, cuts, 1), MLA_OK);
    cr_assert_eq(mla_client_free(client, sequences, 2), MLA_OK);
    cr_assert_eq(mla_client_stats(client, &stats), MLA_OK);
    cr_assert_eq(stats.requests, 11);
    cr_assert_eq(stats.heap_bytes, 12);
    cr_assert_eq(mla_client_hello(client), MLA_OK);
}

Test(client, bf16_payloads)
{
    uint16_t in[2 * HIDDEN], out[2 * HIDDEN];
    start(NULL, 0);
    struct mla_client_run run = make_run(1, 0, 2);
    run.dtype = run.reply_dtype = MLA_BF16;
    run.x = in;
    run.y = out;
    for (int i = 0; i < 2 * HIDDEN; i++)
        in[i] = mla_f32_to_bf16((float)i);
    cr_assert_eq(mla_client_run(client, &run, NULL), MLA_OK);
    for (int i = 0; i < 2 * HIDDEN; i++)
        cr_assert_eq(mla_bf16_to_f32(out[i]), (float)(2 * i));
}

Test(client, x_belongs_to_the_caller_again_after_every_run)
{
    start(NULL, 0);
    for (uint32_t i = 0; i < 300; i++) {
        struct mla_client_run run = make_run(1, i, i % 100 == 99 ? ROWS_MAX : 1 + i % 40);
        cr_assert_eq(mla_client_run(client, &run, NULL), MLA_OK);
        for (size_t k = 0; k < (size_t)run.rows * HIDDEN; k++)
            if (y[k] != 2 * x[k])
                cr_assert_fail("run %u, element %zu: %f", i, k, (double)y[k]);
    }
}

static bool not_ready_twice(struct fake *self, const struct mla_incoming *in)
{
    if (self->request.header.type != MLA_HELLO || self->seen[MLA_HELLO] > 2)
        return false;
    send_error(in, MLA_NOT_READY, MLA_INDEX_NONE, "no group of workers is ready");
    return true;
}

Test(client, connect_waits_until_ready)
{
    start(not_ready_twice, 0);
    mla_client_close_connection(&client);
    cr_assert_null(client);
    cr_assert_eq(fake.seen[MLA_HELLO], 3);
}

static bool error_always(struct fake *self, const struct mla_incoming *in)
{
    send_error(in, (enum mla_status)self->kind, MLA_INDEX_NONE, "this is what the hook says");
    return true;
}

Test(client, connect_fails)
{
    const struct mla_client_options options = {.timeout_ms = 150};
    cr_assert_eq(mla_client_connect("tcp://127.0.0.1:1", &options, &client), MLA_TIMEOUT);
    cr_assert_eq(mla_client_connect("nonsense", &options, &client), MLA_ENDPOINT);
    fake_start(error_always, MLA_NOT_READY);
    const char *endpoint = mla_channel_endpoint(fake.channel);
    cr_assert_eq(mla_client_connect(endpoint, &options, &client), MLA_TIMEOUT);
    fake_stop();
    fake_start(error_always, MLA_VERSION);
    endpoint = mla_channel_endpoint(fake.channel);
    cr_assert_eq(mla_client_connect(endpoint, NULL, &client), MLA_VERSION);
    cr_assert_null(client);
}

static bool full(struct fake *self, const struct mla_incoming *in)
{
    if (self->request.header.type != MLA_OPEN)
        return false;
    send_error(in, MLA_KV_FULL, 1, "3 blocks are free");
    return true;
}

Test(client, errors_of_the_service)
{
    const struct mla_open_entry entries[2] = {{.sequence = 1, .tokens = 5}, {.sequence = 2}};
    uint64_t request = 0;
    struct mla_completion completion;
    struct mla_stats stats;
    start(full, 0);
    cr_assert_eq(mla_client_open(client, 100, entries, 2, NULL), MLA_KV_FULL);
    check_error(MLA_KV_FULL, 1);
    cr_assert_str_eq(mla_client_error(client)->sentence, "3 blocks are free");
    cr_assert_eq(mla_client_submit_open(client, 100, entries, 2, &request), MLA_OK);
    cr_assert_eq(mla_client_poll(client, -1, &completion), MLA_OK);
    cr_assert_eq(completion.request, request);
    cr_assert_eq(completion.type, MLA_OPEN);
    cr_assert_eq(completion.error.status, MLA_KV_FULL);
    cr_assert_eq(completion.error.index, 1);
    cr_assert_str_eq(completion.error.sentence, "3 blocks are free");
    cr_assert_eq(mla_client_stats(client, &stats), MLA_OK);
}

Test(client, requests_over_the_limits_stay_here)
{
    static struct mla_open_entry entries[MLA_STEP_SEQUENCES_MAX + 1];
    start(NULL, 0);
    cr_assert_eq(mla_client_open(client, 1, entries, MLA_STEP_SEQUENCES_MAX + 1, NULL), MLA_LIMIT);
    check_error(MLA_LIMIT, MLA_INDEX_NONE);
    struct mla_client_run run = make_run(1, 0, 1);
    run.rows = UINT32_MAX;
    cr_assert_eq(mla_client_run(client, &run, NULL), MLA_LIMIT);
    cr_assert_eq(mla_client_open(client, 1, entries, MLA_STEP_SEQUENCES_MAX, NULL), MLA_OK);
    cr_assert_eq(fake.seen[MLA_RUN], 0);
}

/* RUNs are kept until something else comes, and answered then: the newest first. */
static bool hold_runs(struct fake *self, const struct mla_incoming *in)
{
    if (self->request.header.type == MLA_RUN) {
        self->held[self->held_count++] = (struct held){.peer = in->peer,
                                                       .header = self->request.header,
                                                       .run = self->request.u.run,
                                                       .payload = mla_blob_hold(in->payload)};
        return true;
    }
    while (self->held_count > 0) {
        struct held *held = &self->held[--self->held_count];
        answer_run(&held->peer, held->header.request_id, &held->run, held->payload);
        mla_blob_drop(held->payload);
    }
    return false;
}

Test(client, completions_out_of_order_are_kept_in_the_order_they_came)
{
    static float ys[RUNS_QUEUED_MAX][HIDDEN];
    uint64_t requests[RUNS_QUEUED_MAX], more = 0;
    struct mla_completion completion;
    struct mla_stats stats;
    start(hold_runs, 0);
    for (uint32_t round = 0; round < 200; round++) {
        struct mla_client_run run = make_run(round, 0, 1);
        for (uint32_t i = 0; i < RUNS_QUEUED_MAX; i++) {
            run.layer = i;
            run.y = ys[i];
            ys[i][0] = -1;
            cr_assert_eq(mla_client_submit_run(client, &run, &requests[i]), MLA_OK);
        }
        cr_assert_eq(mla_client_submit_run(client, &run, &more), MLA_AGAIN);
        cr_assert_eq(mla_client_poll(client, 0, &completion), MLA_AGAIN);
        cr_assert_eq(mla_client_stats(client, &stats), MLA_OK);
        for (uint32_t i = RUNS_QUEUED_MAX; i-- > 0;) {
            cr_assert_eq(mla_client_poll(client, 0, &completion), MLA_OK);
            cr_assert_eq(completion.request, requests[i]);
            cr_assert_eq(completion.type, MLA_RUN);
            cr_assert_eq(completion.error.status, MLA_OK);
            cr_assert_eq(completion.u.run.compute_ns, 5 + i);
            cr_assert_arr_eq(ys[i] + 1, ((float[]){2, 4}), 2 * sizeof(float));
        }
        cr_assert_eq(mla_client_poll(client, 0, &completion), MLA_AGAIN);
    }
}

Test(client, asynchronous_open_and_close)
{
    const struct mla_open_entry entries[] = {{.sequence = 1, .start = 0, .tokens = 5}};
    uint64_t open = 0, close = 0;
    struct mla_completion completion;
    start(NULL, 0);
    cr_assert_eq(mla_client_submit_open(client, 50, entries, 1, &open), MLA_OK);
    cr_assert_eq(mla_client_submit_close(client, 50, MLA_ABORT, &close), MLA_OK);
    cr_assert_neq(open, close);
    cr_assert_eq(mla_client_poll(client, -1, &completion), MLA_OK);
    cr_assert_eq(completion.request, open);
    cr_assert_eq(completion.u.open.prefill_rows, 5);
    cr_assert_eq(mla_client_poll(client, -1, &completion), MLA_OK);
    cr_assert_eq(completion.request, close);
    cr_assert_eq(completion.u.close.blocks_free, 9);
}

/* And the abort that follows fails too. */
static bool no_such_layer(struct fake *self, const struct mla_incoming *in)
{
    uint16_t type = self->request.header.type;
    if (type == MLA_RUN)
        send_error(in, MLA_LAYER, MLA_INDEX_NONE, "layer 0 is not served");
    if (type == MLA_CLOSE) {
        self->last_action = self->request.u.close.action;
        send_error(in, MLA_STEP_UNKNOWN, MLA_INDEX_NONE, "there is no such step");
    }
    return type == MLA_RUN || type == MLA_CLOSE;
}

Test(client, run_layer)
{
    const struct mla_open_entry entries[] = {{.sequence = 1, .start = 0, .tokens = 1}};
    struct mla_client_run run = make_run(8, 0, 1);
    start(NULL, 0);
    cr_assert_eq(mla_client_run_layer(client, entries, 1, &run), MLA_OK);
    cr_assert_eq(y[1], 2 * x[1]);
    mla_client_close_connection(&client);
    cr_assert_eq(fake.last_action, MLA_COMMIT);
    fake_stop();

    start(no_such_layer, 0);
    cr_assert_eq(mla_client_run_layer(client, entries, 1, &run), MLA_LAYER);
    check_error(MLA_LAYER, MLA_INDEX_NONE);
    mla_client_close_connection(&client);
    cr_assert_eq(fake.seen[MLA_CLOSE], 1);
    cr_assert_eq(fake.last_action, MLA_ABORT);
}

static bool silent(struct fake *self, const struct mla_incoming *in)
{
    (void)in;
    return self->request.header.type != MLA_HELLO;
}

Test(client, timeout_closes)
{
    uint64_t request = 0;
    struct mla_client_run run = make_run(1, 0, 8);
    fake_start(silent, 0);
    connect_client(100);
    cr_assert_eq(mla_client_submit_run(client, &run, &request), MLA_OK);
    cr_assert_eq(mla_client_close(client, 1, MLA_COMMIT), MLA_TIMEOUT);
    check_error(MLA_TIMEOUT, MLA_INDEX_NONE);
    check_closed();
}

Test(client, service_that_is_gone_closes)
{
    uint64_t request = 0;
    struct mla_stats stats;
    struct mla_completion completion;
    struct mla_client_run run = make_run(1, 0, 8);
    start(silent, 0);
    cr_assert_eq(mla_client_submit_run(client, &run, &request), MLA_OK);
    fake_stop();
    cr_assert_eq(mla_client_poll(client, -1, &completion), MLA_CLOSED);
    check_closed();
    mla_client_close_connection(&client);

    start(NULL, 0);
    fake_stop();
    cr_assert_eq(mla_client_stats(client, &stats), MLA_CLOSED);
    check_closed();
}

static bool hello_required(struct fake *self, const struct mla_incoming *in)
{
    if (self->request.header.type == MLA_HELLO)
        return false;
    send_error(in, MLA_HELLO_REQUIRED, MLA_INDEX_NONE, "HELLO must come first");
    return true;
}

Test(client, service_that_was_restarted_closes)
{
    struct mla_stats stats;
    start(hello_required, 0);
    cr_assert_eq(mla_client_stats(client, &stats), MLA_CLOSED);
    check_closed();
}

enum wrong {
    WRONG_STEP,
    WRONG_LAYER,
    WRONG_DTYPE,
    WRONG_ROWS,
    WRONG_HIDDEN,
    WRONG_PAYLOAD,
    WRONG_PAYLOAD_BYTES,
    NO_PAYLOAD,
    PAYLOAD_NOT_ANNOUNCED,
    WRONG_TYPE,
    WRONG_REQUEST,
    OTHER_SLOT,
    NO_TYPE,
    EMPTY_FRAME,
    A_BYTE_MORE,
    GARBAGE,
    WRONGS,
};

/* A reply to RUN that is wrong in one place. */
static bool wrong_reply(struct fake *self, const struct mla_incoming *in)
{
    const struct mla_run *run = &self->request.u.run;
    struct mla_header *header = &self->reply.header;
    struct mla_run_reply *reply = &self->reply.u.run_reply;
    if (self->request.header.type != MLA_RUN)
        return false;
    struct mla_blob *result = twice(run, in->payload);
    enum wrong wrong = (enum wrong)self->kind;
    if (wrong == WRONG_PAYLOAD)
        result->bytes -= 4;
    if (wrong == WRONG_ROWS) /* and the payload is what it says */
        result->bytes -= (size_t)HIDDEN * sizeof(float);
    if (wrong == WRONG_HIDDEN)
        result->bytes -= run->rows * sizeof(float);
    *header = (struct mla_header){.type = MLA_RUN | MLA_REPLY,
                                  .request_id = self->request.header.request_id,
                                  .payload_bytes = result->bytes};
    if (wrong == WRONG_PAYLOAD_BYTES)
        header->payload_bytes += 4;
    if (wrong == PAYLOAD_NOT_ANNOUNCED)
        header->payload_bytes = 0;
    *reply = (struct mla_run_reply){.step = run->step + (wrong == WRONG_STEP),
                                    .layer = run->layer + (wrong == WRONG_LAYER),
                                    .dtype = run->reply_dtype + (wrong == WRONG_DTYPE),
                                    .rows = run->rows - (wrong == WRONG_ROWS),
                                    .hidden = run->hidden - (wrong == WRONG_HIDDEN)};
    if (wrong == WRONG_REQUEST)
        header->request_id += MLA_RUNS_QUEUED_MAX + 1;
    if (wrong == OTHER_SLOT)
        header->request_id--;
    if (wrong == NO_TYPE || wrong == WRONG_TYPE || wrong == EMPTY_FRAME) {
        if (wrong != EMPTY_FRAME)
            header->type = wrong == NO_TYPE ? MLA_REPLY : MLA_CLOSE | MLA_REPLY;
        result->bytes = 0;
        header->payload_bytes = 0;
        header->status = MLA_MALFORMED;
        memcpy(self->reply.u.sentence, "what was that?", 15);
    }
    size_t bytes = 0;
    cr_assert_eq(mla_message_encode(&self->reply, self->frame, sizeof self->frame, &bytes), MLA_OK);
    bytes += wrong == A_BYTE_MORE;
    if (wrong == GARBAGE)
        memset(self->frame, 0xa5, bytes);
    bool alone = wrong == NO_PAYLOAD || wrong == NO_TYPE || wrong == WRONG_TYPE;
    send_frame(&in->peer, bytes, alone ? NULL : result);
    mla_blob_drop(result);
    return true;
}

Test(client, wrong_replies_close)
{
    for (int kind = 0; kind < WRONGS; kind++) {
        start(wrong_reply, kind);
        struct mla_client_run run = make_run(5, 0, 3);
        enum mla_status status = mla_client_run(client, &run, NULL);
        cr_assert_eq(status, MLA_MALFORMED, "kind %d: %s", kind, mla_status_name(status));
        check_error(MLA_MALFORMED, MLA_INDEX_NONE);
        cr_assert_eq(y[0], -1, "kind %d", kind);
        check_closed();
        stop();
    }
}

/* OPEN and CLOSE are answered for another step; kind 1: with another model in a second HELLO. */
static bool other_step(struct fake *self, const struct mla_incoming *in)
{
    uint16_t type = self->request.header.type;
    if (type == MLA_HELLO && self->kind == 1 && self->seen[MLA_HELLO] > 1) {
        set_info(&self->reply.u.hello_reply);
        self->reply.u.hello_reply.dims.hidden *= 2;
    } else if (type == MLA_OPEN) {
        self->reply.u.open_reply = (struct mla_open_reply){.step = self->request.u.open.step + 1};
    } else if (type == MLA_CLOSE) {
        self->reply.u.close_reply =
            (struct mla_close_reply){.step = self->request.u.close.step + 1};
    } else {
        return false;
    }
    send_reply(&in->peer, type, self->request.header.request_id, NULL);
    return true;
}

Test(client, replies_for_something_else_close)
{
    const struct mla_open_entry entries[] = {{.sequence = 1, .start = 0, .tokens = 5}};
    start(other_step, 0);
    cr_assert_eq(mla_client_open(client, 1, entries, 1, NULL), MLA_MALFORMED);
    check_closed();
    stop();
    start(other_step, 0);
    cr_assert_eq(mla_client_close(client, 1, MLA_COMMIT), MLA_MALFORMED);
    check_closed();
    stop();
    start(other_step, 1);
    cr_assert_eq(mla_client_hello(client), MLA_MALFORMED);
    check_closed();
}

static bool twice_answered(struct fake *self, const struct mla_incoming *in)
{
    if (self->request.header.type != MLA_HELLO)
        answer(in);
    return false;
}

Test(client, a_second_reply_closes)
{
    struct mla_stats stats;
    start(twice_answered, 0);
    cr_assert_eq(mla_client_stats(client, &stats), MLA_OK);
    cr_assert_eq(mla_client_stats(client, &stats), MLA_MALFORMED);
    check_closed();
    stop();

    uint64_t request = 0;
    struct mla_completion completion;
    start(twice_answered, 0);
    cr_assert_eq(mla_client_submit_close(client, 1, MLA_COMMIT, &request), MLA_OK);
    cr_assert_eq(mla_client_poll(client, -1, &completion), MLA_OK);
    cr_assert_eq(mla_client_poll(client, -1, &completion), MLA_MALFORMED);
    check_closed();
}
