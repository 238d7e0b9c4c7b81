#include "tests/bench/cpu_use.h"

#include "proto/limits.h"
#include "proto/parse.h"

#include <dirent.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* What `pid` is; false for other programs, and for what is gone. */
static bool role_of(int pid, enum mla_cpu_role *role)
{
    char path[64];
    char name[32] = {0};
    snprintf(path, sizeof path, "/proc/%d/comm", pid);
    FILE *file = fopen(path, "re");
    if (!file)
        return false;
    bool read = fgets(name, sizeof name, file) != NULL;
    fclose(file);
    name[strcspn(name, "\n")] = '\0';
    *role = strcmp(name, "mla-worker") == 0 ? MLA_CPU_WORKERS : MLA_CPU_COORDINATOR;
    return read && (*role == MLA_CPU_WORKERS || strcmp(name, "mla-coordinator") == 0);
}

static bool add(struct mla_cpu_use *use, int pid, enum mla_cpu_role role)
{
    if (use->count == MLA_CPU_PIDS_MAX)
        return false;
    use->processes[use->count].pid = pid;
    use->processes[use->count++].role = role;
    return true;
}

static bool add_named(const char *pids, struct mla_cpu_use *use, char *why)
{
    char text[16];
    for (const char *at = pids; at; at = strchr(at, ',') ? strchr(at, ',') + 1 : NULL) {
        uint64_t pid = 0;
        enum mla_cpu_role role;
        size_t length = strcspn(at, ",");
        snprintf(text, sizeof text, "%.*s", length < sizeof text ? (int)length : 0, at);
        if (mla_parse_number(text, 1, INT32_MAX, &pid) && role_of((int)pid, &role) &&
            add(use, (int)pid, role))
            continue;
        snprintf(why, MLA_SENTENCE_BYTES_MAX,
                 "'%.*s' is no process of a coordinator or a worker of this host",
                 length < sizeof text ? (int)length : (int)sizeof text, at);
        return false;
    }
    return true;
}

static bool add_all(struct mla_cpu_use *use, char *why)
{
    uint32_t roles[MLA_CPU_ROLES] = {0};
    DIR *processes = opendir("/proc");
    const struct dirent *entry;
    while (processes && (entry = readdir(processes))) {
        uint64_t pid = 0;
        enum mla_cpu_role role;
        if (mla_parse_number(entry->d_name, 1, INT32_MAX, &pid) && role_of((int)pid, &role) &&
            add(use, (int)pid, role))
            roles[role]++;
    }
    if (processes)
        closedir(processes);
    if (roles[MLA_CPU_COORDINATOR] == 1 && roles[MLA_CPU_WORKERS] > 0)
        return true;
    snprintf(why, MLA_SENTENCE_BYTES_MAX,
             "%" PRIu32 " mla-coordinator and %" PRIu32 " mla-worker run on this host: --pids says "
             "which to look at",
             roles[MLA_CPU_COORDINATOR], roles[MLA_CPU_WORKERS]);
    return false;
}

bool mla_cpu_use_find(const char *pids, struct mla_cpu_use *out, char *why)
{
    struct mla_cpu_use use = {0};
    if (!(pids ? add_named(pids, &use, why) : add_all(&use, why)))
        return false;
    (void)add(&use, (int)getpid(), MLA_CPU_CLIENT);
    *out = use;
    return true;
}

/* Clock ticks of user and system time: the 14th and 15th of the fields, of which the second, the
 * name, may contain anything. */
static uint64_t ticks_of(int pid)
{
    char path[64];
    char line[1024];
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    FILE *file = fopen(path, "re");
    if (!file)
        return 0;
    const char *at = fgets(line, sizeof line, file) ? strrchr(line, ')') : NULL;
    fclose(file);
    for (int field = 2; at && field < 14; field++)
        at = strchr(at + 1, ' ');
    if (!at)
        return 0;
    char *end = NULL;
    uint64_t user = strtoull(at, &end, 10);
    return user + strtoull(end, NULL, 10);
}

void mla_cpu_use_read(const struct mla_cpu_use *use, double seconds[MLA_CPU_ROLES])
{
    double ticks_a_second = (double)sysconf(_SC_CLK_TCK);
    for (int role = 0; role < MLA_CPU_ROLES; role++)
        seconds[role] = 0;
    for (uint32_t i = 0; i < use->count; i++)
        seconds[use->processes[i].role] += (double)ticks_of(use->processes[i].pid) / ticks_a_second;
}
