/* A trace of what a rank does, in the Chrome trace event format (Perfetto and chrome://tracing
 * open it): plans, microbatches, and the operations of those that run eagerly; a captured graph
 * is one piece. Times of work are the device's. All functions accept NULL: no trace. */
#ifndef MLA_WORKER_TRACE_H
#define MLA_WORKER_TRACE_H

#include "comm/collective.h"
#include "worker/flights.h"

struct mla_trace;

/* Opens `path`, with ".RANK" behind it where there are several ranks. MLA_OPTION when that can't
 * be written, MLA_MEMORY, or a device failure. */
enum mla_status mla_trace_open(const char *path, uint32_t rank, uint32_t ranks,
                               struct mla_backend *backend, struct mla_collective *collective,
                               struct mla_trace **out);
/* The two with every operation of a layer recorded: for mla_layer_init. Without a trace they are
 * what is passed. */
struct mla_backend *mla_trace_backend(struct mla_trace *trace, struct mla_backend *backend);
struct mla_collective *mla_trace_collective(struct mla_trace *trace,
                                            struct mla_collective *collective);
void mla_trace_close(struct mla_trace **trace);

/* Whether mla_trace_settle is due: the device's clock is measured against the host's. Nothing may
 * be in flight then. */
bool mla_trace_unsettled(const struct mla_trace *trace);
enum mla_status mla_trace_settle(struct mla_trace *trace);

/* A span of the host's time. */
void mla_trace_host(struct mla_trace *trace, const char *name, uint64_t step, uint64_t begin_ns,
                    uint64_t end_ns);
/* Operations from here on are this flight's, until the next one. */
void mla_trace_begin(struct mla_trace *trace, const struct mla_flight *flight);
/* A landed flight and its operations. */
enum mla_status mla_trace_flight(struct mla_trace *trace, const struct mla_flight *flight);

#endif
