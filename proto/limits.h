/* Every bound of the service in one place. Counts that arrive on a wire are compared with these
 * before anything is computed from them. */
#ifndef MLA_PROTO_LIMITS_H
#define MLA_PROTO_LIMITS_H

#define MLA_BLOCK_TOKENS          64u       /* tokens in one KV block (page) */
#define MLA_RANKS_MAX             64u       /* ranks of one tensor-parallel group */
#define MLA_GROUPS_MAX            32u       /* groups behind one coordinator */
#define MLA_CLIENTS_MAX           256u      /* connected clients */
#define MLA_LAYERS_MAX            256u      /* layers served */
#define MLA_HIDDEN_MAX            32768u    /* hidden_size */
#define MLA_HEADS_MAX             1024u     /* attention heads of the model */
#define MLA_HEAD_DIM_MAX          1024u     /* nope, rope or v head dimension */
#define MLA_LATENT_MAX            4096u     /* kv_lora_rank */
#define MLA_Q_LORA_MAX            8192u     /* q_lora_rank */
#define MLA_CONTEXT_MAX           1048576u  /* tokens of one sequence */
#define MLA_STEP_SEQUENCES_MAX    1024u     /* sequences of one step, or entries of one request */
#define MLA_STEP_TOKENS_MAX       65536u    /* new tokens of one step */
#define MLA_STEP_MICROBATCHES_MAX 4096u     /* microbatches of one step in one group */
#define MLA_STEPS_OPEN_MAX        64u       /* open steps of the whole service */
#define MLA_STEPS_CLOSED_MAX      64u       /* closed steps of a client that are remembered */
#define MLA_SEQUENCES_MAX         65536u    /* sequences of one group */
#define MLA_PLAN_BLOCKS_MAX       1048576u  /* block ids in one plan message */
#define MLA_BLOCKS_MAX            16777216u /* KV blocks of one group */
#define MLA_DECODE_BUCKETS_MAX    32u       /* decode graph sizes */
#define MLA_DECODE_ROWS_MAX       4096u     /* largest decode bucket */
#define MLA_RUNS_QUEUED_MAX       256u      /* RUN requests of one client in flight */
#define MLA_CREDITS_MAX           64u       /* microbatches in flight to one group */
#define MLA_SENTENCE_BYTES_MAX    256u      /* error sentence */
#define MLA_ENDPOINT_BYTES_MAX    256u
#define MLA_KEYS_MAX              1024u /* keys that may connect to one endpoint */
#define MLA_USER_BYTES_MAX        32u   /* a key's name, with its zero */
#define MLA_REGION_TOKEN_BYTES    16u
#define MLA_REGION_PATH_BYTES_MAX 107u /* what a unix socket's address holds */
#define MLA_REGION_ALIGNMENT      16u  /* of payloads in a region */
#define MLA_REGION_BYTES_MAX      (1ull << 40)
#define MLA_PAYLOAD_BYTES_MAX     2147483648ull /* one payload frame */

#endif
