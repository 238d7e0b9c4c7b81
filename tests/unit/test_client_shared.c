/* Payloads in shared memory, as a client sees them. */
#include "comm/region.h"
#include "tests/unit/fake_service.h"

#include <poll.h>

TestSuite(client_shared, .fini = stop, .timeout = 60);

enum { MEMORY = 1 << 16, OUT = MEMORY / 2 };

/* Gives out regions, and computes in its own mapping of them. `kind`: what goes wrong. */
enum { ALL_WELL, NO_REGION, NOT_HERE, NOT_THESE_WORKERS };

static pthread_t regions_thread;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of all that follows */
static struct mla_region_server *regions;
static struct mla_region seen;
static struct mla_grant granted;
static int given_back;

static void *serve_regions(void *unused)
{
    (void)unused;
    struct pollfd fd = {.fd = mla_region_server_fd(regions), .events = POLLIN};
    while (!atomic_load(&fake.stop))
        if (poll(&fd, 1, 10) > 0) {
            pthread_mutex_lock(&lock);
            mla_region_server_turn(regions);
            pthread_mutex_unlock(&lock);
        }
    return NULL;
}

static void answer_share(struct fake *self, const struct mla_incoming *in)
{
    struct mla_grant grant = {0};
    uint64_t bytes = self->request.u.share.bytes;
    if (self->kind == NO_REGION) {
        send_error(in, MLA_BUSY, MLA_INDEX_NONE, "no memory is left for regions");
        return;
    }
    given_back += bytes == 0;
    if (bytes > 0)
        cr_assert_eq(mla_region_server_add(regions, 3, bytes, &grant), MLA_OK);
    if (self->kind == NOT_HERE)
        grant.path_bytes = (uint32_t)snprintf(grant.path, sizeof grant.path, "/nowhere");
    self->reply.u.share_reply = granted = grant;
    send_reply(&in->peer, MLA_SHARE, self->request.header.request_id, NULL);
}

static bool answer_locked(struct fake *self, const struct mla_incoming *in)
{
    const struct mla_run *run = &self->request.u.run;
    if (self->request.header.type == MLA_SHARE) {
        answer_share(self, in);
        return true;
    }
    if (self->request.header.type != MLA_RUN || run->place_count == 0)
        return false;
    cr_assert_null(in->payload);
    cr_assert_eq(run->places[0].region, 3);
    if (self->kind == NOT_THESE_WORKERS) {
        send_error(in, MLA_NOT_SHARED, 0, "the workers don't have the region");
        return true;
    }
    struct mla_blob x_blob = {.data = seen.data + run->places[0].input_at,
                              .bytes = (size_t)run->rows * HIDDEN * sizeof(float)};
    struct mla_blob *out = twice(run, &x_blob);
    memcpy(seen.data + run->places[0].output_at, out->data, out->bytes);
    mla_blob_drop(out);
    self->reply.u.run_reply = (struct mla_run_reply){.step = run->step,
                                                     .layer = run->layer,
                                                     .dtype = run->reply_dtype,
                                                     .rows = run->rows,
                                                     .hidden = run->hidden};
    send_reply(&in->peer, MLA_RUN, self->request.header.request_id, NULL);
    return true;
}

static bool answer_in_region(struct fake *self, const struct mla_incoming *in)
{
    pthread_mutex_lock(&lock);
    bool answered = answer_locked(self, in);
    pthread_mutex_unlock(&lock);
    return answered;
}

/* The memory that the client has after asking for it. */
static uint8_t *start_shared(int kind, bool payload_inline)
{
    void *memory = NULL;
    const struct mla_client_options options = {.payload_inline = payload_inline};
    cr_assert_eq(mla_region_server_create(1, &regions), MLA_OK);
    fake_start(answer_in_region, kind);
    cr_assert_eq(pthread_create(&regions_thread, NULL, serve_regions, NULL), 0);
    cr_assert_eq(mla_client_connect(mla_channel_endpoint(fake.channel), &options, &client), MLA_OK);
    cr_assert_eq(mla_client_memory(client, MEMORY, &memory), MLA_OK);
    for (size_t i = 0; i < MEMORY; i++)
        cr_assert_eq(((uint8_t *)memory)[i], 0);
    return memory;
}

static void stop_shared(void)
{
    atomic_store(&fake.stop, true);
    pthread_join(regions_thread, NULL);
    mla_region_server_destroy(&regions);
    stop();
    mla_region_unmap(&seen);
}

/* RUNs that fit the memory, partly or not at all; all of them come back right. */
static void check_runs(uint8_t *memory)
{
    float *const inputs[] = {(float *)(void *)memory, (float *)(void *)(memory + 16), x};
    float *const outputs[] = {(float *)(void *)(memory + OUT), (float *)(void *)(memory + OUT + 4),
                              y};
    for (int i = 0; i < 9; i++) {
        struct mla_client_run run = make_run(1, (uint32_t)i, 20);
        run.x = memcpy(inputs[i / 3], x, sizeof *x * HIDDEN * 20);
        run.y = outputs[i % 3];
        cr_assert_eq(mla_client_run(client, &run, NULL), MLA_OK);
        for (int k = 0; k < 20 * HIDDEN; k++)
            cr_assert_eq(outputs[i % 3][k], 2 * inputs[i / 3][k], "run %d, %d", i, k);
    }
}

/* The service's side of the region that was just given out. */
static uint64_t map_seen(void)
{
    struct mla_region region;
    pthread_mutex_lock(&lock);
    const struct mla_grant grant = granted;
    pthread_mutex_unlock(&lock);
    cr_assert_eq(mla_region_map(&grant, 5000, &region), MLA_OK); /* takes a turn of the server */
    pthread_mutex_lock(&lock);
    seen = region;
    pthread_mutex_unlock(&lock);
    return grant.region;
}

Test(client_shared, payloads_in_shared_memory)
{
    void *again = NULL;
    uint8_t *memory = start_shared(ALL_WELL, false);
    cr_assert(mla_client_is_shared(client));
    cr_assert_eq(map_seen(), 3);
    memory[5] = 7;
    cr_assert_eq(seen.data[5], 7);
    check_runs(memory);
    cr_assert_eq(mla_client_memory(client, MEMORY, &again), MLA_OPTION);
    stop_shared();
}

Test(client_shared, memory_that_is_not_shared_serves_as_well)
{
    for (int i = 0; i < 3; i++) {
        static const int kinds[] = {NO_REGION, NOT_HERE, ALL_WELL};
        uint8_t *memory = start_shared(kinds[i], i == 2);
        cr_assert_not(mla_client_is_shared(client));
        check_runs(memory);
        cr_assert_eq(fake.seen[MLA_SHARE], i == 2 ? 0 : 1 + (kinds[i] == NOT_HERE));
        pthread_mutex_lock(&lock);
        cr_assert_eq(given_back, kinds[i] == NOT_HERE, "what can't be reached is given back");
        given_back = 0;
        pthread_mutex_unlock(&lock);
        stop_shared();
    }
}

Test(client_shared, a_run_that_the_workers_cannot_share_goes_inline)
{
    uint8_t *memory = start_shared(NOT_THESE_WORKERS, false);
    cr_assert(mla_client_is_shared(client));
    check_runs(memory);
    struct mla_client_run run = make_run(1, 0, 20);
    struct mla_completion completion;
    uint64_t request = 0;
    run.x = memcpy(memory, x, sizeof *x * HIDDEN * 20);
    run.y = memory + OUT;
    memset(memory + OUT, 0, OUT);
    cr_assert_eq(mla_client_submit_run(client, &run, &request), MLA_OK);
    cr_assert_eq(mla_client_poll(client, -1, &completion), MLA_OK);
    cr_assert_eq(completion.request, request, "under the same id");
    cr_assert_eq(completion.error.status, MLA_OK);
    cr_assert_eq(memcmp(memory + OUT, memory, 4), 0, "2 * 0");
    cr_assert_eq(((float *)(void *)(memory + OUT))[9], 2 * x[9]);
    stop_shared();
}

/* The mapping is the caller's until it closes the connection. */
Test(client_shared, memory_outlives_the_service)
{
    uint8_t *memory = start_shared(ALL_WELL, false);
    struct mla_completion completion;
    memory[MEMORY - 1] = 9;
    atomic_store(&fake.stop, true);
    pthread_join(regions_thread, NULL);
    mla_region_server_destroy(&regions);
    fake_stop();
    while (mla_client_poll(client, 1000, &completion) == MLA_AGAIN) {}
    check_closed();
    memory[0] = memory[MEMORY - 1];
    cr_assert_eq(memory[0], 9);
}
