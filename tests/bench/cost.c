#include "tests/bench/cost.h"

double mla_cost_pairs(int64_t rows, int64_t keys, bool causal)
{
    if (!causal)
        return (double)rows * (double)keys;
    double seeing = (double)(rows < keys ? rows : keys); /* rows that see a key at all */
    return seeing * (double)keys - seeing * (seeing - 1) / 2;
}

static struct mla_cost moved(double values, size_t element)
{
    return (struct mla_cost){.bytes = values * (double)element};
}

struct mla_cost mla_cost_gemm(const struct mla_gemm *g, size_t element)
{
    double m = (double)g->m, n = (double)g->n, k = (double)g->k, batch = (double)g->batch;
    double values = m * k * (g->a_stride ? batch : 1) + n * k * (g->b_stride ? batch : 1) +
                    m * n * batch + (g->bias ? n : 0);
    if (g->m == 0)
        values = 0;
    return (struct mla_cost){values * (double)element, 2 * m * n * k * batch};
}

struct mla_cost mla_cost_latents(const struct mla_latents *l, size_t element)
{
    double q = l->cq ? (double)l->q_lora : 0;
    double row = q + (double)(l->latent + l->rope);
    double table = (double)l->rows * (double)l->rope * sizeof(float);
    struct mla_cost cost = moved(2 * (double)l->rows * row + q + (double)l->latent, element);
    cost.bytes += table;
    return cost;
}

struct mla_cost mla_cost_rope(const struct mla_rope *r, size_t element)
{
    double row = (double)r->rows * (double)r->dim;
    struct mla_cost cost = moved(2 * row * (double)r->heads, element);
    cost.bytes += row * sizeof(float);
    return cost;
}

struct mla_cost mla_cost_copy(const struct mla_copy *c)
{
    return moved((double)c->rows * (double)c->n,
                 mla_dtype_bytes(c->src_dtype) + mla_dtype_bytes(c->dst_dtype));
}

static double width(const struct mla_kv_pool *pool)
{
    return (double)(pool->latent + pool->rope);
}

struct mla_cost mla_cost_kv_write(const struct mla_kv_write *w, size_t element)
{
    return moved((double)w->rows * width(&w->pool), element + mla_dtype_bytes(w->pool.dtype));
}

struct mla_cost mla_cost_kv_gather(const struct mla_kv_gather *g, size_t element)
{
    return moved((double)g->rows * width(&g->kv.pool), element + mla_dtype_bytes(g->kv.pool.dtype));
}

struct mla_cost mla_cost_merge(const struct mla_merge *m, size_t element)
{
    double heads = (double)m->rows * (double)m->heads;
    struct mla_cost cost = moved(3 * heads * (double)m->v_dim, element);
    cost.bytes += 3 * heads * sizeof(float);
    return cost;
}

struct mla_cost mla_cost_attend_decode(const struct mla_attend_decode *a, int64_t rows, double keys,
                                       double pairs, size_t element)
{
    double latent = (double)a->kv.pool.latent, row = width(&a->kv.pool);
    double queries = (double)rows * (double)a->heads;
    struct mla_cost cost = moved(queries * (row + latent), element);
    cost.bytes += keys * row * (double)mla_dtype_bytes(a->kv.pool.dtype);
    cost.flops = 2 * pairs * (double)a->heads * (row + latent);
    return cost;
}

struct mla_cost mla_cost_attend_prefill(const struct mla_attend_prefill *a, double pairs,
                                        size_t element)
{
    double heads = (double)a->heads, nope = (double)a->nope, rope = (double)a->rope;
    double v = (double)a->v_dim;
    double q = (double)a->rows * heads * (nope + rope + v); /* and out */
    double k = (double)a->keys * (heads * (nope + v) + rope);
    struct mla_cost cost = moved(q + k, element);
    cost.bytes += (double)a->rows * heads * sizeof(float); /* lse */
    cost.flops = 2 * pairs * heads * (nope + rope + v);
    return cost;
}

double mla_cost_layer_bytes(const struct mla_cost_layer *l)
{
    double row = l->latent + l->rope;
    double q_input = l->q_lora > 0 ? l->q_lora : l->hidden;
    double weights = (l->q_lora + row) * l->hidden + l->q_lora + l->latent +
                     l->heads * (l->nope + l->rope) * q_input +
                     l->heads * (l->nope + l->v) * l->latent + l->hidden * l->heads * l->v;
    return (weights + 2 * l->own_rows * l->hidden) * (double)l->element +
           (l->cached + l->rows) * row * (double)l->kv_element;
}

double mla_cost_floor_us(struct mla_cost cost, const struct mla_ceilings *ceilings)
{
    double bytes_s = ceilings->bytes_per_s > 0 ? cost.bytes / ceilings->bytes_per_s : 0;
    double flops_s = ceilings->flops_per_s > 0 ? cost.flops / ceilings->flops_per_s : 0;
    return 1e6 * (bytes_s > flops_s ? bytes_s : flops_s);
}
