/* Ours and peers against the roofline, as a picture. */
#ifndef MLA_TESTS_BENCH_COMPARE_SVG_H
#define MLA_TESTS_BENCH_COMPARE_SVG_H

#include "tests/bench/compare_rows.h"

enum { MLA_PEERS_MAX = 3 };

struct mla_comparison {
    const struct mla_rows *ours;
    struct mla_ceilings ceilings;
    uint32_t peer_count;
    struct mla_compared {
        const struct mla_rows *rows;
        const struct mla_pair *pairs;
        uint32_t count;
    } peers[MLA_PEERS_MAX];
};

/* "16 heads, 128 x 4096" and what else tells a row from others. */
void mla_row_label(const struct mla_row_key *key, char *out, size_t bytes);

/* Left: operations a second over operations a byte, under the roofline. Right: for each row that a
 * peer has too, the share of the roofline. Rows whose cost is not known are left out. Both ceilings
 * must be known. MLA_SYSTEM with errno. */
enum mla_status mla_compare_svg(const char *path, const struct mla_comparison *comparison);

#endif
