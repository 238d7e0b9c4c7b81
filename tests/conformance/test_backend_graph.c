/* Captured operations: a decode layer in small, replayed. */
#include "proto/limits.h"
#include "tests/conformance/decode_case.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>

static const int64_t HEADS = 16, LATENT = 512, ROPE = 64, DIM = 512 + 64, HIDDEN = 256, V_DIM = 128;
enum { ROWS = 7, POSITIONS = 400 }; /* the bucket: rows of the case are fewer */

/* x W^T -> norms and RoPE -> cache; q's rope part; attention; W_UV; f32. */
struct program {
    struct mla_decode_case c;
    struct mla_decode_setup decode;
    struct mla_tensor x, w, bias, kv, norm, table, q_pe, w_uv, up, result;
    int32_t *positions; /* the device's */
    int64_t *slots;
};

static struct mla_tensor filled(struct mla_device *device, enum mla_dtype dtype, int64_t count)
{
    struct mla_tensor tensor = mla_tensor_make(device, dtype, count);
    mla_tensor_fill(&tensor, 0, 1, count, count);
    mla_tensor_upload(device, &tensor);
    return tensor;
}

/* Where the new rows stand and go. Rows of padding go nowhere. */
static void place_rows(struct program *p, struct mla_device *device)
{
    int32_t positions[ROWS] = {0};
    int64_t slots[ROWS];
    for (int row = 0; row < ROWS; row++)
        slots[row] = MLA_SLOT_NONE;
    for (int s = 0; s < p->c.sequences; s++) {
        for (int j = 0; j < p->c.rows[s]; j++) {
            int row = p->decode.row_first[s] + j;
            cr_assert_lt(row, ROWS);
            positions[row] = p->c.kv_length[s] - p->c.rows[s] + j;
            slots[row] = mla_decode_slot(&p->decode, s, positions[row]);
        }
    }
    MLA_RUN(device, upload, p->positions, positions, sizeof positions);
    MLA_RUN(device, upload, p->slots, slots, sizeof slots);
    mla_device_synchronize(device);
}

static struct program *make(struct mla_device *device, const struct mla_decode_case *c)
{
    const enum mla_dtype dtype = device->backend->activation;
    struct program *p = calloc(1, sizeof *p);
    cr_assert_not_null(p);
    p->c = *c;
    mla_decode_make(&p->decode, device, &p->c);
    cr_assert_eq(p->decode.attend.rows_max, ROWS);
    p->x = filled(device, dtype, ROWS * HIDDEN);
    p->w = filled(device, dtype, DIM * HIDDEN);
    p->bias = filled(device, dtype, DIM);
    p->kv = mla_tensor_make(device, dtype, ROWS * DIM);
    p->norm = filled(device, dtype, LATENT);
    p->table = filled(device, MLA_F32, POSITIONS * ROPE);
    p->q_pe = filled(device, dtype, ROWS * HEADS * ROPE);
    p->w_uv = filled(device, dtype, HEADS * V_DIM * LATENT);
    p->up = mla_tensor_make(device, dtype, ROWS * HEADS * V_DIM);
    p->result = mla_tensor_make(device, MLA_F32, ROWS * HEADS * V_DIM);
    p->positions = mla_device_make(device, ROWS * sizeof *p->positions);
    p->slots = mla_device_make(device, ROWS * sizeof *p->slots);
    place_rows(p, device);
    return p;
}

static void fini(struct program *p)
{
    struct mla_tensor *all[] = {&p->x,     &p->w,    &p->bias, &p->kv, &p->norm,
                                &p->table, &p->q_pe, &p->w_uv, &p->up, &p->result};
    for (int i = 0; i < 10; i++)
        mla_tensor_free(all[i]);
    mla_decode_fini(&p->decode);
    free(p);
}

static void down(struct program *p, struct mla_device *device)
{
    MLA_RUN(device, gemm,
            &(struct mla_gemm){.m = ROWS,
                               .n = DIM,
                               .k = HIDDEN,
                               .batch = 1,
                               .a = p->x.memory,
                               .lda = HIDDEN,
                               .b = p->w.memory,
                               .ldb = HIDDEN,
                               .b_transposed = true,
                               .c = p->kv.memory,
                               .ldc = DIM,
                               .bias = p->bias.memory});
    MLA_RUN(device, latents,
            &(struct mla_latents){.rows = ROWS,
                                  .stride = DIM,
                                  .ckv = p->kv.memory,
                                  .latent = LATENT,
                                  .rope = ROPE,
                                  .kv_norm = p->norm.memory,
                                  .eps = 1e-6f,
                                  .positions = p->positions,
                                  .table = p->table.memory,
                                  .interleaved = true});
    MLA_RUN(device, kv_write,
            &(struct mla_kv_write){.pool = p->decode.attend.kv.pool,
                                   .rows = ROWS,
                                   .src = p->kv.memory,
                                   .src_stride = DIM,
                                   .slots = p->slots});
}

static void attend(struct program *p, struct mla_device *device)
{
    const size_t bytes = mla_dtype_bytes(p->decode.q.dtype);
    MLA_RUN(device, rope,
            &(struct mla_rope){.rows = ROWS,
                               .heads = HEADS,
                               .dim = ROPE,
                               .src = p->q_pe.memory,
                               .src_row_stride = HEADS * ROPE,
                               .src_head_stride = ROPE,
                               .dst = (char *)p->decode.q.memory + (size_t)LATENT * bytes,
                               .dst_row_stride = HEADS * DIM,
                               .dst_head_stride = DIM,
                               .positions = p->positions,
                               .table = p->table.memory,
                               .interleaved = true});
    MLA_RUN(device, attend_decode, &p->decode.attend);
    MLA_RUN(device, gemm,
            &(struct mla_gemm){.m = ROWS,
                               .n = V_DIM,
                               .k = LATENT,
                               .batch = HEADS,
                               .a = p->decode.out.memory,
                               .lda = HEADS * LATENT,
                               .a_stride = LATENT,
                               .b = p->w_uv.memory,
                               .ldb = LATENT,
                               .b_stride = V_DIM * LATENT,
                               .b_transposed = true,
                               .c = p->up.memory,
                               .ldc = HEADS * V_DIM,
                               .c_stride = V_DIM});
    MLA_RUN(device, copy,
            &(struct mla_copy){.rows = ROWS,
                               .n = HEADS * V_DIM,
                               .src = p->up.memory,
                               .src_stride = HEADS * V_DIM,
                               .src_dtype = p->up.dtype,
                               .dst = p->result.memory,
                               .dst_stride = HEADS * V_DIM,
                               .dst_dtype = MLA_F32});
}

static void queue(struct program *p, struct mla_device *device)
{
    down(p, device);
    attend(p, device);
}

/* Once per microbatch, before its layers. */
static void schedule(struct program *p, struct mla_device *device)
{
    MLA_RUN(device, schedule_decode, &p->decode.attend, p->decode.schedule);
}

static struct mla_graph *capture(struct program *p, struct mla_device *device)
{
    struct mla_graph *graph = NULL;
    cr_assert_eq(device->backend->ops->capture_begin(device->backend), MLA_OK);
    queue(p, device);
    MLA_RUN(device, capture_end, &graph);
    cr_assert_not_null(graph);
    return graph;
}

/* What a run computes is gone. */
static void poison(struct program *p, struct mla_device *device)
{
    struct mla_tensor *all[] = {&p->kv, &p->decode.out, &p->up, &p->result};
    for (int i = 0; i < 4; i++) {
        for (int64_t j = 0; j < all[i]->count; j++)
            all[i]->host[j] = NAN;
        mla_tensor_upload(device, all[i]);
    }
}

/* Bits of the result and of the cache; the caller frees them. */
struct snapshot {
    size_t bytes;
    char *data;
};

static struct snapshot snapshot(struct program *p, struct mla_device *device)
{
    struct mla_tensor *all[] = {&p->result, &p->decode.pool};
    struct snapshot out = {0};
    for (int i = 0; i < 2; i++)
        out.bytes += (size_t)all[i]->count * sizeof(float);
    out.data = malloc(out.bytes);
    cr_assert_not_null(out.data);
    char *at = out.data;
    for (int i = 0; i < 2; i++) {
        mla_tensor_download(device, all[i]);
        memcpy(at, all[i]->host, (size_t)all[i]->count * sizeof(float));
        at += (size_t)all[i]->count * sizeof(float);
    }
    return out;
}

/* Rows of the case are numbers. */
static void expect_numbers(const struct program *p)
{
    const int64_t count = (int64_t)p->decode.row_first[p->c.sequences] * HEADS * V_DIM;
    for (int64_t i = 0; i < count; i++)
        cr_assert(isfinite(p->result.host[i]), "result[%ld] is %g", (long)i,
                  (double)p->result.host[i]);
}

static struct snapshot eager(struct program *p, struct mla_device *device)
{
    poison(p, device);
    queue(p, device);
    struct snapshot out = snapshot(p, device);
    expect_numbers(p);
    return out;
}

static struct snapshot replay(struct program *p, struct mla_device *device, struct mla_graph *graph)
{
    poison(p, device);
    MLA_RUN(device, graph_run, graph);
    struct snapshot out = snapshot(p, device);
    expect_numbers(p);
    return out;
}

static bool same(const struct snapshot *a, const struct snapshot *b)
{
    return a->bytes == b->bytes && memcmp(a->data, b->data, a->bytes) == 0;
}

/* Both, and frees them. */
static void expect_same(struct snapshot got, struct snapshot want, const char *what)
{
    cr_assert(same(&got, &want), "%s", what);
    free(got.data);
    free(want.data);
}

static bool has_graphs(const struct mla_device *device)
{
    cr_assert_eq(device->backend->graphs, device->backend->ops->capture_begin != NULL);
    return device->backend->graphs;
}

/* Sequences: two without rows at the end are padding. */
static const struct mla_decode_case first_case = {
    .heads = 16,
    .latent = 512,
    .rope = 64,
    .dtype = MLA_BF16,
    .sequences = 6,
    .rows = {1, 1, 2, 1, 0, 0},
    .kv_length = {65, 300, 130, 1, 0, 0},
    .packed = true,
};

/* Capturing runs nothing; replays are what eager execution is, bit for bit. */
static void replays(struct mla_device *device)
{
    if (!has_graphs(device))
        return;
    struct program *p = make(device, &first_case);
    schedule(p, device);
    struct snapshot want = eager(p, device);
    poison(p, device);
    struct mla_graph *graph = capture(p, device);
    mla_tensor_download(device, &p->result);
    for (int64_t i = 0; i < p->result.count; i++)
        cr_assert(isnan(p->result.host[i]), "capturing ran something");
    for (int i = 0; i < 3; i++) {
        struct snapshot got = replay(p, device, graph);
        cr_assert(same(&got, &want), "replay %d", i);
        free(got.data);
    }
    free(want.data);
    device->backend->ops->graph_destroy(device->backend, graph);
    device->backend->ops->graph_destroy(device->backend, NULL);
    fini(p);
}

Test(graph, replays)
{
    mla_each_device(replays);
}

/* Other lengths, rows, tables, positions and slots, in the same device memory. */
static void change(struct program *p, struct mla_device *device)
{
    const struct mla_kv_view *kv = &p->decode.attend.kv;
    const int32_t rows[] = {1, 1, 1, 0, 0, 0}, kv_length[] = {290, 65, 129, 0, 0, 0};
    const int32_t swapped = p->decode.table[0];
    p->decode.table[0] = p->decode.table[1];
    p->decode.table[1] = swapped;
    for (int s = 0; s < p->c.sequences; s++) {
        p->c.rows[s] = rows[s];
        p->c.kv_length[s] = kv_length[s];
        p->decode.row_first[s + 1] = p->decode.row_first[s] + rows[s];
    }
    MLA_RUN(device, upload, (void *)kv->table, p->decode.table, sizeof p->decode.table);
    MLA_RUN(device, upload, (void *)kv->row_first, p->decode.row_first, sizeof p->decode.row_first);
    MLA_RUN(device, upload, (void *)kv->kv_length, p->c.kv_length, sizeof p->c.kv_length);
    place_rows(p, device);
}

static void replay_after_change(struct mla_device *device)
{
    if (!has_graphs(device))
        return;
    struct program *p = make(device, &first_case);
    schedule(p, device);
    struct mla_graph *graph = capture(p, device);
    struct snapshot before = replay(p, device, graph);
    change(p, device);
    schedule(p, device);
    struct snapshot after = replay(p, device, graph);
    cr_assert(!same(&before, &after), "the graph kept the old lengths");
    free(before.data);
    expect_same(after, eager(p, device), "a replay with other lengths");
    device->backend->ops->graph_destroy(device->backend, graph);
    fini(p);
}

Test(graph, replay_after_change)
{
    mla_each_device(replay_after_change);
}

/* Two microbatches in turn, as when two steps are open. */
static void two_graphs(struct mla_device *device)
{
    static const struct mla_decode_case second_case = {
        .heads = 16,
        .latent = 512,
        .rope = 64,
        .dtype = MLA_BF16,
        .sequences = 5,
        .rows = {1, 1, 1, 1, 1},
        .kv_length = {3, 64, 200, 128, 77},
        .packed = true,
    };
    if (!has_graphs(device))
        return;
    struct program *a = make(device, &first_case), *b = make(device, &second_case);
    schedule(a, device);
    schedule(b, device);
    struct snapshot want_a = eager(a, device), want_b = eager(b, device);
    struct mla_graph *graph_a = capture(a, device), *graph_b = capture(b, device);
    poison(a, device);
    poison(b, device);
    for (int i = 0; i < 4; i++) {
        MLA_RUN(device, graph_run, graph_a);
        MLA_RUN(device, graph_run, graph_b);
    }
    expect_same(snapshot(a, device), want_a, "the first of two graphs");
    expect_same(snapshot(b, device), want_b, "the second of two graphs");
    device->backend->ops->graph_destroy(device->backend, graph_a);
    device->backend->ops->graph_destroy(device->backend, graph_b);
    fini(a);
    fini(b);
}

Test(graph, two_graphs)
{
    mla_each_device(two_graphs);
}

/* Waiting for the queue that is being captured is a failure; nothing is left of it. */
static void failed_capture(struct mla_device *device)
{
    if (!has_graphs(device))
        return;
    const struct mla_backend_ops *ops = device->backend->ops;
    struct program *p = make(device, &first_case);
    struct mla_graph *graph = NULL;
    schedule(p, device);
    struct snapshot want = eager(p, device);
    cr_assert_eq(device->backend->ops->capture_begin(device->backend), MLA_OK);
    down(p, device);
    cr_assert_neq(ops->synchronize(device->backend), MLA_OK);
    cr_assert_neq(ops->capture_end(device->backend, &graph), MLA_OK);
    cr_assert_null(graph);
    struct snapshot got = eager(p, device);
    cr_assert(same(&got, &want), "eager execution after a failed capture");
    free(got.data);
    graph = capture(p, device);
    expect_same(replay(p, device, graph), want, "a capture after a failed one");
    ops->graph_destroy(device->backend, graph);
    fini(p);
}

Test(graph, failed_capture)
{
    mla_each_device(failed_capture);
}
