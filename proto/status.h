/* Outcomes. Codes below 100 travel on the wire and never change their number; codes from 100 on
 * are local to a process. proto/README.md says when each wire code is given. */
#ifndef MLA_PROTO_STATUS_H
#define MLA_PROTO_STATUS_H

enum mla_status {
    MLA_OK = 0,
    /* the message itself */
    MLA_MALFORMED = 1, /* bad magic, lengths that disagree, a reserved field that is not 0 */
    MLA_VERSION = 2,   /* a protocol version that is not spoken here */
    MLA_TYPE = 3,      /* unknown message type, or one that only the other side sends */
    MLA_FRAMES = 4,    /* not one frame, or two where a payload is announced */
    MLA_LIMIT = 5,     /* a count beyond the limits told in HELLO */
    MLA_LENGTH = 6,    /* payload_bytes disagrees with the payload frame or with its shape */
    MLA_FIELD = 7,     /* a field whose value is not among those allowed */
    /* order and state */
    MLA_HELLO_REQUIRED = 10, /* anything before HELLO */
    MLA_NOT_READY = 11,      /* no group of workers is ready */
    MLA_BUSY = 12,           /* too many requests or steps in flight; nothing changed */
    MLA_STEP_UNKNOWN = 13,
    MLA_STEP_EXISTS = 14,
    MLA_STEP_BUSY = 15, /* CLOSE while a RUN of the step is in flight */
    MLA_STEP_LOST = 16, /* the step's group died; only CLOSE is left to do */
    /* sequences */
    MLA_SEQUENCE_UNKNOWN = 20,
    MLA_SEQUENCE_EXISTS = 21,
    MLA_SEQUENCE_BUSY = 22,     /* it is in an open step */
    MLA_SEQUENCE_REPEATED = 23, /* twice in one request */
    MLA_OUT_OF_ORDER = 24,      /* start is not the committed length */
    MLA_KV_FULL = 25,           /* not enough free blocks; nothing changed */
    MLA_KV_LOST = 26,           /* the group that held it was restarted: prefill again */
    MLA_CONTEXT = 27,           /* longer than context_max */
    MLA_SEQUENCES_FULL = 28,    /* no room for another sequence */
    /* RUN */
    MLA_LAYER = 30,      /* a layer that is not served */
    MLA_DTYPE = 31,      /* a dtype that is not bf16 or f32 */
    MLA_COUNT = 32,      /* rows or hidden differ from the step or the model; tokens of 0 */
    MLA_GROUP_LOST = 33, /* the workers died under this request */
    MLA_DEADLINE = 34,
    /* payloads in shared memory */
    MLA_REGION = 35,     /* not this client's region, or not a place in it */
    MLA_NOT_SHARED = 36, /* the workers can't reach it: send payloads inline */
    MLA_INTERNAL = 40,   /* a failure of ours that is none of the above */

    /* local to a process */
    MLA_SYSTEM = 100, /* a system call failed */
    MLA_MEMORY = 101, /* an allocation failed */
    MLA_CONFIG = 102, /* config.json is wrong or not supported */
    MLA_CHECKPOINT = 103,
    MLA_OPTION = 104,   /* a command line option is unknown or out of range */
    MLA_ENDPOINT = 105, /* an endpoint is invalid or in use */
    MLA_TIMEOUT = 106,
    MLA_CLOSED = 107,
    MLA_UNSUPPORTED = 108,
    MLA_COLLECTIVE = 109, /* a collective or MPI call failed: the group ends */
    MLA_AGAIN = 110,      /* nothing there yet, or no room yet */
};

/* The name without its prefix ("KV_FULL"), "UNKNOWN" for other numbers. Never NULL. */
const char *mla_status_name(enum mla_status status);

/* One general sentence for the code, for callers that have nothing more exact. Never NULL. */
const char *mla_status_sentence(enum mla_status status);

/* The exit code of a program that ends on this status: 2 for OPTION, 3 CONFIG, 4 CHECKPOINT,
 * 5 ENDPOINT, 6 MEMORY, 7 TIMEOUT or CLOSED, 8 GROUP_LOST or DEADLINE (of a rank: its group was
 * given up and can be started again), 1 for all others, 0 for OK. */
int mla_status_exit_code(enum mla_status status);

#endif
