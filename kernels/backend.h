/* The operations a device offers to the layer. One table per backend; worker/layer.c is written
 * once over it.
 *
 * All tensors are row-major in the backend's memory (from `alloc`); strides count elements.
 * "activation" is the backend's compute dtype (f32 on cpu, bf16 on cuda); accumulation, norms,
 * RoPE and softmax are f32. Unless a contract says otherwise, inputs and outputs don't overlap.
 * Metadata arrays (positions, slots, lengths, tables) are in the backend's memory too, so that
 * a captured graph can be replayed with other lengths; counts that fix a launch's size are plain
 * integers. Every operation is queued on the backend's one compute stream and runs in the order
 * of the calls. Operations return MLA_OK, or MLA_INTERNAL / MLA_MEMORY after a device failure,
 * after which the backend is only good for destroy. Wrong arguments are our own mistake: assert. */
#ifndef MLA_KERNELS_BACKEND_H
#define MLA_KERNELS_BACKEND_H

#include "kernels/kv_layout.h"
#include "proto/dtype.h"
#include "proto/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct mla_backend;

/* Where an operation may write a KV row. */
#define MLA_SLOT_NONE (-1) /* a padding row: nothing is written */

/* C = A op(B) + bias, `batch` times (MLA's absorb and W_UV are one product per head). B and the
 * bias are weights: nothing that is still queued writes them.
 * A [m, k], B [n, k] when b_transposed (a checkpoint's weight: y = x W^T) else [k, n], C [m, n],
 * all activation dtype; bias [n] or NULL. Strides between batches may be 0 for A and B.
 * m may be 0. */
struct mla_gemm {
    int64_t m, n, k, batch;
    const void *a;
    int64_t lda, a_stride;
    const void *b;
    int64_t ldb, b_stride;
    bool b_transposed;
    void *c;
    int64_t ldc, c_stride;
    const void *bias;
};

/* One layer's pages: [blocks, MLA_BLOCK_TOKENS, latent + rope] of `dtype`. mla_kv_pool_of makes it
 * as the backend likes it best; the backend's operations take both layouts. */
struct mla_kv_pool {
    void *pages;
    enum mla_dtype dtype;
    int64_t latent, rope; /* kv_lora_rank, qk_rope_head_dim */
    enum mla_kv_layout layout;
};

/* What is kept of new rows, in place: RMSNorm of the query's latent and of the key-value latent,
 * x <- x / sqrt(mean(x^2) + eps) * weight, and RoPE of the key's rope part (DeepSeek-V2, 2.1).
 * All parts of a row have the same stride. The norms' weights are nothing that is still queued
 * writes. With `slots` also what kv_write does with the finished ckv and kpe, to the same bits:
 * a pool of f32, too, has values that were rounded to the activation dtype. */
struct mla_latents {
    int64_t rows, stride;
    void *cq; /* [rows, q_lora], or NULL for a model without */
    int64_t q_lora;
    const void *q_norm; /* [q_lora] */
    void *ckv;          /* [rows, latent + rope] */
    int64_t latent, rope;
    const void *kv_norm; /* [latent] */
    float eps;
    const int32_t *positions; /* [rows] */
    const float *table;       /* as mla_rope's */
    bool interleaved;
    const int64_t *slots;    /* [rows], or NULL */
    struct mla_kv_pool pool; /* of the same latent and rope */
};

/* dst[row, head, :] = rotation of src[row, head, :] by table[position[row]]. dst may be src.
 * interleaved: pairs (2i, 2i+1), as DeepSeek checkpoints have them; otherwise (i, i + dim/2).
 * The pairs stay where they are. */
struct mla_rope {
    int64_t rows, heads, dim;
    const void *src;
    int64_t src_row_stride, src_head_stride;
    void *dst;
    int64_t dst_row_stride, dst_head_stride;
    const int32_t *positions; /* [rows] */
    const float *table;       /* f32 [positions, dim/2, 2]: cos, sin */
    bool interleaved;
};

/* dst[row, 0..n) = (dst_dtype) src[row, 0..n). Each of the two may be in memory from host_alloc, or
 * given to host_register: small ones are sooner there than by a queue of their own. */
struct mla_copy {
    int64_t rows, n;
    const void *src;
    int64_t src_stride;
    enum mla_dtype src_dtype;
    void *dst;
    int64_t dst_stride;
    enum mla_dtype dst_dtype;
};

/* Sequences of one microbatch. The block table of sequence s is
 * tables[table[s] * table_stride ...]; every id in it that lies under kv_length is valid.
 * A sequence without rows (padding) has kv_length 0 and is skipped. */
struct mla_kv_view {
    struct mla_kv_pool pool;
    const int32_t *tables;
    int64_t table_stride;
    int64_t sequences;
    int64_t tokens_max;   /* decode: rows that a sequence is expected to have, 0 for 1. It may have
                             more, but then another way of computing may have been faster */
    const int32_t *table; /* [sequences] */
    const int32_t *row_first; /* [sequences + 1]: rows of sequence s are [s], [s + 1] */
    const int32_t *kv_length; /* [sequences]: cached tokens, the rows of this batch included */
};

/* pool[slot[row]] = src[row, 0..latent + rope). slot = block * MLA_BLOCK_TOKENS + offset, or
 * MLA_SLOT_NONE. No two rows have the same slot. */
struct mla_kv_write {
    struct mla_kv_pool pool;
    int64_t rows;
    const void *src;
    int64_t src_stride;
    const int64_t *slots; /* [rows] */
};

/* dst[context_first[s] + i] = cached row (begin[s] + i) of sequence s, in activation dtype,
 * for i < context_first[s + 1] - context_first[s]. */
struct mla_kv_gather {
    struct mla_kv_view kv;
    int64_t rows;                 /* context_first[sequences] */
    const int32_t *begin;         /* [sequences] first position */
    const int32_t *context_first; /* [sequences + 1] */
    void *dst;
    int64_t dst_stride;
};

/* dst[index[i]] = value[i]: changes of block tables. No two indices are the same. */
struct mla_scatter {
    int64_t count;
    int32_t *dst;
    const int64_t *index; /* [count] */
    const int32_t *value; /* [count] */
};

/* Whole blocks src[i] -> dst[i] of one layer. No dst is also a src. */
struct mla_kv_copy {
    struct mla_kv_pool pool;
    int64_t count;
    const int32_t *src, *dst; /* [count], host memory */
};

/* Absorbed (MQA) attention over pages. Row j of a sequence with n rows attends to the first
 * kv_length - (n - 1 - j) cached tokens (at least 1):
 *   out[row, head, :] = softmax(scale * q[row, head, :] . K^T) K[:, 0..latent)
 * q [rows, heads, latent + rope], out [rows, heads, latent], both activation.
 * A row past row_first[sequences] is not written. `schedule` is what schedule_decode made of the
 * same kv, rows_max and heads (layers differ in the pool alone). Same input, same schedule: same
 * bits; another schedule may round otherwise. */
struct mla_attend_decode {
    struct mla_kv_view kv;
    int64_t rows_max; /* row_first[sequences] is at most this */
    int64_t heads;
    const void *q;
    int64_t q_row_stride, q_head_stride;
    void *out;
    int64_t out_row_stride, out_head_stride;
    float scale;
    const void *schedule;
};

/* Multi-head attention of new rows over expanded keys, sequence by sequence:
 *   k = [k_nope | k_rope], S = scale * q k^T, out = softmax(S) v, lse = ln(sum(exp(S)))
 * causal: the last query attends to all keys of its sequence, the one before to all but one.
 * A query without keys gets out = 0 and lse = -inf.
 * q [rows, heads, nope + rope], k_nope [keys, heads, nope], k_rope [keys, rope] (shared by the
 * heads), v [keys, heads, v_dim], out [rows, heads, v_dim] activation, lse f32 [rows, heads]. */
struct mla_attend_prefill {
    int64_t sequences, heads;
    int64_t nope, rope, v_dim;
    int64_t rows, keys;         /* row_first[sequences], key_first[sequences] */
    int64_t rows_max, keys_max; /* the longest of one sequence */
    const int32_t *row_first;   /* [sequences + 1] */
    const int32_t *key_first;   /* [sequences + 1] */
    const void *q;
    int64_t q_row_stride, q_head_stride;
    const void *k_nope;
    int64_t k_row_stride, k_head_stride;
    const void *k_rope;
    int64_t k_rope_stride;
    const void *v;
    int64_t v_row_stride, v_head_stride;
    void *out;
    int64_t out_row_stride, out_head_stride;
    float *lse;
    float scale;
    bool causal;
};

/* Joins two partial attentions over disjoint keys, in place in the first:
 *   out = (exp(lse) out + exp(lse_b) out_b) / (exp(lse) + exp(lse_b)), lse = ln(of that sum)
 * An lse of -inf has weight 0; two of them leave out = 0 and lse = -inf. Natural logarithms.
 * lse [rows, heads] f32; out of both [rows, heads, v_dim] with the same strides. */
struct mla_merge {
    int64_t rows, heads, v_dim;
    void *out;
    float *lse;
    const void *out_b;
    const float *lse_b;
    int64_t out_row_stride, out_head_stride;
};

/* Work is queued and runs in the order of the calls, queue by queue: operations, upload, download
 * and move on COMPUTE; copy_in and copy_out on queues of their own, beside it. */
enum mla_queue { MLA_QUEUE_COMPUTE, MLA_QUEUE_IN, MLA_QUEUE_OUT };

struct mla_fence; /* a point in a queue */
struct mla_graph; /* captured operations */

struct mla_backend_ops {
    const char *name;
    /* Memory of the device, aligned to 256 bytes, contents undefined. bytes > 0. MLA_MEMORY. */
    enum mla_status (*alloc)(struct mla_backend *, size_t bytes, void **out);
    void (*free)(struct mla_backend *, void *memory); /* NULL is allowed */
    /* Bytes that alloc could still give. */
    enum mla_status (*memory_free)(struct mla_backend *, uint64_t *bytes);
    /* Host memory that copy_in and copy_out reach at full speed, and `copy` at all. */
    enum mla_status (*host_alloc)(struct mla_backend *, size_t bytes, void **out);
    void (*host_free)(struct mla_backend *, void *memory); /* NULL is allowed */
    /* Gives memory that is there already what host_alloc's has, until host_unregister: whole
     * pages, which then stay in memory. MLA_MEMORY. */
    enum mla_status (*host_register)(struct mla_backend *, void *memory, size_t bytes);
    void (*host_unregister)(struct mla_backend *, void *memory);
    /* Host to device and back, ordered with the operations. upload may borrow its source, and
     * download its destination, until the next synchronize. */
    enum mla_status (*upload)(struct mla_backend *, void *dst, const void *src, size_t bytes);
    enum mla_status (*download)(struct mla_backend *, void *dst, const void *src, size_t bytes);
    /* Device to device, ordered with the operations. */
    enum mla_status (*move)(struct mla_backend *, void *dst, const void *src, size_t bytes);
    /* Between such memory and the device, on the queues IN and OUT. */
    enum mla_status (*copy_in)(struct mla_backend *, void *dst, const void *src, size_t bytes);
    enum mla_status (*copy_out)(struct mla_backend *, void *dst, const void *src, size_t bytes);
    /* All that was queued has finished. */
    enum mla_status (*synchronize)(struct mla_backend *);
    void (*destroy)(struct mla_backend **);

    /* A fence is recorded behind what a queue holds so far and reached when that is done. Another
     * queue can wait for it; the host can look whether it was reached, wait until it is, and tell
     * how long it took from one to another, both reached. A fence that was never recorded counts
     * as reached. */
    enum mla_status (*fence_create)(struct mla_backend *, struct mla_fence **out);
    void (*fence_destroy)(struct mla_backend *, struct mla_fence *); /* NULL is allowed */
    enum mla_status (*fence_record)(struct mla_backend *, enum mla_queue, struct mla_fence *);
    enum mla_status (*fence_wait)(struct mla_backend *, enum mla_queue, struct mla_fence *);
    enum mla_status (*fence_reached)(struct mla_backend *, struct mla_fence *, bool *reached);
    enum mla_status (*fence_await)(struct mla_backend *, struct mla_fence *);
    enum mla_status (*fence_span)(struct mla_backend *, struct mla_fence *from,
                                  struct mla_fence *to, uint64_t *ns);

    /* Operations between begin and end are recorded and not run; graph_run queues them all. NULL
     * where the backend has no graphs. After a failure between the two, capture_end fails and
     * the backend is good for more. */
    enum mla_status (*capture_begin)(struct mla_backend *);
    enum mla_status (*capture_end)(struct mla_backend *, struct mla_graph **out);
    enum mla_status (*graph_run)(struct mla_backend *, struct mla_graph *);
    void (*graph_destroy)(struct mla_backend *, struct mla_graph *); /* NULL is allowed */

    /* While on, operations with shapes not seen before are timed in several ways and the fastest is
     * kept: for start-up, and not inside a capture. Which one that is may differ from process to
     * process, and with it the last bits of results. NULL where there is nothing to choose. */
    enum mla_status (*tune)(struct mla_backend *, bool on);
    /* Names what is queued between the two for a profiler (NVTX). */
    void (*range_begin)(struct mla_backend *, const char *name);
    void (*range_end)(struct mla_backend *);

    enum mla_status (*gemm)(struct mla_backend *, const struct mla_gemm *);
    enum mla_status (*latents)(struct mla_backend *, const struct mla_latents *);
    enum mla_status (*rope)(struct mla_backend *, const struct mla_rope *);
    enum mla_status (*copy)(struct mla_backend *, const struct mla_copy *);
    enum mla_status (*kv_write)(struct mla_backend *, const struct mla_kv_write *);
    enum mla_status (*kv_gather)(struct mla_backend *, const struct mla_kv_gather *);
    enum mla_status (*scatter)(struct mla_backend *, const struct mla_scatter *);
    enum mla_status (*kv_copy)(struct mla_backend *, const struct mla_kv_copy *);
    /* How attend_decode shares out its work, from lengths in the device's memory; made once per
     * microbatch. Of its argument kv, rows_max and heads count. schedule: decode_schedule_bytes
     * bytes, the device's, aligned to 64. */
    size_t (*decode_schedule_bytes)(struct mla_backend *, int64_t rows_max, int64_t heads);
    enum mla_status (*schedule_decode)(struct mla_backend *, const struct mla_attend_decode *,
                                       void *schedule);
    enum mla_status (*attend_decode)(struct mla_backend *, const struct mla_attend_decode *);
    enum mla_status (*attend_prefill)(struct mla_backend *, const struct mla_attend_prefill *);
    enum mla_status (*merge)(struct mla_backend *, const struct mla_merge *);
};

/* Each backend's struct begins with this. */
struct mla_backend {
    const struct mla_backend_ops *ops;
    enum mla_dtype activation;
    bool graphs;  /* captures; decode microbatches are padded to buckets */
    bool tune;    /* as `tune` said */
    bool unified; /* its memory is the host's: operations also read and write what is not from
                     alloc, and have finished when they return */
    bool panels;  /* pools that can are MLA_KV_PANELS; else it knows MLA_KV_ROWS only */
};

static inline struct mla_kv_pool mla_kv_pool_of(const struct mla_backend *backend, void *pages,
                                                enum mla_dtype dtype, int64_t latent, int64_t rope)
{
    bool panels = backend->panels && dtype == MLA_BF16 && latent % MLA_KV_PANEL_VALUES == 0 &&
                  rope % MLA_KV_PANEL_VALUES == 0;
    return (struct mla_kv_pool){pages, dtype, latent, rope, panels ? MLA_KV_PANELS : MLA_KV_ROWS};
}

/* The CPU backend, OpenBLAS and OpenMP with `threads` threads (0: as OMP_NUM_THREADS says, or
 * all cores). Not thread-safe: one thread calls it. MLA_MEMORY. */
enum mla_status mla_backend_cpu_create(int threads, struct mla_backend **out);

/* NVIDIA GPUs from sm_80 on; activations are bf16. In a build without CUDA there are none. */
int mla_backend_cuda_count(void);
/* Where a device below that count is on the PCI bus: "0000:3B:00.0"; "" when it can't be told. */
enum { MLA_BUS_ID_BYTES = 32 };
void mla_backend_cuda_bus_id(int device, char out[MLA_BUS_ID_BYTES]);
/* The backend on a device below that count, of the calling thread's context. Not thread-safe.
 * MLA_MEMORY, MLA_OPTION (too old a GPU), MLA_INTERNAL. */
enum mla_status mla_backend_cuda_create(int device, struct mla_backend **out);
/* The cudaStream_t of its compute queue, for NCCL. */
void *mla_backend_cuda_stream(struct mla_backend *backend);

#endif
