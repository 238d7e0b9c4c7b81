/* What the core counts for the metrics page, beyond STATS. Plain numbers: one thread counts, and
 * the page is made from them by the same thread. */
#ifndef MLA_COORDINATOR_METRICS_H
#define MLA_COORDINATOR_METRICS_H

#include "comm/channel.h"
#include "proto/message.h"

enum mla_phase { MLA_PHASE_DECODE, MLA_PHASE_PREFILL, MLA_PHASES };

enum { MLA_HISTOGRAM_BOUNDS_MAX = 16, MLA_METRICS_TYPES = MLA_SHARE + 1, MLA_METRICS_CODES = 64 };

/* Values up to bounds[i] that are over bounds[i - 1]; the last: over all bounds. */
struct mla_histogram {
    uint64_t counts[MLA_HISTOGRAM_BOUNDS_MAX + 1];
    uint64_t sum;
};

struct mla_metrics {
    uint64_t requests[MLA_METRICS_TYPES]; /* by type; 0: those of no type */
    uint64_t errors[MLA_METRICS_CODES];   /* by status; 0: those beyond */
    struct mla_histogram run_ns[MLA_PHASES];
    struct mla_histogram rows[MLA_PHASES];        /* of microbatches */
    uint64_t padding[MLA_PHASES];                 /* rows */
    uint64_t bucket_hits[MLA_DECODE_BUCKETS_MAX]; /* decode microbatches padded to each */
    uint64_t adopted[MLA_GROUPS_MAX], lost[MLA_GROUPS_MAX];
};

void mla_metrics_request(struct mla_metrics *metrics, uint16_t type);
void mla_metrics_error(struct mla_metrics *metrics, uint32_t status);
/* From received to replied. A RUN with any prefill is one of prefill. */
void mla_metrics_run(struct mla_metrics *metrics, enum mla_phase phase, uint64_t ns);
/* bucket: an index, or MLA_DECODE_BUCKETS_MAX where it was not padded to one. */
void mla_metrics_microbatch(struct mla_metrics *metrics, enum mla_phase phase, uint32_t rows,
                            uint32_t padded, uint32_t bucket);

/* What the page says about an endpoint's connections. */
struct mla_metrics_endpoint {
    const char *name;
    struct mla_channel_counts counts;
};

struct mla_core;

/* The whole page, in Prometheus' text format, into `out`; false where `capacity` is too small. */
bool mla_metrics_page(const struct mla_core *core, const struct mla_metrics_endpoint *endpoints,
                      size_t endpoint_count, char *out, size_t capacity);

#endif
