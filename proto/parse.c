#include "proto/parse.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool digits(const char *text, uint64_t *out, char **end)
{
    if (!isdigit((unsigned char)*text))
        return false;
    errno = 0;
    unsigned long long value = strtoull(text, end, 10);
    if (errno != 0)
        return false;
    *out = value;
    return true;
}

bool mla_parse_number(const char *text, uint64_t least, uint64_t most, uint64_t *out)
{
    uint64_t value = 0;
    char *end = NULL;
    if (!digits(text, &value, &end) || *end != '\0' || value < least || value > most)
        return false;
    *out = value;
    return true;
}

bool mla_parse_u32(const char *text, uint32_t least, uint32_t most, uint32_t *out)
{
    uint64_t value = 0;
    if (!mla_parse_number(text, least, most, &value))
        return false;
    *out = (uint32_t)value;
    return true;
}

bool mla_parse_bytes(const char *text, uint64_t *out)
{
    static const char units[] = "KMGT";
    uint64_t value = 0;
    char *end = NULL;
    if (!digits(text, &value, &end))
        return false;
    for (int i = 0; *end != '\0' && units[i] != '\0'; i++) {
        if (value > UINT64_MAX / 1024)
            return false;
        value *= 1024;
        if (*end == units[i]) {
            end++;
            break;
        }
    }
    if (*end != '\0')
        return false;
    *out = value;
    return true;
}

bool mla_parse_list(const char *text, uint32_t capacity, uint32_t *list, uint32_t *count)
{
    uint32_t used = 0;
    for (;;) {
        uint64_t value = 0;
        char *end = NULL;
        if (!digits(text, &value, &end) || value > UINT32_MAX || used == capacity ||
            (used > 0 && value <= list[used - 1]))
            return false;
        list[used++] = (uint32_t)value;
        if (*end == '\0')
            break;
        if (*end != ',')
            return false;
        text = end + 1;
    }
    *count = used;
    return true;
}

bool mla_parse_range(const char *text, uint64_t most, uint32_t *first, uint32_t *last)
{
    uint64_t from = 0;
    uint64_t to = 0;
    char *end = NULL;
    if (!digits(text, &from, &end))
        return false;
    to = from;
    if (*end == '-' && !digits(end + 1, &to, &end))
        return false;
    if (*end != '\0' || to < from || to > most)
        return false;
    *first = (uint32_t)from;
    *last = (uint32_t)to;
    return true;
}

bool mla_parse_fraction(const char *text, double *out)
{
    char *end = NULL;
    double value = strtod(text, &end);
    if (end == text || *end != '\0' || !(value > 0 && value < 1))
        return false;
    *out = value;
    return true;
}

/* -h is nobody's long option. */
static bool is_help(const struct option *options, int id, int at)
{
    return at < 0 ? id == 'h' : strcmp(options[at].name, "help") == 0;
}

enum mla_status mla_parse_command(int argc, char **argv, const struct option *options,
                                  const char *help,
                                  bool (*set)(void *context, int id, const char *text),
                                  void *context, const char **argument)
{
    int id = 0;
    int at = -1;
    for (; (id = getopt_long(argc, argv, "h", options, &at)) != -1; at = -1) {
        if (id == '?')
            return MLA_OPTION; /* getopt said which */
        if (is_help(options, id, at)) {
            fputs(help, stdout);
            return MLA_AGAIN;
        }
        if (!set(context, id, optarg)) {
            fprintf(stderr, "--%s: '%s' is not a value it takes\n", options[at].name, optarg);
            return MLA_OPTION;
        }
    }
    if (argument && optind < argc)
        *argument = argv[optind++];
    if (optind < argc) {
        fprintf(stderr, argument ? "'%s' is one argument too many\n" : "'%s' is no option\n",
                argv[optind]);
        return MLA_OPTION;
    }
    return MLA_OK;
}

enum mla_status mla_parse_options(int argc, char **argv, const struct option *options,
                                  const char *help,
                                  bool (*set)(void *context, int id, const char *text),
                                  void *context)
{
    return mla_parse_command(argc, argv, options, help, set, context, NULL);
}
