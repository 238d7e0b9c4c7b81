/* Endpoints that can be had, and others. */
#include "tests/unit/channel_pair.h"

#include <sys/wait.h>

Test(channel, invalid_endpoints)
{
    static const char *const endpoints[] = {
        "",
        "nonsense",
        "nonsense://x",
        "inproc://x",
        "tcp://",
        "tcp://:1",
        "tcp://127.0.0.1",
        "tcp://127.0.0.1:",
        "tcp://127.0.0.1:x",
        "tcp://127.0.0.1:65536",
        "ipc://",
        "ipc://relative",
        ("ipc:///a/path/that/is/longer/than/the/one/hundred/and/seven/bytes/"
         "which/the/address/of/a/unix/socket/has/room/for/on/linux"),
    };
    struct mla_channel *none = NULL;
    for (size_t i = 0; i < sizeof endpoints / sizeof *endpoints; i++) {
        cr_expect_eq(mla_channel_bind(context, endpoints[i], &options, &none), MLA_ENDPOINT, "%s",
                     endpoints[i]);
        cr_expect_eq(mla_channel_connect(context, endpoints[i], &options, &none), MLA_ENDPOINT,
                     "%s", endpoints[i]);
        cr_expect_null(none);
    }
    cr_expect_eq(mla_channel_bind(context, "ipc:///no/such/folder/socket", &options, &none),
                 MLA_ENDPOINT);
    cr_expect_eq(mla_channel_bind(context, "tcp://192.0.2.1:5755", &options, &none), MLA_ENDPOINT,
                 "an address of another host");
}

/* Each may lie where the last one lay, which ZeroMQ is still about to end. */
Test(channel, one_after_the_other)
{
    listen_at(transports[0]);
    for (int i = 0; i < 100; i++) {
        client = dial();
        mla_channel_destroy(&client);
    }
}

static void endpoint_in_use(const char *endpoint)
{
    struct mla_channel *second = NULL;
    listen_at(endpoint);
    cr_expect_eq(mla_channel_bind(context, mla_channel_endpoint(server), &options, &second),
                 MLA_ENDPOINT);
    cr_expect_null(second);
    client = dial();
    (void)greet();
}

Test(channel, endpoint_in_use_tcp)
{
    endpoint_in_use(transports[0]);
}

Test(channel, endpoint_in_use_ipc)
{
    endpoint_in_use(transports[1]);
}

/* A socket that a killed server left in the file system is nobody's. */
Test(channel, endpoint_left_behind)
{
    pid_t child = fork();
    if (child == 0) {
        struct mla_channel_context *own = NULL;
        struct mla_channel *channel = NULL;
        bool bound = mla_channel_context_create(&own) == MLA_OK &&
                     mla_channel_bind(own, ipc, &options, &channel) == MLA_OK;
        _exit(bound ? 0 : 1);
    }
    int status = -1;
    cr_assert_eq(waitpid(child, &status, 0), child);
    cr_assert_eq(status, 0);
    cr_assert_eq(access(ipc + strlen("ipc://"), F_OK), 0);
    listen_at(ipc);
    client = dial();
    (void)greet();
}
