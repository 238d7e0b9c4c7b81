#include "tests/bench/timeline.h"

#include <stdbool.h>
#include <stdlib.h>

enum { FIRST_CAPACITY = 1024 };

enum mla_status mla_timeline_add(struct mla_timeline *timeline,
                                 const struct mla_timeline_step *step)
{
    if (timeline->count == timeline->capacity) {
        size_t capacity = timeline->capacity ? 2 * timeline->capacity : FIRST_CAPACITY;
        struct mla_timeline_step *steps =
            realloc(timeline->steps, capacity * sizeof *timeline->steps);
        if (!steps)
            return MLA_MEMORY;
        timeline->steps = steps;
        timeline->capacity = capacity;
    }
    timeline->steps[timeline->count++] = *step;
    return MLA_OK;
}

enum mla_status mla_timeline_append(struct mla_timeline *timeline, const struct mla_timeline *from)
{
    enum mla_status status = MLA_OK;
    for (size_t i = 0; i < from->count && status == MLA_OK; i++)
        status = mla_timeline_add(timeline, &from->steps[i]);
    return status;
}

void mla_timeline_fini(struct mla_timeline *timeline)
{
    free(timeline->steps);
    *timeline = (struct mla_timeline){0};
}

json_t *mla_timeline_json(const struct mla_timeline *timeline, double started_s)
{
    json_t *ended = json_array(), *lane = json_array(), *decode = json_array();
    json_t *prefill = json_array(), *active = json_array(), *blocks = json_array();
    bool failed = false;
    for (size_t i = 0; i < timeline->count; i++) {
        const struct mla_timeline_step *step = &timeline->steps[i];
        failed |= json_array_append_new(ended, json_real(step->ended_s - started_s)) != 0;
        failed |= json_array_append_new(lane, json_integer(step->lane)) != 0;
        failed |= json_array_append_new(decode, json_integer(step->decode_rows)) != 0;
        failed |= json_array_append_new(prefill, json_integer(step->prefill_rows)) != 0;
        failed |= json_array_append_new(active, json_integer(step->active)) != 0;
        failed |= json_array_append_new(blocks, json_integer(step->blocks_used)) != 0;
    }
    json_t *json =
        json_pack("{s:o, s:o, s:o, s:o, s:o, s:o}", "ended_s", ended, "lane", lane, "decode_rows",
                  decode, "prefill_rows", prefill, "active", active, "blocks_used", blocks);
    if (!failed)
        return json;
    json_decref(json);
    return NULL;
}
