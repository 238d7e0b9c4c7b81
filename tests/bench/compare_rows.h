/* Times of one operation in many shapes, ours or a peer's, and the two side by side. */
#ifndef MLA_TESTS_BENCH_COMPARE_ROWS_H
#define MLA_TESTS_BENCH_COMPARE_ROWS_H

#include "tests/bench/cost.h"

/* What was timed. Zeroed before it is filled: all bytes are compared. */
struct mla_row_key {
    char bench[12]; /* attention, prefill or layer */
    char model[24]; /* of layer: the name of its config's folder */
    uint32_t heads;
    uint32_t first, second; /* sequences x context; of prefill: tokens x sequences */
    uint32_t rows;          /* attention: new tokens of each sequence */
    uint32_t context;       /* prefill: cached keys instead of causal new ones */
    int64_t unequal_seed;   /* attention: mla-bench's --lengths unequal,SEED; -1: equal */
};

struct mla_row {
    struct mla_row_key key;
    double us;
    struct mla_cost cost; /* bytes 0: not known */
};

/* Rows of one program on one machine. Zeroed: empty. */
struct mla_rows {
    char name[64], device[128], when[128];
    struct mla_ceilings ceilings; /* of that machine; 0: not known */
    uint32_t count, capacity;
    struct mla_row *at;
};

/* A row that both have. */
struct mla_pair {
    const struct mla_row *ours, *peer;
    double ratio;                  /* of our time to the peer's: below 1 is faster */
    double floor_us;               /* 0: not known */
    double share_ours, share_peer; /* of the floor in each time */
};

/* What bf16 attention of these shapes costs; {0, 0} for a layer, whose dimensions a key lacks. */
struct mla_cost mla_row_cost(const struct mla_row_key *key);

/* MLA_MEMORY; MLA_OPTION: the key is there already. */
enum mla_status mla_rows_add(struct mla_rows *rows, const struct mla_row *row);
void mla_rows_fini(struct mla_rows *rows);

/* Adds what is in a file to `rows`: JSON that mla-bench attention, prefill or layer wrote, or CSV
 * (tests/README.md). The last file's name, device and ceilings count, where it has any. MLA_OPTION,
 * or MLA_MEMORY, with a sentence in `why`. */
enum mla_status mla_rows_read(const char *path, struct mla_rows *rows, char *why);

/* Pairs of what both have, in the order of ours; at most ours->count. */
uint32_t mla_rows_pairs(const struct mla_rows *ours, const struct mla_rows *peer,
                        const struct mla_ceilings *ceilings, struct mla_pair *out);

/* The geometric mean of the ratios; 0 without any. */
double mla_pairs_mean(const struct mla_pair *pairs, uint32_t count);

#endif
