#include "kernels/cpu/cpu.h"

#include <assert.h>
#include <cblas.h>
#include <math.h>

/* Queries [first, first + MLA_CPU_TILE_ROWS) of a sequence, or fewer at its end. */
struct query_tile {
    int32_t sequence, first;
};

/* What one tile and head need; pointers are those of the sequence and the head. */
struct work {
    const struct mla_attend_prefill *attend;
    const float *q, *k_nope, *k_rope, *v;
    struct mla_cpu_tile tile;
};

/* scores[:, 0..count) = scale * q k^T for the keys from `first` on. */
static void score(const struct work *work, int64_t first, int64_t count)
{
    const struct mla_attend_prefill *attend = work->attend;
    for (int64_t done = 0; done < count; done += MLA_CPU_PIECE_KEYS) {
        int64_t piece = mla_cpu_min(count - done, MLA_CPU_PIECE_KEYS), key = first + done;
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (blasint)work->tile.rows,
                    (blasint)piece, (blasint)attend->nope, attend->scale, work->q,
                    (blasint)attend->q_row_stride, work->k_nope + key * attend->k_row_stride,
                    (blasint)attend->k_row_stride, 0.0f, work->tile.scores + done,
                    MLA_CPU_TILE_KEYS);
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (blasint)work->tile.rows,
                    (blasint)piece, (blasint)attend->rope, attend->scale, work->q + attend->nope,
                    (blasint)attend->q_row_stride, work->k_rope + key * attend->k_rope_stride,
                    (blasint)attend->k_rope_stride, 1.0f, work->tile.scores + done,
                    MLA_CPU_TILE_KEYS);
    }
}

static void run(struct work *work, const int64_t *seen)
{
    const int64_t stride = work->attend->v_row_stride;
    struct mla_cpu_tile *tile = &work->tile;
    int64_t end = seen[tile->rows - 1], step;
    for (int64_t key = 0; key < end; key += step) {
        int64_t keys[MLA_CPU_TILE_ROWS];
        step = mla_cpu_tile_step(tile, seen, key, end, MLA_CPU_TILE_KEYS, keys);
        score(work, key, step);
        mla_cpu_tile_weigh(tile, keys);
        mla_cpu_tile_add(tile, keys, 0, step, work->v + key * stride, stride);
    }
}

static void attend_tile(const struct mla_attend_prefill *attend, struct query_tile at, int64_t head,
                        float *scores)
{
    int64_t row_first = attend->row_first[at.sequence] + at.first;
    int64_t rows = attend->row_first[at.sequence + 1] - attend->row_first[at.sequence];
    int64_t key_first = attend->key_first[at.sequence];
    int64_t keys = attend->key_first[at.sequence + 1] - key_first;
    struct work work = {
        .attend = attend,
        .q = (const float *)attend->q + row_first * attend->q_row_stride +
             head * attend->q_head_stride,
        .k_nope = (const float *)attend->k_nope + key_first * attend->k_row_stride +
                  head * attend->k_head_stride,
        .k_rope = (const float *)attend->k_rope + key_first * attend->k_rope_stride,
        .v = (const float *)attend->v + key_first * attend->v_row_stride +
             head * attend->v_head_stride,
        .tile = {.rows = mla_cpu_min(rows - at.first, MLA_CPU_TILE_ROWS),
                 .width = attend->v_dim,
                 .scores = scores,
                 .out = (float *)attend->out + row_first * attend->out_row_stride +
                        head * attend->out_head_stride,
                 .out_stride = attend->out_row_stride},
    };
    struct mla_cpu_tile *tile = &work.tile;
    int64_t seen[MLA_CPU_TILE_ROWS];
    for (int64_t row = 0; row < tile->rows; row++)
        seen[row] = attend->causal ? mla_cpu_max(keys - (rows - 1 - at.first - row), 0) : keys;
    mla_cpu_tile_begin(tile);
    run(&work, seen);
    for (int64_t row = 0; row < tile->rows; row++) {
        float factor = seen[row] > 0 ? 1.0f / tile->sum[row] : 0.0f;
        float *out = tile->out + row * tile->out_stride;
#pragma omp simd
        for (int64_t i = 0; i < tile->width; i++)
            out[i] *= factor;
        attend->lse[(row_first + row) * attend->heads + head] =
            tile->max[row] + logf(tile->sum[row]);
    }
}

enum mla_status mla_cpu_attend_prefill(struct mla_backend *backend,
                                       const struct mla_attend_prefill *attend)
{
    struct mla_cpu *cpu = mla_cpu_begin(backend);
    int64_t tiles_max = attend->rows / MLA_CPU_TILE_ROWS + attend->sequences;
    enum mla_status status = mla_cpu_reserve(cpu, (size_t)tiles_max * sizeof(struct query_tile),
                                             sizeof(float) * MLA_CPU_TILE_ROWS * MLA_CPU_TILE_KEYS);
    if (status)
        return status;
    struct query_tile *tiles = mla_cpu_shared(cpu);
    int64_t count = 0;
    for (int64_t s = 0; s < attend->sequences; s++) {
        int32_t rows = attend->row_first[s + 1] - attend->row_first[s];
        assert(rows >= 0 && attend->key_first[s + 1] >= attend->key_first[s]);
        for (int32_t first = 0; first < rows; first += MLA_CPU_TILE_ROWS)
            tiles[count++] = (struct query_tile){(int32_t)s, first};
    }
    /* A head's tiles follow each other, so that its keys stay in the thread's cache. */
#pragma omp parallel for schedule(dynamic)
    for (int64_t i = 0; i < count * attend->heads; i++)
        attend_tile(attend, tiles[i % count], i / count, mla_cpu_own(cpu));
    return MLA_OK;
}

/* One head of one row. */
static void merge_head(float *out, float *lse, const float *out_b, float lse_b, int64_t v_dim)
{
    float max = *lse > lse_b ? *lse : lse_b;
    bool none_a = *lse == -INFINITY, none_b = lse_b == -INFINITY;
    float a = none_a ? 0.0f : expf(*lse - max), b = none_b ? 0.0f : expf(lse_b - max);
    float factor = none_a && none_b ? 0.0f : 1.0f / (a + b);
    /* 0 times whatever the empty part holds would not always be 0. */
    for (int64_t i = 0; i < v_dim; i++)
        out[i] = ((none_a ? 0.0f : a * out[i]) + (none_b ? 0.0f : b * out_b[i])) * factor;
    *lse = max + logf(a + b);
}

enum mla_status mla_cpu_merge(struct mla_backend *backend, const struct mla_merge *merge)
{
    mla_cpu_begin(backend);
    assert(merge->rows >= 0 && merge->heads > 0 && merge->v_dim > 0);
#pragma omp parallel for if (merge->rows * merge->heads > 64)
    for (int64_t i = 0; i < merge->rows * merge->heads; i++) {
        int64_t at =
            i / merge->heads * merge->out_row_stride + i % merge->heads * merge->out_head_stride;
        merge_head((float *)merge->out + at, merge->lse + i, (const float *)merge->out_b + at,
                   merge->lse_b[i], merge->v_dim);
    }
    return MLA_OK;
}
