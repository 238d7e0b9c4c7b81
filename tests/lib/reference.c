#include "tests/lib/reference.h"

#include "tests/lib/formula.h"

#include <math.h>
#include <stdlib.h>

#define LANES 8u /* partial sums of a dot product, so that it can be vectorised */

enum mla_status mla_reference_create(const struct mla_config *config, uint32_t layer,
                                     struct mla_reference **out)
{
    struct mla_reference *reference = calloc(1, sizeof *reference);
    if (!reference)
        return MLA_MEMORY;
    reference->config = *config;
    for (int i = 0; i < MLA_WEIGHT_COUNT; i++) {
        struct mla_weight_spec spec;
        mla_weight_describe(config, layer, i, &spec);
        if (!spec.present)
            continue;
        uint64_t count = spec.shape[0] * (spec.dims > 1 ? spec.shape[1] : 1);
        reference->weights[i] = malloc(count * sizeof(float));
        if (!reference->weights[i]) {
            mla_reference_destroy(&reference);
            return MLA_MEMORY;
        }
        mla_formula_fill(spec.name, spec.dims, spec.shape, 0, count, reference->weights[i]);
    }
    *out = reference;
    return MLA_OK;
}

void mla_reference_destroy(struct mla_reference **reference)
{
    if (!*reference)
        return;
    for (int i = 0; i < MLA_WEIGHT_COUNT; i++)
        free((*reference)->weights[i]);
    free(*reference);
    *reference = NULL;
}

static double dot(const float *weight, const double *x, size_t n)
{
    double sums[LANES] = {0}, sum = 0;
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        for (size_t k = 0; k < LANES; k++)
            sums[k] += weight[i + k] * x[i + k];
    }
    for (; i < n; i++)
        sum += weight[i] * x[i];
    for (size_t k = 0; k < LANES; k++)
        sum += sums[k];
    return sum;
}

/* y [rows, n] = x [rows, k] weight[n, k]^T + bias */
static void linear(const double *x, size_t rows, size_t k, const float *weight, const float *bias,
                   size_t n, double *y)
{
    for (size_t i = 0; i < n; i++) {
        for (size_t row = 0; row < rows; row++)
            y[row * n + i] = dot(weight + i * k, x + row * k, k) + (bias ? bias[i] : 0);
    }
}

static void rmsnorm(double *x, size_t n, const float *weight)
{
    double squares = 0;
    for (size_t i = 0; i < n; i++)
        squares += x[i] * x[i];
    for (size_t i = 0; i < n; i++)
        x[i] = x[i] / sqrt(squares / (double)n + 1e-6) * weight[i];
}

/* Rotates x [dim] in place; cos_sin [dim/2, 2] is its position's row of the table. */
static void rotate(double *x, size_t dim, const float *cos_sin, bool interleaved)
{
    for (size_t i = 0; i < dim / 2; i++) {
        double *a = interleaved ? &x[2 * i] : &x[i];
        double *b = interleaved ? &x[2 * i + 1] : &x[i + dim / 2];
        double c = cos_sin[2 * i], s = cos_sin[2 * i + 1], turned = *a * c - *b * s;
        *b = *b * c + *a * s;
        *a = turned;
    }
}

struct pass {
    double *x;      /* [tokens, hidden] */
    double *cq;     /* [tokens, q_lora] */
    double *q;      /* [tokens, heads, nope + rope] */
    double *latent; /* [tokens, latent + rope], normed and rotated */
    double *ckv;    /* [tokens, latent] of it */
    double *kv;     /* [tokens, heads, nope + v] */
    double *o;      /* [tokens, heads, v] */
    double *scores; /* [tokens] */
    float *table;   /* [tokens, rope/2, 2] */
};

static void project(const struct mla_reference *r, size_t tokens, struct pass *p)
{
    const struct mla_config *c = &r->config;
    float *const *w = r->weights;
    size_t q_dim = c->nope + c->rope, row_dim = c->latent + c->rope;
    if (c->q_lora) {
        linear(p->x, tokens, c->hidden, w[MLA_WEIGHT_Q_A], w[MLA_WEIGHT_Q_A_BIAS], c->q_lora,
               p->cq);
        for (size_t t = 0; t < tokens; t++)
            rmsnorm(p->cq + t * c->q_lora, c->q_lora, w[MLA_WEIGHT_Q_A_NORM]);
    }
    linear(c->q_lora ? p->cq : p->x, tokens, c->q_lora ? c->q_lora : c->hidden, w[MLA_WEIGHT_Q_B],
           NULL, c->heads * q_dim, p->q);
    linear(p->x, tokens, c->hidden, w[MLA_WEIGHT_KV_A], w[MLA_WEIGHT_KV_A_BIAS], row_dim,
           p->latent);
    for (size_t t = 0; t < tokens; t++) {
        const float *cos_sin = p->table + t * c->rope;
        double *row = p->latent + t * row_dim;
        rmsnorm(row, c->latent, w[MLA_WEIGHT_KV_A_NORM]);
        rotate(row + c->latent, c->rope, cos_sin, c->rope_config.interleaved);
        memcpy(p->ckv + t * c->latent, row, c->latent * sizeof *row);
        for (size_t head = 0; head < c->heads; head++)
            rotate(p->q + (t * c->heads + head) * q_dim + c->nope, c->rope, cos_sin,
                   c->rope_config.interleaved);
    }
    linear(p->ckv, tokens, c->latent, w[MLA_WEIGHT_KV_B], NULL, (size_t)c->heads * (c->nope + c->v),
           p->kv);
}

/* o of one token and head: softmax over the tokens up to it. */
static void attend(const struct mla_config *c, size_t token, size_t head, struct pass *p)
{
    size_t kv_dim = c->nope + c->v, row_dim = c->latent + c->rope;
    const double *q = p->q + (token * c->heads + head) * (c->nope + c->rope);
    double *o = p->o + (token * c->heads + head) * c->v;
    double scale = mla_config_softmax_scale(c), max = -INFINITY, sum = 0;
    for (size_t t = 0; t <= token; t++) {
        const double *k = p->kv + (t * c->heads + head) * kv_dim;
        const double *k_rope = p->latent + t * row_dim + c->latent;
        double score = 0;
        for (size_t i = 0; i < c->nope; i++)
            score += q[i] * k[i];
        for (size_t i = 0; i < c->rope; i++)
            score += q[c->nope + i] * k_rope[i];
        p->scores[t] = score * scale;
        max = fmax(max, p->scores[t]);
    }
    for (size_t t = 0; t <= token; t++)
        sum += p->scores[t] = exp(p->scores[t] - max);
    for (size_t t = 0; t <= token; t++) {
        const double *v = p->kv + (t * c->heads + head) * kv_dim + c->nope;
        for (size_t i = 0; i < c->v; i++)
            o[i] += p->scores[t] / sum * v[i];
    }
}

enum mla_status mla_reference_run(const struct mla_reference *reference, uint32_t tokens,
                                  const float *x, double *out)
{
    const struct mla_config *c = &reference->config;
    size_t n = tokens, heads = c->heads;
    enum mla_status status = MLA_MEMORY;
    struct pass p = {
        .x = calloc(n * c->hidden, sizeof(double)),
        .cq = calloc(n * c->q_lora + 1, sizeof(double)),
        .q = calloc(n * heads * (c->nope + c->rope), sizeof(double)),
        .latent = calloc(n * (c->latent + c->rope), sizeof(double)),
        .ckv = calloc(n * c->latent, sizeof(double)),
        .kv = calloc(n * heads * (c->nope + c->v), sizeof(double)),
        .o = calloc(n * heads * c->v, sizeof(double)),
        .scores = calloc(n, sizeof(double)),
        .table = calloc(n * c->rope, sizeof(float)),
    };
    if (!p.x || !p.cq || !p.q || !p.latent || !p.ckv || !p.kv || !p.o || !p.scores || !p.table)
        goto fail;
    for (size_t i = 0; i < n * c->hidden; i++)
        p.x[i] = x[i];
    mla_config_rope_table(c, tokens, p.table);
    project(reference, n, &p);
    for (size_t token = 0; token < n; token++) {
        for (size_t head = 0; head < heads; head++)
            attend(c, token, head, &p);
    }
    linear(p.o, n, heads * c->v, reference->weights[MLA_WEIGHT_O],
           reference->weights[MLA_WEIGHT_O_BIAS], c->hidden, out);
    status = MLA_OK;
fail:
    free(p.x);
    free(p.cq);
    free(p.q);
    free(p.latent);
    free(p.ckv);
    free(p.kv);
    free(p.o);
    free(p.scores);
    free(p.table);
    return status;
}
