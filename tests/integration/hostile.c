/* What a service must bear from its clients. hostile.sh runs one and tells us where. At the end
 * of each test a client that does everything right must be served, and nothing may be left of the
 * other. */
#include "tests/integration/hostile.h"
#include "tests/lib/zmtp.h"

TestSuite(hostile, .init = setup, .fini = teardown, .timeout = 120);

Test(hostile, garbage)
{
    for (int round = 0; round < 500; round++) {
        frame.bytes = 0;
        size_t bytes = frame_random(&frame) % 300;
        while (frame.bytes < bytes)
            frame_put(&frame, frame_random(&frame), 1);
        cr_assert_eq(ask_frame(NULL), MLA_MALFORMED, "%zu bytes", bytes);
    }
    expect_service();
}

Test(hostile, truncated_messages)
{
    hello();
    set_open();
    encode(MLA_OPEN, 0);
    for (size_t whole = frame.bytes, bytes = 0; bytes < whole; bytes++) {
        frame.bytes = bytes;
        cr_assert_eq(ask_frame(NULL), MLA_MALFORMED, "%zu of %zu bytes", bytes, whole);
    }
    expect_service();
}

/* Each byte of valid requests becomes another: a reply comes, whatever it says. */
Test(hostile, wrong_bytes)
{
    static const uint16_t types[] = {MLA_HELLO, MLA_OPEN, MLA_CLOSE, MLA_FREE, MLA_STATS};
    hello();
    for (size_t t = 0; t < sizeof types / sizeof *types; t++) {
        set_open();
        if (types[t] == MLA_CLOSE)
            request.u.close = (struct mla_close){.step = STEP, .action = MLA_COMMIT};
        if (types[t] == MLA_FREE)
            request.u.free = (struct mla_free){.count = 2, .sequences = {0, 1}};
        encode(types[t], 0);
        for (size_t i = 0; i < frame.bytes; i++) {
            uint8_t right = frame.data[i];
            frame.data[i] = (uint8_t)(right + 1 + frame_random(&frame) % 255);
            (void)ask_frame(NULL);
            frame.data[i] = right;
        }
    }
    expect_service();
}

Test(hostile, too_many_frames)
{
    uint8_t answer[1024];
    size_t bytes = 0;
    bool more = false;
    int fd = mla_zmtp_connect(endpoint);
    cr_assert_geq(fd, 0);
    for (uint32_t frames = 3; frames <= 3000; frames *= 10) {
        request.u.hello = (struct mla_hello){1, 1};
        encode(MLA_HELLO, 0);
        cr_assert(mla_zmtp_send(fd, frame.data, frame.bytes, true));
        for (uint32_t i = 1; i < frames; i++)
            cr_assert(mla_zmtp_send(fd, "more", 4, i + 1 < frames));
        cr_assert(mla_zmtp_receive(fd, answer, sizeof answer, &bytes, &more));
        cr_assert_eq(mla_message_decode(answer, bytes, &reply), MLA_OK);
        cr_expect_eq(reply.header.status, MLA_FRAMES);
        cr_expect_eq(reply.header.request_id, request_id);
    }
    close(fd);
    expect_service();
}

Test(hostile, counts_that_are_not_there)
{
    static const uint64_t giants[] = {4, 1025, 65537, INT32_MAX, UINT32_MAX - 1, UINT32_MAX};
    hello();
    for (size_t i = 0; i < sizeof giants / sizeof *giants; i++) {
        set_open();
        encode(MLA_OPEN, 0);
        frame_set(&frame, COUNT_AT, giants[i], 4);
        enum mla_status status = ask_frame(NULL);
        cr_expect(status == MLA_MALFORMED || status == MLA_LIMIT, "count %llu: %s",
                  (unsigned long long)giants[i], mla_status_name(status));
        frame_set(&frame, COUNT_AT, ROWS, 4);
        frame_set(&frame, BODY_AT, giants[i], 4);
        cr_expect_eq(ask_frame(NULL), MLA_MALFORMED);
        encode(MLA_STATS, 0);
        frame_set(&frame, PAYLOAD_AT, giants[i] << 32, 8);
        status = ask_frame(NULL);
        cr_expect(status == MLA_MALFORMED || status == MLA_FRAMES, "payload: %s",
                  mla_status_name(status));
    }
    expect_service();
}

Test(hostile, giant_steps)
{
    static const struct {
        uint32_t start, tokens;
    } shapes[] = {{0, UINT32_MAX}, {UINT32_MAX, 1}, {UINT32_MAX, UINT32_MAX}, {0, 65536},
                  {0, 0},          {1 << 20, 1},    {UINT32_MAX - 1, 1 << 13}};
    hello();
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        set_open();
        request.u.open.entries[ROWS - 1].start = shapes[i].start;
        request.u.open.entries[ROWS - 1].tokens = shapes[i].tokens;
        enum mla_status status = ask(MLA_OPEN);
        cr_expect(status == MLA_LIMIT || status == MLA_CONTEXT || status == MLA_COUNT,
                  "%u tokens at %u: %s", shapes[i].tokens, shapes[i].start,
                  mla_status_name(status));
        cr_expect_eq(reply.header.index, ROWS - 1);
    }
    request.u.open.count = MLA_STEP_SEQUENCES_MAX;
    for (uint32_t i = 0; i < MLA_STEP_SEQUENCES_MAX; i++)
        request.u.open.entries[i] = (struct mla_open_entry){.sequence = i, .tokens = UINT32_MAX};
    cr_expect_eq(ask(MLA_OPEN), MLA_LIMIT);
    for (uint32_t i = 0; i < MLA_STEP_SEQUENCES_MAX; i++)
        request.u.open.entries[i].tokens = 100;
    cr_expect_eq(ask(MLA_OPEN), MLA_LIMIT, "each has room, together they are too many");
    request.u.open.entries[0].tokens = 1;
    request.u.open.entries[1] = request.u.open.entries[0];
    request.u.open.count = 2;
    cr_expect_eq(ask(MLA_OPEN), MLA_SEQUENCE_REPEATED);
    cr_expect_eq(reply.header.index, 1);
    expect_service();
}

Test(hostile, wrong_payloads)
{
    hello();
    open_step();
    size_t right = run_bytes();
    set_run();
    cr_expect_eq(ask_run(right, 0), MLA_FRAMES, "announced and not sent");
    cr_expect_eq(ask_run(0, right), MLA_FRAMES, "sent and not announced");
    cr_expect_eq(ask_run(0, 0), MLA_LENGTH, "neither");
    cr_expect_eq(ask_run(right, right - 4), MLA_LENGTH, "less than announced");
    cr_expect_eq(ask_run(right, right + 4), MLA_LENGTH, "more than announced");
    cr_expect_eq(ask_run(right - 4, right - 4), MLA_LENGTH, "a value is missing");
    cr_expect_eq(ask_run(right + 4, right + 4), MLA_LENGTH, "a value too many");
    cr_expect_eq(ask_run(right - 4, right), MLA_LENGTH, "the right one, wrongly announced");
    cr_expect_eq(ask_run(UINT64_MAX, right), MLA_LIMIT);
    cr_expect_eq(ask_run(1 << 24, 1 << 24), MLA_LENGTH, "much too long");
    request.u.run.dtype = MLA_BF16;
    cr_expect_eq(ask_run(right, right), MLA_LENGTH, "bf16 takes half");
    request.u.run.dtype = MLA_F16;
    cr_expect_eq(ask_run(right, right), MLA_DTYPE);
    set_run();
    request.u.run.reply_dtype = UINT32_MAX;
    cr_expect_eq(ask_run(right, right), MLA_DTYPE);
    set_run();
    request.u.run.rows = ROWS + 1;
    cr_expect_eq(ask_run(right, right), MLA_COUNT);
    request.u.run.rows = UINT32_MAX;
    cr_expect_eq(ask_run(right, right), MLA_COUNT);
    set_run();
    request.u.run.hidden = UINT32_MAX;
    cr_expect_eq(ask_run(right, right), MLA_COUNT);
    set_run();
    request.u.run.layer = UINT32_MAX;
    cr_expect_eq(ask_run(right, right), MLA_LAYER);
    set_run();
    request.u.run.step = STEP + 1;
    cr_expect_eq(ask_run(right, right), MLA_STEP_UNKNOWN);
    set_run();
    cr_expect_eq(ask_run(right, right), MLA_OK, "the right one after all: %s", reply.u.sentence);
    expect_service();
}

/* Infinities and NaNs are the client's own, and stay with its step. */
Test(hostile, values_that_are_no_numbers)
{
    struct mla_blob *payload = NULL;
    hello();
    open_step();
    set_run();
    encode(MLA_RUN, run_bytes());
    payload = payload_of(run_bytes());
    memset(payload->data, 0xff, payload->bytes);
    cr_expect_eq(ask_frame(payload), MLA_OK, "%s", reply.u.sentence);
    mla_blob_drop(payload);
    request.u.close = (struct mla_close){.step = STEP, .action = MLA_COMMIT};
    cr_expect_eq(ask(MLA_CLOSE), MLA_OK);
    expect_service();
}

Test(hostile, other_versions)
{
    request.u.hello = (struct mla_hello){2, 9};
    cr_expect_eq(ask(MLA_HELLO), MLA_VERSION);
    request.u.hello = (struct mla_hello){0, 0};
    cr_expect_eq(ask(MLA_HELLO), MLA_VERSION);
    request.u.hello = (struct mla_hello){9, 2};
    cr_expect_eq(ask(MLA_HELLO), MLA_VERSION);
    request.u.hello = (struct mla_hello){1, 1};
    encode(MLA_HELLO, 0);
    frame_set(&frame, 4, 2, 2);
    cr_expect_eq(ask_frame(NULL), MLA_VERSION, "in the header");
    request.u.hello = (struct mla_hello){0, UINT32_MAX};
    cr_expect_eq(ask(MLA_HELLO), MLA_OK, "version 1 is among them");
    expect_service();
}

Test(hostile, nothing_before_hello)
{
    set_open();
    cr_expect_eq(ask(MLA_OPEN), MLA_HELLO_REQUIRED);
    cr_expect_eq(ask(MLA_STATS), MLA_HELLO_REQUIRED);
    request.u.close = (struct mla_close){.step = STEP, .action = MLA_ABORT};
    cr_expect_eq(ask(MLA_CLOSE), MLA_HELLO_REQUIRED);
    request.u.free = (struct mla_free){.count = 1};
    cr_expect_eq(ask(MLA_FREE), MLA_HELLO_REQUIRED);
    set_run();
    cr_expect_eq(ask_run(4000, 4000), MLA_HELLO_REQUIRED);
    expect_service();
}

Test(hostile, types_that_are_not_requests)
{
    static const uint16_t types[] = {0, 9, 31, 32, 40, 127, 128, 129, 135, 255, 256, 65535};
    hello();
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        encode(MLA_STATS, 0);
        frame_set(&frame, 6, types[i], 2);
        enum mla_status status = ask_frame(NULL);
        cr_expect(status == MLA_TYPE || status == MLA_MALFORMED, "type %u: %s", types[i],
                  mla_status_name(status));
    }
    expect_service();
}

Test(hostile, leaves_with_a_step_open)
{
    hello();
    open_step();
    expect_service();
}

/* The workers are at it while their client goes. */
Test(hostile, leaves_with_runs_in_flight)
{
    hello();
    set_open();
    for (uint32_t i = 0; i < ROWS; i++)
        request.u.open.entries[i].tokens = 200;
    cr_assert_eq(ask(MLA_OPEN), MLA_OK);
    size_t bytes = run_bytes() * 200;
    for (int i = 0; i < 20; i++) {
        struct mla_blob *payload = payload_of(bytes);
        set_run();
        request.u.run.rows = ROWS * 200;
        encode(MLA_RUN, bytes);
        send_message(frame.data, frame.bytes, payload);
        mla_blob_drop(payload);
    }
    (void)receive_reply(); /* so they have arrived */
    expect_service();
}

Test(hostile, messages_that_break_off)
{
    for (int i = 0; i < 20; i++) {
        int fd = mla_zmtp_connect(endpoint);
        cr_assert_geq(fd, 0);
        request.u.hello = (struct mla_hello){1, 1};
        encode(MLA_HELLO, 0);
        cr_assert(mla_zmtp_send(fd, frame.data, frame.bytes, false));
        cr_assert(mla_zmtp_send(fd, frame.data, frame.bytes, true));
        cr_assert(mla_zmtp_send_head(fd, 1000000, false));
        cr_assert(mla_zmtp_send_bytes(fd, "only these", 10));
        close(fd);
    }
    expect_service();
}

Test(hostile, frames_without_end)
{
    int fd = mla_zmtp_connect(endpoint);
    cr_assert(mla_zmtp_send_head(fd, (uint64_t)1 << 62, false));
    cr_expect(mla_zmtp_closed(fd), "the connection stays");
    close(fd);
    expect_service();
}

/* Half-open connections, and those that don't speak ZeroMQ. */
Test(hostile, connections_that_say_nothing)
{
    int fds[100];
    for (int i = 0; i < 100; i++) {
        fds[i] = mla_zmtp_dial(endpoint);
        cr_assert_geq(fds[i], 0);
        if (i % 2)
            cr_assert(mla_zmtp_send_bytes(fds[i], "GET / HTTP/1.1\r\n\r\n", 18));
    }
    hello();
    for (int i = 0; i < 100; i++)
        close(fds[i]);
    expect_service();
}

/* It asks and asks and never reads: its connection is cut off, and nobody else's. */
Test(hostile, a_client_that_does_not_read)
{
    int fd = mla_zmtp_connect(endpoint);
    request.u.hello = (struct mla_hello){1, 1};
    encode(MLA_HELLO, 0);
    cr_assert(mla_zmtp_send(fd, frame.data, frame.bytes, false));
    set_open();
    encode(MLA_OPEN, 0);
    cr_assert(mla_zmtp_send(fd, frame.data, frame.bytes, false));
    encode(MLA_STATS, 0);
    int sent = 0;
    while (sent < 100000 && mla_zmtp_send(fd, frame.data, frame.bytes, false))
        sent++;
    cr_expect_lt(sent, 100000, "it is never cut off");
    expect_service();
    close(fd);
}
