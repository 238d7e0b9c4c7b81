#include "worker/numa.h"

#include <ctype.h>
#include <dirent.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LIST_BYTES = 4096, PATH_BYTES = 512, BUS_ID_BYTES = 32 };

/* "0-15,32-47". False where it is something else, or nothing. */
static bool parse_list(const char *text, cpu_set_t *out)
{
    CPU_ZERO(out);
    while (isdigit((unsigned char)*text)) {
        char *end = NULL;
        unsigned long first = strtoul(text, &end, 10);
        unsigned long last = first;
        if (*end == '-') {
            if (!isdigit((unsigned char)end[1]))
                return false;
            last = strtoul(end + 1, &end, 10);
        }
        for (unsigned long cpu = first; cpu <= last && cpu < CPU_SETSIZE; cpu++)
            CPU_SET(cpu, out);
        text = *end == ',' ? end + 1 : end;
    }
    return (*text == '\n' || *text == '\0') && CPU_COUNT(out) > 0;
}

/* The first line of a file; false: there is none. */
static bool read_line(const char *path, char line[LIST_BYTES])
{
    FILE *file = fopen(path, "re");
    if (!file)
        return false;
    bool read = fgets(line, LIST_BYTES, file) != NULL;
    fclose(file);
    return read;
}

/* A file of a PCI device. */
static bool read_device(const char *sysfs, const char *name, const char *what,
                        char line[LIST_BYTES])
{
    char path[PATH_BYTES];
    snprintf(path, sizeof path, "%s/bus/pci/devices/%s/%s", sysfs, name, what);
    return read_line(path, line);
}

/* As the kernel spells it. False: nothing that can be a name there. */
static bool spell(const char *bus_id, char name[BUS_ID_BYTES])
{
    int length = snprintf(name, BUS_ID_BYTES, "%s", bus_id);
    if (length <= 0 || length >= BUS_ID_BYTES || strchr(name, '/'))
        return false;
    for (char *c = name; *c; c++)
        *c = (char)tolower((unsigned char)*c);
    return true;
}

enum mla_status mla_numa_processors(const char *sysfs, const char *bus_id, cpu_set_t *out)
{
    char name[BUS_ID_BYTES];
    char list[LIST_BYTES];
    cpu_set_t near;
    if (!spell(bus_id, name) || !read_device(sysfs, name, "local_cpulist", list) ||
        !parse_list(list, &near))
        return MLA_AGAIN;
    *out = near;
    return MLA_OK;
}

void mla_numa_bind(const char *sysfs, const char *bus_id)
{
    cpu_set_t near;
    cpu_set_t allowed;
    if (mla_numa_processors(sysfs, bus_id, &near) != MLA_OK ||
        sched_getaffinity(0, sizeof allowed, &allowed) != 0)
        return;
    CPU_AND(&near, &near, &allowed);
    if (CPU_COUNT(&near) == 0 || CPU_EQUAL(&near, &allowed))
        return;
    if (sched_setaffinity(0, sizeof near, &near) == 0)
        fprintf(stderr, "GPU %s: on the %d processors near it, of %d\n", bus_id, CPU_COUNT(&near),
                CPU_COUNT(&allowed));
}

/* Of NVIDIA's devices with a display controller's class. */
static bool is_gpu(const char *sysfs, const char *name)
{
    char line[LIST_BYTES];
    return read_device(sysfs, name, "vendor", line) && strncmp(line, "0x10de", 6) == 0 &&
           read_device(sysfs, name, "class", line) && strncmp(line, "0x03", 4) == 0;
}

/* How many GPUs have the same processors near them, and how many of those come before `own`. Also
 * those that this process can't use: others may. */
static int count_gpus(const char *sysfs, const char *own, const cpu_set_t *near, int *before)
{
    char path[PATH_BYTES];
    int count = 0;
    *before = 0;
    snprintf(path, sizeof path, "%s/bus/pci/devices", sysfs);
    DIR *devices = opendir(path);
    if (!devices)
        return 0;
    for (struct dirent *device; (device = readdir(devices));) {
        cpu_set_t its;
        if (device->d_name[0] == '.' || !is_gpu(sysfs, device->d_name) ||
            mla_numa_processors(sysfs, device->d_name, &its) != MLA_OK || !CPU_EQUAL(&its, near))
            continue;
        count++;
        *before += strcmp(device->d_name, own) < 0;
    }
    closedir(devices);
    return count;
}

/* Leaves one processor of each core. */
static void keep_cores(const char *sysfs, cpu_set_t *set)
{
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        char path[PATH_BYTES];
        char list[LIST_BYTES];
        cpu_set_t siblings;
        snprintf(path, sizeof path, "%s/devices/system/cpu/cpu%d/topology/thread_siblings_list",
                 sysfs, cpu);
        if (!CPU_ISSET(cpu, set) || !read_line(path, list) || !parse_list(list, &siblings))
            continue;
        CPU_CLR(cpu, &siblings);
        for (int other = 0; other < CPU_SETSIZE; other++)
            if (CPU_ISSET(other, &siblings))
                CPU_CLR(other, set);
    }
}

/* The last but `skip`, or -1. */
static int last_but(const cpu_set_t *set, int skip)
{
    for (int cpu = CPU_SETSIZE - 1; cpu >= 0; cpu--)
        if (CPU_ISSET(cpu, set) && skip-- == 0)
            return cpu;
    return -1;
}

enum mla_status mla_numa_spin_pair(const char *sysfs, const char *bus_id, const cpu_set_t *allowed,
                                   int out[2])
{
    char name[BUS_ID_BYTES];
    cpu_set_t near;
    int before = 0;
    if (!spell(bus_id, name) || mla_numa_processors(sysfs, name, &near) != MLA_OK)
        return MLA_AGAIN;
    int gpus = count_gpus(sysfs, name, &near, &before);
    CPU_AND(&near, &near, allowed);
    keep_cores(sysfs, &near);
    if (gpus == 0 || 4 * gpus > CPU_COUNT(&near))
        return MLA_AGAIN;
    out[0] = last_but(&near, 2 * before);
    out[1] = last_but(&near, 2 * before + 1);
    return MLA_OK;
}
