/* Messages that come in, also such as nobody should send. */
#include "tests/lib/zmtp.h"
#include "tests/unit/channel_pair.h"

static void send_frames(int fd, const char *head, uint32_t frames)
{
    cr_assert(mla_zmtp_send(fd, head, strlen(head), frames > 1));
    for (uint32_t i = 1; i < frames; i++)
        cr_assert(mla_zmtp_send(fd, "frame", 5, i + 1 < frames));
}

Test(channel, too_many_frames)
{
    static const uint32_t counts[] = {3, 4, 1000};
    listen_at(transports[0]);
    int fd = mla_zmtp_connect(mla_channel_endpoint(server));
    cr_assert_geq(fd, 0);
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        send_frames(fd, "many", counts[i]);
        send_frames(fd, "two", 2);
        struct mla_incoming incoming = receive(server);
        cr_expect_eq(incoming.frames, 3, "%u frames came as %u", counts[i], incoming.frames);
        cr_expect(is(&incoming, "many"));
        cr_expect_null(incoming.payload);
        incoming = receive(server);
        cr_expect_eq(incoming.frames, 2);
        cr_expect(is(&incoming, "two"));
        cr_assert_not_null(incoming.payload);
        cr_expect_eq(incoming.payload->bytes, 5);
        mla_blob_drop(incoming.payload);
    }
    close(fd);
}

/* The half that came is never seen. */
Test(channel, message_that_breaks_off)
{
    listen_at(transports[0]);
    int fd = mla_zmtp_connect(mla_channel_endpoint(server));
    cr_assert(mla_zmtp_send(fd, "half", 4, true));
    cr_assert(mla_zmtp_send_head(fd, 1000, false));
    cr_assert(mla_zmtp_send_bytes(fd, "only these", 10));
    close(fd);
    (void)gone(server);
    client = dial();
    (void)greet();
}

Test(channel, empty_frames)
{
    listen_at(transports[0]);
    int fd = mla_zmtp_connect(mla_channel_endpoint(server));
    send_frames(fd, "", 1);
    send_frames(fd, "", 2);
    struct mla_incoming incoming = receive(server);
    cr_expect(incoming.frames == 1 && incoming.head_bytes == 0 && !incoming.payload);
    incoming = receive(server);
    cr_expect(incoming.frames == 2 && incoming.head_bytes == 0 && incoming.payload);
    mla_blob_drop(incoming.payload);
    close(fd);
}

Test(channel, frame_over_the_limit)
{
    struct told told;
    told_init(&told, FRAME_BYTES_MAX + 1);
    listen_at(transports[0]);
    client = dial();
    struct mla_peer peer = greet();
    cr_assert_eq(mla_channel_send(client, NULL, "most", 4, &told.blob, 0, FRAME_BYTES_MAX), MLA_OK);
    struct mla_incoming incoming = receive(server);
    cr_assert_eq(incoming.payload->bytes, FRAME_BYTES_MAX);
    mla_blob_drop(incoming.payload);

    cr_assert_eq(mla_channel_send(client, NULL, "over", 4, &told.blob, 0, told.blob.bytes), MLA_OK);
    cr_expect_eq(gone(server), peer.fd);
    cr_expect_geq(gone(client), 0);
    cr_expect_eq(mla_channel_receive(server, &incoming), MLA_AGAIN, "the head came");
    /* The client comes back, as another peer. */
    struct mla_peer again = greet_again();
    cr_expect(again.size != peer.size || memcmp(again.id, peer.id, peer.size) != 0);
    mla_channel_destroy(&client);
    mla_blob_drop(&told.blob);
    wait_released(&told);
}

/* Nothing of the kind is allocated, so nothing waits for it. */
Test(channel, frame_that_announces_too_much)
{
    listen_at(transports[0]);
    int fd = mla_zmtp_connect(mla_channel_endpoint(server));
    cr_assert(mla_zmtp_send_head(fd, (uint64_t)1 << 62, false));
    cr_expect(mla_zmtp_closed(fd), "the connection stays");
    (void)gone(server);
    close(fd);
}

Test(channel, nothing_is_there)
{
    struct mla_incoming incoming = {.frames = 12345};
    int fd = 12345;
    listen_at(transports[0]);
    cr_assert_eq(mla_channel_connect(context, "tcp://127.0.0.1:1", &options, &client), MLA_OK);
    cr_expect_eq(mla_channel_receive(server, &incoming), MLA_AGAIN);
    cr_expect_eq(mla_channel_receive(client, &incoming), MLA_AGAIN);
    cr_expect_eq(mla_channel_gone(server, &fd, &gone_number), MLA_AGAIN);
    cr_expect(incoming.frames == 12345 && fd == 12345, "a result was touched");
    cr_expect_eq(mla_channel_send(client, NULL, "x", 1, NULL, 0, 0), MLA_AGAIN);
    struct mla_channel *both[] = {server, client};
    cr_expect_eq(mla_channel_wait(both, 2, 0), MLA_OK);
}
