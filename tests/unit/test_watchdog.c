#include "worker/watchdog.h"

#include "proto/clock.h"

#include <criterion/criterion.h>
#include <time.h>

#define MS 1000000ull

static struct mla_watch watch;
static struct mla_watchdog *watchdog;

static void sleep_ms(int ms)
{
    nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L}, NULL);
}

static void start(uint64_t stall_ms)
{
    watch.stall_ns = stall_ms * MS;
    cr_assert_eq(mla_watchdog_start(&watch, &watchdog), MLA_OK);
}

/* Long enough for it to have looked several times. */
static void let_it_look(void)
{
    sleep_ms(400);
}

Test(watchdog, ends_a_microbatch_that_does_not_end, .exit_code = 8, .timeout = 20)
{
    start(100);
    watch.begun_ns = mla_now_ns();
    sleep_ms(10000);
}

Test(watchdog, ends_a_rank_that_does_not_follow, .exit_code = 8, .timeout = 20)
{
    start(0);
    watch.told_ns = mla_now_ns();
    sleep_ms(10000);
}

Test(watchdog, leaves_a_rank_that_rests_or_loads_alone)
{
    start(100);
    let_it_look();
    mla_watchdog_stop(&watchdog);
}

Test(watchdog, has_no_limit_before_it_was_told_one)
{
    start(0);
    watch.begun_ns = 1;
    let_it_look();
    mla_watchdog_stop(&watchdog);
}

Test(watchdog, counts_anew_with_every_microbatch)
{
    start(200);
    for (int i = 0; i < 10; i++) {
        watch.begun_ns = mla_now_ns();
        sleep_ms(50);
    }
    mla_watchdog_stop(&watchdog);
}

Test(watchdog, leaves_a_rank_that_follows_its_time)
{
    start(0);
    watch.told_ns = mla_now_ns() - 5000ull * MS;
    watch.following = true;
    let_it_look();
    mla_watchdog_stop(&watchdog);
}
