#include "comm/words.h"

#include "comm/mpi_error.h"

#include <stdbool.h>
#include <stdlib.h>

enum { TAG = 1 };

struct mla_words {
    uint32_t rank, ranks;
    MPI_Comm comm;
    uint64_t *last;        /* [ranks] */
    uint64_t *arriving;    /* [ranks] */
    MPI_Request *requests; /* [ranks], of what arrives */
};

static enum mla_status listen_to(struct mla_words *words, uint32_t rank)
{
    return mla_mpi_check(MPI_Irecv(&words->arriving[rank], 1, MPI_UINT64_T, (int)rank, TAG,
                                   words->comm, &words->requests[rank]),
                         "MPI_Irecv");
}

/* One word that arrived, if there is one. */
static enum mla_status hear_one(struct mla_words *words, uint32_t *from, bool *heard)
{
    int index = MPI_UNDEFINED;
    int flag = 0;
    enum mla_status status = mla_mpi_check(
        MPI_Testany((int)words->ranks, words->requests, &index, &flag, MPI_STATUS_IGNORE),
        "MPI_Testany");
    *heard = flag && index != MPI_UNDEFINED;
    if (status != MLA_OK || !*heard)
        return status;
    *from = (uint32_t)index;
    words->last[index] = words->arriving[index];
    return listen_to(words, (uint32_t)index);
}

/* A first message to everybody makes the connections. */
static enum mla_status greet(struct mla_words *words)
{
    uint32_t missing = words->ranks - 1;
    enum mla_status status = MLA_OK;
    for (uint32_t r = 0; r < words->ranks && status == MLA_OK; r++)
        if (r != words->rank)
            status = listen_to(words, r);
    if (status == MLA_OK)
        status = mla_words_tell(words, 0);
    while (status == MLA_OK && missing > 0) {
        uint32_t from = 0;
        bool heard = false;
        status = hear_one(words, &from, &heard);
        missing -= heard;
    }
    /* Nobody's next word comes among these. */
    return status == MLA_OK ? mla_mpi_check(MPI_Barrier(words->comm), "MPI_Barrier") : status;
}

enum mla_status mla_words_create(uint32_t rank, uint32_t ranks, struct mla_words **out)
{
    struct mla_words *words = calloc(1, sizeof *words);
    if (!words)
        return MLA_MEMORY;
    *words = (struct mla_words){.rank = rank,
                                .ranks = ranks,
                                .comm = MPI_COMM_NULL,
                                .last = calloc(ranks, sizeof *words->last),
                                .arriving = calloc(ranks, sizeof *words->arriving),
                                .requests = malloc(ranks * sizeof(MPI_Request))};
    enum mla_status status = MLA_MEMORY;
    for (uint32_t r = 0; words->requests && r < ranks; r++)
        words->requests[r] = MPI_REQUEST_NULL;
    if (!words->last || !words->arriving || !words->requests)
        goto fail;
    status = mla_mpi_check(MPI_Comm_dup(MPI_COMM_WORLD, &words->comm), "MPI_Comm_dup");
    if (status == MLA_OK)
        status = greet(words);
    if (status != MLA_OK)
        goto fail;
    *out = words;
    return MLA_OK;
fail:
    mla_words_destroy(&words);
    return status;
}

/* The communicator stays until MPI ends: freeing it is for all ranks at once. */
void mla_words_destroy(struct mla_words **words_at)
{
    struct mla_words *words = *words_at;
    if (!words)
        return;
    for (uint32_t r = 0; words->requests && r < words->ranks; r++)
        if (words->requests[r] != MPI_REQUEST_NULL) {
            MPI_Cancel(&words->requests[r]);
            MPI_Wait(&words->requests[r], MPI_STATUS_IGNORE);
        }
    free(words->last);
    free(words->arriving);
    free(words->requests);
    free(words);
    *words_at = NULL;
}

/* So small a message is buffered, and sending it waits for nobody. */
enum mla_status mla_words_tell(struct mla_words *words, uint64_t word)
{
    enum mla_status status = MLA_OK;
    words->last[words->rank] = word;
    for (uint32_t r = 0; r < words->ranks && status == MLA_OK; r++)
        if (r != words->rank)
            status = mla_mpi_check(MPI_Send(&word, 1, MPI_UINT64_T, (int)r, TAG, words->comm),
                                   "MPI_Send");
    return status;
}

enum mla_status mla_words_hear(struct mla_words *words, const uint64_t **out)
{
    uint32_t from = 0;
    bool heard = true;
    enum mla_status status = MLA_OK;
    while (status == MLA_OK && heard)
        status = hear_one(words, &from, &heard);
    *out = words->last;
    return status;
}
