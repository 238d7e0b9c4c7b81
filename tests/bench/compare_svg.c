#include "tests/bench/compare_svg.h"

#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

enum {
    TOP = 110,
    ROOF_LEFT = 70,
    ROOF_WIDTH = 430,
    ROOF_HEIGHT = 400,
    SHARE_LEFT = 740,
    SHARE_WIDTH = 360,
    LINE = 18, /* height of a row of the right part */
    BOTTOM = 60,
    WIDTH = SHARE_LEFT + SHARE_WIDTH + 30,
};

/* Ours, then the peers: colours that the colour-blind can tell, and other shapes. */
static const char *const colours[1 + MLA_PEERS_MAX] = {"#0072b2", "#d55e00", "#009e73", "#cc79a7"};

/* A scale in pixels; logarithmic where a ratio is what counts. */
struct axis {
    double from, to; /* values */
    double at, length;
    bool logarithmic;
};

static double place(const struct axis *axis, double value)
{
    double part = axis->logarithmic ? log(value / axis->from) / log(axis->to / axis->from)
                                    : (value - axis->from) / (axis->to - axis->from);
    return axis->at + part * axis->length;
}

static void put_text(FILE *to, double x, double y, const char *attributes, const char *text)
{
    fprintf(to, "<text x=\"%.1f\" y=\"%.1f\" %s>", x, y, attributes);
    for (; *text; text++)
        switch (*text) {
        case '&':
            fputs("&amp;", to);
            break;
        case '<':
            fputs("&lt;", to);
            break;
        case '>':
            fputs("&gt;", to);
            break;
        default:
            if ((unsigned char)*text >= ' ')
                putc(*text, to);
        }
    fputs("</text>\n", to);
}

static void put_line(FILE *to, double x1, double y1, double x2, double y2, const char *attributes)
{
    fprintf(to, "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" %s/>\n", x1, y1, x2, y2,
            attributes);
}

/* A filled circle is ours; peers are squares, standing or on a corner, and hollow circles. */
static void put_mark(FILE *to, uint32_t who, double x, double y)
{
    static const double SIZE = 4;
    switch (who) {
    case 0:
        fprintf(to, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"%.1f\" fill=\"%s\"/>\n", x, y, SIZE,
                colours[who]);
        break;
    case 1:
    case 2:
        fprintf(to,
                "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" fill=\"white\" "
                "stroke=\"%s\" stroke-width=\"2\" transform=\"rotate(%d %.1f %.1f)\"/>\n",
                x - SIZE + 1, y - SIZE + 1, 2 * SIZE - 2, 2 * SIZE - 2, colours[who],
                who == 1 ? 45 : 0, x, y);
        break;
    default:
        fprintf(to,
                "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"%.1f\" fill=\"white\" stroke=\"%s\" "
                "stroke-width=\"2\"/>\n",
                x, y, SIZE - 1, colours[who]);
    }
}

void mla_row_label(const struct mla_row_key *key, char *out, size_t bytes)
{
    char more[64] = "";
    if (key->rows > 1)
        snprintf(more, sizeof more, ", %" PRIu32 " tokens each", key->rows);
    else if (key->context > 0)
        snprintf(more, sizeof more, " over %" PRIu32, key->context);
    snprintf(out, bytes, "%s%s%" PRIu32 " heads, %" PRIu32 " x %" PRIu32 "%s%s", key->model,
             key->model[0] ? ", " : "", key->heads, key->first, key->second,
             key->unequal_seed >= 0 ? " unequal" : "", more);
}

/* The peer's pair with this row of ours, or NULL. */
static const struct mla_pair *pair_of(const struct mla_compared *peer, const struct mla_row *row)
{
    for (uint32_t i = 0; i < peer->count; i++)
        if (peer->pairs[i].ours == row)
            return &peer->pairs[i];
    return NULL;
}

static bool is_drawn(const struct mla_comparison *c, const struct mla_row *row)
{
    bool paired = false;
    for (uint32_t p = 0; p < c->peer_count; p++)
        paired = paired || pair_of(&c->peers[p], row);
    return paired && row->cost.bytes > 0 && row->cost.flops > 0;
}

static void put_legend(FILE *to, const struct mla_comparison *c)
{
    char text[512];
    for (uint32_t who = 0; who <= c->peer_count; who++) {
        const struct mla_rows *rows = who == 0 ? c->ours : c->peers[who - 1].rows;
        double y = 22 + 17.0 * who;
        snprintf(text, sizeof text, "%s%s%s%s%s", rows->name, rows->device[0] ? ": " : "",
                 rows->device, rows->when[0] ? ", " : "", rows->when);
        put_mark(to, who, ROOF_LEFT, y - 4);
        put_text(to, ROOF_LEFT + 12, y, "", text);
    }
}

/* Whole decades around all that is drawn, and the roof's corner. */
static void choose_ranges(const struct mla_comparison *c, struct axis *x, struct axis *y)
{
    double corner = c->ceilings.flops_per_s / c->ceilings.bytes_per_s;
    double peak = c->ceilings.flops_per_s / 1e12;
    double least_x = corner, most_x = corner, least_y = peak, most_y = peak;
    for (uint32_t i = 0; i < c->ours->count; i++) {
        const struct mla_row *row = &c->ours->at[i];
        if (!is_drawn(c, row))
            continue;
        double tflop = row->cost.flops / 1e6;
        least_x = fmin(least_x, row->cost.flops / row->cost.bytes);
        most_x = fmax(most_x, row->cost.flops / row->cost.bytes);
        least_y = fmin(least_y, tflop / row->us);
        most_y = fmax(most_y, tflop / row->us);
        for (uint32_t p = 0; p < c->peer_count; p++) {
            const struct mla_pair *pair = pair_of(&c->peers[p], row);
            if (pair)
                least_y = fmin(least_y, tflop / pair->peer->us);
        }
    }
    *x = (struct axis){pow(10, floor(log10(least_x))), pow(10, ceil(log10(most_x * 1.01))),
                       ROOF_LEFT, ROOF_WIDTH, true};
    *y = (struct axis){pow(10, floor(log10(least_y))), pow(10, ceil(log10(most_y * 1.01))),
                       TOP + ROOF_HEIGHT, -ROOF_HEIGHT, true};
}

static void put_roof_axes(FILE *to, const struct axis *x, const struct axis *y)
{
    static const char grid[] = "stroke=\"#dddddd\"";
    char text[32];
    for (int i = (int)lround(log10(x->from)); i <= (int)lround(log10(x->to)); i++) {
        double value = pow(10, i);
        put_line(to, place(x, value), TOP, place(x, value), TOP + ROOF_HEIGHT, grid);
        snprintf(text, sizeof text, "%g", value);
        put_text(to, place(x, value), TOP + ROOF_HEIGHT + 16, "text-anchor=\"middle\"", text);
    }
    for (int i = (int)lround(log10(y->from)); i <= (int)lround(log10(y->to)); i++) {
        double value = pow(10, i);
        put_line(to, ROOF_LEFT, place(y, value), ROOF_LEFT + ROOF_WIDTH, place(y, value), grid);
        snprintf(text, sizeof text, "%g", value);
        put_text(to, ROOF_LEFT - 6, place(y, value) + 4, "text-anchor=\"end\"", text);
    }
    put_text(to, ROOF_LEFT + ROOF_WIDTH / 2.0, TOP + ROOF_HEIGHT + 36, "text-anchor=\"middle\"",
             "operations a byte");
    put_text(to, ROOF_LEFT, TOP - 8, "", "TFLOP/s");
}

static void put_roofline(FILE *to, const struct mla_comparison *c)
{
    static const char roof[] = "stroke=\"#333333\" stroke-width=\"1.5\"";
    struct axis x, y;
    char text[64];
    double corner = c->ceilings.flops_per_s / c->ceilings.bytes_per_s;
    double peak = c->ceilings.flops_per_s / 1e12;
    double bandwidth = c->ceilings.bytes_per_s / 1e12;
    choose_ranges(c, &x, &y);
    put_roof_axes(to, &x, &y);
    double begin = fmax(x.from, y.from / bandwidth);
    put_line(to, place(&x, begin), place(&y, begin * bandwidth), place(&x, corner), place(&y, peak),
             roof);
    put_line(to, place(&x, corner), place(&y, peak), ROOF_LEFT + ROOF_WIDTH, place(&y, peak), roof);
    snprintf(text, sizeof text, "%.0f GB/s, %.0f TFLOP/s", bandwidth * 1e3, peak);
    put_text(to, place(&x, corner), place(&y, peak) - 6, "text-anchor=\"middle\"", text);
    for (uint32_t i = 0; i < c->ours->count; i++) {
        const struct mla_row *row = &c->ours->at[i];
        double at = row->cost.flops / row->cost.bytes;
        if (!is_drawn(c, row))
            continue;
        for (uint32_t p = c->peer_count; p-- > 0;) {
            const struct mla_pair *pair = pair_of(&c->peers[p], row);
            if (pair)
                put_mark(to, p + 1, place(&x, at),
                         place(&y, row->cost.flops / pair->peer->us / 1e6));
        }
        put_mark(to, 0, place(&x, at), place(&y, row->cost.flops / row->us / 1e6));
    }
}

/* Rows from above, each with the shares on a line. */
static void put_shares(FILE *to, const struct mla_comparison *c, uint32_t lines, double most)
{
    struct axis x = {0, most, SHARE_LEFT, SHARE_WIDTH, false};
    char text[128];
    double bottom = TOP + (double)LINE * lines;
    for (int tenth = 0; tenth / 10.0 < most + 0.001; tenth += 2) {
        double at = place(&x, tenth / 10.0);
        put_line(to, at, TOP, at, bottom,
                 tenth == 10 ? "stroke=\"#333333\" stroke-width=\"1.5\"" : "stroke=\"#dddddd\"");
        snprintf(text, sizeof text, "%d %%", tenth * 10);
        put_text(to, at, bottom + 16, "text-anchor=\"middle\"", text);
    }
    put_text(to, SHARE_LEFT + SHARE_WIDTH / 2.0, bottom + 36, "text-anchor=\"middle\"",
             "share of the roofline");
    double y = TOP + LINE / 2.0;
    for (uint32_t i = 0; i < c->ours->count; i++) {
        const struct mla_row *row = &c->ours->at[i];
        double ours = mla_cost_floor_us(row->cost, &c->ceilings) / row->us;
        if (!is_drawn(c, row))
            continue;
        mla_row_label(&row->key, text, sizeof text);
        put_text(to, SHARE_LEFT - 10, y + 4, "text-anchor=\"end\"", text);
        put_line(to, SHARE_LEFT, y, SHARE_LEFT + SHARE_WIDTH, y, "stroke=\"#eeeeee\"");
        for (uint32_t p = c->peer_count; p-- > 0;) {
            const struct mla_pair *pair = pair_of(&c->peers[p], row);
            if (pair)
                put_mark(to, p + 1, place(&x, ours * pair->ratio), y);
        }
        put_mark(to, 0, place(&x, ours), y);
        y += LINE;
    }
}

enum mla_status mla_compare_svg(const char *path, const struct mla_comparison *c)
{
    assert(c->ceilings.bytes_per_s > 0 && c->ceilings.flops_per_s > 0);
    uint32_t lines = 0;
    double most = 1;
    for (uint32_t i = 0; i < c->ours->count; i++) {
        const struct mla_row *row = &c->ours->at[i];
        double share = mla_cost_floor_us(row->cost, &c->ceilings) / row->us;
        lines += is_drawn(c, row);
        for (uint32_t p = 0; p < c->peer_count; p++) {
            const struct mla_pair *pair = pair_of(&c->peers[p], row);
            if (pair)
                most = fmax(most, share * fmax(1, pair->ratio));
        }
    }
    FILE *to = fopen(path, "w");
    if (!to)
        return MLA_SYSTEM;
    int height = LINE * (int)lines > ROOF_HEIGHT ? LINE * (int)lines : ROOF_HEIGHT;
    fprintf(to,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" "
            "font-family=\"sans-serif\" font-size=\"12\">\n"
            "<rect width=\"100%%\" height=\"100%%\" fill=\"white\"/>\n",
            WIDTH, TOP + height + BOTTOM);
    put_legend(to, c);
    put_roofline(to, c);
    put_shares(to, c, lines, ceil(most * 10 - 0.001) / 10);
    fputs("</svg>\n", to);
    bool failed = ferror(to) != 0;
    return fclose(to) == 0 && !failed ? MLA_OK : MLA_SYSTEM;
}
