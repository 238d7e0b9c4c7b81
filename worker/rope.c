#include "worker/config.h"

#include "proto/limits.h"

#include <assert.h>
#include <math.h>

/* How much attention is sharpened for a context stretched by `factor` (Peng et al. 2023, 3.4),
 * which the config keeps at 1 or more. */
static double mscale_of(double factor, double mscale)
{
    return 0.1 * mscale * log(factor) + 1;
}

float mla_config_softmax_scale(const struct mla_config *config)
{
    const struct mla_rope_config *rope = &config->rope_config;
    double scale = 1 / sqrt((double)config->nope + config->rope);
    if (rope->type == MLA_ROPE_YARN && rope->mscale_all_dim != 0) {
        double m = mscale_of(rope->factor, rope->mscale_all_dim);
        scale *= m * m;
    }
    return (float)scale;
}

/* What cos and sin are multiplied with. */
static double rotation_scale(const struct mla_rope_config *rope)
{
    if (rope->type == MLA_ROPE_PLAIN)
        return 1;
    if (rope->attention_factor != 0)
        return rope->attention_factor;
    if (rope->mscale != 0 && rope->mscale_all_dim != 0)
        return mscale_of(rope->factor, rope->mscale) /
               mscale_of(rope->factor, rope->mscale_all_dim);
    return mscale_of(rope->factor, 1);
}

/* The (fractional) dimension whose wave turns `rotations` times in the original context. */
static double dim_of_rotations(const struct mla_config *config, double rotations)
{
    const struct mla_rope_config *rope = &config->rope_config;
    double turns = rope->original_context / (rotations * 2 * M_PI);
    return config->rope * log(turns) / (2 * log(rope->theta));
}

/* Radians per position of each pair. YaRN leaves the fast waves as they are, stretches the slow
 * ones by `factor`, and goes over linearly in between (Peng et al. 2023, 3.2, eq. 17 to 20). */
static void frequencies(const struct mla_config *config, double *out)
{
    const struct mla_rope_config *rope = &config->rope_config;
    uint32_t pairs = config->rope / 2;
    for (uint32_t i = 0; i < pairs; i++)
        out[i] = pow(rope->theta, -2.0 * i / config->rope);
    if (rope->type == MLA_ROPE_PLAIN)
        return;
    double low = fmax(floor(dim_of_rotations(config, rope->beta_fast)), 0);
    double high = fmin(ceil(dim_of_rotations(config, rope->beta_slow)), config->rope - 1.0);
    if (low == high)
        high += 0.001; /* as the reference implementation does: a step instead of a ramp */
    for (uint32_t i = 0; i < pairs; i++) {
        double stretched = fmin(fmax((i - low) / (high - low), 0), 1);
        out[i] *= stretched / rope->factor + (1 - stretched);
    }
}

void mla_config_rope_table(const struct mla_config *config, uint32_t positions, float *table)
{
    assert(config->rope <= MLA_HEAD_DIM_MAX);
    double frequency[MLA_HEAD_DIM_MAX / 2];
    double scale = rotation_scale(&config->rope_config);
    uint32_t pairs = config->rope / 2;
    frequencies(config, frequency);
    for (uint32_t position = 0; position < positions; position++) {
        for (uint32_t i = 0; i < pairs; i++) {
            double angle = position * frequency[i];
            *table++ = (float)(cos(angle) * scale);
            *table++ = (float)(sin(angle) * scale);
        }
    }
}
