/* What the readers of other people's files share: bounded reading, JSON, and refusals. */
#ifndef MLA_WORKER_INPUT_H
#define MLA_WORKER_INPUT_H

#include "proto/status.h"

#include <stddef.h>

struct json_t; /* jansson's json_t */

/* Formats a sentence into `why` (MLA_SENTENCE_BYTES_MAX bytes; longer ones are cut) and returns
 * `status`. Control characters become '?': names in these files are anybody's. */
__attribute__((format(printf, 3, 4))) enum mla_status mla_refuse(enum mla_status status, char *why,
                                                                 const char *format, ...);

/* Reads the whole regular file `path`, or `path`/`name` where `path` is a folder, of at most
 * `bytes_max` bytes. *out is the caller's to free. MLA_SYSTEM, MLA_MEMORY, MLA_LIMIT, with a
 * sentence in `why`. */
enum mla_status mla_file_read(const char *path, const char *name, size_t bytes_max, char **out,
                              size_t *bytes, char *why);

/* Parses a JSON object without duplicate keys; `what` names it in the sentence. Depth is bounded
 * by jansson. *out is a new reference. `status` with a sentence in `why` when it isn't one. */
enum mla_status mla_json_parse(const char *json, size_t bytes, const char *what,
                               enum mla_status status, struct json_t **out, char *why);

#endif
