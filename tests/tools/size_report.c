#include "tests/tools/size.h"

#include <assert.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>

static const double MIB = 1 << 20;

uint64_t sizing_batch_max(const struct sizing *sizing, uint32_t context)
{
    uint32_t each = (context + MLA_BLOCK_TOKENS - 1) / MLA_BLOCK_TOKENS;
    uint32_t held = context > sizing->context_max ? 0 : sizing->blocks / each;
    uint32_t most = sizing->core.sequences_max;
    return (uint64_t)(held < most ? held : most) * sizing->groups;
}

uint32_t sizing_context_max(const struct sizing *sizing, uint32_t batch)
{
    assert(sizing->groups > 0);
    uint32_t of_group = (batch + sizing->groups - 1) / sizing->groups;
    uint64_t tokens = (uint64_t)(sizing->blocks / of_group) * MLA_BLOCK_TOKENS;
    if (of_group > sizing->core.sequences_max)
        return 0;
    return tokens < sizing->context_max ? (uint32_t)tokens : sizing->context_max;
}

uint32_t sizing_contexts(const struct sizing *sizing, uint32_t out[8])
{
    uint32_t count = 0;
    if (sizing->context || sizing->batch) {
        if (sizing->context)
            out[count++] = sizing->context;
        return count;
    }
    for (uint32_t context = 1024; context < sizing->context_max && count < 7; context *= 4)
        out[count++] = context;
    out[count++] = sizing->context_max;
    return count;
}

static uint64_t token_bytes(const struct sizing *sizing)
{
    return sizing->size.block / MLA_BLOCK_TOKENS;
}

static uint64_t kv_bytes(const struct sizing *sizing)
{
    return sizing->blocks * sizing->size.block;
}

static uint32_t graphs(const struct sizing *sizing)
{
    return sizing->cpu ? 0 : sizing->size.bucket_count * sizing->layer_count;
}

static void print_bytes(const char *what, int64_t bytes)
{
    double mib = (double)bytes / MIB;
    if (mib >= 1024 || mib <= -1024)
        printf("  %-12s %9.2f GiB", what, mib / 1024);
    else
        printf("  %-12s %9.2f MiB", what, mib);
}

static void print_fit(const struct sizing *sizing)
{
    uint32_t contexts[8];
    uint32_t count = sizing_contexts(sizing, contexts);
    for (uint32_t i = 0; i < count; i++)
        printf("  context %7u: at most %" PRIu64 " sequences\n", contexts[i],
               sizing_batch_max(sizing, contexts[i]));
    if (sizing->batch)
        printf("  batch %9u: at most %u tokens each\n", sizing->batch,
               sizing_context_max(sizing, sizing->batch));
    if (sizing->memory && sizing->left < 0)
        puts("  DOES NOT FIT: weights, KV cache and workspaces are more than the memory");
    else if (sizing->blocks == 0)
        puts("  DOES NOT FIT: there is no room for a block of the KV cache");
    else if (!sizing->fits)
        puts("  DOES NOT FIT: not that batch at that context");
}

void sizing_print(const struct sizing *sizing)
{
    const struct mla_config *c = &sizing->config;
    const struct mla_size *size = &sizing->size;
    printf("%s: %u layers of %u heads, hidden %u, latent %u + %u\n", c->model_type,
           sizing->layer_count, c->heads, c->hidden, c->latent, c->rope);
    printf("%u group%s of %u rank%s with %u heads each, %s; KV cache %s\n", sizing->groups,
           sizing->groups == 1 ? "" : "s", sizing->ranks, sizing->ranks == 1 ? "" : "s",
           c->heads / sizing->ranks, mla_dtype_name(sizing->activation),
           mla_dtype_name(sizing->kv_dtype));
    puts("each rank");
    print_bytes("weights", (int64_t)size->weights);
    if (sizing->ranks > 1)
        printf("   %.0f %% of it on every rank alike",
               100.0 * (double)size->weights_alike / (double)size->weights);
    puts("");
    print_bytes("workspaces", (int64_t)size->workspaces);
    printf("   %u prefill tokens, %u decode rows, context in pieces of %u\n",
           sizing->core.plan.prefill_tokens_max, size->buckets[size->bucket_count - 1],
           sizing->chunk_rows);
    if (sizing->known) {
        print_bytes("KV cache", (int64_t)kv_bytes(sizing));
        printf("   %u blocks, %" PRIu64 " tokens\n", sizing->blocks,
               (uint64_t)sizing->blocks * MLA_BLOCK_TOKENS);
    }
    if (sizing->memory) {
        print_bytes("left", sizing->left);
        if (graphs(sizing))
            printf("   less what CUDA, cuBLAS and NCCL take; for %u graphs", graphs(sizing));
        puts("");
    }
    printf("each token      %" PRIu64 " bytes of KV cache, on every rank of its group\n",
           token_bytes(sizing));
    if (sizing->known) {
        puts(sizing->groups > 1 ? "all groups" : "the group");
        print_fit(sizing);
    }
}

static json_t *batches(const struct sizing *sizing)
{
    uint32_t contexts[8];
    uint32_t count = sizing_contexts(sizing, contexts);
    json_t *list = json_array();
    for (uint32_t i = 0; i < count; i++)
        json_array_append_new(list,
                              json_pack("{s:i, s:I}", "context", (int)contexts[i], "batch_max",
                                        (json_int_t)sizing_batch_max(sizing, contexts[i])));
    return list;
}

enum mla_status sizing_print_json(const struct sizing *sizing)
{
    const struct mla_size *size = &sizing->size;
    json_t *buckets = json_array();
    for (uint32_t i = 0; i < size->bucket_count; i++)
        json_array_append_new(buckets, json_integer(size->buckets[i]));
    json_t *root =
        json_pack("{s:s, s:i, s:i, s:i, s:i, s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:o, s:i}",
                  "model_type", sizing->config.model_type, "layers", (int)sizing->layer_count,
                  "groups", (int)sizing->groups, "ranks", (int)sizing->ranks, "heads",
                  (int)(sizing->config.heads / sizing->ranks), "activation",
                  mla_dtype_name(sizing->activation), "kv_dtype", mla_dtype_name(sizing->kv_dtype),
                  "weight_bytes", (json_int_t)size->weights, "weight_bytes_alike",
                  (json_int_t)size->weights_alike, "workspace_bytes", (json_int_t)size->workspaces,
                  "kv_token_bytes", (json_int_t)token_bytes(sizing), "kv_block_bytes",
                  (json_int_t)size->block, "buckets", buckets, "graphs", (int)graphs(sizing));
    if (root && sizing->known) {
        json_object_set_new(root, "blocks", json_integer(sizing->blocks));
        json_object_set_new(root, "kv_bytes", json_integer((json_int_t)kv_bytes(sizing)));
        json_object_set_new(root, "fit", batches(sizing));
        json_object_set_new(root, "fits", json_boolean(sizing->fits));
        if (sizing->batch)
            json_object_set_new(root, "context_max",
                                json_integer(sizing_context_max(sizing, sizing->batch)));
    }
    if (root && sizing->memory)
        json_object_set_new(root, "left_bytes", json_integer(sizing->left));
    char *text = root ? json_dumps(root, JSON_INDENT(1)) : NULL;
    if (text)
        puts(text);
    free(text);
    json_decref(root);
    return text ? MLA_OK : MLA_MEMORY;
}
