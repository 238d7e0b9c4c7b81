/* Absorbed attention over pages. */
#include "tests/conformance/decode_case.h"

#include <criterion/criterion.h>
#include <stdlib.h>

static void lengths(struct mla_device *device)
{
    static const struct mla_decode_case cases[] = {
        {1, 64, 16, MLA_F32, 1, {1}, {1}, false, false, false},
        {16,
         64,
         16,
         MLA_F32,
         7,
         {1, 1, 1, 1, 1, 1, 1},
         {1, 63, 64, 65, 127, 129, 500},
         false,
         false,
         false},
        {3, 40, 10, MLA_BF16, 4, {1, 1, 1, 1}, {64, 1, 190, 128}, false, false, false},
        {20, 512, 64, MLA_F32, 2, {1, 1}, {300, 77}, false, false, false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        mla_decode_check(device, &cases[i]);
}

Test(decode, lengths)
{
    mla_each_device(lengths);
}

/* A sequence without rows among others, and with several, more heads and rows than one tile. */
static void several_rows(struct mla_device *device)
{
    static const struct mla_decode_case cases[] = {
        {1, 64, 16, MLA_F32, 3, {3, 0, 2}, {3, 70, 66}, false, false, false},
        {5, 32, 8, MLA_F32, 4, {4, 1, 5, 17}, {130, 64, 64, 257}, false, false, false},
        {18, 64, 16, MLA_BF16, 2, {2, 3}, {129, 66}, false, false, false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        mla_decode_check(device, &cases[i]);
}

Test(decode, several_rows)
{
    mla_each_device(several_rows);
}

/* A row that comes later, NaN as it may be, is nothing to those before it. */
static void poisoned_tail(struct mla_device *device)
{
    static const struct mla_decode_case cases[] = {
        {4, 64, 16, MLA_F32, 2, {3, 1}, {129, 64}, false, true, false},
        {16, 64, 16, MLA_F32, 1, {2}, {1100}, false, true, false},
        {1, 32, 8, MLA_BF16, 1, {16}, {70}, false, true, false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        mla_decode_check(device, &cases[i]);
}

Test(decode, poisoned_tail)
{
    mla_each_device(poisoned_tail);
}

static void shared_blocks(struct mla_device *device)
{
    static const struct mla_decode_case c = {
        2, 64, 16, MLA_F32, 3, {1, 2, 1}, {64, 100, 190}, true, false, false};
    mla_decode_check(device, &c);
}

Test(decode, shared_blocks)
{
    mla_each_device(shared_blocks);
}

/* What was downloaded comes out again and again. */
static void expect_same_bits(struct mla_decode_setup *setup, struct mla_device *device)
{
    size_t bytes = (size_t)setup->out.count * sizeof(float);
    float *first = malloc(bytes);
    cr_assert_not_null(first);
    memcpy(first, setup->out.host, bytes);
    for (int i = 0; i < 5; i++) {
        mla_decode_run(setup, device);
        mla_tensor_download(device, &setup->out);
        cr_assert(memcmp((char *)first, (char *)setup->out.host, bytes) == 0);
    }
    free(first);
}

/* One long sequence is shared by the threads, and still comes out the same every time. */
static void split_keys(struct mla_device *device)
{
    static const struct mla_decode_case c = {
        6, 64, 16, MLA_F32, 3, {1, 3, 1}, {2000, 1030, 5}, false, false, false};
    struct mla_decode_setup setup;
    mla_decode_make(&setup, device, &c);
    double *want = mla_decode_wanted(&setup);
    mla_decode_run(&setup, device);
    mla_decode_expect(&setup, device, want, "attend_decode, split");
    expect_same_bits(&setup, device);
    free(want);
    mla_decode_fini(&setup);
}

Test(decode, split_keys)
{
    mla_each_device(split_keys);
}

/* The heads of V2-Lite and of V3 on one rank, and on 2, 4 and 8 of them. Sequences of several rows,
 * padding sequences at the end, one page shared, one row that only the newest may see. */
static void model_shapes(struct mla_device *device)
{
    static const int64_t heads[] = {16, 32, 64, 128};
    struct mla_decode_case c = {.heads = 8,
                                .latent = 64,
                                .rope = 16,
                                .dtype = MLA_BF16,
                                .sequences = 8,
                                .rows = {1, 1, 1, 2, 4, 1, 0, 0},
                                .kv_length = {1, 64, 65, 127, 300, 63, 0, 0},
                                .packed = true};
    mla_decode_check(device, &c); /* V3's layout in small */
    c.latent = 512;
    c.rope = 64;
    for (size_t i = 0; i < sizeof heads / sizeof *heads; i++) {
        c.heads = heads[i];
        mla_decode_check(device, &c);
    }
    const struct mla_decode_case shared = {.heads = 32,
                                           .latent = 512,
                                           .rope = 64,
                                           .dtype = MLA_BF16,
                                           .sequences = 3,
                                           .rows = {3, 1, 1},
                                           .kv_length = {129, 70, 190},
                                           .share = true,
                                           .poison = true,
                                           .packed = true};
    mla_decode_check(device, &shared);
}

Test(decode, model_shapes)
{
    mla_each_device(model_shapes);
}

/* One sequence that is far longer than the others, and more rows than a GPU has multiprocessors. */
static void model_schedules(struct mla_device *device)
{
    struct mla_decode_case c = {.heads = 16,
                                .latent = 512,
                                .rope = 64,
                                .dtype = MLA_BF16,
                                .sequences = 3,
                                .rows = {1, 1, 2},
                                .kv_length = {4500, 100, 2},
                                .packed = true};
    mla_decode_check(device, &c);
    c.sequences = 150;
    for (int s = 0; s < c.sequences; s++) {
        c.rows[s] = 1;
        c.kv_length[s] = 1 + s * 37 % 150;
    }
    mla_decode_check(device, &c);
}

Test(decode, model_schedules)
{
    mla_each_device(model_schedules);
}

/* Several rows of a sequence together, of lengths that end around a tile's end; a long sequence,
 * which many share; more items than multiprocessors; bits that stay the same. */
static void draft_tokens(struct mla_device *device)
{
    static const int64_t heads[] = {16, 24, 32, 64, 100, 128};
    struct mla_decode_case c = {.latent = 512,
                                .rope = 64,
                                .dtype = MLA_BF16,
                                .sequences = 9,
                                .rows = {4, 3, 2, 4, 4, 1, 6, 4, 2},
                                .kv_length = {4, 66, 65, 130, 191, 64, 70, 2500, 1100},
                                .packed = true};
    for (size_t i = 0; i < sizeof heads / sizeof *heads; i++) {
        c.heads = heads[i];
        mla_decode_check(device, &c);
    }
    const struct mla_decode_case poisoned = {.heads = 16,
                                             .latent = 512,
                                             .rope = 64,
                                             .dtype = MLA_BF16,
                                             .sequences = 2,
                                             .rows = {4, 2},
                                             .kv_length = {130, 128},
                                             .poison = true,
                                             .packed = true};
    mla_decode_check(device, &poisoned);
    c.heads = 64;
    c.sequences = 150;
    for (int s = 0; s < c.sequences; s++) {
        c.rows[s] = 1 + s % 2;
        c.kv_length[s] = 2 + s * 37 % 300;
    }
    mla_decode_check(device, &c);
}

Test(decode, draft_tokens)
{
    mla_each_device(draft_tokens);
}

/* Replays of one schedule give the same bits, whoever of the workers comes first. */
static void same_bits(struct mla_device *device)
{
    static const struct mla_decode_case c = {.heads = 128,
                                             .latent = 512,
                                             .rope = 64,
                                             .dtype = MLA_BF16,
                                             .sequences = 3,
                                             .rows = {1, 2, 1},
                                             .kv_length = {3000, 1030, 5},
                                             .packed = true};
    struct mla_decode_setup setup;
    mla_decode_make(&setup, device, &c);
    mla_decode_run(&setup, device);
    mla_tensor_download(device, &setup.out);
    expect_same_bits(&setup, device);
    mla_decode_fini(&setup);
}

Test(decode, same_bits)
{
    mla_each_device(same_bits);
}

/* No sequences at all: nothing is written. */
static void empty(struct mla_device *device)
{
    static const struct mla_decode_case c = {2,      64,      16,    MLA_F32, 2,
                                             {0, 0}, {64, 3}, false, false,   false};
    mla_decode_check(device, &c);
    struct mla_decode_setup setup;
    mla_decode_make(&setup, device, &c);
    setup.attend.kv.sequences = 0;
    mla_decode_run(&setup, device);
    double *want = mla_wanted(&setup.out);
    mla_expect(device, &setup.out, want, 1, "attend_decode of nothing");
    free(want);
    mla_decode_fini(&setup);
}

Test(decode, empty)
{
    mla_each_device(empty);
}
