#include "tests/bench/compare_rows.h"

#include "tests/bench/lengths.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { BF16 = 2, LATENT = 512, NOPE = 128, ROPE = 64, V = 128 };

/* The sum of the lengths is the same when they are unequal, the pairs are not. */
static struct mla_cost attention_cost(const struct mla_row_key *key)
{
    const struct mla_attend_decode attend = {
        .kv = {.pool = {.dtype = MLA_BF16, .latent = LATENT, .rope = ROPE}}, .heads = key->heads};
    double keys = 0, pairs = 0;
    int32_t *lengths = calloc((size_t)key->first + 1, sizeof *lengths);
    if (!lengths)
        return (struct mla_cost){0};
    bool unequal = key->unequal_seed >= 0;
    mla_lengths_unequal(unequal ? (uint64_t)key->unequal_seed : 0, key->first, key->second,
                        unequal ? key->rows : key->second, lengths);
    for (uint32_t s = 0; s < key->first; s++) {
        keys += lengths[s];
        pairs += mla_cost_pairs(key->rows, lengths[s], true);
    }
    free(lengths);
    return mla_cost_attend_decode(&attend, (int64_t)key->first * key->rows, keys, pairs, BF16);
}

static struct mla_cost prefill_cost(const struct mla_row_key *key)
{
    int64_t each = key->context > 0 ? key->context : key->first;
    const struct mla_attend_prefill attend = {.heads = key->heads,
                                              .nope = NOPE,
                                              .rope = ROPE,
                                              .v_dim = V,
                                              .rows = (int64_t)key->first * key->second,
                                              .keys = each * key->second};
    return mla_cost_attend_prefill(
        &attend, key->second * mla_cost_pairs(key->first, each, key->context == 0), BF16);
}

struct mla_cost mla_row_cost(const struct mla_row_key *key)
{
    if (strcmp(key->bench, "attention") == 0)
        return attention_cost(key);
    if (strcmp(key->bench, "prefill") == 0)
        return prefill_cost(key);
    return (struct mla_cost){0};
}

static const struct mla_row *find(const struct mla_rows *rows, const struct mla_row_key *key)
{
    for (uint32_t i = 0; i < rows->count; i++)
        if (memcmp(&rows->at[i].key, key, sizeof *key) == 0)
            return &rows->at[i];
    return NULL;
}

enum mla_status mla_rows_add(struct mla_rows *rows, const struct mla_row *row)
{
    assert(row->us > 0);
    if (find(rows, &row->key))
        return MLA_OPTION;
    if (rows->count == rows->capacity) {
        uint32_t capacity = rows->capacity ? 2 * rows->capacity : 64;
        struct mla_row *grown = realloc(rows->at, capacity * sizeof *grown);
        if (!grown)
            return MLA_MEMORY;
        rows->at = grown;
        rows->capacity = capacity;
    }
    rows->at[rows->count++] = *row;
    return MLA_OK;
}

void mla_rows_fini(struct mla_rows *rows)
{
    free(rows->at);
    *rows = (struct mla_rows){0};
}

uint32_t mla_rows_pairs(const struct mla_rows *ours, const struct mla_rows *peer,
                        const struct mla_ceilings *ceilings, struct mla_pair *out)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < ours->count; i++) {
        const struct mla_row *row = &ours->at[i];
        const struct mla_row *other = find(peer, &row->key);
        if (!other)
            continue;
        double floor_us = mla_cost_floor_us(row->cost, ceilings);
        out[count++] = (struct mla_pair){.ours = row,
                                         .peer = other,
                                         .ratio = row->us / other->us,
                                         .floor_us = floor_us,
                                         .share_ours = floor_us / row->us,
                                         .share_peer = floor_us / other->us};
    }
    return count;
}

double mla_pairs_mean(const struct mla_pair *pairs, uint32_t count)
{
    double sum = 0;
    for (uint32_t i = 0; i < count; i++)
        sum += log(pairs[i].ratio);
    return count > 0 ? exp(sum / count) : 0;
}
