#include "comm/bootstrap.h"
#include "worker/executor.h"
#include "worker/options.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <unistd.h>

static enum mla_status open_checkpoint(const struct mla_worker_options *options, uint32_t ranks,
                                       struct mla_checkpoint *checkpoint)
{
    char why[MLA_SENTENCE_BYTES_MAX];
    enum mla_status status = mla_checkpoint_open(options->model, options->layer_first,
                                                 options->layer_last, checkpoint, why);
    if (status == MLA_OK && (status = mla_shard_check(&checkpoint->config, ranks, why)) != MLA_OK)
        mla_checkpoint_close(checkpoint);
    if (status != MLA_OK)
        fprintf(stderr, "%s: %s\n", options->model, why);
    return status;
}

static int check(const struct mla_worker_options *options)
{
    struct mla_checkpoint checkpoint;
    enum mla_status status = open_checkpoint(options, options->ranks, &checkpoint);
    if (status != MLA_OK)
        return mla_status_exit_code(status);
    printf("%s: %u of %u layers can be served by %u ranks\n", options->model,
           checkpoint.layer_count, checkpoint.config.layers, options->ranks);
    mla_checkpoint_close(&checkpoint);
    return 0;
}

/* A quarter of the host's memory, shared by this job's ranks on it. */
static enum mla_status default_kv_memory(uint64_t *bytes)
{
    uint32_t local_rank = 0;
    uint32_t local_ranks = 1;
    enum mla_status status = mla_bootstrap_local(&local_rank, &local_ranks);
    if (status == MLA_OK)
        *bytes =
            (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE) / 4 / local_ranks;
    return status;
}

static enum mla_status choose_job(uint64_t *job)
{
    if (getrandom(job, sizeof *job, 0) != sizeof *job)
        return MLA_SYSTEM;
    return mla_bootstrap_broadcast(job, sizeof *job);
}

static enum mla_status serve(const struct mla_worker_options *options, uint32_t rank,
                             uint32_t ranks)
{
    struct mla_executor_options executor = {.coordinator = options->coordinator,
                                            .group = options->group,
                                            .kv_dtype = options->kv_dtype,
                                            .kv_memory_bytes = options->kv_memory_bytes,
                                            .chunk_rows = options->chunk_rows,
                                            .connect_timeout_ms = options->connect_timeout_ms,
                                            .poll_us = options->poll_us};
    struct mla_backend *backend = NULL;
    struct mla_collective *collective = NULL;
    struct mla_checkpoint checkpoint;
    static struct mla_shard shard;
    enum mla_status status = open_checkpoint(options, ranks, &checkpoint);
    if (status != MLA_OK)
        return status;
    status = choose_job(&executor.job);
    if (status == MLA_OK && executor.kv_memory_bytes == 0)
        status = default_kv_memory(&executor.kv_memory_bytes);
    if (status == MLA_OK)
        status = mla_backend_cpu_create((int)options->threads, &backend);
    if (status == MLA_OK)
        status = mla_collective_mpi_create(rank, ranks, &collective);
    if (status == MLA_OK)
        status = mla_shard_load(&checkpoint, rank, ranks, backend, &shard);
    mla_checkpoint_close(&checkpoint);
    if (status == MLA_OK) {
        status = mla_executor_run(&executor, backend, collective, &shard);
        mla_shard_free(&shard, backend);
    }
    if (collective)
        collective->ops->destroy(&collective);
    if (backend)
        backend->ops->destroy(&backend);
    return status;
}

int main(int argc, char **argv)
{
    struct mla_worker_options options;
    enum mla_status status = mla_worker_options_parse(argc, argv, &options);
    if (status != MLA_OK)
        return status == MLA_AGAIN ? 0 : mla_status_exit_code(status);
    if (options.check)
        return check(&options);
    if (getenv("OMPI_COMM_WORLD_SIZE")) /* no rank outlives a killed mpirun */
        prctl(PR_SET_PDEATHSIG, SIGKILL);
    uint32_t rank = 0;
    uint32_t ranks = 1;
    status = mla_bootstrap_init(&argc, &argv, &rank, &ranks);
    if (status == MLA_OK)
        status = serve(&options, rank, ranks);
    /* The others may be inside a collective: only a whole group can end in order. */
    if (status != MLA_OK)
        mla_bootstrap_abort(mla_status_exit_code(status));
    mla_bootstrap_fini();
    return 0;
}
