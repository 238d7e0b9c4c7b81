/* Ranks stay near their GPU: host memory is on one of several nodes, and what a GPU copies from
 * another one goes through the link between processors. */
#ifndef MLA_WORKER_NUMA_H
#define MLA_WORKER_NUMA_H

#include "proto/status.h"

#include <sched.h>

/* The processors near a PCI device ("0000:3b:00.0", either case), as the kernel tells it below
 * `sysfs` ("/sys"). MLA_AGAIN: it doesn't. */
enum mla_status mla_numa_processors(const char *sysfs, const char *bus_id, cpu_set_t *out);

/* Keeps this thread, and those that it starts from now on, on those of them that it may use.
 * Where there is none, or nothing is known, all stays as it is. */
void mla_numa_bind(const char *sysfs, const char *bus_id);

#endif
