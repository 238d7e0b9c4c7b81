/* A word of each rank that all others know: told at once, heard when one looks, waited for by
 * nobody. For ranks that have no memory in common. Used by the thread that started MPI. */
#ifndef MLA_COMM_WORDS_H
#define MLA_COMM_WORDS_H

#include "proto/status.h"

#include <stdint.h>

struct mla_words;

/* Called by all ranks of the job at once; every word is 0. When it returns, all connections stand
 * that telling needs. MLA_MEMORY, MLA_COLLECTIVE. */
enum mla_status mla_words_create(uint32_t rank, uint32_t ranks, struct mla_words **out);
void mla_words_destroy(struct mla_words **words);

/* This rank's word is another now. MLA_COLLECTIVE. */
enum mla_status mla_words_tell(struct mla_words *words, uint64_t word);
/* *out is [ranks], the last word of each that arrived here, and this rank's own; valid until the
 * next call. Words of one rank arrive in order, and one that was followed by another may not be
 * seen. MLA_COLLECTIVE. */
enum mla_status mla_words_hear(struct mla_words *words, const uint64_t **out);

#endif
