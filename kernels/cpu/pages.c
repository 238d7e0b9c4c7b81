#include "kernels/cpu/cpu.h"

#include <assert.h>

/* mla_f32_to_bf16 without its branch, which would keep the loop scalar. */
static uint16_t narrow(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
    uint32_t nan = bits | 0x400000u;
    return (uint16_t)((value != value ? nan : rounded) >> 16);
}

void mla_cpu_convert(void *dst, enum mla_dtype dst_dtype, const void *src, enum mla_dtype src_dtype,
                     int64_t count)
{
    assert((dst_dtype == MLA_F32 || dst_dtype == MLA_BF16) &&
           (src_dtype == MLA_F32 || src_dtype == MLA_BF16));
    if (dst_dtype == src_dtype) {
        memcpy(dst, src, (size_t)count * mla_dtype_bytes(src_dtype));
    } else if (dst_dtype == MLA_F32) {
        const uint16_t *from = src;
        float *to = dst;
#pragma omp simd
        for (int64_t i = 0; i < count; i++)
            to[i] = mla_bf16_to_f32(from[i]);
    } else {
        const float *from = src;
        uint16_t *to = dst;
#pragma omp simd
        for (int64_t i = 0; i < count; i++)
            to[i] = narrow(from[i]);
    }
}

static size_t row_bytes(const struct mla_kv_pool *pool)
{
    assert(pool->layout == MLA_KV_ROWS);
    return (size_t)(pool->latent + pool->rope) * mla_dtype_bytes(pool->dtype);
}

enum mla_status mla_cpu_kv_write(struct mla_backend *backend, const struct mla_kv_write *write)
{
    (void)backend;
    const struct mla_kv_pool *pool = &write->pool;
    for (int64_t row = 0; row < write->rows; row++) {
        int64_t slot = write->slots[row];
        if (slot == MLA_SLOT_NONE)
            continue;
        assert(slot >= 0);
        mla_cpu_convert((char *)pool->pages + (size_t)slot * row_bytes(pool), pool->dtype,
                        (const float *)write->src + row * write->src_stride, MLA_F32,
                        pool->latent + pool->rope);
    }
    return MLA_OK;
}

enum mla_status mla_cpu_kv_gather(struct mla_backend *backend, const struct mla_kv_gather *gather)
{
    mla_cpu_begin(backend);
    const struct mla_kv_view *kv = &gather->kv;
    int64_t n = kv->pool.latent + kv->pool.rope;
    for (int64_t s = 0; s < kv->sequences; s++) {
        int64_t first = gather->context_first[s];
        int64_t count = gather->context_first[s + 1] - first;
        float *dst = (float *)gather->dst + first * gather->dst_stride;
#pragma omp parallel for if (count > MLA_BLOCK_TOKENS)
        for (int64_t i = 0; i < count; i++)
            mla_cpu_convert(dst + i * gather->dst_stride, MLA_F32,
                            mla_cpu_kv_row(kv, s, gather->begin[s] + i), kv->pool.dtype, n);
    }
    return MLA_OK;
}

enum mla_status mla_cpu_scatter(struct mla_backend *backend, const struct mla_scatter *scatter)
{
    (void)backend;
    for (int64_t i = 0; i < scatter->count; i++)
        scatter->dst[scatter->index[i]] = scatter->value[i];
    return MLA_OK;
}

enum mla_status mla_cpu_kv_copy(struct mla_backend *backend, const struct mla_kv_copy *copy)
{
    (void)backend;
    size_t bytes = MLA_BLOCK_TOKENS * row_bytes(&copy->pool);
    for (int64_t i = 0; i < copy->count; i++)
        memcpy((char *)copy->pool.pages + (size_t)copy->dst[i] * bytes,
               (const char *)copy->pool.pages + (size_t)copy->src[i] * bytes, bytes);
    return MLA_OK;
}
