/* What ends a wait. */
#include "tests/unit/channel_pair.h"

#include <signal.h>
#include <sys/time.h>

/* What a wait saw to be empty is not looked at again, and yet nothing is missed. */
Test(channel, waits_between_messages)
{
    struct mla_incoming incoming;
    listen_at(transports[1]);
    client = dial();
    (void)greet();
    for (int i = 0; i < 200; i++) {
        cr_assert_eq(mla_channel_receive(server, &incoming), MLA_AGAIN);
        cr_assert_eq(mla_channel_wait(&server, 1, 0), MLA_OK);
        send_until(MLA_OK, client, NULL, "next");
        incoming = receive(server);
        cr_assert(is(&incoming, "next"));
    }
}

Test(channel, a_descriptor_ends_a_wait)
{
    int ends[2];
    bool ready = true;
    listen_at(transports[0]);
    cr_assert_eq(pipe(ends), 0);
    cr_expect_eq(mla_channel_wait_fd(&server, 1, ends[0], 1, &ready), MLA_OK);
    cr_expect(!ready);
    cr_assert_eq(write(ends[1], "x", 1), 1);
    cr_expect_eq(mla_channel_wait_fd(&server, 1, ends[0], -1, &ready), MLA_OK);
    cr_expect(ready);
    close(ends[0]);
    close(ends[1]);
}

static void on_alarm(int signal_number)
{
    (void)signal_number;
}

Test(channel, signals_end_a_wait)
{
    struct itimerval every = {.it_interval.tv_usec = 10000, .it_value.tv_usec = 10000};
    struct sigaction action = {.sa_handler = on_alarm};
    listen_at(transports[0]);
    sigaction(SIGALRM, &action, NULL);
    setitimer(ITIMER_REAL, &every, NULL);
    cr_expect_eq(mla_channel_wait(&server, 1, -1), MLA_OK);
}
