#include "tests/bench/trace.h"

#include "proto/limits.h"
#include "proto/parse.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool parse_line(char *line, struct mla_request *out)
{
    uint64_t prompt, output;
    line[strcspn(line, "\r\n")] = '\0';
    char *comma = strchr(line, ',');
    if (!comma)
        return false;
    *comma = '\0';
    if (!mla_parse_number(line, 1, MLA_CONTEXT_MAX, &prompt) ||
        !mla_parse_number(comma + 1, 1, MLA_CONTEXT_MAX, &output))
        return false;
    *out = (struct mla_request){.prompt = (uint32_t)prompt, .output = (uint32_t)output};
    return true;
}

static enum mla_status read_lines(FILE *file, const char *path, uint32_t limit,
                                  struct mla_request **out, uint32_t *count)
{
    struct mla_request *requests = NULL;
    uint32_t used = 0, capacity = 0;
    enum mla_status status = MLA_OPTION;
    char line[128];
    if (!fgets(line, sizeof line, file) || strncmp(line, "prompt_tokens,output_tokens", 27) != 0) {
        fprintf(stderr, "mla-bench: %s: the first line must be prompt_tokens,output_tokens\n",
                path);
        goto fail;
    }
    while ((limit == 0 || used < limit) && fgets(line, sizeof line, file)) {
        if (used == capacity) {
            capacity = capacity ? 2 * capacity : 256;
            struct mla_request *grown = realloc(requests, capacity * sizeof *requests);
            if (!grown) {
                fputs("mla-bench: out of memory\n", stderr);
                status = MLA_MEMORY;
                goto fail;
            }
            requests = grown;
        }
        if (!parse_line(line, &requests[used])) {
            fprintf(stderr, "mla-bench: %s: line %u is not two numbers from 1 to %u\n", path,
                    used + 2, MLA_CONTEXT_MAX);
            goto fail;
        }
        used++;
    }
    if (used == 0) {
        fprintf(stderr, "mla-bench: %s: there are no requests\n", path);
        goto fail;
    }
    *out = requests;
    *count = used;
    return MLA_OK;

fail:
    free(requests);
    return status;
}

enum mla_status mla_trace_read(const char *path, uint32_t limit, struct mla_request **out,
                               uint32_t *count)
{
    FILE *file = fopen(path, "r");
    if (!file) {
        fprintf(stderr, "mla-bench: %s: %s\n", path, strerror(errno));
        return MLA_OPTION;
    }
    enum mla_status status = read_lines(file, path, limit, out, count);
    fclose(file);
    return status;
}
