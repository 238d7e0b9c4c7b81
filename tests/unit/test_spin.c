/* comm/spin: this program is linked with it. */
#include "comm/channel.h"
#include "comm/spin.h"
#include "proto/clock.h"

#include <criterion/criterion.h>
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

TestSuite(spin, .timeout = 60);

/* A wait of a thread of this name, and what it took. */
struct wait {
    const char *name;
    int epoll, timeout_ms;
    int ready;
    struct epoll_event event;
    long sleeps;         /* how often it gave up its core because there was nothing to do */
    uint64_t took_ns;    /* by the clock, */
    uint64_t cpu_ns;     /* and of a core */
    uint64_t entered_ns; /* before the wait */
};

static uint64_t cpu_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static long sleeps(void)
{
    struct rusage usage;
    getrusage(RUSAGE_THREAD, &usage);
    return usage.ru_nvcsw;
}

static void *wait_once(void *argument)
{
    struct wait *wait = argument;
    pthread_setname_np(pthread_self(), wait->name);
    long slept = sleeps();
    uint64_t cpu = cpu_ns();
    uint64_t begin_ns = mla_now_ns();
    __atomic_store_n(&wait->entered_ns, begin_ns, __ATOMIC_RELEASE);
    wait->ready = epoll_wait(wait->epoll, &wait->event, 1, wait->timeout_ms);
    wait->took_ns = mla_now_ns() - begin_ns;
    wait->cpu_ns = cpu_ns() - cpu;
    wait->sleeps = sleeps() - slept;
    return NULL;
}

static void run(struct wait *wait, pthread_t *thread)
{
    cr_assert_eq(pthread_create(thread, NULL, wait_once, wait), 0);
}

static int watch(int fd)
{
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    cr_assert_geq(epoll, 0);
    cr_assert_eq(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event), 0);
    return epoll;
}

enum { TIMEOUT_MS = 60 };

Test(spin, others_sleep)
{
    static const char *const names[] = {"ZMQbg/IO/0", "5214/ZMQbg/Reap", "521/ZMQbg/IO/0",
                                        "worker"};
    int fd = eventfd(0, EFD_CLOEXEC);
    int epoll = watch(fd);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        struct wait wait = {.name = names[i], .epoll = epoll, .timeout_ms = TIMEOUT_MS};
        pthread_t thread;
        run(&wait, &thread);
        pthread_join(thread, NULL);
        cr_expect_eq(wait.ready, 0);
        cr_expect_geq(wait.took_ns, (TIMEOUT_MS - 1) * 1000000ull);
        cr_expect_gt(wait.sleeps, 0, "%s did not sleep", names[i]);
    }
    close(epoll);
    close(fd);
}

/* Until its time is over, on a core if there is one for it. */
Test(spin, zmq_threads_of_ours_do_not)
{
    struct wait wait = {.name = "5214/ZMQbg/IO/0", .timeout_ms = TIMEOUT_MS};
    int fd = eventfd(0, EFD_CLOEXEC);
    pthread_t thread;
    wait.epoll = watch(fd);
    run(&wait, &thread);
    pthread_join(thread, NULL);
    cr_expect_eq(wait.ready, 0);
    cr_expect_geq(wait.took_ns, (TIMEOUT_MS - 1) * 1000000ull);
    cr_expect_gt(wait.cpu_ns, 1000000u, "it has slept");
    close(wait.epoll);
    close(fd);
}

/* What comes ends the wait, whoever waits, also one without an end. */
Test(spin, is_woken)
{
    static const char *const names[] = {"5214/ZMQbg/IO/0", "ZMQbg/IO/0"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        struct wait wait = {.name = names[i], .timeout_ms = -1};
        int fd = eventfd(0, EFD_CLOEXEC);
        pthread_t thread;
        wait.epoll = watch(fd);
        run(&wait, &thread);
        while (__atomic_load_n(&wait.entered_ns, __ATOMIC_ACQUIRE) == 0) {}
        while (mla_now_ns() < wait.entered_ns + 5000000u) {}
        cr_expect_eq(eventfd_write(fd, 1), 0);
        pthread_join(thread, NULL);
        cr_expect_eq(wait.ready, 1);
        cr_expect_eq(wait.event.data.fd, fd);
        close(wait.epoll);
        close(fd);
    }
}

static void *wait_for_nothing(void *argument)
{
    struct epoll_event event;
    pthread_setname_np(pthread_self(), argument);
    errno = 0;
    cr_expect_eq(epoll_wait(-1, &event, 1, 1000), -1);
    cr_expect_eq(errno, EBADF);
    return NULL;
}

Test(spin, errors_are_the_kernels)
{
    static char names[][16] = {"5214/ZMQbg/IO/0", "other"};
    for (size_t i = 0; i < 2; i++) {
        pthread_t thread;
        cr_assert_eq(pthread_create(&thread, NULL, wait_for_nothing, names[i]), 0);
        pthread_join(thread, NULL);
    }
}

/* How many threads of this process have a name that begins so. */
static int count_threads(const char *prefix)
{
    DIR *tasks = opendir("/proc/self/task");
    int count = 0;
    cr_assert_not_null(tasks);
    for (struct dirent *task; (task = readdir(tasks));) {
        char path[300];
        char name[32] = "";
        snprintf(path, sizeof path, "/proc/self/task/%s/comm", task->d_name);
        FILE *file = fopen(path, "re");
        if (!file)
            continue;
        if (fgets(name, sizeof name, file))
            count += strncmp(name, prefix, strlen(prefix)) == 0;
        fclose(file);
    }
    closedir(tasks);
    return count;
}

/* Nobody's threads spin but those of a context that was told to; their names are what tells. */
Test(spin, follows_the_channel)
{
    const struct mla_channel_options kinds[] = {
        {.queue_max = 4, .frame_bytes_max = 4096},
        {.queue_max = 4, .frame_bytes_max = 4096, .spin = true},
    };
    for (size_t i = 0; i < 2; i++) {
        struct mla_channel_context *context = NULL;
        struct mla_channel *channel = NULL;
        cr_assert_eq(mla_channel_context_create(&context), MLA_OK);
        cr_assert_eq(mla_channel_bind(context, "tcp://127.0.0.1:*", &kinds[i], &channel), MLA_OK);
        /* A thread gives itself its name a moment after it was made. */
        uint64_t end_ns = mla_now_ns() + 5000000000u;
        while (count_threads(i == 1 ? MLA_SPIN_THREADS : "ZMQbg/IO") == 0 && mla_now_ns() < end_ns)
            sched_yield();
        cr_expect_eq(count_threads(MLA_SPIN_THREADS), (int)i);
        cr_expect_eq(count_threads("ZMQbg/IO"), (int)(1 - i));
        mla_channel_destroy(&channel);
        mla_channel_context_destroy(&context);
    }
}

/* What the loader finds for libraries, libzmq among them, is ours. */
Test(spin, goes_before_libc)
{
    void *libc = dlsym(RTLD_NEXT, "epoll_wait");
    cr_expect_eq(dlsym(RTLD_DEFAULT, "epoll_wait"), (void *)epoll_wait);
    cr_expect_neq(libc, (void *)epoll_wait);
    cr_expect_not_null(libc);
}
