/* Rows of mla-bench compare: what is read, what is refused, and the arithmetic. */
#include "tests/bench/compare_rows.h"
#include "tests/bench/compare_svg.h"

#include "proto/limits.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char why[MLA_SENTENCE_BYTES_MAX];
static char path[64];

static const char *file_of(const char *text)
{
    strcpy(path, "/tmp/mla-test-compare-XXXXXX");
    int fd = mkstemp(path);
    cr_assert_geq(fd, 0);
    cr_assert_eq(write(fd, text, strlen(text)), (ssize_t)strlen(text));
    close(fd);
    return path;
}

static enum mla_status read_text(const char *text, struct mla_rows *rows)
{
    enum mla_status status = mla_rows_read(file_of(text), rows, why);
    unlink(path);
    return status;
}

static void expect_near(double found, double wanted)
{
    cr_expect(fabs(found - wanted) <= 1e-9 * fabs(wanted), "%.12g instead of %.12g", found, wanted);
}

Test(compare, csv)
{
    struct mla_rows rows = {0};
    cr_assert_eq(read_text("# name: a peer\n"
                           "# device: NVIDIA H100 80GB HBM3: one of them\r\n"
                           "# bandwidth: 3000\n# peak: 800\n# whatever\n\n"
                           "heads, shape ,us,bench,rows,unequal_seed\n"
                           "16,128x4096,232.6,attention\n"
                           "128, 64 x 4096 ,\t219.6 ,attention,2,\r\n"
                           "16,64x4096,130.8,attention,1,0",
                           &rows),
                 MLA_OK, "%s", why);
    cr_expect_str_eq(rows.name, "a peer");
    cr_expect_str_eq(rows.device, "NVIDIA H100 80GB HBM3: one of them");
    cr_expect_eq(rows.ceilings.bytes_per_s, 3e12);
    cr_expect_eq(rows.ceilings.flops_per_s, 8e14);
    cr_assert_eq(rows.count, 3);
    const struct mla_row_key *key = &rows.at[0].key;
    cr_expect(key->heads == 16 && key->first == 128 && key->second == 4096 && key->rows == 1 &&
              key->unequal_seed == -1 && rows.at[0].us == 232.6);
    /* 576 of each cached row and query, 512 of each output, 2 bytes each */
    expect_near(rows.at[0].cost.bytes, 2.0 * (128.0 * 4096 * 576 + 128 * 16 * (576 + 512)));
    expect_near(rows.at[0].cost.flops, 2.0 * 128 * 4096 * 16 * (576 + 512));
    cr_expect_eq(rows.at[1].key.rows, 2);
    /* The first of two new tokens sees one cached token less. */
    expect_near(rows.at[1].cost.flops, 2.0 * 64 * (4096 + 4095) * 128 * (576 + 512));
    cr_expect_eq(rows.at[2].key.unequal_seed, 0);
    expect_near(rows.at[2].cost.flops, 2.0 * 64 * 4096 * 16 * (576 + 512));
    mla_rows_fini(&rows);
}

Test(compare, csv_of_prefill_and_layers)
{
    struct mla_rows rows = {0};
    cr_assert_eq(read_text("bench,model,heads,shape,context,tflops,us,bytes,flops\n"
                           "prefill,,128,8192x1,,660\n"
                           "prefill,,16,100x3,50,,7\n"
                           "layer,v3,16,128x1024,,,148\n"
                           "layer,v3,128,128x1024,,,322,5e8,7e10\n",
                           &rows),
                 MLA_OK, "%s", why);
    double flops = 2.0 * (8192.0 * 8193 / 2) * 128 * (128 + 64 + 128);
    expect_near(rows.at[0].cost.flops, flops);
    expect_near(rows.at[0].us, flops / 660e6);
    expect_near(rows.at[1].cost.flops, 2.0 * 3 * 100 * 50 * 16 * (128 + 64 + 128));
    cr_expect_eq(rows.at[1].us, 7);
    cr_expect_eq(rows.at[2].cost.bytes, 0, "what a layer costs can't be told from its name");
    cr_expect_eq(rows.at[3].cost.bytes, 5e8);
    cr_expect_eq(rows.at[3].cost.flops, 7e10);
    mla_rows_fini(&rows);
}

/* Each with a word that its sentence must have. */
Test(compare, files_that_are_refused)
{
    static const struct {
        const char *text, *word;
    } wrong[] = {
        {"", "columns"},
        {"# name: x\n", "columns"},
        {"bench,heads,shape,us\n", "no rows"},
        {"bench,heads,shape,us,color\n", "color"},
        {"bench,heads,shape,us,us\n", "twice"},
        {"bench,heads,shape,us\nattention,16,1x4,5,6\n", "more fields"},
        {"bench,heads,shape,us\nattention,16,1x4\n", "no time"},
        {"bench,heads,shape,us\nattention,16,1x4,0\n", "wrong us"},
        {"bench,heads,shape,us\nattention,16,1x4,-3\n", "wrong us"},
        {"bench,heads,shape,us\nattention,16,1x4,nan\n", "wrong us"},
        {"bench,heads,shape,us\nattention,16,1x4,inf\n", "wrong us"},
        {"bench,heads,shape,us\nattention,16,1x4,5us\n", "wrong us"},
        {"bench,heads,shape,us\nattention,0,1x4,5\n", "wrong heads"},
        {"bench,heads,shape,us\nattention,,1x4,5\n", "heads or shape"},
        {"bench,heads,shape,us\nattention,16,,5\n", "heads or shape"},
        {"bench,heads,shape,us\nattention,16,14,5\n", "wrong shape"},
        {"bench,heads,shape,us\nattention,16,1x4x8,5\n", "wrong shape"},
        {"bench,heads,shape,us\nattention,16,1x0,5\n", "wrong shape"},
        {"bench,heads,shape,us\nattention,16,99999999999999999x4,5\n", "wrong shape"},
        {"bench,heads,shape,us\nattend,16,1x4,5\n", "bench is"},
        {"bench,heads,shape,us\nlayer,16,1x4,5\n", "model"},
        {"bench,heads,shape,us,rows\nattention,16,1x4,5,8\n", "shorter"},
        {"bench,heads,shape,us,tflops\nattention,16,1x4,5,8\n", "both"},
        {"bench,model,heads,shape,tflops\nlayer,v3,16,1x4,5\n", "no time"},
        {"bench,heads,shape,us\nattention,16,1x4,5\nattention,16,1x4,6\n", "already"},
        {"{", "end of file"},
        {"{}", "not the JSON"},
        {"{\"bench\": \"replay\"}", "not the JSON"},
        {"{\"bench\": \"layer\"}", "whole layer"},
        {"{\"bench\": \"decode attention\"}", "no rows"},
        {"{\"bench\": \"decode attention\", \"results\": [{}]}", "no shape"},
        {"{\"bench\": \"decode attention\", \"results\": [{\"name\": \"1 x 4\", \"heads\": 2}]}",
         "no time"},
        {"{\"bench\": \"decode attention\", \"results\": [3]}", "no shape"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        struct mla_rows rows = {0};
        cr_expect_eq(read_text(wrong[i].text, &rows), MLA_OPTION, "%s", wrong[i].text);
        cr_expect(strstr(why, wrong[i].word), "%s: %s", wrong[i].text, why);
        mla_rows_fini(&rows);
    }
    struct mla_rows rows = {0};
    char longest[1024];
    memset(longest, '7', sizeof longest - 1);
    longest[sizeof longest - 1] = '\0';
    cr_expect_eq(read_text(longest, &rows), MLA_OPTION);
    cr_expect_eq(mla_rows_read("/nowhere/at/all", &rows, why), MLA_OPTION);
}

/* As mla-bench writes it, shortened. */
Test(compare, json)
{
    struct mla_rows rows = {0};
    cr_assert_eq(
        read_text(
            "{\"bench\": \"decode attention\", \"backend\": \"cuda\", \"device\": \"D\",\n"
            " \"bandwidth_bytes_s\": 3e12, \"peak_flops_s\": 8e14, \"results\": [\n"
            " {\"name\": \"16 x 4096\", \"heads\": 16, \"samples\": 30, \"median_us\": 41.5,\n"
            "  \"bytes\": 75e6, \"flops\": 2e9, \"floor_us\": 25}],\n"
            " \"rows_per_sequence\": 2, \"unequal\": true, \"seed\": 5}",
            &rows),
        MLA_OK, "%s", why);
    cr_assert_eq(read_text("{\"bench\": \"prefill attention\", \"device\": \"D\", \"results\": [\n"
                           " {\"name\": \"512 x 16\", \"heads\": 128, \"median_us\": 200,\n"
                           "  \"bytes\": 1e6, \"flops\": 1e9}], \"context\": 0}",
                           &rows),
                 MLA_OK, "%s", why);
    for (int i = 0; i < 2; i++)
        cr_assert_eq(
            read_text(i == 0
                          ? "{\"bench\": \"layer\", \"config\": \"a/v3/config.json\",\n"
                            " \"heads\": 16, \"decode_rows\": 128, \"context\": 1024, \"decode\":"
                            " [{\"name\": \"W_o\", \"median_us\": 3}, {\"name\": \"whole layer\","
                            " \"median_us\": 118, \"bytes\": 2e8, \"flops\": 3e9}]}"
                          : "{\"bench\": \"layer\", \"config\": \"tests/golden/v2-lite/\",\n"
                            " \"heads\": 16, \"decode_rows\": 1, \"context\": 7, \"decode\":"
                            " [{\"name\": \"whole layer\", \"median_us\": 51}]}",
                      &rows),
            MLA_OK, "%s", why);
    cr_assert_eq(rows.count, 4);
    const struct mla_row *row = &rows.at[0];
    cr_expect_str_eq(row->key.bench, "attention");
    cr_expect(row->key.heads == 16 && row->key.first == 16 && row->key.second == 4096 &&
              row->key.rows == 2 && row->key.unequal_seed == 5);
    cr_expect(row->us == 41.5 && row->cost.bytes == 75e6 && row->cost.flops == 2e9);
    cr_expect_str_eq(rows.at[1].key.bench, "prefill");
    cr_expect(rows.at[1].key.rows == 1 && rows.at[1].key.unequal_seed == -1);
    cr_expect_str_eq(rows.at[2].key.model, "v3");
    cr_expect(rows.at[2].us == 118 && rows.at[2].key.first == 128 && rows.at[2].key.second == 1024);
    cr_expect_str_eq(rows.at[3].key.model, "v2-lite");
    mla_rows_fini(&rows);
}

static struct mla_rows ours, peer;

static void read_both(void)
{
    cr_assert_eq(read_text("bench,heads,shape,us,bytes,flops\n"
                           "attention,16,1x4096,50,6e7,1e9\n"
                           "attention,32,1x4096,10,6e7,1e9\n"
                           "attention,16,2x4096,80,6e6,4.8e10\n"
                           "prefill,16,1x4096,1,6e7,1e9\n",
                           &ours),
                 MLA_OK, "%s", why);
    cr_assert_eq(read_text("bench,heads,shape,us\n"
                           "attention,16,2x4096,100\n"
                           "attention,64,1x4096,10\n"
                           "attention,16,1x4096,40\n",
                           &peer),
                 MLA_OK, "%s", why);
}

Test(compare, pairs)
{
    struct mla_pair pairs[4];
    read_both();
    uint32_t count = mla_rows_pairs(&ours, &peer, &(struct mla_ceilings){3e12, 8e14}, pairs);
    cr_assert_eq(count, 2);
    cr_expect(pairs[0].ours == &ours.at[0] && pairs[0].peer == &peer.at[2]);
    cr_expect(pairs[1].ours == &ours.at[2] && pairs[1].peer == &peer.at[0]);
    expect_near(pairs[0].ratio, 1.25);
    expect_near(pairs[0].floor_us, 20); /* 60 MB at 3 TB/s; the operations take 1.25 us */
    expect_near(pairs[0].share_ours, 0.4);
    expect_near(pairs[0].share_peer, 0.5);
    expect_near(pairs[1].ratio, 0.8);
    expect_near(pairs[1].floor_us, 60); /* of the operations */
    expect_near(pairs[1].share_ours, 0.75);
    expect_near(pairs[1].share_peer, 0.6);
    expect_near(mla_pairs_mean(pairs, count), 1.0);
    cr_expect_eq(mla_pairs_mean(pairs, 0), 0);
    count = mla_rows_pairs(&ours, &peer, &(struct mla_ceilings){0}, pairs);
    cr_expect(count == 2 && pairs[0].floor_us == 0 && pairs[0].share_ours == 0);
    mla_rows_fini(&ours);
    mla_rows_fini(&peer);
}

static uint32_t occurrences(const char *text, const char *what)
{
    uint32_t count = 0;
    for (text = strstr(text, what); text; text = strstr(text + 1, what))
        count++;
    return count;
}

/* Each row that both have is a mark of each in both parts, beside those of the legend, and names
 * can't become elements. */
Test(compare, svg)
{
    struct mla_pair pairs[4];
    static char drawn[65536];
    struct mla_comparison c = {.ours = &ours, .ceilings = {3e12, 8e14}, .peer_count = 1};
    read_both();
    strcpy(peer.name, "<b> & co");
    c.peers[0] =
        (struct mla_compared){&peer, pairs, mla_rows_pairs(&ours, &peer, &c.ceilings, pairs)};
    cr_assert_eq(mla_compare_svg(file_of(""), &c), MLA_OK);
    FILE *file = fopen(path, "r");
    cr_assert_not_null(file);
    size_t bytes = fread(drawn, 1, sizeof drawn - 1, file);
    fclose(file);
    unlink(path);
    drawn[bytes] = '\0';
    cr_expect_eq(occurrences(drawn, "<circle "), 1 + 2 * 2);
    cr_expect_eq(occurrences(drawn, "rotate("), 1 + 2 * 2);
    cr_expect_not_null(strstr(drawn, "&lt;b&gt; &amp; co"));
    cr_expect_null(strstr(drawn, "<b>"));
    cr_expect_null(strstr(drawn, "nan"));
    cr_expect_null(strstr(drawn, "inf"));
    cr_expect_str_eq(drawn + bytes - 7, "</svg>\n");
    /* The first row: 0.4 of the roof at 740 + 0.4 * 360, and the peer's 0.5. */
    cr_expect_not_null(strstr(drawn, "<circle cx=\"884.0\" cy=\"119.0\""));
    cr_expect_not_null(strstr(drawn, "rotate(45 920.0 119.0)"));
    cr_expect_eq(mla_compare_svg("/nowhere/at/all", &c), MLA_SYSTEM);
    mla_rows_fini(&ours);
    mla_rows_fini(&peer);
}
