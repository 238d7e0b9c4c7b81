#include "comm/guard.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zmq.h>

/* Frames of a request: version, request id, domain, address, routing id, mechanism; and the key
 * where there is one. */
enum { REQUEST_FRAMES = 7, ID = 1, DOMAIN = 2, MECHANISM = 5, KEY = 6, FRAME_BYTES = 256 };
#define OPEN_DOMAIN "open"

struct mla_guard {
    void *socket;
    pthread_t thread;
    pthread_mutex_t lock;
    uint32_t domains;
    struct mla_key_list lists[MLA_GUARD_DOMAINS_MAX];
};

struct frame {
    size_t bytes;
    uint8_t data[FRAME_BYTES];
};

static bool is_text(const struct frame *frame, const char *text)
{
    return frame->bytes == strlen(text) && memcmp(frame->data, text, frame->bytes) == 0;
}

static bool is_open(const struct frame *frames, uint32_t count)
{
    return count == KEY && is_text(&frames[MECHANISM], "NULL") &&
           is_text(&frames[DOMAIN], OPEN_DOMAIN);
}

/* The name of the key's owner; false where it is not in the domain's list. */
static bool find(struct mla_guard *guard, const struct frame *frames, char *name)
{
    bool found = false;
    if (!is_text(&frames[MECHANISM], "CURVE") || frames[KEY].bytes != MLA_KEY_RAW_BYTES)
        return false;
    pthread_mutex_lock(&guard->lock);
    for (uint32_t d = 0; d < guard->domains && !found; d++) {
        char domain[MLA_GUARD_DOMAIN_BYTES];
        snprintf(domain, sizeof domain, "%u", d);
        if (!is_text(&frames[DOMAIN], domain))
            continue;
        for (uint32_t i = 0; i < guard->lists[d].count && !found; i++) {
            const struct mla_key_owner *owner = &guard->lists[d].owners[i];
            found = memcmp(owner->key, frames[KEY].data, MLA_KEY_RAW_BYTES) == 0;
            if (found)
                memcpy(name, owner->name, sizeof owner->name);
        }
    }
    pthread_mutex_unlock(&guard->lock);
    return found;
}

/* Frames beyond those we know, and longer ones, are cut: such a request is refused. 0 at the
 * context's end. */
static uint32_t receive(void *socket, struct frame *frames)
{
    uint32_t count = 0;
    int more = 1;
    while (more) {
        struct frame unknown;
        struct frame *frame = count < REQUEST_FRAMES ? &frames[count] : &unknown;
        int bytes = zmq_recv(socket, frame->data, sizeof frame->data, 0);
        if (bytes < 0 && zmq_errno() == EINTR)
            continue;
        if (bytes < 0)
            return 0;
        frame->bytes = (size_t)bytes < sizeof frame->data ? (size_t)bytes : sizeof frame->data;
        size_t size = sizeof more;
        if (zmq_getsockopt(socket, ZMQ_RCVMORE, &more, &size) != 0)
            return 0;
        count++;
    }
    return count;
}

static void answer(void *socket, const struct frame *id, bool allowed, const char *name)
{
    const char *const texts[] = {"1.0", NULL, allowed ? "200" : "400", "", name, ""};
    for (int i = 0; i < 6; i++) {
        const void *data = texts[i] ? (const void *)texts[i] : id->data;
        size_t bytes = texts[i] ? strlen(texts[i]) : id->bytes;
        while (zmq_send(socket, data, bytes, i < 5 ? ZMQ_SNDMORE : 0) < 0)
            if (zmq_errno() != EINTR)
                return;
    }
}

static void *run(void *argument)
{
    struct mla_guard *guard = argument;
    struct frame frames[REQUEST_FRAMES];
    uint32_t count = 0;
    while ((count = receive(guard->socket, frames)) > 0) {
        char name[MLA_USER_BYTES_MAX] = "";
        bool allowed =
            is_open(frames, count) || (count == REQUEST_FRAMES && find(guard, frames, name));
        struct frame nothing = {0};
        answer(guard->socket, count > ID ? &frames[ID] : &nothing, allowed, name);
    }
    zmq_close(guard->socket);
    return NULL;
}

enum mla_status mla_guard_start(void *zmq, struct mla_guard **out)
{
    const int linger = 0;
    struct mla_guard *guard = calloc(1, sizeof *guard);
    if (!guard)
        return MLA_MEMORY;
    pthread_mutex_init(&guard->lock, NULL);
    guard->socket = zmq_socket(zmq, ZMQ_REP);
    if (!guard->socket || zmq_setsockopt(guard->socket, ZMQ_LINGER, &linger, sizeof linger) != 0 ||
        zmq_bind(guard->socket, "inproc://zeromq.zap.01") != 0 ||
        pthread_create(&guard->thread, NULL, run, guard) != 0) {
        if (guard->socket)
            zmq_close(guard->socket);
        pthread_mutex_destroy(&guard->lock);
        free(guard);
        return MLA_SYSTEM;
    }
    *out = guard;
    return MLA_OK;
}

const char *mla_guard_open_domain(void)
{
    return OPEN_DOMAIN;
}

enum mla_status mla_guard_allow(struct mla_guard *guard, const struct mla_key_list *list,
                                char *domain)
{
    enum mla_status status = MLA_LIMIT;
    pthread_mutex_lock(&guard->lock);
    if (guard->domains < MLA_GUARD_DOMAINS_MAX) {
        guard->lists[guard->domains] = *list;
        snprintf(domain, MLA_GUARD_DOMAIN_BYTES, "%u", guard->domains++);
        status = MLA_OK;
    }
    pthread_mutex_unlock(&guard->lock);
    return status;
}

void mla_guard_join(struct mla_guard **guard_at)
{
    struct mla_guard *guard = *guard_at;
    if (!guard)
        return;
    pthread_join(guard->thread, NULL);
    pthread_mutex_destroy(&guard->lock);
    free(guard);
    *guard_at = NULL;
}
