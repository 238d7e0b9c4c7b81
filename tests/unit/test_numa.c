/* Which processors are near a device, by a /sys of our own. */
#include "tests/lib/scratch.h"
#include "worker/numa.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

static char sysfs[256];

static void write_file(const char *folder, const char *name, const char *line)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s/%s", sysfs, folder, name);
    FILE *file = fopen(path, "w");
    cr_assert(file);
    fputs(line, file);
    fclose(file);
}

static void make_folder(const char *name)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s", sysfs, name);
    cr_assert_eq(mkdir(path, 0700), 0);
}

static void write_list(const char *device, const char *list)
{
    char folder[128];
    snprintf(folder, sizeof folder, "bus/pci/devices/%s", device);
    make_folder(folder);
    write_file(folder, "local_cpulist", list);
}

static void add_device(const char *device, const char *list, const char *vendor, const char *class)
{
    char folder[128];
    write_list(device, list);
    snprintf(folder, sizeof folder, "bus/pci/devices/%s", device);
    write_file(folder, "vendor", vendor);
    write_file(folder, "class", class);
}

/* Processors 2i and 2i + 1 are one core. */
static void make_siblings(int processors)
{
    make_folder("devices");
    make_folder("devices/system");
    make_folder("devices/system/cpu");
    for (int cpu = 0; cpu < processors; cpu++) {
        char folder[128];
        char list[32];
        snprintf(folder, sizeof folder, "devices/system/cpu/cpu%d", cpu);
        make_folder(folder);
        snprintf(folder, sizeof folder, "devices/system/cpu/cpu%d/topology", cpu);
        make_folder(folder);
        snprintf(list, sizeof list, "%d-%d\n", cpu / 2 * 2, cpu / 2 * 2 + 1);
        write_file(folder, "thread_siblings_list", list);
    }
}

static void setup(void)
{
    snprintf(sysfs, sizeof sysfs, "/tmp/mla-numa.XXXXXX");
    cr_assert(mkdtemp(sysfs));
    make_folder("bus");
    make_folder("bus/pci");
    make_folder("bus/pci/devices");
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

static cpu_set_t processors(int count)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    for (int cpu = 0; cpu < count; cpu++)
        CPU_SET(cpu, &set);
    return set;
}

static const char nvidia[] = "0x10de\n", display[] = "0x030200\n";

Test(numa, each_gpu_has_a_pair)
{
    static const char *const gpus[] = {"0000:3b:00.0", "0000:04:00.0", "0000:86:00.0"};
    cpu_set_t all = processors(24);
    bool taken[24] = {false};
    for (int i = 0; i < 3; i++)
        add_device(gpus[i], i < 2 ? "0-11\n" : "12-23\n", nvidia, display);
    add_device("0000:01:00.0", "0-11\n", nvidia, "0x040300\n"); /* its sound */
    add_device("0000:02:00.0", "0-11\n", "0x1a03\n", display);  /* somebody else's */
    write_list("0000:00:1f.0", "0-11\n");
    for (int i = 0; i < 3; i++) {
        int pair[2] = {-1, -1};
        cr_assert_eq(mla_numa_spin_pair(sysfs, gpus[i], &all, pair), MLA_OK);
        for (int k = 0; k < 2; k++) {
            cr_assert(pair[k] >= (i < 2 ? 0 : 12) && pair[k] < (i < 2 ? 12 : 24));
            cr_assert(!taken[pair[k]], "processor %d is taken twice", pair[k]);
            taken[pair[k]] = true;
        }
    }
    cr_expect(taken[23] && taken[22] && taken[11] && taken[10] && taken[9] && taken[8]);
}

Test(numa, a_pair_is_of_two_cores)
{
    cpu_set_t all = processors(16);
    cpu_set_t few = processors(7);
    int pair[2] = {-1, -1};
    add_device("0000:01:00.0", "0-15\n", nvidia, display);
    make_siblings(16);
    cr_assert_eq(mla_numa_spin_pair(sysfs, "0000:01:00.0", &all, pair), MLA_OK);
    cr_expect(pair[0] == 14 && pair[1] == 12, "%d, %d", pair[0], pair[1]);
    /* Of cores 0 to 3 two are half. */
    cr_assert_eq(mla_numa_spin_pair(sysfs, "0000:01:00.0", &few, pair), MLA_OK);
    cr_expect(pair[0] == 6 && pair[1] == 4, "%d, %d", pair[0], pair[1]);
}

Test(numa, too_few_cores_for_pairs)
{
    cpu_set_t all = processors(16);
    int pair[2] = {-1, -1};
    add_device("0000:01:00.0", "0-15\n", nvidia, display);
    add_device("0000:02:00.0", "0-2\n", nvidia, display);
    cr_expect_eq(mla_numa_spin_pair(sysfs, "0000:02:00.0", &all, pair), MLA_AGAIN);
    for (int i = 3; i < 7; i++) {
        char name[32];
        snprintf(name, sizeof name, "0000:%02x:00.0", i);
        add_device(name, "0-15\n", nvidia, display);
    }
    cr_expect_eq(mla_numa_spin_pair(sysfs, "0000:01:00.0", &all, pair), MLA_AGAIN);
    cr_expect_eq(mla_numa_spin_pair(sysfs, "0000:99:00.0", &all, pair), MLA_AGAIN);
    cr_expect_eq(mla_numa_spin_pair(sysfs, "", &all, pair), MLA_AGAIN);
    cr_expect(pair[0] == -1 && pair[1] == -1);
}
