#include "tests/bench/layer_ops.h"

#include <assert.h>
#include <cblas.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>

static const struct mla_bare *bare_of(struct mla_backend *backend)
{
    return (struct mla_bare *)(void *)backend;
}

/* C = factor_c C + A op(B). */
static void multiply(int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, const float *b,
                     int64_t ldb, bool b_transposed, float factor_c, float *c, int64_t ldc)
{
    cblas_sgemm(CblasRowMajor, CblasNoTrans, b_transposed ? CblasTrans : CblasNoTrans, (blasint)m,
                (blasint)n, (blasint)k, 1.0f, a, (blasint)lda, b, (blasint)ldb, factor_c, c,
                (blasint)ldc);
}

static enum mla_status bare_gemm(struct mla_backend *backend, const struct mla_gemm *gemm)
{
    int threads = bare_of(backend)->threads;
    omp_set_num_threads(threads); /* what OpenBLAS reads */
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (gemm->batch >= threads)
    for (int64_t i = 0; i < gemm->batch; i++)
        multiply(gemm->m, gemm->n, gemm->k, (const float *)gemm->a + i * gemm->a_stride, gemm->lda,
                 (const float *)gemm->b + i * gemm->b_stride, gemm->ldb, gemm->b_transposed, 0.0f,
                 (float *)gemm->c + i * gemm->c_stride, gemm->ldc);
    return MLA_OK;
}

static float *own_scores(const struct mla_bare *bare)
{
    return bare->scores + (size_t)omp_get_thread_num() * bare->scores_max;
}

static enum mla_status bare_attend_decode(struct mla_backend *backend,
                                          const struct mla_attend_decode *attend)
{
    const struct mla_bare *bare = bare_of(backend);
    const struct mla_kv_view *kv = &attend->kv;
    int64_t latent = kv->pool.latent;
    int64_t width = latent + kv->pool.rope;
    /* Rows and heads are one dimension. */
    assert(attend->q_row_stride == attend->heads * attend->q_head_stride);
    assert(attend->out_row_stride == attend->heads * attend->out_head_stride);
    omp_set_num_threads(bare->threads);
#pragma omp parallel for schedule(dynamic)                                                         \
    num_threads(bare->threads) if (kv->sequences >= bare->threads)
    for (int64_t s = 0; s < kv->sequences; s++) {
        int64_t row = kv->row_first[s];
        int64_t queries = (kv->row_first[s + 1] - row) * attend->heads;
        int64_t keys = kv->kv_length[s];
        int64_t key = 0;
        for (int64_t before = 0; before < s; before++)
            key += kv->kv_length[before];
        float *scores = own_scores(bare);
        assert((size_t)(queries * keys) <= bare->scores_max);
        multiply(queries, keys, width, (const float *)attend->q + row * attend->q_row_stride,
                 attend->q_head_stride, bare->keys + key * width, width, true, 0.0f, scores, keys);
        multiply(queries, latent, keys, scores, keys, bare->keys + key * width, width, false, 0.0f,
                 (float *)attend->out + row * attend->out_row_stride, attend->out_head_stride);
    }
    return MLA_OK;
}

/* The tile of queries from `first` on of one sequence and head. */
static void bare_tile(const struct mla_bare *bare, const struct mla_attend_prefill *attend,
                      int64_t sequence, int64_t first, int64_t head)
{
    int64_t row = attend->row_first[sequence] + first;
    int64_t rows_after = attend->row_first[sequence + 1] - row;
    int64_t rows = rows_after < MLA_BARE_TILE_ROWS ? rows_after : MLA_BARE_TILE_ROWS;
    int64_t key = attend->key_first[sequence];
    int64_t keys = attend->key_first[sequence + 1] - key;
    if (attend->causal)
        keys -= rows_after - rows;
    if (rows <= 0 || keys <= 0)
        return;
    float *scores = own_scores(bare);
    assert((size_t)(rows * keys) <= bare->scores_max);
    const float *q =
        (const float *)attend->q + row * attend->q_row_stride + head * attend->q_head_stride;
    multiply(rows, keys, attend->nope, q, attend->q_row_stride,
             (const float *)attend->k_nope + key * attend->k_row_stride +
                 head * attend->k_head_stride,
             attend->k_row_stride, true, 0.0f, scores, keys);
    multiply(rows, keys, attend->rope, q + attend->nope, attend->q_row_stride,
             (const float *)attend->k_rope + key * attend->k_rope_stride, attend->k_rope_stride,
             true, 1.0f, scores, keys);
    multiply(rows, attend->v_dim, keys, scores, keys,
             (const float *)attend->v + key * attend->v_row_stride + head * attend->v_head_stride,
             attend->v_row_stride, false, 0.0f,
             (float *)attend->out + row * attend->out_row_stride + head * attend->out_head_stride,
             attend->out_row_stride);
}

static enum mla_status bare_attend_prefill(struct mla_backend *backend,
                                           const struct mla_attend_prefill *attend)
{
    const struct mla_bare *bare = bare_of(backend);
    int64_t tiles = (attend->rows_max + MLA_BARE_TILE_ROWS - 1) / MLA_BARE_TILE_ROWS;
    omp_set_num_threads(bare->threads);
    /* The last tiles see the most keys, so they go first. */
#pragma omp parallel for collapse(3) schedule(dynamic) num_threads(bare->threads)
    for (int64_t s = 0; s < attend->sequences; s++)
        for (int64_t head = 0; head < attend->heads; head++)
            for (int64_t tile = 0; tile < tiles; tile++)
                bare_tile(bare, attend, s, (tiles - 1 - tile) * MLA_BARE_TILE_ROWS, head);
    return MLA_OK;
}

static enum mla_status bare_synchronize(struct mla_backend *backend)
{
    (void)backend;
    return MLA_OK;
}

#define NOTHING(operation)                                                                         \
    static enum mla_status bare_##operation(struct mla_backend *backend,                           \
                                            const struct mla_##operation *arguments)               \
    {                                                                                              \
        (void)backend;                                                                             \
        (void)arguments;                                                                           \
        return MLA_OK;                                                                             \
    }

NOTHING(latents)
NOTHING(rope)
NOTHING(copy)
NOTHING(kv_write)
NOTHING(kv_gather)
NOTHING(merge)

static const struct mla_backend_ops bare_ops = {
    .name = "bare",
    .synchronize = bare_synchronize,
    .gemm = bare_gemm,
    .latents = bare_latents,
    .rope = bare_rope,
    .copy = bare_copy,
    .kv_write = bare_kv_write,
    .kv_gather = bare_kv_gather,
    .attend_decode = bare_attend_decode,
    .attend_prefill = bare_attend_prefill,
    .merge = bare_merge,
};

enum mla_status mla_bare_init(struct mla_bare *bare, int threads, const float *keys,
                              size_t scores_max)
{
    float *scores = malloc((size_t)threads * scores_max * sizeof *scores);
    if (!scores) {
        fputs("mla-bench: no memory for the bare products\n", stderr);
        return MLA_MEMORY;
    }
    *bare = (struct mla_bare){.base = {.ops = &bare_ops, .activation = MLA_F32},
                              .threads = threads,
                              .keys = keys,
                              .scores = scores,
                              .scores_max = scores_max};
    return MLA_OK;
}

void mla_bare_fini(struct mla_bare *bare)
{
    free(bare->scores);
    *bare = (struct mla_bare){0};
}
