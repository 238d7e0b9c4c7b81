#include "kernels/cpu/cpu.h"

#include <assert.h>
#include <cblas.h>
#include <math.h>

/* Fewer elements than this are done before a second thread has woken up. */
enum { ELEMENTS_PER_THREAD_MIN = 16384 };

struct block {
    int64_t rows, columns, depth;
};

/* OpenBLAS packs both operands of a large product. With few rows that costs more than the product
 * itself, and small blocks skip it: 2 to 4 times as fast for up to 16 rows, and not slower up to
 * 256 (measured). With more rows, or without kernels for small products, a block is a panel. */
static struct block choose_block(const struct mla_cpu *cpu, const struct mla_gemm *gemm)
{
    struct block block = {mla_cpu_min(gemm->m, 1024), 1024, gemm->k};
    if (cpu->blas_small && gemm->m <= 256) {
        int64_t area = gemm->b_transposed ? 1024 : 4096;
        block.rows = mla_cpu_min(gemm->m, gemm->b_transposed ? 32 : 64);
        block.columns = mla_cpu_min(area / block.rows, gemm->b_transposed ? 64 : 256);
        block.depth = gemm->b_transposed ? 512 : 128;
    }
    int64_t panels = gemm->batch * mla_cpu_ceil(gemm->m, block.rows);
    int64_t share = mla_cpu_ceil(gemm->n * panels, cpu->threads);
    block.columns = mla_cpu_max(mla_cpu_min(block.columns, share) / 16 * 16, 16);
    return block;
}

static void multiply_block(const struct mla_gemm *gemm, const struct block *block, int64_t batch,
                           int64_t row, int64_t column)
{
    int64_t rows = mla_cpu_min(block->rows, gemm->m - row);
    int64_t columns = mla_cpu_min(block->columns, gemm->n - column);
    const float *a = (const float *)gemm->a + batch * gemm->a_stride + row * gemm->lda;
    const float *b = (const float *)gemm->b + batch * gemm->b_stride +
                     (gemm->b_transposed ? column * gemm->ldb : column);
    float *c = (float *)gemm->c + batch * gemm->c_stride + row * gemm->ldc + column;
    if (gemm->bias) {
        for (int64_t i = 0; i < rows; i++)
            memcpy(c + i * gemm->ldc, (const float *)gemm->bias + column,
                   (size_t)columns * sizeof *c);
    }
    for (int64_t k = 0; k < gemm->k; k += block->depth) {
        int64_t depth = mla_cpu_min(block->depth, gemm->k - k);
        cblas_sgemm(CblasRowMajor, CblasNoTrans, gemm->b_transposed ? CblasTrans : CblasNoTrans,
                    (blasint)rows, (blasint)columns, (blasint)depth, 1.0f, a + k,
                    (blasint)gemm->lda, b + (gemm->b_transposed ? k : k * gemm->ldb),
                    (blasint)gemm->ldb, k > 0 || gemm->bias ? 1.0f : 0.0f, c, (blasint)gemm->ldc);
    }
}

enum mla_status mla_cpu_gemm(struct mla_backend *backend, const struct mla_gemm *gemm)
{
    const struct mla_cpu *cpu = mla_cpu_begin(backend);
    assert(gemm->m >= 0 && gemm->n > 0 && gemm->k > 0 && gemm->batch >= 0);
    if (gemm->m == 0)
        return MLA_OK;
    struct block block = choose_block(cpu, gemm);
    int64_t down = mla_cpu_ceil(gemm->m, block.rows);
    int64_t across = mla_cpu_ceil(gemm->n, block.columns);
#pragma omp parallel for schedule(dynamic)
    for (int64_t i = 0; i < gemm->batch * across * down; i++)
        multiply_block(gemm, &block, i / (across * down), i % down * block.rows,
                       i / down % across * block.columns);
    return MLA_OK;
}

static void rmsnorm(float *x, int64_t n, const float *weight, float eps)
{
    float squares = 0;
#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < n; i++)
        squares += x[i] * x[i];
    float factor = 1.0f / sqrtf(squares / (float)n + eps);
#pragma omp simd
    for (int64_t i = 0; i < n; i++)
        x[i] = x[i] * factor * weight[i];
}

/* Pair i is at [i * step] and [i * step + distance]. */
static void rotate(float *dst, const float *src, const float *table, int64_t pairs, int64_t step,
                   int64_t distance)
{
    for (int64_t i = 0; i < pairs; i++) {
        float cosine = table[2 * i], sine = table[2 * i + 1];
        float x = src[i * step], y = src[i * step + distance];
        dst[i * step] = x * cosine - y * sine;
        dst[i * step + distance] = x * sine + y * cosine;
    }
}

static void rotate_head(float *dst, const float *src, const float *table, int64_t dim,
                        bool interleaved)
{
    if (interleaved)
        rotate(dst, src, table, dim / 2, 2, 1);
    else
        rotate(dst, src, table, dim / 2, 1, dim / 2);
}

enum mla_status mla_cpu_latents(struct mla_backend *backend, const struct mla_latents *latents)
{
    mla_cpu_begin(backend);
    assert(latents->rows >= 0 && latents->latent > 0 && latents->rope % 2 == 0);
    int64_t elements = latents->rows * (latents->q_lora + latents->latent + latents->rope);
#pragma omp parallel for if (elements > ELEMENTS_PER_THREAD_MIN)
    for (int64_t row = 0; row < latents->rows; row++) {
        float *ckv = (float *)latents->ckv + row * latents->stride;
        float *kpe = ckv + latents->latent;
        const float *table = latents->table + latents->positions[row] * latents->rope;
        if (latents->cq)
            rmsnorm((float *)latents->cq + row * latents->stride, latents->q_lora, latents->q_norm,
                    latents->eps);
        rmsnorm(ckv, latents->latent, latents->kv_norm, latents->eps);
        rotate_head(kpe, kpe, table, latents->rope, latents->interleaved);
    }
    if (!latents->slots)
        return MLA_OK;
    const struct mla_kv_write write = {.pool = latents->pool,
                                       .rows = latents->rows,
                                       .src = latents->ckv,
                                       .src_stride = latents->stride,
                                       .slots = latents->slots};
    return mla_cpu_kv_write(backend, &write);
}

enum mla_status mla_cpu_rope(struct mla_backend *backend, const struct mla_rope *rope)
{
    mla_cpu_begin(backend);
    assert(rope->rows >= 0 && rope->heads > 0 && rope->dim % 2 == 0);
    int64_t elements = rope->rows * rope->heads * rope->dim;
#pragma omp parallel for if (elements > ELEMENTS_PER_THREAD_MIN)
    for (int64_t row = 0; row < rope->rows; row++) {
        const float *table = rope->table + rope->positions[row] * rope->dim;
        const float *src = (const float *)rope->src + row * rope->src_row_stride;
        float *dst = (float *)rope->dst + row * rope->dst_row_stride;
        for (int64_t head = 0; head < rope->heads; head++) {
            const float *from = src + head * rope->src_head_stride;
            float *to = dst + head * rope->dst_head_stride;
            rotate_head(to, from, table, rope->dim, rope->interleaved);
        }
    }
    return MLA_OK;
}

enum mla_status mla_cpu_copy(struct mla_backend *backend, const struct mla_copy *copy)
{
    mla_cpu_begin(backend);
    size_t src_bytes = mla_dtype_bytes(copy->src_dtype);
    size_t dst_bytes = mla_dtype_bytes(copy->dst_dtype);
    assert(copy->rows >= 0 && copy->n > 0);
    assert(copy->src_dtype != MLA_F16 && copy->dst_dtype != MLA_F16);
#pragma omp parallel for if (copy->rows * copy->n > ELEMENTS_PER_THREAD_MIN)
    for (int64_t row = 0; row < copy->rows; row++) {
        const char *src = (const char *)copy->src + (size_t)(row * copy->src_stride) * src_bytes;
        char *dst = (char *)copy->dst + (size_t)(row * copy->dst_stride) * dst_bytes;
        mla_cpu_convert(dst, copy->dst_dtype, src, copy->src_dtype, copy->n);
    }
    return MLA_OK;
}
