#include "coordinator/options.h"

#include "proto/parse.h"

#include <stdio.h>
#include <string.h>

static const char help[] =
    "usage: mla-coordinator [options]\n"
    "\n"
    "Takes requests from clients and has them worked on by groups of mla-worker ranks.\n"
    "Prints 'bound WORKERS CLIENTS' when both endpoints are, 'ready CLIENTS' when all groups are;\n"
    "then 'joined G' and 'lost G hung|gone' as groups come and go.\n"
    "\n"
    "  --endpoint E            for clients (tcp://127.0.0.1:5755)\n"
    "  --workers E             for workers (tcp://127.0.0.1:5756)\n"
    "  --groups N              groups of workers to wait for (1)\n"
    "  --decode-tokens-max N   a sequence with at most N new tokens is decode (1)\n"
    "  --prefill-tokens-max N  tokens of one prefill microbatch (512)\n"
    "  --buckets LIST          decode sizes; the last bounds a decode microbatch\n"
    "                          (1,2,4,8,16,32,64,96,128,192,256)\n"
    "  --pad-decode            pad decode microbatches to a bucket, also without CUDA graphs\n"
    "  --kv-blocks N           KV blocks of 64 tokens in each group (what the workers offer)\n"
    "  --kv-memory BYTES       the same as memory of each rank; K, M, G, T are understood\n"
    "  --context-max N         tokens of one sequence (the model's)\n"
    "  --sequences-max N       sequences of one group (1024)\n"
    "  --steps-open-max N      steps open at a time (16)\n"
    "  --step-tokens-max N     new tokens of one step (8192)\n"
    "  --runs-queued-max N     RUN requests of one client in flight; beyond is BUSY (64)\n"
    "  --credits N             microbatches in flight to one group (8)\n"
    "  --clients-max N         clients at a time; beyond is BUSY (256)\n"
    "  --payload-memory BYTES  bound on payloads held; beyond is BUSY (2G)\n"
    "  --payload auto|inline   inline: no shared memory, also with clients of this host (auto)\n"
    "  --region-memory BYTES   bound on shared memory of all clients; beyond is BUSY (4G)\n"
    "  --frame-bytes-max BYTES a larger frame ends its connection (what --step-tokens-max rows\n"
    "                          take in f32 at a hidden size of 8192)\n"
    "  --memory-max BYTES      bound on address space; clients that send without end are dropped\n"
    "                          before (--payload-memory + 16G above what start-up takes)\n"
    "  --metrics ADDRESS:PORT  serve /metrics (Prometheus), /healthz and /livez there, over HTTP,\n"
    "                          to everybody who can reach it (nowhere)\n"
    "  --curve-keys DIR        keys of mla-keys: tcp endpoints are encrypted and take only those\n"
    "                          keys that clients.allow and workers.allow name\n"
    "  --keep-workers          told to end, leave the workers: they wait for the next coordinator\n"
    "                          with their weights (mla-worker --connect-timeout-ms)\n"
    "  --insecure              allow tcp endpoints that other hosts can reach without keys, and\n"
    "                          ipc endpoints in folders that other users can enter\n"
    "  --spin                  look for messages without sleeping, here and in ZeroMQ's thread,\n"
    "                          which saves waking up in every RUN: takes two cores, also of an\n"
    "                          idle service\n"
    "  --heartbeat-ms N        workers send a heartbeat so often (200)\n"
    "  --heartbeat-timeout-ms N  a group without one for so long is lost; a worker without an\n"
    "                          answer for so long joins again (1800)\n"
    "  --run-timeout-ms N      a RUN that takes so long is answered with DEADLINE, and a group\n"
    "                          that hangs in it is given up (60000)\n"
    "\n"
    "exit codes: 0 ended by SIGTERM or SIGINT, 2 wrong option, 5 endpoint invalid or in use,\n"
    "6 out of memory, 1 anything else\n";

enum option_id {
    OPTION_ENDPOINT = 256,
    OPTION_WORKERS,
    OPTION_BUCKETS,
    OPTION_PAD,
    OPTION_KV_MEMORY,
    OPTION_PAYLOAD_MEMORY,
    OPTION_PAYLOAD,
    OPTION_REGION_MEMORY,
    OPTION_SPIN,
    OPTION_FRAME_BYTES,
    OPTION_MEMORY,
    OPTION_KEYS,
    OPTION_METRICS,
    OPTION_KEEP_WORKERS,
    OPTION_INSECURE,
    OPTION_HELP,
    OPTION_NUMBER, /* the first of those in `numbers` */
};

/* Ranges are mla_core_options_check's to say. */
static bool set_number(struct mla_core_options *core, int number, const char *text)
{
    uint32_t *const fields[] = {
        &core->groups,
        &core->plan.decode_tokens_max,
        &core->plan.prefill_tokens_max,
        &core->kv_blocks,
        &core->context_max,
        &core->sequences_max,
        &core->steps_open_max,
        &core->step_tokens_max,
        &core->runs_queued_max,
        &core->credits,
        &core->heartbeat_ms,
        &core->heartbeat_timeout_ms,
        &core->run_timeout_ms,
        &core->clients_max,
    };
    return mla_parse_u32(text, 0, UINT32_MAX, fields[number]);
}

static const struct option options[] = {
    {"endpoint", required_argument, NULL, OPTION_ENDPOINT},
    {"workers", required_argument, NULL, OPTION_WORKERS},
    {"buckets", required_argument, NULL, OPTION_BUCKETS},
    {"pad-decode", no_argument, NULL, OPTION_PAD},
    {"kv-memory", required_argument, NULL, OPTION_KV_MEMORY},
    {"payload-memory", required_argument, NULL, OPTION_PAYLOAD_MEMORY},
    {"payload", required_argument, NULL, OPTION_PAYLOAD},
    {"region-memory", required_argument, NULL, OPTION_REGION_MEMORY},
    {"spin", no_argument, NULL, OPTION_SPIN},
    {"frame-bytes-max", required_argument, NULL, OPTION_FRAME_BYTES},
    {"memory-max", required_argument, NULL, OPTION_MEMORY},
    {"metrics", required_argument, NULL, OPTION_METRICS},
    {"curve-keys", required_argument, NULL, OPTION_KEYS},
    {"keep-workers", no_argument, NULL, OPTION_KEEP_WORKERS},
    {"insecure", no_argument, NULL, OPTION_INSECURE},
    {"help", no_argument, NULL, OPTION_HELP},
    {"groups", required_argument, NULL, OPTION_NUMBER},
    {"decode-tokens-max", required_argument, NULL, OPTION_NUMBER + 1},
    {"prefill-tokens-max", required_argument, NULL, OPTION_NUMBER + 2},
    {"kv-blocks", required_argument, NULL, OPTION_NUMBER + 3},
    {"context-max", required_argument, NULL, OPTION_NUMBER + 4},
    {"sequences-max", required_argument, NULL, OPTION_NUMBER + 5},
    {"steps-open-max", required_argument, NULL, OPTION_NUMBER + 6},
    {"step-tokens-max", required_argument, NULL, OPTION_NUMBER + 7},
    {"runs-queued-max", required_argument, NULL, OPTION_NUMBER + 8},
    {"credits", required_argument, NULL, OPTION_NUMBER + 9},
    {"heartbeat-ms", required_argument, NULL, OPTION_NUMBER + 10},
    {"heartbeat-timeout-ms", required_argument, NULL, OPTION_NUMBER + 11},
    {"run-timeout-ms", required_argument, NULL, OPTION_NUMBER + 12},
    {"clients-max", required_argument, NULL, OPTION_NUMBER + 13},
    {0},
};

static bool set(void *context, int id, const char *text)
{
    struct mla_server_options *out = context;
    struct mla_plan_options *plan = &out->core.plan;
    switch (id) {
    case OPTION_ENDPOINT:
        out->endpoint = text;
        return strlen(text) < MLA_ENDPOINT_BYTES_MAX;
    case OPTION_WORKERS:
        out->workers = text;
        return strlen(text) < MLA_ENDPOINT_BYTES_MAX;
    case OPTION_BUCKETS:
        return mla_parse_list(text, MLA_DECODE_BUCKETS_MAX, plan->buckets, &plan->bucket_count);
    case OPTION_PAD:
        out->core.pad_to_bucket = true;
        return true;
    case OPTION_SPIN:
        out->spin = true;
        return true;
    case OPTION_KV_MEMORY:
        return mla_parse_bytes(text, &out->core.kv_memory_bytes) && out->core.kv_memory_bytes > 0;
    case OPTION_PAYLOAD_MEMORY:
        return mla_parse_bytes(text, &out->core.payload_bytes_max);
    case OPTION_PAYLOAD:
        out->payload_inline = strcmp(text, "inline") == 0;
        return out->payload_inline || strcmp(text, "auto") == 0;
    case OPTION_REGION_MEMORY:
        return mla_parse_bytes(text, &out->core.region_bytes_max);
    case OPTION_FRAME_BYTES:
        return mla_parse_bytes(text, &out->frame_bytes_max) && out->frame_bytes_max > 65535 &&
               out->frame_bytes_max <= MLA_PAYLOAD_BYTES_MAX;
    case OPTION_MEMORY:
        return mla_parse_bytes(text, &out->memory_bytes_max) && out->memory_bytes_max > 0;
    case OPTION_KEYS:
        out->curve_keys = text;
        return *text != '\0';
    case OPTION_METRICS:
        out->metrics = text;
        return *text != '\0';
    case OPTION_KEEP_WORKERS:
        out->keep_workers = true;
        return true;
    case OPTION_INSECURE:
        out->insecure = true;
        return true;
    default:
        return set_number(&out->core, id - OPTION_NUMBER, text);
    }
}

enum mla_status mla_coordinator_options_parse(int argc, char **argv, struct mla_server_options *out)
{
    *out = (struct mla_server_options){.endpoint = "tcp://127.0.0.1:5755",
                                       .workers = "tcp://127.0.0.1:5756"};
    mla_core_options_default(&out->core);
    enum mla_status status = mla_parse_options(argc, argv, options, help, set, out);
    if (status != MLA_OK)
        return status;
    if (out->payload_inline)
        out->core.region_bytes_max = 0;
    char why[MLA_SENTENCE_BYTES_MAX];
    status = mla_core_options_check(&out->core, why);
    if (status != MLA_OK)
        fprintf(stderr, "%s\n", why);
    return status;
}
