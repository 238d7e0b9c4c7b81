/* proxy FROM TO: forwards connections from one unix socket to another, and stops on SIGUSR1 as a
 * network does that is cut: nothing arrives, nobody is told. SIGUSR2 heals it. */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { PAIRS_MAX = 64, CHUNK = 65536, LOOK_MS = 10 };

struct pair {
    int fds[2]; /* -1: free */
};

static volatile sig_atomic_t is_cut;

static void cut(int signal_number)
{
    is_cut = signal_number == SIGUSR1;
}

static int open_socket(const char *path, bool listens)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || strlen(path) >= sizeof address.sun_path)
        return -1;
    memcpy(address.sun_path, path, strlen(path));
    int rc = listens ? bind(fd, (struct sockaddr *)&address, sizeof address) || listen(fd, 64)
                     : connect(fd, (struct sockaddr *)&address, sizeof address);
    if (rc == 0)
        return fd;
    close(fd);
    return -1;
}

/* False at the end of the connection. */
static bool forward(int from, int to)
{
    static char chunk[CHUNK];
    ssize_t got = read(from, chunk, sizeof chunk);
    for (ssize_t done = 0; done < got;) {
        ssize_t n = write(to, chunk + done, (size_t)(got - done));
        if (n < 0 && errno != EINTR)
            return false;
        done += n > 0 ? n : 0;
    }
    return got > 0 || (got < 0 && errno == EINTR);
}

/* One side has ended; what it said before that still arrives. */
static void end_pair(struct pair *pair)
{
    for (int i = 0; i < 2; i++) {
        struct pollfd rest = {.fd = pair->fds[i], .events = POLLIN};
        while (poll(&rest, 1, 0) > 0 && forward(pair->fds[i], pair->fds[1 - i]))
            continue;
    }
    close(pair->fds[0]);
    close(pair->fds[1]);
    pair->fds[0] = pair->fds[1] = -1;
}

static void accept_one(int listener, struct pair *pairs, const char *to)
{
    int from_fd = accept(listener, NULL, NULL);
    int to_fd = from_fd < 0 ? -1 : open_socket(to, false);
    int i = 0;
    while (i < PAIRS_MAX && pairs[i].fds[0] >= 0)
        i++;
    if (to_fd >= 0 && i < PAIRS_MAX) {
        pairs[i] = (struct pair){{from_fd, to_fd}};
        return;
    }
    if (from_fd >= 0)
        close(from_fd);
    if (to_fd >= 0)
        close(to_fd);
}

static void turn(int listener, struct pair *pairs, const char *to)
{
    struct pollfd fds[1 + 2 * PAIRS_MAX] = {{.fd = listener, .events = POLLIN}};
    for (int i = 0; i < 2 * PAIRS_MAX; i++)
        fds[1 + i] = (struct pollfd){.fd = pairs[i / 2].fds[i % 2], .events = POLLIN};
    if (poll(fds, 1 + 2 * PAIRS_MAX, LOOK_MS) <= 0)
        return;
    for (int i = 0; i < 2 * PAIRS_MAX; i++) {
        struct pair *pair = &pairs[i / 2];
        if (fds[1 + i].revents && pair->fds[0] >= 0 &&
            !forward(pair->fds[i % 2], pair->fds[1 - i % 2]))
            end_pair(pair);
    }
    if (fds[0].revents)
        accept_one(listener, pairs, to);
}

int main(int argc, char **argv)
{
    static struct pair pairs[PAIRS_MAX];
    struct sigaction action = {.sa_handler = cut};
    sigemptyset(&action.sa_mask);
    sigaction(SIGUSR1, &action, NULL);
    sigaction(SIGUSR2, &action, NULL);
    signal(SIGPIPE, SIG_IGN);
    int listener = argc == 3 ? open_socket(argv[1], true) : -1;
    if (listener < 0) {
        fprintf(stderr, "usage: proxy FROM TO, paths of unix sockets\n");
        return 2;
    }
    for (int i = 0; i < PAIRS_MAX; i++)
        pairs[i].fds[0] = pairs[i].fds[1] = -1;
    for (;;) {
        if (is_cut)
            (void)poll(NULL, 0, LOOK_MS);
        else
            turn(listener, pairs, argv[2]);
    }
}
