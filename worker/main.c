#include "comm/bootstrap.h"
#include "worker/executor.h"
#include "worker/heartbeat.h"
#include "worker/numa.h"
#include "worker/options.h"

#include <assert.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <time.h>

enum { JOB_RANDOM_BITS = 20 };

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

/* Ranks of one host share its cores, unless somebody has said how. */
static int choose_threads(const struct mla_worker_options *options, uint32_t local_ranks)
{
    cpu_set_t allowed;
    if (options->threads > 0 || getenv("OMP_NUM_THREADS") ||
        sched_getaffinity(0, sizeof allowed, &allowed) != 0)
        return (int)options->threads;
    int threads = CPU_COUNT(&allowed) / (int)local_ranks;
    return threads > 0 ? threads : 1;
}

/* A GPU for every rank of this host, or none: two ranks can't share one. */
static enum mla_status make_backend(const struct mla_worker_options *options, uint32_t local_rank,
                                    uint32_t local_ranks, struct mla_backend **out)
{
    uint64_t enough = (uint64_t)mla_backend_cuda_count() >= options->device + local_ranks;
    int device = (int)(options->device + local_rank);
    char bus_id[MLA_BUS_ID_BYTES];
    enum mla_status status = mla_bootstrap_min(&enough);
    if (status != MLA_OK)
        return status;
    if (options->backend == MLA_WORKER_CPU || (options->backend == MLA_WORKER_AUTO && !enough))
        return mla_backend_cpu_create(choose_threads(options, local_ranks), out);
    if (!enough) {
        fprintf(stderr, "%d GPUs here for %u ranks from GPU %u on\n", mla_backend_cuda_count(),
                local_ranks, options->device);
        return MLA_OPTION;
    }
    mla_backend_cuda_bus_id(device, bus_id);
    if (options->bind) /* before anything allocates or starts threads */
        mla_numa_bind("/sys", bus_id);
    return mla_backend_cuda_create(device, out);
}

/* NCCL between GPUs, MPI between CPUs. */
static enum mla_status make_collective(const struct mla_worker_options *options,
                                       struct mla_backend *backend, uint32_t rank, uint32_t ranks,
                                       struct mla_collective **out)
{
#if MLA_HAVE_CUDA
    if (!backend->unified)
        return mla_collective_nccl_create_flags(
            rank, ranks, mla_backend_cuda_stream(backend),
            options->collectives_measured ? MLA_NCCL_MEASURED : 0, out);
#endif
    (void)options;
    assert(backend->unified);
    return mla_collective_mpi_create(rank, ranks, out);
}

/* The time when it began, in ms, above random bits: of two jobs that claim one group the newer is
 * meant, whichever comes first. */
static enum mla_status choose_job(uint64_t *job)
{
    struct timespec now;
    uint64_t bits = 0;
    if (clock_gettime(CLOCK_REALTIME, &now) != 0 || getrandom(&bits, sizeof bits, 0) != sizeof bits)
        return MLA_SYSTEM;
    uint64_t ms = (uint64_t)now.tv_sec * 1000u + (uint64_t)now.tv_nsec / 1000000u;
    *job = ms << JOB_RANDOM_BITS | bits >> (64 - JOB_RANDOM_BITS);
    return mla_bootstrap_broadcast(job, sizeof *job);
}

static enum mla_status serve(const struct mla_worker_options *options, uint32_t rank,
                             uint32_t ranks)
{
    struct mla_executor_options executor = {.coordinator = options->coordinator,
                                            .group = options->group,
                                            .kv_dtype = options->kv_dtype,
                                            .graphs = options->graphs,
                                            .trace = options->trace,
                                            .kv_memory_bytes = options->kv_memory_bytes,
                                            .kv_memory_fraction = options->kv_memory_fraction,
                                            .chunk_rows = options->chunk_rows,
                                            .connect_timeout_ms = options->connect_timeout_ms,
                                            .poll_us = options->poll_us,
                                            .spin = options->spin};
    static struct mla_watch watch;
    struct mla_heartbeat_thread *heartbeat = NULL;
    struct mla_backend *backend = NULL;
    struct mla_collective *collective = NULL;
    struct mla_checkpoint checkpoint;
    static struct mla_shard shard;
    struct mla_keys keys;
    enum mla_status status =
        mla_keys_for(options->coordinator, options->curve_keys, "worker", &keys, &executor.keys);
    if (status == MLA_OK)
        status = open_checkpoint(options, ranks, &checkpoint);
    if (status != MLA_OK)
        return status;
    uint32_t local_rank = 0;
    uint32_t local_ranks = 1;
    struct mla_heartbeat_options beats = {.coordinator = options->coordinator,
                                          .keys = executor.keys,
                                          .group = options->group,
                                          .rank = rank,
                                          .watch = &watch};
    status = mla_heartbeat_start(&beats, &heartbeat);
    if (status == MLA_OK) {
        mla_heartbeat_await(heartbeat);
        status = choose_job(&executor.job);
    }
    if (status == MLA_OK)
        status = mla_bootstrap_local(&local_rank, &local_ranks);
    if (status == MLA_OK)
        status = make_backend(options, local_rank, local_ranks, &backend);
    if (status == MLA_OK)
        status = make_collective(options, backend, rank, ranks, &collective);
    if (status == MLA_OK)
        status = mla_shard_load(&checkpoint, rank, ranks, backend, &shard);
    mla_checkpoint_close(&checkpoint);
    if (status == MLA_OK && executor.kv_dtype == 0)
        executor.kv_dtype = backend->activation;
    executor.local_ranks = local_ranks;
    mla_heartbeat_stop(&heartbeat); /* from here on the executor has one */
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
