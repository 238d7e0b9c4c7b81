/* mla-bench compare: our times beside a peer's, row by row, and both against the roofline. */
#include "proto/limits.h"
#include "proto/parse.h"
#include "tests/bench/bench.h"
#include "tests/bench/compare_svg.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FILES_MAX = 64 };

static const char usage[] =
    "usage: mla-bench compare --ours FILE... --peer FILE... [options]\n"
    "\n"
    "Prints our times beside a peer's for each shape that both have, with their ratio and the "
    "share\n"
    "of the floor of each. A FILE is the JSON that mla-bench attention, prefill or layer wrote "
    "with\n"
    "--json, or CSV (tests/README.md); tests/bench/peers has some.\n"
    "\n"
    "  --ours FILE       may be repeated: all together are ours\n"
    "  --peer FILE       may be repeated (3): each is a peer of its own\n"
    "  --bandwidth GB    memory bandwidth, GB a second, and\n"
    "  --peak TFLOP      TFLOP a second, of the floor (what the files of ours say)\n"
    "  --svg FILE        draws it\n"
    "  --at-most RATIO   exit code 1 where a ratio is larger, or a row of a peer is missing in "
    "ours\n";

struct options {
    const char *ours[FILES_MAX], *peers[MLA_PEERS_MAX];
    uint32_t ours_count, peer_count;
    struct mla_ceilings ceilings;
    const char *svg;
    double at_most; /* 0: whatever */
};

enum {
    OPTION_OURS = 256,
    OPTION_PEER,
    OPTION_BANDWIDTH,
    OPTION_PEAK,
    OPTION_SVG,
    OPTION_MOST,
    OPTION_HELP
};

static const struct option known[] = {{"ours", required_argument, NULL, OPTION_OURS},
                                      {"peer", required_argument, NULL, OPTION_PEER},
                                      {"bandwidth", required_argument, NULL, OPTION_BANDWIDTH},
                                      {"peak", required_argument, NULL, OPTION_PEAK},
                                      {"svg", required_argument, NULL, OPTION_SVG},
                                      {"at-most", required_argument, NULL, OPTION_MOST},
                                      {"help", no_argument, NULL, OPTION_HELP},
                                      {0}};

static bool set_positive(const char *text, double unit, double *out)
{
    char *end = NULL;
    double value = strtod(text, &end);
    if (end == text || *end != '\0' || !isfinite(value) || value <= 0)
        return false;
    *out = value * unit;
    return true;
}

static bool set(void *context, int id, const char *text)
{
    struct options *o = context;
    switch (id) {
    case OPTION_OURS:
        if (o->ours_count == FILES_MAX)
            return false;
        o->ours[o->ours_count++] = text;
        return true;
    case OPTION_PEER:
        if (o->peer_count == MLA_PEERS_MAX)
            return false;
        o->peers[o->peer_count++] = text;
        return true;
    case OPTION_BANDWIDTH:
        return set_positive(text, 1e9, &o->ceilings.bytes_per_s);
    case OPTION_PEAK:
        return set_positive(text, 1e12, &o->ceilings.flops_per_s);
    case OPTION_SVG:
        o->svg = text;
        return *text != '\0';
    default:
        return set_positive(text, 1, &o->at_most);
    }
}

static void print_number(double value, int width, int digits)
{
    if (value > 0)
        printf(" %*.*f", width, digits, value);
    else
        printf(" %*s", width, "-");
}

/* Rows of the peer that ours lack. */
static uint32_t print_missing(const struct mla_rows *peer, const struct mla_pair *pairs,
                              uint32_t count)
{
    uint32_t missing = 0;
    for (uint32_t i = 0; i < peer->count; i++) {
        bool found = false;
        char label[128];
        for (uint32_t k = 0; k < count; k++)
            found = found || pairs[k].peer == &peer->at[i];
        if (found)
            continue;
        mla_row_label(&peer->at[i].key, label, sizeof label);
        printf("not in ours: %s, %s\n", peer->at[i].key.bench, label);
        missing++;
    }
    return missing;
}

static void print_who(const char *role, const struct mla_rows *rows)
{
    printf("%s: %s", role, rows->name);
    if (rows->device[0])
        printf(", on %s", rows->device);
    if (rows->when[0])
        printf(", %s", rows->when);
    putchar('\n');
}

/* Whether nothing is slower than it may be. */
static bool print_peer(const struct options *o, const struct mla_comparison *c,
                       const struct mla_compared *peer)
{
    double worst = 0;
    uint32_t slower = 0;
    putchar('\n');
    print_who("peer", peer->rows);
    if (peer->rows->when[0] || strcmp(peer->rows->device, c->ours->device) != 0)
        puts("not measured in one run with ours: a few percent mean nothing");
    printf("%-10s %-40s %10s %10s %6s %10s %6s %6s\n", "", "", "ours us", "peer us", "ratio",
           "floor us", "ours", "peer");
    for (uint32_t i = 0; i < peer->count; i++) {
        const struct mla_pair *pair = &peer->pairs[i];
        char label[128];
        mla_row_label(&pair->ours->key, label, sizeof label);
        printf("%-10s %-40s %10.1f %10.1f %6.3f", pair->ours->key.bench, label, pair->ours->us,
               pair->peer->us, pair->ratio);
        print_number(pair->floor_us, 10, 1);
        print_number(pair->share_ours, 6, 2);
        print_number(pair->share_peer, 6, 2);
        putchar('\n');
        slower += pair->ratio > 1;
        worst = fmax(worst, pair->ratio);
    }
    uint32_t missing = print_missing(peer->rows, peer->pairs, peer->count);
    printf("%u rows; ratio: mean %.3f (geometric), worst %.3f; slower: %u\n", peer->count,
           mla_pairs_mean(peer->pairs, peer->count), worst, slower);
    return o->at_most == 0 || (worst <= o->at_most && missing == 0);
}

static enum mla_status read_all(const char *const *paths, uint32_t count, struct mla_rows *rows)
{
    char why[MLA_SENTENCE_BYTES_MAX];
    enum mla_status status = MLA_OK;
    for (uint32_t i = 0; status == MLA_OK && i < count; i++)
        if ((status = mla_rows_read(paths[i], rows, why)) != MLA_OK)
            fprintf(stderr, "mla-bench: %s\n", why);
    return status;
}

static enum mla_status draw(const struct options *o, const struct mla_comparison *c)
{
    if (!o->svg)
        return MLA_OK;
    if (c->ceilings.bytes_per_s == 0 || c->ceilings.flops_per_s == 0) {
        fputs("mla-bench: --svg needs --bandwidth and --peak: the files don't tell them\n", stderr);
        return MLA_OPTION;
    }
    errno = 0;
    enum mla_status status = mla_compare_svg(o->svg, c);
    if (status != MLA_OK)
        fprintf(stderr, "mla-bench: %s: %s\n", o->svg, strerror(errno));
    return status;
}

static enum mla_status compare(const struct options *o, bool *kept)
{
    struct mla_rows ours = {.name = "ours"};
    struct mla_rows peers[MLA_PEERS_MAX] = {0};
    struct mla_pair *pairs = NULL;
    struct mla_comparison c = {.ours = &ours, .peer_count = o->peer_count};
    enum mla_status status = read_all(o->ours, o->ours_count, &ours);
    for (uint32_t p = 0; status == MLA_OK && p < o->peer_count; p++) {
        snprintf(peers[p].name, sizeof peers[p].name, "peer %u", p + 1);
        status = read_all(&o->peers[p], 1, &peers[p]);
    }
    c.ceilings = o->ceilings;
    if (c.ceilings.bytes_per_s == 0)
        c.ceilings.bytes_per_s = ours.ceilings.bytes_per_s;
    if (c.ceilings.flops_per_s == 0)
        c.ceilings.flops_per_s = ours.ceilings.flops_per_s;
    if (status == MLA_OK) {
        pairs = calloc((size_t)ours.count * MLA_PEERS_MAX, sizeof *pairs);
        status = pairs ? MLA_OK : MLA_MEMORY;
    }
    if (status == MLA_OK)
        print_who("ours", &ours);
    for (uint32_t p = 0; status == MLA_OK && p < o->peer_count; p++) {
        struct mla_pair *own = pairs + (size_t)p * ours.count;
        c.peers[p] = (struct mla_compared){&peers[p], own,
                                           mla_rows_pairs(&ours, &peers[p], &c.ceilings, own)};
        *kept = print_peer(o, &c, &c.peers[p]) && *kept;
    }
    if (status == MLA_OK)
        status = draw(o, &c);
    free(pairs);
    for (uint32_t p = 0; p < o->peer_count; p++)
        mla_rows_fini(&peers[p]);
    mla_rows_fini(&ours);
    return status;
}

int mla_bench_compare(int argc, char **argv)
{
    struct options options = {0};
    bool kept = true;
    enum mla_status status = mla_parse_options(argc, argv, known, usage, set, &options);
    if (status == MLA_AGAIN)
        return 0;
    if (status == MLA_OK && (options.ours_count == 0 || options.peer_count == 0)) {
        fputs("mla-bench: --ours or --peer is missing (mla-bench compare --help)\n", stderr);
        status = MLA_OPTION;
    }
    if (status == MLA_OK)
        status = compare(&options, &kept);
    return status == MLA_OK && !kept ? 1 : mla_status_exit_code(status);
}
