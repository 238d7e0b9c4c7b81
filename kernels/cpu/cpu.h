/* What the sources of the CPU backend share. Everything is f32 in host memory; an operation has
 * finished when it returns. */
#ifndef MLA_KERNELS_CPU_CPU_H
#define MLA_KERNELS_CPU_CPU_H

#include "kernels/backend.h"
#include "proto/limits.h"

/* Attention works on tiles of queries: the sizes for which OpenBLAS multiplies without packing
 * its operands first (measured on 0.3.21), and whose scores stay in the L1 cache. */
enum {
    MLA_CPU_TILE_ROWS = 16,
    MLA_CPU_TILE_KEYS = 256, /* of one softmax step */
    MLA_CPU_PIECE_KEYS = 64, /* of one product */
};

struct mla_cpu {
    struct mla_backend base;
    int threads;
    bool blas_small; /* OpenBLAS has kernels for small products on this CPU */
    /* Scratch, grown by mla_cpu_reserve and kept. */
    char *scratch;
    size_t scratch_bytes, thread_offset, thread_bytes;
};

/* Every operation begins here: the calling thread's parallel regions, and OpenBLAS where it is
 * called outside of one, use the backend's number of threads. */
struct mla_cpu *mla_cpu_begin(struct mla_backend *backend);

static inline int64_t mla_cpu_min(int64_t a, int64_t b)
{
    return a < b ? a : b;
}
static inline int64_t mla_cpu_max(int64_t a, int64_t b)
{
    return a > b ? a : b;
}
static inline int64_t mla_cpu_ceil(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

/* Scratch of at least shared_bytes for the operation and thread_bytes for each thread, aligned
 * for any type; its contents are undefined. MLA_MEMORY. */
enum mla_status mla_cpu_reserve(struct mla_cpu *cpu, size_t shared_bytes, size_t thread_bytes);
void *mla_cpu_shared(const struct mla_cpu *cpu);
/* Of the calling thread, inside a parallel region. */
void *mla_cpu_own(const struct mla_cpu *cpu);

/* dst[i] = src[i], between f32 and bf16. */
void mla_cpu_convert(void *dst, enum mla_dtype dst_dtype, const void *src, enum mla_dtype src_dtype,
                     int64_t count);

/* The cached row of a token in its pool. */
static inline const void *mla_cpu_kv_row(const struct mla_kv_view *kv, int64_t sequence,
                                         int64_t token)
{
    int64_t block = kv->tables[kv->table[sequence] * kv->table_stride + token / MLA_BLOCK_TOKENS];
    int64_t row = block * MLA_BLOCK_TOKENS + token % MLA_BLOCK_TOKENS;
    return (const char *)kv->pool.pages +
           (size_t)(row * (kv->pool.latent + kv->pool.rope)) * mla_dtype_bytes(kv->pool.dtype);
}

/* e^x for x <= 0, to 1e-7; 0 below -87, NaN stays NaN. It has no branch and no call, so that
 * loops over it become vector code: e^x = 2^n e^r, n = round(x / ln 2), |r| <= ln 2 / 2. */
static inline float mla_cpu_exp(float x)
{
    const float shift = 0x1.8p23f; /* adding it leaves the rounded value in the low bits */
    float in = x < -87.0f ? -87.0f : x;
    float shifted = in * 0x1.715476p0f + shift;
    float n = shifted - shift;
    float r = in - n * 0x1.62e4p-1f - n * 1.42860682e-6f; /* ln 2 in two parts */
    float tail = 1.3926213e-3f;
    tail = tail * r + 8.3632030e-3f;
    tail = tail * r + 4.16665544e-2f;
    tail = tail * r + 1.66665768e-1f;
    tail = tail * r + 0.5f;
    float power = tail * r * r + r + 1.0f;
    uint32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits << 23) + 0x3f800000u;
    float scale;
    memcpy(&scale, &bits, sizeof scale);
    return x < -87.0f ? 0.0f : power * scale;
}

/* A tile of queries on its way through the keys: softmax with a running maximum ("Online
 * normalizer calculation for softmax", Milakov and Gimelshein, 2018). */
struct mla_cpu_tile {
    int64_t rows, width; /* of out; rows is at most MLA_CPU_TILE_ROWS */
    float *scores;       /* [rows, MLA_CPU_TILE_KEYS]: scores, then their weights */
    float *out;          /* [rows, width]: sums of weighted values, not divided by `sum` yet */
    int64_t out_stride;
    float max[MLA_CPU_TILE_ROWS], sum[MLA_CPU_TILE_ROWS];
};

/* No keys yet. */
void mla_cpu_tile_begin(struct mla_cpu_tile *tile);

/* Row r sees the first seen[r] keys of its sequence; seen never falls from row to row. The next
 * step from `key` towards `end`, of at most step_max keys: keys that all rows see make one part,
 * the triangle behind them another. keys[r]: those of the step that row r sees. */
int64_t mla_cpu_tile_step(const struct mla_cpu_tile *tile, const int64_t *seen, int64_t key,
                          int64_t end, int64_t step_max, int64_t *keys);

/* scores -> weights of the first keys[r] keys of row r; what was summed before is scaled to the
 * new maximum. A row with 0 keys stays as it is. */
void mla_cpu_tile_weigh(struct mla_cpu_tile *tile, const int64_t *keys);

/* out += weights[:, first .. first + count) values. A value that a row doesn't see may be NaN and
 * is not touched: a weight of 0 would spread it. */
void mla_cpu_tile_add(const struct mla_cpu_tile *tile, const int64_t *keys, int64_t first,
                      int64_t count, const float *values, int64_t stride);

enum mla_status mla_cpu_gemm(struct mla_backend *, const struct mla_gemm *);
enum mla_status mla_cpu_latents(struct mla_backend *, const struct mla_latents *);
enum mla_status mla_cpu_rope(struct mla_backend *, const struct mla_rope *);
enum mla_status mla_cpu_copy(struct mla_backend *, const struct mla_copy *);
enum mla_status mla_cpu_kv_write(struct mla_backend *, const struct mla_kv_write *);
enum mla_status mla_cpu_kv_gather(struct mla_backend *, const struct mla_kv_gather *);
enum mla_status mla_cpu_scatter(struct mla_backend *, const struct mla_scatter *);
enum mla_status mla_cpu_kv_copy(struct mla_backend *, const struct mla_kv_copy *);
enum mla_status mla_cpu_attend_decode(struct mla_backend *, const struct mla_attend_decode *);
enum mla_status mla_cpu_attend_prefill(struct mla_backend *, const struct mla_attend_prefill *);
enum mla_status mla_cpu_merge(struct mla_backend *, const struct mla_merge *);

#endif
