#include "worker/options.h"

#include "proto/limits.h"
#include "proto/parse.h"

#include <stdio.h>
#include <string.h>

static const char help[] =
    "usage: mpirun -n N mla-worker --coordinator E --model DIR [options]\n"
    "       mla-worker --model DIR --check [--ranks N]\n"
    "\n"
    "N ranks are one tensor-parallel group: each loads its heads' part of the attention weights\n"
    "and works for the coordinator until that ends it.\n"
    "\n"
    "  --coordinator E        the coordinator's endpoint for workers (tcp://127.0.0.1:5756)\n"
    "  --model DIR            checkpoint: config.json and safetensors\n"
    "  --curve-keys DIR       for a coordinator on tcp with keys: worker.key and server.pub\n"
    "  --group G              which group this is (0)\n"
    "  --layers A-B           layers to serve (all that the checkpoint has)\n"
    "  --backend B            where to compute: cpu, cuda, or auto: cuda where there is a GPU\n"
    "                         for every rank of this host (auto)\n"
    "  --device N             the GPU of the job's first rank on this host, from 0; the others\n"
    "                         have the next ones (0)\n"
    "  --bind gpu|none        gpu: run on the processors near the rank's GPU (gpu)\n"
    "  --graphs G             decode layers as captured CUDA graphs: start (captured before the\n"
    "                         rank is ready), lazy (when first needed) or off (start)\n"
    "  --collectives C        between GPUs: plain, or measured: at start-up, and with NCCL's "
    "windows\n"
    "                         of symmetric memory at the sizes where they are faster (plain)\n"
    "  --kv-dtype f32|bf16    KV cache (cpu: f32, cuda: bf16)\n"
    "  --kv-memory BYTES      what the KV cache of a rank may take; K, M, G, T are understood\n"
    "  --kv-memory-fraction F without --kv-memory, this share of what is free once weights and\n"
    "                         workspaces are there; graphs take from the rest (cuda: 0.95, cpu:\n"
    "                         0.25, shared by the ranks of a host)\n"
    "  --threads N            OpenMP threads (OMP_NUM_THREADS, or the job's share of all cores)\n"
    "  --context-chunk N      cached tokens that prefill expands at a time (1024)\n"
    "  --connect-timeout-ms N how long to wait for a coordinator, also for the next one when it\n"
    "                         goes (60000)\n"
    "  --poll-us N            after a microbatch, look for the next one so long before sleeping;\n"
    "                         that much of a core, once for each pause (1000)\n"
    "  --spin                 look for it without ever sleeping, here and in ZeroMQ's thread: two\n"
    "                         cores of each rank, also when there is nothing to do\n"
    "  --trace FILE           write a trace of plans, microbatches and, without graphs, their\n"
    "                         operations, for Perfetto (with several ranks FILE.RANK)\n"
    "  --check                only check config and checkpoint, and that --ranks can share heads\n"
    "\n"
    "exit codes: 0 told to end, 2 wrong option, 3 config.json, 4 checkpoint, 6 out of memory,\n"
    "7 no coordinator, 8 the group was given up and can be started again, 1 anything else\n";

enum option_id {
    OPTION_COORDINATOR = 256,
    OPTION_MODEL,
    OPTION_GROUP,
    OPTION_LAYERS,
    OPTION_BACKEND,
    OPTION_DEVICE,
    OPTION_BIND,
    OPTION_GRAPHS,
    OPTION_COLLECTIVES,
    OPTION_KV_DTYPE,
    OPTION_KV_MEMORY,
    OPTION_KV_FRACTION,
    OPTION_THREADS,
    OPTION_CHUNK,
    OPTION_TIMEOUT,
    OPTION_POLL,
    OPTION_SPIN,
    OPTION_TRACE,
    OPTION_KEYS,
    OPTION_CHECK,
    OPTION_RANKS,
    OPTION_HELP,
};

static const struct option options[] = {
    {"coordinator", required_argument, NULL, OPTION_COORDINATOR},
    {"model", required_argument, NULL, OPTION_MODEL},
    {"group", required_argument, NULL, OPTION_GROUP},
    {"layers", required_argument, NULL, OPTION_LAYERS},
    {"backend", required_argument, NULL, OPTION_BACKEND},
    {"device", required_argument, NULL, OPTION_DEVICE},
    {"bind", required_argument, NULL, OPTION_BIND},
    {"graphs", required_argument, NULL, OPTION_GRAPHS},
    {"collectives", required_argument, NULL, OPTION_COLLECTIVES},
    {"kv-dtype", required_argument, NULL, OPTION_KV_DTYPE},
    {"kv-memory", required_argument, NULL, OPTION_KV_MEMORY},
    {"kv-memory-fraction", required_argument, NULL, OPTION_KV_FRACTION},
    {"threads", required_argument, NULL, OPTION_THREADS},
    {"context-chunk", required_argument, NULL, OPTION_CHUNK},
    {"connect-timeout-ms", required_argument, NULL, OPTION_TIMEOUT},
    {"poll-us", required_argument, NULL, OPTION_POLL},
    {"spin", no_argument, NULL, OPTION_SPIN},
    {"trace", required_argument, NULL, OPTION_TRACE},
    {"curve-keys", required_argument, NULL, OPTION_KEYS},
    {"check", no_argument, NULL, OPTION_CHECK},
    {"ranks", required_argument, NULL, OPTION_RANKS},
    {"help", no_argument, NULL, OPTION_HELP},
    {0},
};

static bool set_kv_dtype(const char *text, struct mla_worker_options *out)
{
    out->kv_dtype = strcmp(text, "bf16") == 0 ? MLA_BF16 : MLA_F32;
    return strcmp(text, mla_dtype_name(out->kv_dtype)) == 0;
}

/* Which of `count` names; false for another. */
static bool set_name(const char *text, const char *const *names, int count, int *out)
{
    for (int i = 0; i < count; i++)
        if (strcmp(text, names[i]) == 0) {
            *out = i;
            return true;
        }
    return false;
}

static bool set_backend(const char *text, struct mla_worker_options *out)
{
    static const char *const names[] = {
        [MLA_WORKER_AUTO] = "auto", [MLA_WORKER_CPU] = "cpu", [MLA_WORKER_CUDA] = "cuda"};
    int which = 0;
    if (!set_name(text, names, 3, &which))
        return false;
    out->backend = (enum mla_worker_backend)which;
    return true;
}

static bool set_graphs(const char *text, struct mla_worker_options *out)
{
    static const char *const names[] = {
        [MLA_GRAPHS_OFF] = "off", [MLA_GRAPHS_LAZY] = "lazy", [MLA_GRAPHS_START] = "start"};
    int which = 0;
    if (!set_name(text, names, 3, &which))
        return false;
    out->graphs = (enum mla_graphs_mode)which;
    return true;
}

static bool set(void *context, int id, const char *text)
{
    struct mla_worker_options *out = context;
    switch (id) {
    case OPTION_COORDINATOR:
        out->coordinator = text;
        return strlen(text) < MLA_ENDPOINT_BYTES_MAX;
    case OPTION_MODEL:
        out->model = text;
        return *text != '\0';
    case OPTION_GROUP:
        return mla_parse_u32(text, 0, MLA_GROUPS_MAX - 1, &out->group);
    case OPTION_LAYERS:
        return mla_parse_range(text, UINT16_MAX, &out->layer_first, &out->layer_last);
    case OPTION_BACKEND:
        return set_backend(text, out);
    case OPTION_DEVICE:
        return mla_parse_u32(text, 0, 1023, &out->device);
    case OPTION_BIND:
        out->bind = strcmp(text, "gpu") == 0;
        return out->bind || strcmp(text, "none") == 0;
    case OPTION_GRAPHS:
        return set_graphs(text, out);
    case OPTION_COLLECTIVES:
        out->collectives_measured = strcmp(text, "measured") == 0;
        return out->collectives_measured || strcmp(text, "plain") == 0;
    case OPTION_TRACE:
        out->trace = text;
        return *text != '\0';
    case OPTION_KEYS:
        out->curve_keys = text;
        return *text != '\0';
    case OPTION_KV_FRACTION:
        return mla_parse_fraction(text, &out->kv_memory_fraction);
    case OPTION_KV_DTYPE:
        return set_kv_dtype(text, out);
    case OPTION_KV_MEMORY:
        return mla_parse_bytes(text, &out->kv_memory_bytes) && out->kv_memory_bytes > 0;
    case OPTION_THREADS:
        return mla_parse_u32(text, 1, 1024, &out->threads);
    case OPTION_CHUNK:
        return mla_parse_u32(text, 1, MLA_CONTEXT_MAX, &out->chunk_rows);
    case OPTION_TIMEOUT:
        return mla_parse_u32(text, 0, 86400000, &out->connect_timeout_ms);
    case OPTION_POLL:
        return mla_parse_u32(text, 0, 1000000, &out->poll_us);
    case OPTION_SPIN:
        out->spin = true;
        return true;
    case OPTION_RANKS:
        return mla_parse_u32(text, 1, MLA_RANKS_MAX, &out->ranks);
    default:
        out->check = true;
        return true;
    }
}

enum mla_status mla_worker_options_parse(int argc, char **argv, struct mla_worker_options *out)
{
    *out = (struct mla_worker_options){.coordinator = "tcp://127.0.0.1:5756",
                                       .ranks = 1,
                                       .layer_first = 1,
                                       .chunk_rows = MLA_CONTEXT_CHUNK,
                                       .connect_timeout_ms = 60000,
                                       .poll_us = 1000,
                                       .bind = true,
                                       .graphs = MLA_GRAPHS_START};
    enum mla_status status = mla_parse_options(argc, argv, options, help, set, out);
    if (status != MLA_OK)
        return status;
    if (!out->model) {
        fprintf(stderr, "--model is missing\n");
        return MLA_OPTION;
    }
    return MLA_OK;
}
