#include "worker/numa.h"

#include <ctype.h>
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

enum mla_status mla_numa_processors(const char *sysfs, const char *bus_id, cpu_set_t *out)
{
    char name[BUS_ID_BYTES] = "";
    char path[PATH_BYTES];
    char list[LIST_BYTES] = "";
    cpu_set_t near;
    size_t length = strlen(bus_id);
    if (length == 0 || length >= sizeof name || strchr(bus_id, '/'))
        return MLA_AGAIN;
    for (size_t i = 0; i < length; i++)
        name[i] = (char)tolower((unsigned char)bus_id[i]);
    snprintf(path, sizeof path, "%s/bus/pci/devices/%s/local_cpulist", sysfs, name);
    FILE *file = fopen(path, "re");
    if (!file)
        return MLA_AGAIN;
    bool read = fgets(list, sizeof list, file) != NULL;
    fclose(file);
    if (!read || !parse_list(list, &near))
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
