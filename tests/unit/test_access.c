/* Channels with keys: who gets in, and as whom. And which endpoints may be listened at. */
#include "comm/channel.h"
#include "coordinator/access.h"
#include "proto/clock.h"
#include "tests/lib/scratch.h"
#include "tests/lib/zmtp.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char folder[64], ours[80], theirs[80];
static struct mla_channel_context *context;
static struct mla_channel *server;
static struct mla_key_list clients, workers;

static const struct mla_keys *read_keys(const char *at, const char *role)
{
    static struct mla_keys keys[8];
    static int used;
    cr_assert_eq(mla_keys_read(at, role, &keys[used]), MLA_OK);
    return &keys[used++];
}

static void setup(void)
{
    snprintf(folder, sizeof folder, "/tmp/mla-access.XXXXXX");
    cr_assert_not_null(mkdtemp(folder));
    snprintf(ours, sizeof ours, "%s/ours", folder);
    snprintf(theirs, sizeof theirs, "%s/theirs", folder);
    cr_assert_eq(mla_keys_make(ours), MLA_OK);
    cr_assert_eq(mla_keys_make(theirs), MLA_OK);
    cr_assert_eq(mla_key_list_read(ours, "clients", &clients), MLA_OK);
    cr_assert_eq(mla_key_list_read(ours, "workers", &workers), MLA_OK);
    cr_assert_eq(mla_channel_context_create(&context), MLA_OK);
    const struct mla_channel_options options = {.queue_max = 16,
                                                .frame_bytes_max = 1 << 20,
                                                .keys = read_keys(ours, "server"),
                                                .allowed = &clients};
    cr_assert_eq(mla_channel_bind(context, "tcp://127.0.0.1:*", &options, &server), MLA_OK);
}

static void teardown(void)
{
    mla_channel_destroy(&server);
    mla_channel_context_destroy(&context);
    cr_assert_eq(mla_scratch_remove(folder), 0);
}

TestSuite(access, .init = setup, .fini = teardown, .timeout = 30);

static struct mla_channel *dial(const char *endpoint, const struct mla_keys *keys)
{
    struct mla_channel *channel = NULL;
    const struct mla_channel_options options = {
        .queue_max = 16, .frame_bytes_max = 1 << 20, .keys = keys};
    cr_assert_eq(mla_channel_connect(context, endpoint, &options, &channel), MLA_OK);
    return channel;
}

/* Tries for so long to bring a message to `to`; true when it is there. */
static bool arrives(struct mla_channel *from, struct mla_channel *to, int patience_ms,
                    struct mla_incoming *incoming)
{
    uint64_t deadline_ns = mla_now_ns() + (uint64_t)patience_ms * 1000000u;
    bool sent = false;
    int fd = -1;
    uint64_t number = 0;
    while (mla_now_ns() < deadline_ns) {
        if (!sent)
            sent = mla_channel_send(from, NULL, "hello", 5, NULL, 0, 0) == MLA_OK;
        while (mla_channel_gone(to, &fd, &number) == MLA_OK) {}
        if (mla_channel_receive(to, incoming) == MLA_OK)
            return true;
        (void)mla_channel_wait(&to, 1, 10);
    }
    return false;
}

/* How many were refused, once it is more than before. */
static uint64_t refused(struct mla_channel *channel, uint64_t before, bool by_key)
{
    uint64_t deadline_ns = mla_now_ns() + 1000000000u;
    struct mla_channel_counts counts = {0};
    int fd = -1;
    uint64_t number = 0;
    do {
        (void)mla_channel_wait(&channel, 1, 10);
        while (mla_channel_gone(channel, &fd, &number) == MLA_OK) {}
        mla_channel_counts(channel, &counts);
    } while ((by_key ? counts.refused : counts.handshakes) <= before && mla_now_ns() < deadline_ns);
    return by_key ? counts.refused : counts.handshakes;
}

Test(access, the_right_key)
{
    struct mla_incoming incoming;
    struct mla_channel *client = dial(mla_channel_endpoint(server), read_keys(ours, "client"));
    cr_assert(arrives(client, server, 5000, &incoming));
    cr_expect_eq(incoming.head_bytes, 5);
    cr_expect_arr_eq(incoming.head, "hello", 5);
    cr_expect_str_eq(incoming.peer.user, "client");
    cr_assert_eq(mla_channel_send(server, &incoming.peer, "back", 4, NULL, 0, 0), MLA_OK);
    cr_assert_eq(mla_channel_wait(&client, 1, 5000), MLA_OK);
    cr_assert_eq(mla_channel_receive(client, &incoming), MLA_OK);
    cr_expect_arr_eq(incoming.head, "back", 4);
    mla_channel_destroy(&client);
}

/* It knows the server, and its own key is not in the list. */
Test(access, a_key_that_is_not_allowed)
{
    struct mla_incoming incoming;
    struct mla_keys keys = *read_keys(theirs, "client");
    memcpy(keys.server, read_keys(ours, "client")->server, sizeof keys.server);
    struct mla_channel *client = dial(mla_channel_endpoint(server), &keys);
    cr_expect_geq(refused(server, 0, true), 1);
    cr_expect_geq(refused(client, 0, true), 1, "the client is told");
    cr_expect(!arrives(client, server, 300, &incoming));
    mla_channel_destroy(&client);
}

Test(access, a_key_of_another_endpoint)
{
    struct mla_incoming incoming;
    struct mla_channel *second = NULL;
    const struct mla_channel_options options = {.queue_max = 16,
                                                .frame_bytes_max = 1 << 20,
                                                .keys = read_keys(ours, "server"),
                                                .allowed = &workers};
    cr_assert_eq(mla_channel_bind(context, "tcp://127.0.0.1:*", &options, &second), MLA_OK);
    struct mla_channel *worker = dial(mla_channel_endpoint(server), read_keys(ours, "worker"));
    cr_expect_geq(refused(server, 0, true), 1);
    cr_expect(!arrives(worker, server, 300, &incoming));
    mla_channel_destroy(&worker);
    worker = dial(mla_channel_endpoint(second), read_keys(ours, "worker"));
    cr_assert(arrives(worker, second, 5000, &incoming));
    cr_expect_str_eq(incoming.peer.user, "worker");
    mla_channel_destroy(&worker);
    mla_channel_destroy(&second);
}

/* Another service's keys don't even begin: the client takes this one for a stranger. */
Test(access, another_servers_keys)
{
    struct mla_incoming incoming;
    struct mla_channel *client = dial(mla_channel_endpoint(server), read_keys(theirs, "client"));
    cr_expect_geq(refused(server, 0, false), 1);
    cr_expect(!arrives(client, server, 300, &incoming));
    mla_channel_destroy(&client);
}

Test(access, no_key)
{
    struct mla_incoming incoming;
    struct mla_channel *client = dial(mla_channel_endpoint(server), NULL);
    cr_expect_geq(refused(server, 0, false), 1);
    cr_expect(!arrives(client, server, 300, &incoming));
    mla_channel_destroy(&client);
}

/* A peer that says it needs no security, and sends its message all the same. */
Test(access, bytes_of_the_unauthorised)
{
    struct mla_incoming incoming;
    int fd = mla_zmtp_dial(mla_channel_endpoint(server));
    static const uint8_t greeting[64] = {0xff, [9] = 0x7f, 3, 0, 'N', 'U', 'L', 'L'};
    static const char ready[] = "\x04\x1c\x05READY\x0bSocket-Type\0\0\0\x06"
                                "DEALER";
    cr_assert_geq(fd, 0);
    (void)mla_zmtp_send_bytes(fd, greeting, sizeof greeting);
    (void)mla_zmtp_send_bytes(fd, ready, sizeof ready - 1);
    for (int i = 0; i < 10; i++)
        (void)mla_zmtp_send(fd, "hello", 5, false);
    cr_expect(mla_zmtp_closed(fd));
    cr_expect_geq(refused(server, 0, false), 1);
    cr_expect_eq(mla_channel_receive(server, &incoming), MLA_AGAIN);
    close(fd);
}

Test(access, endpoints)
{
    char open[96];
    char private[96];
    char below[120];
    struct mla_access access;
    snprintf(open, sizeof open, "%s/open", folder);
    cr_assert_eq(chmod(folder, 0755), 0);
    cr_assert_eq(mkdir(open, 0755), 0);
    snprintf(open, sizeof open, "ipc://%s/open/socket", folder);
    snprintf(private, sizeof private, "ipc://%s/socket", ours);
    snprintf(below, sizeof below, "%s/below", ours);
    cr_assert_eq(mkdir(below, 0755), 0);
    snprintf(below, sizeof below, "ipc://%s/below/socket", ours);
    const struct {
        const char *endpoint;
        bool reachable; /* by other hosts or users */
    } cases[] = {
        {"tcp://127.0.0.1:5755", false},
        {"tcp://127.1.2.3:*", false},
        {"tcp://[::1]:5755", false},
        {"tcp://0.0.0.0:5755", true},
        {"tcp://*:5755", true},
        {"tcp://[::]:5755", true},
        {"tcp://10.0.0.1:5755", true},
        {"tcp://eth0:5755", true},
        {"tcp://127.0.0.1.example.org:5755", true},
        {"tcp://localhost:5755", true}, /* whatever that resolves to */
        {open, true},
        {private, false},
        {below, false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *endpoint = cases[i].endpoint;
        bool is_tcp = strncmp(endpoint, "tcp", 3) == 0;
        cr_assert_eq(mla_access_init(&access, NULL, false), MLA_OK);
        cr_expect_eq(mla_access_check(&access, endpoint), cases[i].reachable ? MLA_OPTION : MLA_OK,
                     "%s", endpoint);
        cr_expect_null(mla_access_keys(&access, endpoint));
        cr_assert_eq(mla_access_init(&access, NULL, true), MLA_OK);
        cr_expect_eq(mla_access_check(&access, endpoint), MLA_OK, "%s", endpoint);
        cr_assert_eq(mla_access_init(&access, ours, false), MLA_OK);
        cr_expect_eq(mla_access_check(&access, endpoint),
                     cases[i].reachable && !is_tcp ? MLA_OPTION : MLA_OK, "%s", endpoint);
        cr_expect_eq(mla_access_keys(&access, endpoint) != NULL, is_tcp, "%s", endpoint);
    }
    cr_expect_eq(mla_access_init(&access, folder, false), MLA_OPTION, "no keys there");
}
