#include "comm/blob.h"

#include <criterion/criterion.h>
#include <pthread.h>
#include <string.h>

#define PAGE ((size_t)4096) /* the smallest size class */

static struct mla_blob_pool *pool;

static void make_pool(size_t bytes_max)
{
    cr_assert_eq(mla_blob_pool_create(bytes_max, &pool), MLA_OK);
}

static struct mla_blob *get(size_t bytes)
{
    struct mla_blob *blob = NULL;
    cr_assert_eq(mla_blob_pool_get(pool, bytes, &blob), MLA_OK);
    cr_assert_eq(blob->bytes, bytes);
    cr_assert_eq(atomic_load(&blob->references), 1);
    memset(blob->data, 0x5a, bytes); /* all of it is there */
    return blob;
}

static void refuse(size_t bytes)
{
    struct mla_blob *blob = NULL;
    cr_expect_eq(mla_blob_pool_get(pool, bytes, &blob), MLA_AGAIN, "%zu bytes", bytes);
    cr_expect_null(blob);
}

static int releases;

static void count_release(struct mla_blob *blob)
{
    (void)blob;
    releases++;
}

Test(blob, the_last_reference_releases)
{
    struct mla_blob blob = {.release = count_release};
    atomic_store(&blob.references, 1);
    cr_expect_eq(mla_blob_hold(&blob), &blob);
    (void)mla_blob_hold(&blob);
    mla_blob_drop(&blob);
    mla_blob_drop(&blob);
    cr_expect_eq(releases, 0);
    mla_blob_drop(&blob);
    cr_expect_eq(releases, 1);
    mla_blob_drop(NULL);
}

Test(blob, reuse)
{
    make_pool(16 * PAGE);
    struct mla_blob *first = get(100);
    uint8_t *data = first->data;
    size_t bytes = mla_blob_pool_bytes(pool);
    mla_blob_drop(first);
    cr_expect_eq(mla_blob_pool_bytes(pool), bytes, "a kept buffer counts");
    first = get(PAGE); /* the same size class */
    cr_expect_eq(first->data, data, "allocated again");
    struct mla_blob *second = get(1);
    cr_expect_neq(second->data, data, "lent twice");
    cr_expect_eq(mla_blob_pool_bytes(pool), 2 * bytes);
    mla_blob_drop(first);
    mla_blob_drop(second);
    for (int i = 0; i < 100; i++)
        mla_blob_drop(get((size_t)i));
    cr_expect_eq(mla_blob_pool_bytes(pool), 2 * bytes, "the pool grows");
    mla_blob_pool_destroy(&pool);
    cr_expect_null(pool);
    mla_blob_pool_destroy(&pool);
}

Test(blob, bytes_max)
{
    make_pool(4 * PAGE);
    struct mla_blob *blobs[4];
    for (int i = 0; i < 4; i++)
        blobs[i] = get(PAGE);
    cr_expect_eq(mla_blob_pool_bytes(pool), 4 * PAGE);
    refuse(1);
    mla_blob_drop(blobs[3]);
    refuse(PAGE + 1);
    blobs[3] = get(1);
    for (int i = 0; i < 4; i++)
        mla_blob_drop(blobs[i]);
    refuse(4 * PAGE + 1);
    refuse((size_t)1 << 47);
    refuse(SIZE_MAX);
    mla_blob_drop(get(4 * PAGE));
    mla_blob_pool_destroy(&pool);
}

/* Kept buffers of other sizes make room, lent ones don't. */
Test(blob, shrinks)
{
    make_pool(8 * PAGE);
    struct mla_blob *small[8];
    for (int i = 0; i < 8; i++)
        small[i] = get(PAGE);
    for (int i = 1; i < 8; i++)
        mla_blob_drop(small[i]);
    cr_expect_eq(mla_blob_pool_bytes(pool), 8 * PAGE);
    struct mla_blob *large = get(4 * PAGE);
    cr_expect_leq(mla_blob_pool_bytes(pool), 8 * PAGE);
    refuse(4 * PAGE);
    mla_blob_drop(large);
    for (int i = 1; i < 8; i++)
        small[i] = get(PAGE); /* the large one makes room */
    refuse(1);
    for (int i = 0; i < 8; i++)
        mla_blob_drop(small[i]);
    mla_blob_pool_destroy(&pool);
}

/* The sanitizer tells whether the pool ended too early, or never. */
Test(blob, destroy_while_lent)
{
    make_pool(8 * PAGE);
    struct mla_blob *first = get(PAGE);
    struct mla_blob *second = get(3 * PAGE);
    mla_blob_drop(get(10));
    mla_blob_pool_destroy(&pool);
    cr_expect_null(pool);
    memset(first->data, 1, first->bytes);
    mla_blob_drop(first);
    (void)mla_blob_hold(second);
    mla_blob_drop(second);
    memset(second->data, 2, second->bytes);
    mla_blob_drop(second);
}

enum { THREADS = 4, ROUNDS = 20000, SHARED = 16 };

static struct mla_blob *shared[SHARED];

static void *drop_shared(void *argument)
{
    (void)argument;
    for (int i = 0; i < SHARED; i++)
        mla_blob_drop(shared[i]);
    return NULL;
}

static void *get_and_drop(void *argument)
{
    struct mla_blob_pool *own = argument;
    for (int i = 0; i < ROUNDS; i++) {
        struct mla_blob *blob = NULL;
        if (mla_blob_pool_get(own, (size_t)(i % 3) * PAGE, &blob) != MLA_OK)
            return own;
        memset(blob->data, i, blob->bytes);
        for (size_t k = 0; k < blob->bytes; k += 64)
            if (blob->data[k] != (uint8_t)i)
                return own;
        mla_blob_drop(blob);
    }
    return NULL;
}

static void run_threads(void *(*function)(void *), void *argument)
{
    pthread_t threads[THREADS];
    void *problem = NULL;
    for (int i = 0; i < THREADS; i++)
        cr_assert_eq(pthread_create(&threads[i], NULL, function, argument), 0);
    for (int i = 0; i < THREADS; i++) {
        cr_assert_eq(pthread_join(threads[i], &problem), 0);
        cr_expect_null(problem, "a buffer was refused, or lent to two at once");
    }
}

Test(blob, threads)
{
    make_pool(PAGE * 4 * THREADS);
    run_threads(get_and_drop, pool);
    cr_expect_leq(mla_blob_pool_bytes(pool), PAGE * 4 * THREADS);
    mla_blob_pool_destroy(&pool);
}

/* The last reference may go in any of them, and the pool goes with the last blob. */
Test(blob, threads_share_a_blob)
{
    make_pool(SHARED * PAGE);
    for (int i = 0; i < SHARED; i++) {
        shared[i] = get(PAGE);
        for (int k = 1; k < THREADS; k++)
            (void)mla_blob_hold(shared[i]);
    }
    mla_blob_pool_destroy(&pool);
    run_threads(drop_shared, NULL);
}
