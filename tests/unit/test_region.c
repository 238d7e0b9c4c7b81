/* Regions of shared memory: who gets one, and what nobody can do to it. */
#include "comm/region.h"
#include "comm/region_wire.h"

#include <criterion/criterion.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { REGIONS_MAX = 8, BYTES = 100000, TIMEOUT_MS = 5000 };

static struct mla_region_server *server;
static pthread_t thread;
static atomic_bool stopping;

static void *serve(void *unused)
{
    (void)unused;
    struct pollfd fd = {.fd = mla_region_server_fd(server), .events = POLLIN};
    while (!atomic_load(&stopping))
        if (poll(&fd, 1, 10) > 0)
            mla_region_server_turn(server);
    return NULL;
}

static void create(void)
{
    cr_assert_eq(mla_region_server_create(REGIONS_MAX, &server), MLA_OK);
}

/* Afterwards the server is the thread's. */
static void run(void)
{
    cr_assert_eq(pthread_create(&thread, NULL, serve, NULL), 0);
}

static void stop(void)
{
    atomic_store(&stopping, true);
    pthread_join(thread, NULL);
}

static int open_fds(void)
{
    int count = 0;
    DIR *folder = opendir("/proc/self/fd");
    while (readdir(folder))
        count++;
    closedir(folder);
    return count;
}

static int dial(const struct mla_grant *grant)
{
    struct sockaddr_un address;
    cr_assert(mla_region_address(grant->path, grant->path_bytes, &address));
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    cr_assert_geq(fd, 0);
    cr_assert_eq(connect(fd, (struct sockaddr *)&address, sizeof address), 0, "%s",
                 strerror(errno));
    return fd;
}

TestSuite(region, .timeout = 60);

Test(region, is_the_same_memory_for_all_who_have_the_grant)
{
    struct mla_grant grants[2];
    struct mla_region a = {0}, b = {0}, other = {0};
    create();
    cr_assert_eq(mla_region_server_add(server, 7, BYTES, &grants[0]), MLA_OK);
    cr_assert_eq(mla_region_server_add(server, 8, 1, &grants[1]), MLA_OK);
    cr_assert_neq(memcmp(grants[0].token, grants[1].token, sizeof grants[0].token), 0);
    run();
    cr_assert_eq(mla_region_map(&grants[0], TIMEOUT_MS, &a), MLA_OK);
    cr_assert_eq(mla_region_map(&grants[0], TIMEOUT_MS, &b), MLA_OK);
    cr_assert_eq(mla_region_map(&grants[1], TIMEOUT_MS, &other), MLA_OK);
    cr_assert_eq(a.number, 7);
    cr_assert_eq(a.bytes, BYTES);
    for (size_t i = 0; i < BYTES; i++)
        cr_assert_eq(a.data[i], 0);
    a.data[BYTES - 1] = 5;
    cr_assert_eq(b.data[BYTES - 1], 5);
    cr_assert_eq(other.data[0], 0);
    stop();
    mla_region_server_destroy(&server); /* mappings outlive it */
    a.data[0] = 6;
    cr_assert_eq(b.data[0], 6);
    mla_region_unmap(&a);
    mla_region_unmap(&a);
    mla_region_unmap(&b);
    mla_region_unmap(&other);
    cr_assert_null(a.data);
}

Test(region, nobody_can_change_its_size)
{
    int fd = mla_region_memfd(BYTES);
    cr_assert_geq(fd, 0);
    uint8_t *data = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    cr_assert_neq(data, MAP_FAILED);
    cr_expect(ftruncate(fd, 0) != 0 && errno == EPERM);
    cr_expect(ftruncate(fd, BYTES * 2L) != 0 && errno == EPERM);
    cr_expect(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE) != 0 && errno == EPERM);
    /* A hole can be made: it reads as zeros. */
    data[5000] = 1;
    cr_expect_eq(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, BYTES), 0);
    cr_expect_eq(data[5000], 0);
    cr_expect_eq(data[BYTES - 1], 0);
    close(fd);
}

Test(region, needs_the_right_token)
{
    struct mla_grant grant, wrong;
    struct mla_region region = {0};
    create();
    cr_assert_eq(mla_region_server_add(server, 7, BYTES, &grant), MLA_OK);
    run();
    for (uint32_t i = 0; i < MLA_REGION_TOKEN_BYTES; i++) {
        wrong = grant;
        wrong.token[i] ^= 1;
        cr_expect_eq(mla_region_map(&wrong, TIMEOUT_MS, &region), MLA_UNSUPPORTED);
    }
    wrong = grant;
    wrong.region = 8;
    cr_expect_eq(mla_region_map(&wrong, TIMEOUT_MS, &region), MLA_UNSUPPORTED);
    wrong = grant;
    wrong.bytes--; /* not as large as was said */
    cr_expect_eq(mla_region_map(&wrong, TIMEOUT_MS, &region), MLA_UNSUPPORTED);
    wrong.bytes = 0;
    cr_expect_eq(mla_region_map(&wrong, TIMEOUT_MS, &region), MLA_UNSUPPORTED);
    wrong.bytes = UINT64_MAX;
    cr_expect_eq(mla_region_map(&wrong, TIMEOUT_MS, &region), MLA_UNSUPPORTED);
    wrong = grant;
    wrong.path_bytes--;
    cr_expect_eq(mla_region_map(&wrong, TIMEOUT_MS, &region), MLA_UNSUPPORTED);
    wrong.path_bytes = 0;
    cr_expect_eq(mla_region_map(&wrong, TIMEOUT_MS, &region), MLA_UNSUPPORTED);
    wrong = grant;
    wrong.path[3] = 0;
    cr_expect_eq(mla_region_map(&wrong, TIMEOUT_MS, &region), MLA_UNSUPPORTED);
    cr_expect_null(region.data);
    cr_expect_eq(mla_region_map(&grant, TIMEOUT_MS, &region), MLA_OK);
    stop();
    mla_region_server_remove(server, 7);
    mla_region_server_remove(server, 7);
    atomic_store(&stopping, false);
    run();
    cr_expect_eq(mla_region_map(&grant, TIMEOUT_MS, &region), MLA_UNSUPPORTED, "it is gone");
    stop();
    mla_region_unmap(&region);
    mla_region_server_destroy(&server);
    cr_expect_eq(mla_region_map(&grant, TIMEOUT_MS, &region), MLA_UNSUPPORTED, "all are");
}

/* Connections that say nothing, too little, too much or something else, more than are kept; and
 * who speaks properly is served in between. */
Test(region, bears_any_connection)
{
    static const size_t sizes[] = {1, 8, 23, 25, 1000, 60000};
    static uint8_t garbage[60000];
    struct mla_grant grant;
    struct mla_region region = {0};
    int fds[100];
    create();
    cr_assert_eq(mla_region_server_add(server, 7, BYTES, &grant), MLA_OK);
    int before = open_fds();
    run();
    for (int round = 0; round < 5; round++) {
        for (int i = 0; i < 100; i++)
            fds[i] = dial(&grant);
        for (int i = 0; i < 100; i += 2) {
            memset(garbage, i + round, sizeof garbage);
            (void)send(fds[i], garbage, sizes[i / 2 % 6], MSG_NOSIGNAL);
        }
        cr_assert_eq(mla_region_map(&grant, TIMEOUT_MS, &region), MLA_OK, "round %d", round);
        mla_region_unmap(&region);
        for (int i = 0; i < 100; i++)
            close(fds[i]);
    }
    stop();
    for (int i = 0; i < 10; i++)
        mla_region_server_turn(server); /* it learns of those that ended */
    cr_expect_eq(open_fds(), before);
    mla_region_server_destroy(&server);
}

Test(region, gives_out_so_many_and_leaks_none)
{
    struct mla_grant grant;
    int before = open_fds();
    create();
    int with_server = open_fds();
    for (int round = 0; round < 300; round++) {
        for (uint64_t i = 1; i <= REGIONS_MAX; i++)
            cr_assert_eq(mla_region_server_add(server, i, BYTES, &grant), MLA_OK);
        cr_assert_eq(mla_region_server_add(server, 99, BYTES, &grant), MLA_AGAIN);
        cr_assert_eq(open_fds(), with_server + REGIONS_MAX);
        for (uint64_t i = 1; i <= REGIONS_MAX; i++)
            mla_region_server_remove(server, i);
        cr_assert_eq(open_fds(), with_server);
    }
    cr_assert_eq(mla_region_server_add(server, 1, BYTES, &grant), MLA_OK);
    mla_region_server_destroy(&server);
    cr_assert_eq(open_fds(), before);
    char path[MLA_REGION_PATH_BYTES_MAX + 1] = {0};
    memcpy(path, grant.path, grant.path_bytes);
    cr_assert_neq(access(path, F_OK), 0, "the socket is left");
    *strrchr(path, '/') = 0;
    cr_assert_neq(access(path, F_OK), 0, "its folder is left");
}

Test(region, its_socket_is_for_this_user_alone)
{
    struct mla_grant grant;
    struct stat stat_of;
    char path[MLA_REGION_PATH_BYTES_MAX + 1] = {0};
    create();
    cr_assert_eq(mla_region_server_add(server, 1, BYTES, &grant), MLA_OK);
    memcpy(path, grant.path, grant.path_bytes);
    *strrchr(path, '/') = 0;
    cr_assert_eq(stat(path, &stat_of), 0);
    cr_assert_eq(stat_of.st_mode & 0777, 0700);
    if (geteuid() == 0) { /* who gets past the folder is still asked who it is */
        run();
        pid_t child = fork();
        if (child == 0) {
            struct mla_region region;
            *strrchr(path, '/') = '/';
            (void)chmod(path, 0777);
            (void)setresuid(4711, 4711, 4711);
            _exit(mla_region_map(&grant, TIMEOUT_MS, &region) == MLA_OK ? 1 : 0);
        }
        int status = 1;
        waitpid(child, &status, 0);
        cr_expect_eq(status, 0);
        stop();
    }
    mla_region_server_destroy(&server);
}

/* A server that gives out what could be shrunk under us. */
static void *give_unsealed(void *listener)
{
    char byte = 1;
    char ask[64];
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct iovec data = {.iov_base = &byte, .iov_len = 1};
    struct msghdr message = {.msg_iov = &data,
                             .msg_iovlen = 1,
                             .msg_control = control.space,
                             .msg_controllen = sizeof control.space};
    int fd = memfd_create("unsealed", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    int peer = accept(*(int *)listener, NULL, NULL);
    cr_assert(fd >= 0 && peer >= 0 && ftruncate(fd, BYTES) == 0);
    cr_assert_eq(recv(peer, ask, sizeof ask, 0), (ssize_t)sizeof(struct mla_region_ask));
    control.header.cmsg_level = SOL_SOCKET;
    control.header.cmsg_type = SCM_RIGHTS;
    control.header.cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(&control.header), &fd, sizeof fd);
    cr_assert_eq(sendmsg(peer, &message, 0), 1);
    close(peer);
    close(fd);
    return NULL;
}

Test(region, takes_only_what_is_sealed)
{
    struct mla_grant grant = {.region = 1, .bytes = BYTES};
    struct mla_region region = {0};
    struct sockaddr_un address;
    char path[64];
    int length = snprintf(path, sizeof path, "/tmp/mla-test-region-%d", (int)getpid());
    grant.path_bytes = (uint32_t)length;
    memcpy(grant.path, path, grant.path_bytes);
    cr_assert(mla_region_address(path, grant.path_bytes, &address));
    int listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    cr_assert_eq(bind(listener, (struct sockaddr *)&address, sizeof address), 0);
    cr_assert_eq(listen(listener, 1), 0);
    int before = open_fds();
    cr_assert_eq(pthread_create(&thread, NULL, give_unsealed, &listener), 0);
    cr_expect_eq(mla_region_map(&grant, TIMEOUT_MS, &region), MLA_UNSUPPORTED);
    pthread_join(thread, NULL);
    cr_expect_eq(open_fds(), before);
    cr_expect_eq(mla_region_map(&grant, 50, &region), MLA_TIMEOUT, "nobody answers");
    close(listener);
    unlink(path);
}
