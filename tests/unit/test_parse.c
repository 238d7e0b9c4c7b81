#include "proto/parse.h"

#include <criterion/criterion.h>
#include <criterion/redirect.h>
#include <stdio.h>

static void number(const char *text, uint64_t least, uint64_t most, bool wanted, uint64_t value)
{
    uint64_t found = 12345;
    cr_expect_eq(mla_parse_number(text, least, most, &found), wanted, "'%s'", text);
    cr_expect_eq(found, wanted ? value : 12345, "'%s' gave %llu", text, (unsigned long long)found);
}

Test(parse, number)
{
    number("0", 0, UINT64_MAX, true, 0);
    number("007", 0, 10, true, 7);
    number("18446744073709551615", 0, UINT64_MAX, true, UINT64_MAX);
    number("18446744073709551616", 0, UINT64_MAX, false, 0);
    number("99999999999999999999999", 0, UINT64_MAX, false, 0);
    number("3", 3, 3, true, 3);
    number("2", 3, 3, false, 0);
    number("4", 3, 3, false, 0);
    static const char *const none[] = {"",   " ",   "-1",  "+1",  " 1", "1 ", "1x",
                                       "x1", "0x1", "1.0", "1e3", "1K", "\n", "1,2"};
    for (size_t i = 0; i < sizeof none / sizeof *none; i++)
        number(none[i], 0, UINT64_MAX, false, 0);
}

Test(parse, u32)
{
    uint32_t found = 12345;
    cr_expect(mla_parse_u32("4294967295", 0, UINT32_MAX, &found));
    cr_expect_eq(found, UINT32_MAX);
    static const char *const none[] = {"4294967296", "4294967300", "2", "-1", ""};
    for (size_t i = 0; i < sizeof none / sizeof *none; i++)
        cr_expect_not(mla_parse_u32(none[i], 3, UINT32_MAX, &found), "'%s'", none[i]);
    cr_expect_eq(found, UINT32_MAX);
}

static void bytes(const char *text, bool wanted, uint64_t value)
{
    uint64_t found = 12345;
    cr_expect_eq(mla_parse_bytes(text, &found), wanted, "'%s'", text);
    cr_expect_eq(found, wanted ? value : 12345, "'%s' gave %llu", text, (unsigned long long)found);
}

Test(parse, bytes)
{
    bytes("0", true, 0);
    bytes("1023", true, 1023);
    bytes("18446744073709551615", true, UINT64_MAX);
    bytes("1K", true, 1ull << 10);
    bytes("3M", true, 3ull << 20);
    bytes("5G", true, 5ull << 30);
    bytes("7T", true, 7ull << 40);
    bytes("0T", true, 0);
    bytes("18014398509481983K", true, 18014398509481983ull << 10);
    bytes("18014398509481984K", false, 0);
    bytes("16777215T", true, 16777215ull << 40);
    bytes("16777216T", false, 0);
    bytes("18446744073709551616", false, 0);
    static const char *const none[] = {"",   "K",   "1k",   "1KB", "1KK",  "1KM", "1MK",
                                       "-1", "1 K", "1.5G", "1P",  "0x1K", " 1K", "1K "};
    for (size_t i = 0; i < sizeof none / sizeof *none; i++)
        bytes(none[i], false, 0);
}

static void list(const char *text, uint32_t capacity, uint32_t wanted)
{
    uint32_t found[4] = {0, 0, 0, 12345};
    uint32_t count = 12345;
    cr_expect_eq(mla_parse_list(text, capacity, found, &count), wanted > 0, "'%s'", text);
    cr_expect_eq(count, wanted ? wanted : 12345, "'%s' gave %u", text, count);
    cr_expect_eq(found[3], 12345, "'%s' was written beyond the capacity", text);
}

Test(parse, list)
{
    uint32_t found[3];
    uint32_t count = 0;
    cr_assert(mla_parse_list("1,20,4294967295", 3, found, &count));
    cr_expect(count == 3 && found[0] == 1 && found[1] == 20 && found[2] == UINT32_MAX);
    cr_assert(mla_parse_list("0", 1, found, &count));
    cr_expect(count == 1 && found[0] == 0);
    list("1,2,3", 3, 3);
    list("1,2,3", 2, 0);
    list("1,2,3,4", 3, 0);
    static const char *const none[] = {"",    ",",    "1,",   ",1",         "1,,2", "2,1", "1,1",
                                       "1;2", "1, 2", "1,-2", "4294967296", "a",    "1,a", "1 "};
    for (size_t i = 0; i < sizeof none / sizeof *none; i++)
        list(none[i], 3, 0);
}

Test(parse, range)
{
    uint32_t first = 9;
    uint32_t last = 9;
    cr_expect(mla_parse_range("0-7", 7, &first, &last) && first == 0 && last == 7);
    cr_expect(mla_parse_range("3", 7, &first, &last) && first == 3 && last == 3);
    static const char *const none[] = {"", "-", "1-", "-1", "0-8", "8", "3-2", "1-2-3", "a", "1 "};
    for (size_t i = 0; i < sizeof none / sizeof *none; i++)
        cr_expect_not(mla_parse_range(none[i], 7, &first, &last), "'%s'", none[i]);
    cr_expect(first == 3 && last == 3);
}

Test(parse, fraction)
{
    double found = 5;
    cr_expect(mla_parse_fraction("0.5", &found) && found == 0.5);
    static const char *const none[] = {"", "0", "1", "1.5", "-0.5", "nan", "x", "0.5x"};
    for (size_t i = 0; i < sizeof none / sizeof *none; i++)
        cr_expect_not(mla_parse_fraction(none[i], &found), "'%s'", none[i]);
    cr_expect_eq(found, 0.5);
}

struct line {
    uint32_t number;
    bool flag;
};

static bool set(void *context, int id, const char *text)
{
    struct line *line = context;
    if (id == 'f')
        return line->flag = true;
    return mla_parse_u32(text, 1, 9, &line->number);
}

/* At most four words after the program's name. */
static enum mla_status command(const char *words[4], struct line *line, const char **argument)
{
    static const struct option options[] = {{"number", required_argument, NULL, 'h'},
                                            {"flag", no_argument, NULL, 'f'},
                                            {"help", no_argument, NULL, '?' + 256},
                                            {0}};
    char *argv[6] = {(char *)"program"};
    int argc = 1;
    while (argc <= 4 && words[argc - 1]) {
        argv[argc] = (char *)words[argc - 1];
        argc++;
    }
    *line = (struct line){0};
    optind = 0; /* getopt begins anew */
    return mla_parse_command(argc, argv, options, "the help", set, line, argument);
}

Test(parse, command, .init = cr_redirect_stdout)
{
    const char *argument = NULL;
    struct line line;
    cr_expect_eq(command((const char *[4]){NULL}, &line, &argument), MLA_OK);
    cr_expect_null(argument);
    cr_expect_eq(command((const char *[4]){"--number", "3", "folder", "--flag"}, &line, &argument),
                 MLA_OK);
    cr_expect(line.number == 3 && line.flag);
    cr_expect_str_eq(argument, "folder");
    cr_expect_eq(command((const char *[4]){"--number=3", "--number=5"}, &line, NULL), MLA_OK);
    cr_expect_eq(line.number, 5, "the last one counts");
    cr_expect_eq(command((const char *[4]){"--help", "--number=0"}, &line, NULL), MLA_AGAIN);
    cr_expect_eq(command((const char *[4]){"--flag", "-h"}, &line, NULL), MLA_AGAIN);
    fflush(stdout);
    cr_expect_stdout_eq_str("the helpthe help");
}

Test(parse, command_that_is_wrong, .init = cr_redirect_stderr)
{
    const char *argument = NULL;
    struct line line;
    cr_expect_eq(command((const char *[4]){"folder"}, &line, NULL), MLA_OPTION);
    cr_expect_eq(command((const char *[4]){"folder", "other"}, &line, &argument), MLA_OPTION);
    cr_expect_eq(command((const char *[4]){"--flag", "--number", "0"}, &line, NULL), MLA_OPTION);
    cr_expect_eq(command((const char *[4]){"--number"}, &line, NULL), MLA_OPTION);
    cr_expect_eq(command((const char *[4]){"--other"}, &line, NULL), MLA_OPTION);
    cr_expect_eq(command((const char *[4]){"-n"}, &line, NULL), MLA_OPTION);
    fflush(stderr);
    cr_expect_stderr_eq_str("'folder' is no option\n"
                            "'other' is one argument too many\n"
                            "--number: '0' is not a value it takes\n"
                            "program: option '--number' requires an argument\n"
                            "program: unrecognized option '--other'\n"
                            "program: invalid option -- 'n'\n");
}
