/* What an operation must move and compute at least, and how long a device needs for that. */
#ifndef MLA_TESTS_BENCH_COST_H
#define MLA_TESTS_BENCH_COST_H

#include "kernels/backend.h"

struct mla_cost {
    double bytes; /* every input and output once */
    double flops; /* multiplications and additions, nothing that is masked */
};

/* The best that a device does, measured or given; 0: not known. */
struct mla_ceilings {
    double bytes_per_s; /* read and written by a large copy */
    double flops_per_s; /* of a large product */
};

static inline struct mla_cost mla_cost_sum(struct mla_cost a, struct mla_cost b)
{
    return (struct mla_cost){a.bytes + b.bytes, a.flops + b.flops};
}

/* Keys seen, summed over the queries of one sequence and head: the last sees all of them, and
 * with a causal mask each one before it one less (none where there are no more). */
double mla_cost_pairs(int64_t rows, int64_t keys, bool causal);

/* Operations on activations of `element` bytes. A matrix that a batch shares counts once. */
struct mla_cost mla_cost_gemm(const struct mla_gemm *gemm, size_t element);
struct mla_cost mla_cost_latents(const struct mla_latents *latents, size_t element);
struct mla_cost mla_cost_rope(const struct mla_rope *rope, size_t element);
struct mla_cost mla_cost_copy(const struct mla_copy *copy);
struct mla_cost mla_cost_kv_write(const struct mla_kv_write *write, size_t element);
struct mla_cost mla_cost_kv_gather(const struct mla_kv_gather *gather, size_t element);
struct mla_cost mla_cost_merge(const struct mla_merge *merge, size_t element);

/* The lengths are in the device's memory, so the caller tells what it knows of them. keys: cached
 * rows of all sequences, each read once for all heads; pairs: mla_cost_pairs over the sequences;
 * rows: queries. */
struct mla_cost mla_cost_attend_decode(const struct mla_attend_decode *attend, int64_t rows,
                                       double keys, double pairs, size_t element);
struct mla_cost mla_cost_attend_prefill(const struct mla_attend_prefill *attend, double pairs,
                                        size_t element);

/* One rank's share of a layer: heads of its own, everything else whole. */
struct mla_cost_layer {
    double hidden, q_lora, latent, rope, nope, v, heads; /* q_lora 0: the model has none */
    double own_rows;                                     /* that it is given and that it finishes */
    double rows;   /* of all ranks: their latents are written to its cache */
    double cached; /* rows of the cache that are read, each once for all heads */
    size_t element, kv_element;
};
/* What it must move when intermediate results cost nothing: weights, cached rows, new rows, x and
 * the output. */
double mla_cost_layer_bytes(const struct mla_cost_layer *layer);

/* The larger of the times for the bytes and for the flops, in microseconds. A ceiling that isn't
 * known doesn't count. */
double mla_cost_floor_us(struct mla_cost cost, const struct mla_ceilings *ceilings);

#endif
