#include "kernels/cpu/cpu.h"

#include <cblas.h>
#include <math.h>

void mla_cpu_tile_begin(struct mla_cpu_tile *tile)
{
    for (int64_t row = 0; row < tile->rows; row++) {
        tile->max[row] = -INFINITY;
        tile->sum[row] = 0.0f;
        memset(tile->out + row * tile->out_stride, 0, (size_t)tile->width * sizeof(float));
    }
}

int64_t mla_cpu_tile_step(const struct mla_cpu_tile *tile, const int64_t *seen, int64_t key,
                          int64_t end, int64_t step_max, int64_t *keys)
{
    int64_t whole = mla_cpu_min(seen[0], end);
    int64_t step = mla_cpu_min((key < whole ? whole : end) - key, step_max);
    for (int64_t row = 0; row < tile->rows; row++)
        keys[row] = mla_cpu_min(mla_cpu_max(seen[row] - key, 0), step);
    return step;
}

/* Of x and `max`; a NaN is passed over. In lanes, as compilers don't reorder comparisons. */
static float maximum(const float *x, int64_t count, float max)
{
    enum { LANES = 16 };
    float lanes[LANES];
    for (int j = 0; j < LANES; j++)
        lanes[j] = max;
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES)
        for (int j = 0; j < LANES; j++)
            lanes[j] = x[i + j] > lanes[j] ? x[i + j] : lanes[j];
    for (; i < count; i++)
        lanes[0] = x[i] > lanes[0] ? x[i] : lanes[0];
    for (int j = 0; j < LANES; j++)
        max = lanes[j] > max ? lanes[j] : max;
    return max;
}

void mla_cpu_tile_weigh(struct mla_cpu_tile *tile, const int64_t *keys)
{
    for (int64_t row = 0; row < tile->rows; row++) {
        if (keys[row] == 0)
            continue;
        float *scores = tile->scores + row * MLA_CPU_TILE_KEYS;
        float max = maximum(scores, keys[row], tile->max[row]);
        float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < keys[row]; i++) {
            scores[i] = mla_cpu_exp(scores[i] - max);
            sum += scores[i];
        }
        if (tile->sum[row] != 0.0f && max != tile->max[row]) {
            float *out = tile->out + row * tile->out_stride;
            float factor = mla_cpu_exp(tile->max[row] - max);
            tile->sum[row] *= factor;
#pragma omp simd
            for (int64_t i = 0; i < tile->width; i++)
                out[i] *= factor;
        }
        tile->sum[row] += sum;
        tile->max[row] = max;
    }
}

void mla_cpu_tile_add(const struct mla_cpu_tile *tile, const int64_t *keys, int64_t first,
                      int64_t count, const float *values, int64_t stride)
{
    if (keys[0] >= first + count) { /* seen by the first row, so by all */
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (blasint)tile->rows,
                    (blasint)tile->width, (blasint)count, 1.0f, tile->scores + first,
                    MLA_CPU_TILE_KEYS, values, (blasint)stride, 1.0f, tile->out,
                    (blasint)tile->out_stride);
        return;
    }
    for (int64_t row = 0; row < tile->rows; row++) {
        const float *weights = tile->scores + row * MLA_CPU_TILE_KEYS + first;
        float *out = tile->out + row * tile->out_stride;
        for (int64_t key = 0; key < mla_cpu_min(count, keys[row] - first); key++) {
            const float *value = values + key * stride;
#pragma omp simd
            for (int64_t i = 0; i < tile->width; i++)
                out[i] += weights[key] * value[i];
        }
    }
}
