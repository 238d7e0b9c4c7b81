/* Cases of absorbed attention over pages: tensors, the call, and a reference in double precision.
 */
#ifndef MLA_TESTS_CONFORMANCE_DECODE_CASE_H
#define MLA_TESTS_CONFORMANCE_DECODE_CASE_H

#include "tests/conformance/device.h"

enum { MLA_DECODE_SEQUENCES_MAX = 160, MLA_DECODE_PAGES_MAX = 72 };

struct mla_decode_case {
    int64_t heads, latent, rope;
    enum mla_dtype dtype;
    int sequences;
    int32_t rows[MLA_DECODE_SEQUENCES_MAX], kv_length[MLA_DECODE_SEQUENCES_MAX];
    bool share;  /* the first whole page of sequence 0 is also that of the others */
    bool poison; /* the newest cached row of sequence 0 is NaN */
    bool packed; /* q and out without gaps, as the layer has them; else nothing is aligned */
};

/* A case on a device: its tensors, and the lists in host memory. */
struct mla_decode_setup {
    const struct mla_decode_case *c;
    struct mla_tensor pool, q, out;
    int32_t tables[MLA_DECODE_SEQUENCES_MAX * MLA_DECODE_PAGES_MAX];
    int32_t table[MLA_DECODE_SEQUENCES_MAX], row_first[MLA_DECODE_SEQUENCES_MAX + 1];
    struct mla_attend_decode attend;
    void *schedule;
    double *slack; /* as `out`: how many roundings of 1 a value may be off */
};

/* Pages are given out in a random order; what is beyond a length is NaN, what is beyond a table
 * is no block. There is room for two rows more than the sequences have. */
void mla_decode_make(struct mla_decode_setup *setup, struct mla_device *device,
                     const struct mla_decode_case *c);
void mla_decode_fini(struct mla_decode_setup *setup);
/* Makes the schedule, then attends. */
void mla_decode_run(struct mla_decode_setup *setup, struct mla_device *device);
/* As mla_wanted; the caller frees it. Finds slack, too. */
double *mla_decode_wanted(struct mla_decode_setup *setup);
void mla_decode_expect(struct mla_decode_setup *setup, struct mla_device *device,
                       const double *want, const char *what);
/* All of these. */
void mla_decode_check(struct mla_device *device, const struct mla_decode_case *c);
/* The slot of a cached token. */
int64_t mla_decode_slot(const struct mla_decode_setup *setup, int64_t s, int64_t token);

#endif
