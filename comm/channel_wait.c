/* Waiting for whatever happens at several channels. */
#include "comm/channel_state.h"
#include "comm/connections.h"
#include "proto/clock.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <sched.h>

enum { SPIN_MS = 10 };

static bool has_input(void *socket)
{
    int events = 0;
    size_t bytes = sizeof events;
    return zmq_getsockopt(socket, ZMQ_EVENTS, &events, &bytes) != 0 || (events & ZMQ_POLLIN);
}

static int wake_fd(void *socket)
{
    int fd = -1;
    size_t bytes = sizeof fd;
    (void)zmq_getsockopt(socket, ZMQ_FD, &fd, &bytes);
    return fd;
}

/* Others may need the core, ZeroMQ's threads before all. */
static int poll_spinning(struct pollfd *fds, nfds_t count, int timeout_ms)
{
    int most_ms = timeout_ms < 0 || timeout_ms > SPIN_MS ? SPIN_MS : timeout_ms;
    uint64_t end_ns = mla_now_ns() + (uint64_t)most_ms * 1000000u;
    int ready = 0;
    while ((ready = poll(fds, count, 0)) == 0 && mla_now_ns() < end_ns)
        sched_yield();
    return ready;
}

/* zmq_poll does the same with several times as many system calls. */
enum mla_status mla_channel_wait_fd(struct mla_channel *const *channels, size_t count, int fd,
                                    int timeout_ms, bool *fd_ready)
{
    assert(count >= 1 && count <= CHANNELS_MAX);
    struct pollfd fds[2 * CHANNELS_MAX + 1];
    struct look *looks[2 * CHANNELS_MAX];
    nfds_t used = 0;
    bool ready = false;
    for (size_t i = 0; i < count; i++) {
        struct mla_channel *channel = channels[i];
        void *const sockets[] = {channel->socket, channel->monitor};
        looks[used] = &channel->messages;
        looks[used + 1] = &channel->news;
        ready = ready || (channel->server && mla_connections_has_ended(channel->connections));
        for (size_t k = 0; k < 2; k++, used++) {
            looks[used]->nothing = false;
            if (!ready && !looks[used]->drained) {
                ready = has_input(sockets[k]);
                looks[used]->drained = !ready;
            }
            fds[used] = (struct pollfd){.fd = wake_fd(sockets[k]), .events = POLLIN};
        }
    }
    fds[used] = (struct pollfd){.fd = fd, .events = POLLIN}; /* poll ignores -1 */
    if (ready)
        timeout_ms = 0;
    int told = channels[0]->spin ? poll_spinning(fds, used + 1, timeout_ms)
                                 : poll(fds, used + 1, timeout_ms);
    if (told < 0)
        return errno == EINTR ? MLA_OK : MLA_CLOSED;
    for (nfds_t i = 0; i < used; i++) {
        looks[i]->drained = looks[i]->drained && fds[i].revents == 0;
        looks[i]->nothing = looks[i]->drained;
    }
    for (nfds_t i = 0; i < used; i += 2) /* an end may have come with last messages */
        looks[i]->nothing = looks[i]->nothing && looks[i + 1]->nothing;
    if (fd_ready)
        *fd_ready = fds[used].revents != 0;
    return MLA_OK;
}

enum mla_status mla_channel_wait(struct mla_channel *const *channels, size_t count, int timeout_ms)
{
    return mla_channel_wait_fd(channels, count, -1, timeout_ms, NULL);
}
