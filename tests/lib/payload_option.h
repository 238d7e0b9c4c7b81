/* --payload of the tools that are clients. */
#ifndef MLA_TESTS_LIB_PAYLOAD_OPTION_H
#define MLA_TESTS_LIB_PAYLOAD_OPTION_H

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

/* False for what is neither auto nor inline. */
static inline bool mla_payload_set(const char *text, bool *is_inline)
{
    *is_inline = strcmp(text, "inline") == 0;
    return *is_inline || strcmp(text, "auto") == 0;
}

/* The same with a sentence on stderr. */
static inline bool mla_payload_option(const char *tool, const char *text, bool *is_inline)
{
    if (mla_payload_set(text, is_inline))
        return true;
    fprintf(stderr, "%s: --payload must be auto or inline, not %s\n", tool, text);
    return false;
}

#endif
