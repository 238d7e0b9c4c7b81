/* Traces of requests: a CSV file with the columns prompt_tokens,output_tokens. */
#ifndef MLA_TESTS_BENCH_TRACE_H
#define MLA_TESTS_BENCH_TRACE_H

#include "tests/bench/scheduler.h"

/* The first `limit` requests of the file (0: all), at least one, to be freed. MLA_OPTION for a
 * file that cannot be read or is no trace, MLA_MEMORY; both are logged. */
enum mla_status mla_trace_read(const char *path, uint32_t limit, struct mla_request **out,
                               uint32_t *count);

#endif
