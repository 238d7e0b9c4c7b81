#include "proto/status.h"

struct meaning {
    const char *name, *sentence;
};

#define MEANING(code, text) [MLA_##code] = {#code, text}

static const struct meaning meanings[] = {
    MEANING(OK, "all is well"),
    MEANING(MALFORMED, "the message can't be read"),
    MEANING(VERSION, "this protocol version is not spoken here"),
    MEANING(TYPE, "the message type is unknown here"),
    MEANING(FRAMES, "the message has too many or too few frames"),
    MEANING(LIMIT, "a count is beyond its limit"),
    MEANING(LENGTH, "the payload is not as long as announced or as its shape"),
    MEANING(FIELD, "a field has a value that is not allowed"),
    MEANING(HELLO_REQUIRED, "HELLO must come first"),
    MEANING(NOT_READY, "no group of workers is ready"),
    MEANING(BUSY, "too many requests or steps are in flight"),
    MEANING(STEP_UNKNOWN, "there is no such open step"),
    MEANING(STEP_EXISTS, "a step with this id is open, with other entries"),
    MEANING(STEP_BUSY, "a RUN of the step is in flight"),
    MEANING(STEP_LOST, "the workers of the step died: abort it"),
    MEANING(SEQUENCE_UNKNOWN, "there is no such sequence"),
    MEANING(SEQUENCE_EXISTS, "a sequence with this id exists"),
    MEANING(SEQUENCE_BUSY, "the sequence is in an open step"),
    MEANING(SEQUENCE_REPEATED, "the request names a sequence twice"),
    MEANING(OUT_OF_ORDER, "this position does not fit the sequence's committed length"),
    MEANING(KV_FULL, "there are not enough free KV blocks"),
    MEANING(KV_LOST, "the workers that held the sequence died: start it again from 0"),
    MEANING(CONTEXT, "the sequence would be longer than allowed"),
    MEANING(SEQUENCES_FULL, "there is no room for another sequence"),
    MEANING(LAYER, "the layer is not served"),
    MEANING(DTYPE, "payloads are bf16 or f32"),
    MEANING(COUNT, "a count differs from the step or the model, or is 0"),
    MEANING(GROUP_LOST, "the workers died under this request"),
    MEANING(DEADLINE, "the request was not done in time"),
    MEANING(REGION, "this is not the client's region, or not a place for payloads in it"),
    MEANING(NOT_SHARED, "shared memory can't be used here: send payloads inline"),
    MEANING(INTERNAL, "the service failed"),
    MEANING(SYSTEM, "a system call failed"),
    MEANING(MEMORY, "there is not enough memory"),
    MEANING(CONFIG, "the model's config.json is wrong or not supported"),
    MEANING(CHECKPOINT, "the checkpoint is wrong or incomplete"),
    MEANING(OPTION, "an option is unknown or out of range"),
    MEANING(ENDPOINT, "the endpoint is invalid or in use"),
    MEANING(TIMEOUT, "there was no answer in time"),
    MEANING(CLOSED, "the connection is closed"),
    MEANING(UNSUPPORTED, "this is not supported"),
    MEANING(COLLECTIVE, "a collective operation failed"),
    MEANING(AGAIN, "nothing is there yet, or there is no room yet"),
};

static const struct meaning *meaning_of(enum mla_status status)
{
    static const struct meaning unknown = {"UNKNOWN", "an unknown error"};
    unsigned code = (unsigned)status;
    if (code >= sizeof meanings / sizeof *meanings || !meanings[code].name)
        return &unknown;
    return &meanings[code];
}

const char *mla_status_name(enum mla_status status)
{
    return meaning_of(status)->name;
}

const char *mla_status_sentence(enum mla_status status)
{
    return meaning_of(status)->sentence;
}

int mla_status_exit_code(enum mla_status status)
{
    switch (status) {
    case MLA_OK:
        return 0;
    case MLA_OPTION:
        return 2;
    case MLA_CONFIG:
        return 3;
    case MLA_CHECKPOINT:
        return 4;
    case MLA_ENDPOINT:
        return 5;
    case MLA_MEMORY:
        return 6;
    case MLA_TIMEOUT:
    case MLA_CLOSED:
        return 7;
    case MLA_GROUP_LOST:
    case MLA_DEADLINE:
        return 8;
    default:
        return 1;
    }
}
