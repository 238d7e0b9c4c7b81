/* The gate of ranks on several hosts: each has a word of its own, which it tells the others. To
 * arrive is a promise that is kept when all give it, so nobody passes for what somebody did not
 * arrive for, and whoever closes has told how far it will go. Only then can a rank that waits know
 * whether the others pass: it waits for their words also when it wants to turn back. All of them
 * lose the same coordinator, so these come. */
#include "comm/words.h"
#include "worker/gate_kind.h"

#include <stdlib.h>

struct words_gate {
    struct mla_gate base;
    struct mla_words *words;
    uint32_t rank;
    uint64_t told;          /* this rank's word */
    enum mla_status status; /* of telling */
};

static struct words_gate *words_of(struct mla_gate *gate)
{
    return (struct words_gate *)gate;
}

static void tell(struct words_gate *self, uint64_t word)
{
    self->told = word;
    if (self->status == MLA_OK)
        self->status = mla_words_tell(self->words, word);
}

static void begin(struct mla_gate *gate)
{
    words_of(gate)->told = mla_gate_first_word(gate);
}

/* After it has closed, a rank promises nothing. */
static void arrive(struct mla_gate *gate)
{
    struct words_gate *self = words_of(gate);
    if (!(self->told & MLA_GATE_CLOSED))
        tell(self, self->told + 1);
}

static enum mla_status look(struct mla_gate *gate)
{
    struct words_gate *self = words_of(gate);
    const uint64_t *words = NULL;
    bool all = true;
    enum mla_status status =
        self->status == MLA_OK ? mla_words_hear(self->words, &words) : self->status;
    if (status != MLA_OK)
        return status;
    if ((self->told & MLA_GATE_ARRIVALS) < gate->arrived)
        return MLA_CLOSED;
    for (uint32_t r = 0; r < gate->ranks; r++) {
        bool here = r == self->rank || mla_gate_is_epoch(gate, words[r]);
        uint64_t arrived = words[r] & MLA_GATE_ARRIVALS;
        if (r == self->rank || (here && arrived >= gate->arrived))
            continue;
        if (here && (words[r] & MLA_GATE_CLOSED))
            return MLA_CLOSED;
        all = false;
    }
    return all ? MLA_OK : MLA_AGAIN;
}

static void shut(struct mla_gate *gate)
{
    struct words_gate *self = words_of(gate);
    if (!(self->told & MLA_GATE_CLOSED))
        tell(self, self->told | MLA_GATE_CLOSED);
}

static void destroy(struct mla_gate *gate)
{
    mla_words_destroy(&words_of(gate)->words);
    free(gate);
}

enum mla_status mla_gate_words_create(uint32_t rank, uint32_t ranks, struct mla_gate **out)
{
    static const struct mla_gate_ops ops = {
        .open = begin, .arrive = arrive, .look = look, .close = shut, .destroy = destroy};
    struct words_gate *gate = calloc(1, sizeof *gate);
    if (!gate)
        return MLA_MEMORY;
    enum mla_status status = mla_words_create(rank, ranks, &gate->words);
    if (status != MLA_OK) {
        free(gate);
        return status;
    }
    gate->base = (struct mla_gate){.ops = &ops, .ranks = ranks};
    gate->rank = rank;
    *out = &gate->base;
    return MLA_OK;
}
