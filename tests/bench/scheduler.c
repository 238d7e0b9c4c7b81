#include "tests/bench/scheduler.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum mla_status mla_scheduler_init(struct mla_scheduler *scheduler,
                                   const struct mla_scheduler_options *options,
                                   struct mla_request *requests, uint32_t count)
{
    struct mla_scheduler made = {
        .options = *options,
        .requests = requests,
        .request_count = count,
        .active = calloc(options->concurrency, sizeof *made.active),
        .shares = calloc(options->concurrency, sizeof *made.shares),
        .leaving = calloc(options->concurrency, sizeof *made.leaving),
    };
    assert(options->concurrency >= 1 && options->step_tokens_max >= options->concurrency);
    if (!made.active || !made.shares || !made.leaving) {
        mla_scheduler_fini(&made);
        return MLA_MEMORY;
    }
    *scheduler = made;
    return MLA_OK;
}

void mla_scheduler_fini(struct mla_scheduler *scheduler)
{
    free(scheduler->active);
    free(scheduler->shares);
    free(scheduler->leaving);
    mla_series_fini(&scheduler->latencies.ttft);
    mla_series_fini(&scheduler->latencies.tpot);
    mla_series_fini(&scheduler->latencies.itl);
    *scheduler = (struct mla_scheduler){0};
}

/* Tokens that must be computed before the next output token comes. */
static uint32_t missing(const struct mla_request *request)
{
    return request->prompt + request->emitted - request->computed;
}

static bool decodes(const struct mla_request *request)
{
    return request->emitted > 0 && request->computed > 0 && missing(request) == 1;
}

static void admit(struct mla_scheduler *scheduler, double now_s)
{
    uint32_t i = scheduler->waiting_first;
    for (; i < scheduler->request_count; i++) {
        struct mla_request *request = &scheduler->requests[i];
        if (scheduler->active_count == scheduler->options.concurrency ||
            (scheduler->crowded && scheduler->active_count > 0))
            break;
        if (request->state != MLA_REQUEST_WAITING)
            continue;
        if ((uint64_t)request->prompt + request->output - 1 > scheduler->options.context_max) {
            request->state = MLA_REQUEST_GIVEN_UP;
            scheduler->finished_count++;
            continue;
        }
        request->state = MLA_REQUEST_ACTIVE;
        request->sequence = ++scheduler->sequences;
        if (!request->sent)
            request->sent_s = now_s;
        request->sent = true;
        scheduler->active[scheduler->active_count++] = i;
    }
    scheduler->waiting_first = i;
}

void mla_scheduler_next(struct mla_scheduler *scheduler, double now_s)
{
    admit(scheduler, now_s);
    scheduler->share_count = 0;
    for (uint32_t i = 0; i < scheduler->active_count; i++)
        if (decodes(&scheduler->requests[scheduler->active[i]]))
            scheduler->shares[scheduler->share_count++] =
                (struct mla_share){scheduler->active[i], 1, true};
    uint32_t budget = scheduler->options.step_tokens_max - scheduler->share_count;
    if (budget > scheduler->options.prefill_budget)
        budget = scheduler->options.prefill_budget;
    for (uint32_t i = 0; i < scheduler->active_count && budget > 0; i++) {
        const struct mla_request *request = &scheduler->requests[scheduler->active[i]];
        if (decodes(request))
            continue;
        uint32_t tokens = missing(request) < budget ? missing(request) : budget;
        scheduler->shares[scheduler->share_count++] =
            (struct mla_share){scheduler->active[i], tokens, false};
        budget -= tokens;
    }
}

static void drop_share(struct mla_scheduler *scheduler, uint32_t index)
{
    memmove(&scheduler->shares[index], &scheduler->shares[index + 1],
            (scheduler->share_count - index - 1) * sizeof *scheduler->shares);
    scheduler->share_count--;
}

static void drop_share_of(struct mla_scheduler *scheduler, uint32_t request)
{
    for (uint32_t i = 0; i < scheduler->share_count; i++)
        if (scheduler->shares[i].request == request) {
            drop_share(scheduler, i);
            return;
        }
}

/* Takes a request out of the active ones; what it has in the service leaves. */
static void deactivate(struct mla_scheduler *scheduler, uint32_t request,
                       enum mla_request_state state)
{
    uint32_t at = 0;
    while (scheduler->active[at] != request)
        at++;
    assert(at < scheduler->active_count);
    memmove(&scheduler->active[at], &scheduler->active[at + 1],
            (scheduler->active_count - at - 1) * sizeof *scheduler->active);
    scheduler->active_count--;
    struct mla_request *ended = &scheduler->requests[request];
    if (ended->computed > 0)
        scheduler->leaving[scheduler->leaving_count++] = ended->sequence;
    ended->state = state;
    ended->computed = 0;
    if (state == MLA_REQUEST_WAITING) {
        scheduler->preemptions++;
        if (scheduler->waiting_first > request)
            scheduler->waiting_first = request;
    } else {
        scheduler->finished_count++;
        scheduler->crowded = false;
    }
}

void mla_scheduler_no_room(struct mla_scheduler *scheduler, uint32_t index)
{
    assert(index < scheduler->share_count);
    if (!scheduler->shares[index].decode && scheduler->share_count > 1) {
        drop_share(scheduler, index);
        return;
    }
    uint32_t newest = scheduler->active[scheduler->active_count - 1];
    bool alone = scheduler->active_count == 1;
    drop_share_of(scheduler, newest);
    deactivate(scheduler, newest, alone ? MLA_REQUEST_GIVEN_UP : MLA_REQUEST_WAITING);
    scheduler->crowded = !alone;
}

void mla_scheduler_lost(struct mla_scheduler *scheduler, uint32_t index)
{
    assert(index < scheduler->share_count);
    uint32_t request = scheduler->shares[index].request;
    drop_share(scheduler, index);
    deactivate(scheduler, request, MLA_REQUEST_WAITING);
}

/* A request's next output token is there. */
static enum mla_status emit(struct mla_scheduler *scheduler, uint32_t index, double now_s)
{
    struct mla_latencies *latencies = &scheduler->latencies;
    struct mla_request *request = &scheduler->requests[index];
    enum mla_status status;
    if (request->emitted++ == 0) {
        request->first_s = now_s;
        status = mla_series_add(&latencies->ttft, now_s - request->sent_s);
    } else {
        status = mla_series_add(&latencies->itl, now_s - request->last_s);
    }
    request->last_s = now_s;
    if (status != MLA_OK || request->emitted < request->output)
        return status;
    if (request->output > 1)
        status =
            mla_series_add(&latencies->tpot, (now_s - request->first_s) / (request->output - 1));
    deactivate(scheduler, index, MLA_REQUEST_DONE);
    return status;
}

enum mla_status mla_scheduler_commit(struct mla_scheduler *scheduler, double now_s)
{
    enum mla_status status = MLA_OK;
    for (uint32_t i = 0; i < scheduler->share_count && status == MLA_OK; i++) {
        const struct mla_share *share = &scheduler->shares[i];
        struct mla_request *request = &scheduler->requests[share->request];
        request->computed += share->tokens;
        if (missing(request) == 0)
            status = emit(scheduler, share->request, now_s);
    }
    return status;
}

void mla_scheduler_left(struct mla_scheduler *scheduler)
{
    scheduler->leaving_count = 0;
}
