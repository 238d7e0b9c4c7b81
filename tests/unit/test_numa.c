/* Which processors are near a device, by a /sys of our own. */
#include "tests/lib/scratch.h"
#include "worker/numa.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

static char sysfs[256];

static void write_list(const char *folder, const char *list)
{
    char path[512];
    snprintf(path, sizeof path, "%s/bus/pci/devices/%s", sysfs, folder);
    cr_assert_eq(mkdir(path, 0700), 0);
    snprintf(path, sizeof path, "%s/bus/pci/devices/%s/local_cpulist", sysfs, folder);
    FILE *file = fopen(path, "w");
    cr_assert(file);
    fputs(list, file);
    fclose(file);
}

static void setup(void)
{
    char path[512];
    snprintf(sysfs, sizeof sysfs, "/tmp/mla-numa.XXXXXX");
    cr_assert(mkdtemp(sysfs));
    const char *const folders[] = {"bus", "bus/pci", "bus/pci/devices"};
    for (int i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "%s/%s", sysfs, folders[i]);
        cr_assert_eq(mkdir(path, 0700), 0);
    }
}

static void teardown(void)
{
    mla_scratch_remove(sysfs);
}

TestSuite(numa, .init = setup, .fini = teardown);

static int near_cpus(const char *bus_id, int *first, int *last)
{
    cpu_set_t set;
    if (mla_numa_processors(sysfs, bus_id, &set) != MLA_OK)
        return 0;
    *first = CPU_SETSIZE;
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &set)) {
            *first = cpu < *first ? cpu : *first;
            *last = cpu;
        }
    return CPU_COUNT(&set);
}

Test(numa, lists_of_processors)
{
    int first = -1;
    int last = -1;
    write_list("0000:3b:00.0", "0-15,32-47\n");
    write_list("0001:00:1f.7", "5\n");
    /* CUDA writes upper case, the kernel lower. */
    cr_assert_eq(near_cpus("0000:3B:00.0", &first, &last), 32);
    cr_assert_eq(first, 0);
    cr_assert_eq(last, 47);
    cr_assert_eq(near_cpus("0001:00:1F.7", &first, &last), 1);
    cr_assert_eq(first, 5);
}

Test(numa, what_is_unknown)
{
    int first = -1;
    int last = -1;
    write_list("0000:01:00.0", "\n");
    write_list("0000:02:00.0", "none\n");
    write_list("0000:03:00.0", "3-\n");
    write_list("0000:04:00.0", "3;4\n");
    cr_assert_eq(near_cpus("0000:01:00.0", &first, &last), 0);
    cr_assert_eq(near_cpus("0000:02:00.0", &first, &last), 0);
    cr_assert_eq(near_cpus("0000:03:00.0", &first, &last), 0);
    cr_assert_eq(near_cpus("0000:04:00.0", &first, &last), 0);
    cr_assert_eq(near_cpus("0000:05:00.0", &first, &last), 0);
    cr_assert_eq(near_cpus("../../../etc", &first, &last), 0);
    cr_assert_eq(near_cpus("", &first, &last), 0);
}

Test(numa, stays_within_what_it_may_use)
{
    cpu_set_t before;
    cpu_set_t after;
    cr_assert_eq(sched_getaffinity(0, sizeof before, &before), 0);
    int most = 0;
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &before))
            most = cpu;
    char list[64];
    snprintf(list, sizeof list, "%d-%d\n", most, CPU_SETSIZE + 10);
    write_list("0000:01:00.0", list);
    write_list("0000:02:00.0", "1000-1023\n");
    mla_numa_bind(sysfs, "0000:02:00.0"); /* none of ours */
    cr_assert_eq(sched_getaffinity(0, sizeof after, &after), 0);
    cr_assert(CPU_EQUAL(&before, &after));
    mla_numa_bind(sysfs, "0000:01:00.0");
    cr_assert_eq(sched_getaffinity(0, sizeof after, &after), 0);
    cr_assert_eq(CPU_COUNT(&after), 1);
    cr_assert(CPU_ISSET(most, &after));
}
