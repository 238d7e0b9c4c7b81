#include "proto/parse.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>

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
