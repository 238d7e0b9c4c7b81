/* Serves the metrics page over HTTP, from a thread of libmicrohttpd's own, which never looks at
 * the coordinator: the poll loop hands it a new page now and then. */
#ifndef MLA_COORDINATOR_METRICS_SERVER_H
#define MLA_COORDINATOR_METRICS_SERVER_H

#include "proto/status.h"

#include <stdbool.h>
#include <stddef.h>

struct mla_metrics_server;

enum { MLA_METRICS_PAGE_BYTES = 256 << 10 };

/* At "address:port" or "[address]:port", in numbers; port 0 picks one. Says on stderr where.
 * MLA_ENDPOINT with a sentence on stderr, MLA_MEMORY. */
enum mla_status mla_metrics_server_create(const char *address, struct mla_metrics_server **out);
void mla_metrics_server_destroy(struct mla_metrics_server **server);

/* Where the next page is to be written, MLA_METRICS_PAGE_BYTES. */
char *mla_metrics_server_draft(struct mla_metrics_server *server);
/* What GET /metrics (the draft), GET /healthz (200 when healthy, else 503, and the sentence) and
 * GET /livez (200) answer from now on; /healthz and /livez for 5 s. */
void mla_metrics_server_publish(struct mla_metrics_server *server, bool healthy,
                                const char *sentence);

#endif
