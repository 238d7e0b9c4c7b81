#include "tests/lib/scratch.h"
#include "tests/lib/synth.h"
#include "worker/shard.h"
#include "worker/size.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define TINY    MLA_TESTS_DIR "/golden/v3-tiny/config.json"
#define V2_LITE MLA_TESTS_DIR "/golden/v2-lite/config.json"

static char why[MLA_SENTENCE_BYTES_MAX];

/* ---- Weights: what loading a checkpoint really allocates */

static uint64_t allocated;
static enum mla_status (*inner_alloc)(struct mla_backend *, size_t, void **);

static enum mla_status counted_alloc(struct mla_backend *backend, size_t bytes, void **out)
{
    allocated += bytes;
    return inner_alloc(backend, bytes, out);
}

static struct mla_backend *counting_cpu(void)
{
    static struct mla_backend_ops ops;
    struct mla_backend *backend = NULL;
    cr_assert_eq(mla_backend_cpu_create(1, &backend), MLA_OK);
    ops = *backend->ops;
    inner_alloc = ops.alloc;
    ops.alloc = counted_alloc;
    backend->ops = &ops;
    return backend;
}

/* What rank `rank` of `ranks` allocates to load the checkpoint. */
static uint64_t loaded_bytes(const struct mla_checkpoint *checkpoint, uint32_t rank, uint32_t ranks)
{
    static struct mla_shard shard;
    struct mla_backend *backend = counting_cpu();
    allocated = 0;
    cr_assert_eq(mla_shard_load(checkpoint, rank, ranks, backend, &shard), MLA_OK);
    uint64_t bytes = allocated;
    mla_shard_free(&shard, backend);
    backend->ops->destroy(&backend);
    return bytes;
}

static const struct mla_adopt sizes = {.sequences = 3,
                                       .context_max = 200,
                                       .steps = 2,
                                       .step_tokens_max = 4096,
                                       .prefill_tokens_max = 64,
                                       .credits = 2,
                                       .bucket_count = 2,
                                       .buckets = {1, 6}};

static struct mla_size count(const struct mla_config *config, uint32_t layers, uint32_t ranks,
                             const struct mla_adopt *asked)
{
    struct mla_size size;
    const struct mla_size_options options = {.ranks = ranks,
                                             .layer_count = layers,
                                             .activation = MLA_F32,
                                             .kv_dtype = MLA_BF16,
                                             .chunk_rows = 16,
                                             .sizes = asked};
    cr_assert_eq(mla_size_count(config, &options, &size, why), MLA_OK, "%s", why);
    return size;
}

static void expect_weights(const char *config, uint32_t layer_count)
{
    static const uint32_t layers[] = {0, 1};
    char folder[] = "/tmp/mla-test-size-XXXXXX";
    struct mla_checkpoint checkpoint;
    cr_assert_not_null(mkdtemp(folder));
    const struct mla_synth synth = {.config = config,
                                    .out = folder,
                                    .layers = layers,
                                    .layer_count = layer_count,
                                    .shards = 1,
                                    .dtype = MLA_BF16};
    cr_assert_eq(mla_synth_write(&synth, why), MLA_OK, "%s", why);
    cr_assert_eq(mla_checkpoint_open(folder, 1, 0, &checkpoint, why), MLA_OK, "%s", why);
    uint64_t one = loaded_bytes(&checkpoint, 0, 1);
    for (uint32_t ranks = 1; ranks <= 4; ranks *= 2) {
        struct mla_size size = count(&checkpoint.config, layer_count, ranks, &sizes);
        uint64_t all = loaded_bytes(&checkpoint, 0, ranks);
        cr_expect_eq(size.weights, all, "%s, %u ranks: %llu instead of %llu", config, ranks,
                     (unsigned long long)size.weights, (unsigned long long)all);
        for (uint32_t rank = 1; rank < ranks; rank++) {
            uint64_t bytes = loaded_bytes(&checkpoint, rank, ranks);
            cr_expect_leq(bytes, size.weights);
            all += bytes;
        }
        /* What is not alike is there once, over all ranks. A bias of o_proj is rank 0's. */
        uint64_t o_bias =
            checkpoint.config.attention_bias ? checkpoint.config.hidden * 4ull * layer_count : 0;
        cr_expect_eq(all - one, (ranks - 1) * (size.weights_alike - o_bias), "%s, %u ranks", config,
                     ranks);
    }
    mla_checkpoint_close(&checkpoint);
    cr_expect_eq(mla_scratch_remove(folder), 0);
}

Test(size, weights_are_what_loading_allocates)
{
    expect_weights(TINY, 2);
    expect_weights(V2_LITE, 1);
}

Test(size, weights_with_biases)
{
    char path[] = "/tmp/mla-test-size-XXXXXX";
    static char text[65536];
    FILE *from = fopen(TINY, "r");
    int fd = mkstemp(path);
    cr_assert(from && fd >= 0);
    size_t bytes = fread(text, 1, sizeof text - 1, from);
    char *at = strstr(text, "\"attention_bias\": false");
    cr_assert_not_null(at);
    memcpy(at, "\"attention_bias\": true ", strlen("\"attention_bias\": true "));
    FILE *to = fdopen(fd, "w");
    cr_assert_eq(fwrite(text, 1, bytes, to), bytes);
    fclose(to);
    fclose(from);
    expect_weights(path, 1);
    unlink(path);
}

/* ---- What comes with ADOPT */

Test(size, blocks_and_workspaces)
{
    struct mla_config c;
    cr_assert_eq(mla_config_read(TINY, &c, why), MLA_OK, "%s", why);
    struct mla_size size = count(&c, 2, 2, &sizes);
    cr_expect_eq(size.block, 2ull * 64 * (c.latent + c.rope) * 2);
    cr_expect(size.bucket_count == 2 && size.buckets[0] == 2 && size.buckets[1] == 6);

    /* 32 rows more, for two ranks with half of the heads each. */
    struct mla_adopt more = sizes;
    more.prefill_tokens_max += 32;
    uint64_t heads = c.heads / 2;
    uint64_t row = heads * (c.nope + c.rope)      /* q */
                   + heads * (c.nope + c.v)       /* expanded: more rows than a chunk */
                   + 2 * heads * c.v              /* outputs, of new rows and of a chunk */
                   + 2 * heads                    /* their log-sum-exps */
                   + c.q_lora + c.latent + c.rope /* latents */
                   + 2ull * c.hidden              /* partial sums of two turns */
                   + (3 + 2 * 3) * c.hidden / 2;  /* own rows: their x, zeros, and three flights */
    uint64_t grown = count(&c, 2, 2, &more).workspaces - size.workspaces;
    cr_expect_eq(grown, 32 * row * 4, "%llu instead of %llu", (unsigned long long)grown,
                 (unsigned long long)(32 * row * 4));

    /* Another sequence's block table: 200 tokens are 4 blocks. */
    more = sizes;
    more.sequences += 1;
    cr_expect_eq(count(&c, 2, 2, &more).workspaces - size.workspaces, 16);
    /* Layers share workspaces. */
    cr_expect_eq(count(&c, 1, 2, &sizes).workspaces, size.workspaces);
}

Test(size, heads_that_cannot_be_shared_out)
{
    struct mla_config c;
    struct mla_size size;
    cr_assert_eq(mla_config_read(TINY, &c, why), MLA_OK, "%s", why);
    const struct mla_size_options options = {.ranks = 3,
                                             .layer_count = 1,
                                             .activation = MLA_F32,
                                             .kv_dtype = MLA_F32,
                                             .chunk_rows = 16,
                                             .sizes = &sizes};
    cr_expect_eq(mla_size_count(&c, &options, &size, why), MLA_OPTION);
    cr_expect_not_null(strstr(why, "3 ranks"));
}

Test(size, kv_share)
{
    cr_expect_eq(mla_size_kv_memory(1000, 0, false, 4), 950);
    cr_expect_eq(mla_size_kv_memory(1000, 0, true, 4), 62);
    cr_expect_eq(mla_size_kv_memory(1000, 0.5, false, 4), 500);
    cr_expect_eq(mla_size_kv_memory(1000, 0.5, true, 4), 125);
    cr_expect_eq(mla_size_kv_blocks(1000, 300), 3);
    cr_expect_eq(mla_size_kv_blocks(299, 300), 0);
    cr_expect_eq(mla_size_kv_blocks(UINT64_MAX, 1), MLA_BLOCKS_MAX);
}
