/* Connections that end, of either end. */
#include "tests/lib/zmtp.h"
#include "tests/unit/channel_pair.h"

#include <netinet/in.h>
#include <sys/socket.h>

/* A server's send to a peer that left; the other peer stays. */
static void peer_leaves(const char *endpoint)
{
    listen_at(endpoint);
    client = dial();
    struct mla_peer stays = greet();
    struct mla_channel *other = client;
    client = dial();
    struct mla_peer leaves = greet();
    cr_expect_neq(stays.fd, leaves.fd);
    cr_expect_geq(leaves.fd, 0);
    for (int i = 0; i < 3; i++)
        cr_expect_eq(greet().fd, leaves.fd, "message %d came from another descriptor", i);
    mla_channel_destroy(&client);
    cr_expect_eq(gone(server), leaves.fd);
    send_until(MLA_CLOSED, server, &leaves, "late");
    client = other;
    cr_expect_eq(greet().fd, stays.fd);
    cr_expect_eq(mla_channel_send(server, &stays, "still", 5, NULL, 0, 0), MLA_OK);
    struct mla_incoming incoming = receive(client);
    cr_expect(is(&incoming, "still"));
    int fd = -1;
    cr_expect_eq(mla_channel_gone(server, &fd, &gone_number), MLA_AGAIN, "%d is told to be gone",
                 fd);
}

Test(channel, peer_leaves_tcp)
{
    peer_leaves(transports[0]);
}

Test(channel, peer_leaves_ipc)
{
    peer_leaves(transports[1]);
}

/* A connection that never spoke ends, and the next one at its descriptor speaks before anybody asks
 * for ends. */
static void silent_peer(const char *endpoint)
{
    listen_at(endpoint);
    struct mla_peer speaks;
    int fd = -1;
    for (int tries = 0; fd < 0 || fd != speaks.fd; tries++) {
        cr_assert_lt(tries, 1000, "no descriptor was used again");
        close(mla_zmtp_connect(mla_channel_endpoint(server))); /* silent */
        int again = mla_zmtp_connect(mla_channel_endpoint(server));
        cr_assert(mla_zmtp_send(again, "hello", 5, false));
        speaks = receive(server).peer;
        fd = gone(server); /* the silent one's */
        cr_assert_neq(gone_number, speaks.number, "the one that speaks is told to be gone");
        uint64_t number = 0;
        int none = -1;
        cr_assert_eq(mla_channel_gone(server, &none, &number), MLA_AGAIN);
        close(again);
        cr_assert_eq(gone(server), speaks.fd);
        cr_assert_eq(gone_number, speaks.number);
    }
}

Test(channel, silent_peer_tcp)
{
    silent_peer(transports[0]);
}

Test(channel, silent_peer_ipc)
{
    silent_peer(transports[1]);
}

/* Without a server nothing is queued; with the next one the client goes on. */
Test(channel, server_leaves)
{
    char endpoint[64];
    listen_at(transports[0]);
    snprintf(endpoint, sizeof endpoint, "%s", mla_channel_endpoint(server));
    client = dial();
    (void)greet();
    mla_channel_destroy(&server);
    cr_expect_geq(gone(client), 0);
    send_until(MLA_AGAIN, client, NULL, "nobody is there");
    listen_at(endpoint);
    (void)greet_again();
}

/* As when a server dies: its socket still takes a connection, and then goes. */
Test(channel, attempts_are_no_connections)
{
    enum { ATTEMPTS = 3 };
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t bytes = sizeof address;
    char endpoint[64];
    struct mla_channel_counts counts = {0};
    uint64_t number = 0;
    int fd = -1;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    cr_assert_eq(bind(listener, (struct sockaddr *)&address, sizeof address), 0);
    cr_assert_eq(listen(listener, 1), 0);
    cr_assert_eq(getsockname(listener, (struct sockaddr *)&address, &bytes), 0);
    snprintf(endpoint, sizeof endpoint, "tcp://127.0.0.1:%d", ntohs(address.sin_port));
    cr_assert_eq(mla_channel_connect(context, endpoint, &options, &client), MLA_OK);
    for (int i = 0; i < ATTEMPTS; i++)
        close(accept(listener, NULL, NULL));
    int64_t deadline_s = now_s() + PATIENCE_S;
    while (counts.handshakes < ATTEMPTS - 1) { /* the last end may be yet to come */
        cr_assert_lt(now_s(), deadline_s, "no attempt was told to fail");
        cr_assert_eq(mla_channel_wait(&client, 1, 100), MLA_OK);
        cr_assert_eq(mla_channel_gone(client, &fd, &number), MLA_AGAIN);
        mla_channel_counts(client, &counts);
    }
    close(listener);
}
