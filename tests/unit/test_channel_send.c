/* Messages of both ends, queues that are full, and payloads that are let go. */
#include "tests/unit/channel_pair.h"

static void exchange(const char *endpoint)
{
    struct told told;
    told_init(&told, 5000);
    listen_at(endpoint);
    client = dial();
    struct mla_peer peer = greet();

    cr_assert_eq(mla_channel_send(client, NULL, "run", 3, &told.blob, 100, 4900), MLA_OK);
    struct mla_incoming incoming = receive(server);
    cr_expect(is(&incoming, "run"));
    cr_expect_eq(incoming.frames, 2);
    cr_assert_eq(incoming.payload->bytes, 4900);
    cr_expect_arr_eq(incoming.payload->data, told.blob.data + 100, 4900);
    cr_expect_eq(incoming.peer.size, peer.size);
    cr_expect_arr_eq(incoming.peer.id, peer.id, peer.size);
    /* What came in goes out again as it is. */
    cr_assert_eq(mla_channel_send(server, &peer, "answer", 6, incoming.payload, 900, 4000), MLA_OK);
    mla_blob_drop(incoming.payload);
    incoming = receive(client);
    cr_expect(is(&incoming, "answer"));
    cr_expect_eq(incoming.frames, 2);
    cr_assert_eq(incoming.payload->bytes, 4000);
    cr_expect_arr_eq(incoming.payload->data, told.blob.data + 1000, 4000);
    mla_blob_drop(incoming.payload);

    cr_assert_eq(mla_channel_send(server, &peer, "empty", 5, &told.blob, 5000, 0), MLA_OK);
    incoming = receive(client);
    cr_expect_eq(incoming.frames, 2);
    cr_expect_eq(incoming.payload->bytes, 0);
    mla_blob_drop(incoming.payload);
    cr_expect_eq(mla_channel_receive(client, &incoming), MLA_AGAIN);
    cr_expect(!is_released(&told));
    mla_blob_drop(&told.blob);
    wait_released(&told);
}

Test(channel, exchange_over_tcp)
{
    exchange(transports[0]);
}

Test(channel, exchange_over_ipc)
{
    exchange(transports[1]);
}

Test(channel, spins)
{
    options.spin = true;
    exchange(transports[1]);
}

/* What was received stays until it is dropped. */
Test(channel, payloads_outlive_their_channel)
{
    struct told told;
    told_init(&told, 100000);
    listen_at(transports[0]);
    client = dial();
    (void)greet();
    cr_assert_eq(mla_channel_send(client, NULL, "run", 3, &told.blob, 0, 100000), MLA_OK);
    struct mla_blob *payload = receive(server).payload;
    mla_channel_destroy(&client);
    mla_channel_destroy(&server);
    cr_expect_arr_eq(payload->data, told.blob.data, 100000);
    mla_blob_drop(payload);
    mla_blob_drop(&told.blob);
    wait_released(&told);
}

/* Sends pieces of the blob until nothing on the way to the peer has room any more. */
static uint32_t fill(struct mla_channel *channel, const struct mla_peer *peer,
                     struct mla_blob *blob, size_t piece)
{
    uint32_t count = 0;
    for (int refused = 0; refused < 50;) {
        size_t at = count * piece % blob->bytes;
        enum mla_status status =
            mla_channel_send(channel, peer, &count, sizeof count, blob, at, piece);
        if (status == MLA_OK) {
            count++;
            refused = 0;
        } else {
            cr_assert_eq(status, MLA_AGAIN);
            refused++;
            cr_assert_eq(mla_channel_wait(&channel, 1, 10), MLA_OK);
        }
        cr_assert_lt(count, 500, "the queue has no end");
    }
    cr_assert_gt(count, QUEUE_MAX);
    return count;
}

/* All of them arrive, in order and whole. */
static void drain(struct mla_channel *channel, const struct mla_blob *blob, size_t piece,
                  uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        struct mla_incoming incoming = receive(channel);
        cr_assert_eq(incoming.head_bytes, sizeof i);
        cr_assert_eq(memcmp(incoming.head, &i, sizeof i), 0, "message %u is another", i);
        cr_assert_eq(incoming.frames, 2);
        cr_assert_eq(incoming.payload->bytes, piece);
        cr_assert_eq(memcmp(incoming.payload->data, blob->data + i * piece % blob->bytes, piece),
                     0);
        mla_blob_drop(incoming.payload);
    }
    struct mla_incoming none;
    cr_expect_eq(mla_channel_receive(channel, &none), MLA_AGAIN, "more came than was sent");
}

enum { BLOB_BYTES = 1 << 20, PIECE_BYTES = 1 << 17 };

static void full_queue(struct mla_channel *from, const struct mla_peer *peer,
                       struct mla_channel *to)
{
    struct told told;
    told_init(&told, BLOB_BYTES);
    uint32_t count = fill(from, peer, &told.blob, PIECE_BYTES);
    mla_blob_drop(&told.blob);
    cr_expect(!is_released(&told), "released before it was sent");
    cr_expect_geq(atomic_load(&told.blob.references), 1);
    drain(to, &told.blob, PIECE_BYTES, count);
    wait_released(&told);
    send_until(MLA_OK, from, peer, "again");
    struct mla_incoming incoming = receive(to);
    cr_expect(is(&incoming, "again"));
}

Test(channel, full_queue_of_a_client)
{
    listen_at(transports[0]);
    client = dial();
    (void)greet();
    full_queue(client, NULL, server);
}

Test(channel, full_queue_of_a_server)
{
    listen_at(transports[1]);
    client = dial();
    struct mla_peer peer = greet();
    full_queue(server, &peer, client);
}

/* One peer's full queue is nobody else's. */
Test(channel, full_queue_is_per_peer)
{
    struct told told;
    told_init(&told, BLOB_BYTES);
    listen_at(transports[1]);
    client = dial();
    struct mla_peer slow = greet();
    struct mla_channel *reader = client;
    client = dial();
    struct mla_peer quick = greet();
    (void)fill(server, &slow, &told.blob, PIECE_BYTES);
    cr_expect_eq(mla_channel_send(server, &quick, "quick", 5, NULL, 0, 0), MLA_OK);
    struct mla_incoming incoming = receive(client);
    cr_expect(is(&incoming, "quick"));
    mla_channel_destroy(&reader);
    mla_blob_drop(&told.blob);
    wait_released(&told);
}

/* What is not sent at the end is let go of, though the peer is still there. */
Test(channel, destroy_releases)
{
    struct told told;
    struct mla_channel_context *own = NULL;
    told_init(&told, BLOB_BYTES);
    listen_at(transports[0]);
    cr_assert_eq(mla_channel_context_create(&own), MLA_OK);
    cr_assert_eq(mla_channel_connect(own, mla_channel_endpoint(server), &options, &client), MLA_OK);
    (void)greet();
    (void)fill(client, NULL, &told.blob, PIECE_BYTES);
    mla_blob_drop(&told.blob);
    cr_expect(!is_released(&told), "released before it was sent");
    mla_channel_destroy(&client);
    mla_channel_context_destroy(&own);
    cr_expect(is_released(&told), "the context is gone and the payload still held");
    free(told.blob.data);
}

Test(channel, unknown_peer)
{
    struct mla_peer nobody = {.size = 5, .id = "nobod"};
    listen_at(transports[0]);
    cr_expect_eq(mla_channel_send(server, &nobody, "x", 1, NULL, 0, 0), MLA_CLOSED);
}
