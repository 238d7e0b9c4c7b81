#include "tests/lib/case.h"
#include "tests/lib/formula.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define HIDDEN ((size_t)256)
#define LENGTH 5

/* A case of one layer and one sequence of 5 tokens, of which `rows` are kept. */
struct small_case {
    char dir[64];
    const char *description;
    uint32_t row_count, output_rows;
    uint32_t rows[LENGTH];
};

static enum mla_status fill(void *context, size_t index, void *file)
{
    const struct small_case *small = context;
    if (index == 1) {
        cr_assert_eq(fwrite(small->rows, sizeof *small->rows, small->row_count, file),
                     small->row_count);
        return MLA_OK;
    }
    for (uint32_t row = 0; row < small->output_rows; row++)
        for (uint32_t i = 0; i < HIDDEN; i++) {
            float value = (float)(1000 * row + i);
            cr_assert_eq(fwrite(&value, sizeof value, 1, file), 1);
        }
    return MLA_OK;
}

static void copy_file(const char *from, const char *to)
{
    FILE *in = fopen(from, "r"), *out = fopen(to, "w");
    cr_assert(in && out);
    int c;
    while ((c = fgetc(in)) != EOF)
        cr_assert_neq(fputc(c, out), EOF);
    fclose(in);
    fclose(out);
}

static const char *path(const struct small_case *small, const char *name)
{
    static char buffer[128];
    snprintf(buffer, sizeof buffer, "%s/%s", small->dir, name);
    return buffer;
}

static void make(struct small_case *small)
{
    snprintf(small->dir, sizeof small->dir, "/tmp/mla-test-case-XXXXXX");
    cr_assert(mkdtemp(small->dir));
    copy_file(MLA_TESTS_DIR "/golden/v3-tiny/config.json", path(small, "config.json"));
    FILE *file = fopen(path(small, "case.json"), "w");
    cr_assert(file);
    fputs(small->description, file);
    fclose(file);
    /* I32 is no dtype of ours, but rows of the same size are: a case may have them as F32. */
    const struct mla_safetensors_entry entries[2] = {
        {"output.1.0", MLA_F32, 2, {small->output_rows, HIDDEN}},
        {"rows.1.0", MLA_F32, 1, {small->row_count}},
    };
    cr_assert_eq(mla_safetensors_write(path(small, "golden.safetensors"), entries, 2, fill, small),
                 MLA_OK);
}

static void discard(struct small_case *small)
{
    unlink(path(small, "config.json"));
    unlink(path(small, "case.json"));
    unlink(path(small, "golden.safetensors"));
    rmdir(small->dir);
}

static const char one_sequence[] = "{\"layers\": [1], \"lengths\": [5]}";

Test(case, reads_a_published_one)
{
    struct mla_case c = {0};
    char why[MLA_SENTENCE_BYTES_MAX] = "";
    cr_assert_eq(mla_case_open(MLA_TESTS_DIR "/golden/v3-tiny", &c, why), MLA_OK, "%s", why);
    cr_assert_eq(c.layer_count, 2);
    cr_assert_eq(c.layers[1], 1);
    cr_assert_eq(c.sequence_count, 5);
    cr_assert_eq(c.lengths[4], 200);
    cr_assert_eq(c.config.hidden, HIDDEN);
    float row[HIDDEN];
    for (uint32_t layer = 0; layer < 2; layer++)
        for (uint32_t i = 0; i < 5; i++)
            cr_assert(mla_case_golden(&c, layer, i, c.lengths[i] - 1, row));
    mla_case_close(&c);
}

Test(case, gives_inputs_in_any_pieces)
{
    struct mla_case c = {0};
    char why[MLA_SENTENCE_BYTES_MAX] = "";
    cr_assert_eq(mla_case_open(MLA_TESTS_DIR "/golden/v3-tiny", &c, why), MLA_OK, "%s", why);
    static float whole[200 * HIDDEN], piece[200 * HIDDEN], wrong[200 * HIDDEN];
    mla_formula_fill("input.1.4", 2, (uint64_t[]){200, HIDDEN}, 0, 200 * HIDDEN, whole);
    mla_case_input(&c, "input", 1, 4, 0, 63, piece);
    mla_case_input(&c, "input", 1, 4, 63, 137, piece + 63 * HIDDEN);
    cr_assert_arr_eq(whole, piece, sizeof whole);
    mla_case_input(&c, "wrong", 1, 4, 0, 200, wrong);
    cr_assert_arr_neq(whole, wrong, sizeof whole);
    mla_case_close(&c);
}

Test(case, knows_the_rows_that_were_kept)
{
    struct small_case small = {
        .description = one_sequence, .row_count = 3, .output_rows = 3, .rows = {0, 1, 4}};
    make(&small);
    struct mla_case c = {0};
    char why[MLA_SENTENCE_BYTES_MAX] = "";
    cr_assert_eq(mla_case_open(small.dir, &c, why), MLA_OK, "%s", why);
    float row[HIDDEN] = {0};
    cr_assert(mla_case_golden(&c, 0, 0, 4, row));
    cr_assert_eq(row[7], 2007);
    cr_assert_not(mla_case_golden(&c, 0, 0, 2, row));
    cr_assert_not(mla_case_golden(&c, 0, 0, 3, row));
    cr_assert_eq(row[7], 2007);
    cr_assert(mla_case_golden(&c, 0, 0, 1, row));
    cr_assert_eq(row[7], 1007);
    mla_case_close(&c);
    discard(&small);
}

Test(case, refuses_what_is_wrong)
{
    static const struct {
        struct small_case small;
        enum mla_status status;
        const char *says;
    } wrong[] = {
        {{"", "{", 1, 1, {0}}, MLA_CONFIG, "case.json"},
        {{"", "{\"layers\": [1]}", 1, 1, {0}}, MLA_CONFIG, "lengths"},
        {{"", "{\"layers\": [], \"lengths\": [5]}", 1, 1, {0}}, MLA_CONFIG, "layers"},
        {{"", "{\"layers\": [-1], \"lengths\": [5]}", 1, 1, {0}}, MLA_CONFIG, "layers"},
        {{"", "{\"layers\": [1], \"lengths\": [0]}", 1, 1, {0}}, MLA_CONFIG, "lengths"},
        {{"", "{\"layers\": [1], \"lengths\": [2.5]}", 1, 1, {0}}, MLA_CONFIG, "lengths"},
        {{"", "{\"layers\": [2], \"lengths\": [5]}", 1, 1, {0}}, MLA_CHECKPOINT, "output.2.0"},
        {{"", "{\"layers\": [1], \"lengths\": [1]}", 2, 2, {0, 1}}, MLA_CHECKPOINT, "output.1.0"},
        {{"", one_sequence, 2, 3, {0, 1}}, MLA_CHECKPOINT, "rows.1.0"},
        {{"", one_sequence, 2, 2, {1, 1}}, MLA_CHECKPOINT, "rows.1.0"},
        {{"", one_sequence, 2, 2, {1, 5}}, MLA_CHECKPOINT, "rows.1.0"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        struct small_case small = wrong[i].small;
        make(&small);
        struct mla_case c = {0};
        char why[MLA_SENTENCE_BYTES_MAX] = "";
        enum mla_status status = mla_case_open(small.dir, &c, why);
        cr_assert_eq(status, wrong[i].status, "%zu: %s", i, why);
        cr_assert(strstr(why, wrong[i].says), "%zu: %s", i, why);
        cr_assert_eq(c.sequence_count, 0);
        discard(&small);
    }
}

Test(case, says_what_is_missing)
{
    struct small_case small = {
        .description = one_sequence, .row_count = 1, .output_rows = 1, .rows = {0}};
    struct mla_case c = {0};
    char why[MLA_SENTENCE_BYTES_MAX] = "";
    make(&small);
    unlink(path(&small, "golden.safetensors"));
    cr_assert_neq(mla_case_open(small.dir, &c, why), MLA_OK);
    unlink(path(&small, "config.json"));
    cr_assert_eq(mla_case_open(small.dir, &c, why), MLA_CONFIG);
    discard(&small);
}
