#include "kernels/cpu/cpu.h"

#include <assert.h>
#include <cblas.h>
#include <math.h>

enum {
    BLOCK = MLA_BLOCK_TOKENS,
    STEP_KEYS = 128, /* whose rows stay in the L2 cache from the scores to the sums */
    PIECES_MAX = STEP_KEYS / BLOCK + 1,
    ITEMS_PER_THREAD = 4, /* that long sequences are split into */
};

/* Queries are counted through rows and heads: query i of a sequence is row i / heads, head
 * i % heads. An item is a tile of them and a range of keys. */
struct item {
    int32_t sequence, query, queries;
    int32_t key_begin, key_end;
    int32_t partial; /* where its sums wait for those of the tile's other keys; -1: all keys */
};

/* What an item with a part of its tile's keys leaves: [MLA_CPU_TILE_ROWS, latent] sums follow. */
struct partial {
    float max[MLA_CPU_TILE_ROWS], sum[MLA_CPU_TILE_ROWS];
};

/* A thread's scratch. */
struct work {
    float *q, *scores, *out, *wide;
};

/* The cached rows of one step, in runs of one page. */
struct piece {
    const float *rows;
    int64_t first, count;
};

/* Cached tokens that a query sees. */
static int64_t seen_by(const struct mla_attend_decode *attend, int64_t sequence, int64_t query)
{
    const struct mla_kv_view *kv = &attend->kv;
    int64_t rows = kv->row_first[sequence + 1] - kv->row_first[sequence];
    return kv->kv_length[sequence] - (rows - 1 - query / attend->heads);
}

static int64_t queries_of(const struct mla_attend_decode *attend, int64_t sequence)
{
    const struct mla_kv_view *kv = &attend->kv;
    return (kv->row_first[sequence + 1] - kv->row_first[sequence]) * attend->heads;
}

/* Keys of one item, so that every thread has some: a single long sequence is work for all. */
static int64_t choose_split(const struct mla_cpu *cpu, const struct mla_attend_decode *attend)
{
    int64_t total = 0;
    for (int64_t s = 0; s < attend->kv.sequences; s++)
        total += mla_cpu_ceil(queries_of(attend, s), MLA_CPU_TILE_ROWS) * attend->kv.kv_length[s];
    if (cpu->threads == 1)
        return mla_cpu_max(total, 1);
    int64_t share = mla_cpu_ceil(total, (int64_t)cpu->threads * ITEMS_PER_THREAD);
    return mla_cpu_max(mla_cpu_ceil(share, STEP_KEYS), 1) * STEP_KEYS;
}

struct counts {
    int64_t items, partials;
};

/* Fills `items` unless it is NULL. */
static struct counts list_items(const struct mla_attend_decode *attend, int64_t split,
                                struct item *items)
{
    struct counts counts = {0, 0};
    for (int64_t s = 0; s < attend->kv.sequences; s++) {
        int64_t queries = queries_of(attend, s);
        assert(queries == 0 || (queries > 0 && seen_by(attend, s, 0) >= 1));
        for (int64_t query = 0; query < queries; query += MLA_CPU_TILE_ROWS) {
            int64_t tile = mla_cpu_min(queries - query, MLA_CPU_TILE_ROWS);
            int64_t keys = seen_by(attend, s, query + tile - 1);
            for (int64_t begin = 0; begin < keys; begin += split) {
                if (items)
                    items[counts.items] = (struct item){
                        .sequence = (int32_t)s,
                        .query = (int32_t)query,
                        .queries = (int32_t)tile,
                        .key_begin = (int32_t)begin,
                        .key_end = (int32_t)mla_cpu_min(begin + split, keys),
                        .partial = keys > split ? (int32_t)counts.partials : -1,
                    };
                counts.items++;
                counts.partials += keys > split;
            }
        }
    }
    return counts;
}

static int64_t locate(const struct mla_attend_decode *attend, int64_t sequence, int64_t key,
                      int64_t count, float *wide, struct piece *pieces)
{
    const struct mla_kv_pool *pool = &attend->kv.pool;
    int64_t dim = pool->latent + pool->rope, found = 0;
    for (int64_t done = 0; done < count; done += pieces[found++].count) {
        int64_t piece = mla_cpu_min(count - done, BLOCK - (key + done) % BLOCK);
        const void *rows = mla_cpu_kv_row(&attend->kv, sequence, key + done);
        if (pool->dtype != MLA_F32) {
            mla_cpu_convert(wide + done * dim, MLA_F32, rows, pool->dtype, piece * dim);
            rows = wide + done * dim;
        }
        pieces[found] = (struct piece){rows, done, piece};
    }
    return found;
}

/* Scores, weights and sums of the keys [key, key + step). */
static void attend_step(const struct mla_attend_decode *attend, const struct item *item,
                        const struct work *work, struct mla_cpu_tile *tile, int64_t key,
                        int64_t step, const int64_t *keys)
{
    const int64_t dim = attend->kv.pool.latent + attend->kv.pool.rope;
    struct piece pieces[PIECES_MAX];
    int64_t count = locate(attend, item->sequence, key, step, work->wide, pieces);
    for (int64_t i = 0; i < count; i++)
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (blasint)tile->rows,
                    (blasint)pieces[i].count, (blasint)dim, 1.0f, work->q, (blasint)dim,
                    pieces[i].rows, (blasint)dim, 0.0f, tile->scores + pieces[i].first,
                    MLA_CPU_TILE_KEYS);
    mla_cpu_tile_weigh(tile, keys);
    for (int64_t i = 0; i < count; i++)
        mla_cpu_tile_add(tile, keys, pieces[i].first, pieces[i].count, pieces[i].rows, dim);
}

/* The item's queries, scaled, in one piece. */
static void load_queries(const struct mla_attend_decode *attend, const struct item *item, float *q)
{
    const int64_t dim = attend->kv.pool.latent + attend->kv.pool.rope;
    for (int64_t i = 0; i < item->queries; i++) {
        int64_t row = attend->kv.row_first[item->sequence] + (item->query + i) / attend->heads;
        const float *from = (const float *)attend->q + row * attend->q_row_stride +
                            (item->query + i) % attend->heads * attend->q_head_stride;
        for (int64_t j = 0; j < dim; j++)
            q[i * dim + j] = from[j] * attend->scale;
    }
}

static void store(const struct mla_attend_decode *attend, const struct item *item,
                  const float *sums, const float *sum)
{
    const int64_t latent = attend->kv.pool.latent;
    for (int64_t i = 0; i < item->queries; i++) {
        int64_t row = attend->kv.row_first[item->sequence] + (item->query + i) / attend->heads;
        float *out = (float *)attend->out + row * attend->out_row_stride +
                     (item->query + i) % attend->heads * attend->out_head_stride;
        float factor = 1.0f / sum[i];
        for (int64_t j = 0; j < latent; j++)
            out[j] = sums[i * latent + j] * factor;
    }
}

static void attend_item(const struct mla_attend_decode *attend, const struct item *item,
                        const struct work *work, struct partial *partial)
{
    struct mla_cpu_tile tile = {
        .rows = item->queries,
        .width = attend->kv.pool.latent,
        .scores = work->scores,
        .out = partial ? (float *)(partial + 1) : work->out,
        .out_stride = attend->kv.pool.latent,
    };
    int64_t seen[MLA_CPU_TILE_ROWS], keys[MLA_CPU_TILE_ROWS], step;
    for (int64_t i = 0; i < tile.rows; i++)
        seen[i] = seen_by(attend, item->sequence, item->query + i);
    load_queries(attend, item, work->q);
    mla_cpu_tile_begin(&tile);
    for (int64_t key = item->key_begin; key < item->key_end; key += step) {
        step = mla_cpu_tile_step(&tile, seen, key, item->key_end, STEP_KEYS, keys);
        attend_step(attend, item, work, &tile, key, step, keys);
    }
    if (partial) {
        memcpy(partial->max, tile.max, sizeof tile.max);
        memcpy(partial->sum, tile.sum, sizeof tile.sum);
    } else {
        store(attend, item, tile.out, tile.sum);
    }
}

/* to += from, both of `item`'s tile. A row that ends before the keys of `from` has nothing there:
 * a maximum of -inf, and so no weight. */
static void join(const struct item *item, struct partial *to, const struct partial *from,
                 int64_t latent)
{
    for (int64_t row = 0; row < item->queries; row++) {
        float max = to->max[row] > from->max[row] ? to->max[row] : from->max[row];
        float a = mla_cpu_exp(to->max[row] - max), b = mla_cpu_exp(from->max[row] - max);
        float *out = (float *)(to + 1) + row * latent;
        const float *add = (const float *)(from + 1) + row * latent;
        for (int64_t i = 0; i < latent; i++)
            out[i] = a * out[i] + b * add[i];
        to->sum[row] = a * to->sum[row] + b * from->sum[row];
        to->max[row] = max;
    }
}

/* The shared scratch of one call, and the sizes of a thread's. */
struct layout {
    struct item *items;
    char *partials;
    size_t partial_bytes;
    int64_t q_floats, scores_floats, out_floats, wide_floats;
    struct counts counts;
};

static struct partial *partial_of(const struct layout *layout, const struct item *item)
{
    if (item->partial < 0)
        return NULL;
    return (struct partial *)(void *)(layout->partials +
                                      (size_t)item->partial * layout->partial_bytes);
}

static enum mla_status lay_out(struct mla_cpu *cpu, const struct mla_attend_decode *attend,
                               struct layout *out)
{
    const struct mla_kv_pool *pool = &attend->kv.pool;
    const int64_t dim = pool->latent + pool->rope, split = choose_split(cpu, attend);
    struct layout layout = {
        .q_floats = MLA_CPU_TILE_ROWS * dim,
        .scores_floats = (int64_t)MLA_CPU_TILE_ROWS * MLA_CPU_TILE_KEYS,
        .out_floats = MLA_CPU_TILE_ROWS * pool->latent,
        .wide_floats = pool->dtype == MLA_F32 ? 0 : STEP_KEYS * dim,
        .counts = list_items(attend, split, NULL),
    };
    layout.partial_bytes = sizeof(struct partial) + (size_t)layout.out_floats * sizeof(float);
    size_t items_bytes = (size_t)layout.counts.items * sizeof(struct item);
    size_t own =
        (size_t)(layout.q_floats + layout.scores_floats + layout.out_floats + layout.wide_floats) *
        sizeof(float);
    enum mla_status status = mla_cpu_reserve(
        cpu, items_bytes + (size_t)layout.counts.partials * layout.partial_bytes, own);
    if (status)
        return status;
    layout.items = mla_cpu_shared(cpu);
    layout.partials = (char *)layout.items + items_bytes;
    list_items(attend, split, layout.items);
    *out = layout;
    return MLA_OK;
}

enum mla_status mla_cpu_attend_decode(struct mla_backend *backend,
                                      const struct mla_attend_decode *attend)
{
    struct mla_cpu *cpu = mla_cpu_begin(backend);
    struct layout layout;
    enum mla_status status = lay_out(cpu, attend, &layout);
    if (status)
        return status;
    const struct item *items = layout.items;
    const int64_t count = layout.counts.items;
#pragma omp parallel
    {
        struct work work = {.scores = mla_cpu_own(cpu)};
        work.q = work.scores + layout.scores_floats;
        work.out = work.q + layout.q_floats;
        work.wide = work.out + layout.out_floats;
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < count; i++)
            attend_item(attend, &items[i], &work, partial_of(&layout, &items[i]));
            /* Always in the order of the keys, so that a repetition gives the same bits. */
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < count; i++) {
            struct partial *to = partial_of(&layout, &items[i]);
            if (!to || items[i].key_begin > 0)
                continue;
            for (int64_t j = i + 1; j < count && items[j].key_begin > 0; j++)
                join(&items[i], to, partial_of(&layout, &items[j]), attend->kv.pool.latent);
            store(attend, &items[i], (const float *)(to + 1), to->sum);
        }
    }
    return MLA_OK;
}
