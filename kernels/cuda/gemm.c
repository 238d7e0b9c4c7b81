/* Products: of few rows on Hopper by our own kernel, else by cuBLASLt. That counts in columns: a
 * row-major C [m, n] is its [n, m], so that C = A op(B) becomes C^T = op(B)^T A^T, and our B is its
 * first operand. */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/gemm_skinny.h"
#include "kernels/cuda/launch.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* All that the choice of an algorithm depends on. Same key, same algorithm, same bits. */
struct key {
    int64_t m, n, k, batch;
    int64_t lda, a_stride, ldb, b_stride, ldc, c_stride;
    uint32_t a_alignment, b_alignment, c_alignment; /* bytes */
    bool b_transposed, bias;
    bool unused[2]; /* no padding: keys are compared as bytes */
};
static_assert(sizeof(struct key) == 10 * 8 + 3 * 4 + 4, "struct key has padding");

struct plan {
    struct key key; /* m is 0 where there is none */
    cublasLtMatmulDescOpaque_t product;
    cublasLtMatrixLayoutOpaque_t a, b, c;
    cublasLtMatmulAlgo_t algorithm;
};

/* Decode has few shapes. Prefill brings a new one with each length, so old ones must go. */
enum { SETS = 256, WAYS = 4 };

/* What timing an algorithm takes: memory whose reading empties the L2 cache. */
struct tuner {
    void *flush;
    size_t flush_bytes;
    cudaEvent_t begin, end;
};

struct mla_cuda_gemms {
    struct tuner tuner;
    struct plan plans[SETS][WAYS];
    unsigned char next[SETS]; /* the way to be overwritten */
};

static enum mla_status check(struct mla_cuda *cuda, cublasStatus_t status, const char *what,
                             const struct mla_gemm *gemm)
{
    if (status == CUBLAS_STATUS_SUCCESS)
        return MLA_OK;
    fprintf(stderr, "kernels: %s of [%lld, %lld] x %lld, batch %lld: %s\n", what,
            (long long)gemm->m, (long long)gemm->n, (long long)gemm->k, (long long)gemm->batch,
            cublasLtGetStatusString(status));
    cudaGetLastError();
    cuda->capture_failed = true;
    return MLA_INTERNAL;
}

enum mla_status mla_cuda_gemm_init(struct mla_cuda *cuda)
{
    cuda->gemms = calloc(1, sizeof *cuda->gemms);
    if (!cuda->gemms) {
        fputs("kernels: no memory for the plans of products\n", stderr);
        return MLA_MEMORY;
    }
    cublasStatus_t status = cublasLtCreate(&cuda->blas);
    if (status != CUBLAS_STATUS_SUCCESS) {
        fprintf(stderr, "kernels: cublasLtCreate: %s\n", cublasLtGetStatusString(status));
        return MLA_INTERNAL;
    }
    return mla_cuda_check(cuda, cudaMalloc(&cuda->workspace, MLA_CUDA_WORKSPACE_BYTES),
                          "the workspace of products");
}

enum mla_status mla_cuda_tune(struct mla_backend *backend, bool on)
{
    struct mla_cuda *cuda = mla_cuda_of(backend);
    struct tuner *tuner = &cuda->gemms->tuner;
    int l2_bytes = 0;
    if (on == backend->tune)
        return MLA_OK;
    backend->tune = on;
    if (!on) {
        cudaFree(tuner->flush);
        cudaEventDestroy(tuner->begin);
        cudaEventDestroy(tuner->end);
        *tuner = (struct tuner){0};
        return MLA_OK;
    }
    cudaError_t error = cudaDeviceGetAttribute(&l2_bytes, cudaDevAttrL2CacheSize, cuda->device);
    tuner->flush_bytes = 2 * (size_t)l2_bytes;
    if (error == cudaSuccess)
        error = cudaEventCreate(&tuner->begin);
    if (error == cudaSuccess)
        error = cudaEventCreate(&tuner->end);
    if (error == cudaSuccess)
        error = cudaMalloc(&tuner->flush, tuner->flush_bytes);
    return mla_cuda_check(cuda, error, "memory for tuning");
}

void mla_cuda_gemm_fini(struct mla_cuda *cuda)
{
    if (cuda->blas)
        cublasLtDestroy(cuda->blas);
    cudaFree(cuda->workspace);
    free(cuda->gemms);
}

/* 16 bytes are all that kernels ask for. */
static uint32_t alignment(const void *memory, const void *also)
{
    uintptr_t bits = (uintptr_t)memory | (uintptr_t)also | 16;
    return (uint32_t)(bits & (~bits + 1));
}

static struct key key_of(const struct mla_gemm *gemm)
{
    return (struct key){.m = gemm->m,
                        .n = gemm->n,
                        .k = gemm->k,
                        .batch = gemm->batch,
                        .lda = gemm->lda,
                        .a_stride = gemm->a_stride,
                        .ldb = gemm->ldb,
                        .b_stride = gemm->b_stride,
                        .ldc = gemm->ldc,
                        .c_stride = gemm->c_stride,
                        .a_alignment = alignment(gemm->a, NULL),
                        .b_alignment = alignment(gemm->b, NULL),
                        .c_alignment = alignment(gemm->c, gemm->bias),
                        .b_transposed = gemm->b_transposed,
                        .bias = gemm->bias != NULL};
}

/* FNV-1a (Fowler, Noll, Vo). */
static uint32_t set_of(const struct key *key)
{
    const unsigned char *bytes = (const unsigned char *)key;
    uint64_t hash = 0xcbf29ce484222325u;
    for (size_t i = 0; i < sizeof *key; i++)
        hash = (hash ^ bytes[i]) * 0x100000001b3u;
    return (uint32_t)(hash >> 32) % SETS;
}

#define TRY(call)                                                                                  \
    do {                                                                                           \
        cublasStatus_t try_status = (call);                                                        \
        if (try_status != CUBLAS_STATUS_SUCCESS)                                                   \
            return try_status;                                                                     \
    } while (0)

static cublasStatus_t lay_out(cublasLtMatrixLayout_t layout, int64_t rows, int64_t columns,
                              int64_t stride, int64_t batch, int64_t batch_stride)
{
    int32_t count = (int32_t)batch;
    TRY(cublasLtMatrixLayoutInit(layout, CUDA_R_16BF, (uint64_t)rows, (uint64_t)columns, stride));
    TRY(cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count,
                                         sizeof count));
    return cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
                                            &batch_stride, sizeof batch_stride);
}

static cublasStatus_t describe(struct plan *plan)
{
    const struct key *key = &plan->key;
    cublasOperation_t turned = key->b_transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
    cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
    TRY(cublasLtMatmulDescInit(&plan->product, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    TRY(cublasLtMatmulDescSetAttribute(&plan->product, CUBLASLT_MATMUL_DESC_TRANSA, &turned,
                                       sizeof turned));
    if (key->bias)
        TRY(cublasLtMatmulDescSetAttribute(&plan->product, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue,
                                           sizeof epilogue));
    TRY(lay_out(&plan->b, key->b_transposed ? key->k : key->n, key->b_transposed ? key->n : key->k,
                key->ldb, key->batch, key->b_stride));
    TRY(lay_out(&plan->a, key->k, key->m, key->lda, key->batch, key->a_stride));
    return lay_out(&plan->c, key->n, key->m, key->ldc, key->batch, key->c_stride);
}

/* What cuBLASLt proposes, what it takes for the fastest first, from the key alone. */
static cublasStatus_t propose(cublasLtHandle_t blas, struct plan *plan, int most,
                              cublasLtMatmulHeuristicResult_t *proposals, int *found)
{
    const struct {
        cublasLtMatmulPreferenceAttributes_t attribute;
        uint32_t bytes;
    } alignments[] = {
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, plan->key.b_alignment},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, plan->key.a_alignment},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, plan->key.c_alignment},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, plan->key.c_alignment},
    };
    size_t workspace = MLA_CUDA_WORKSPACE_BYTES;
    /* Split sums stay f32. Some algorithms round them before they add a bias: none is split. */
    uint32_t reductions =
        plan->key.bias ? CUBLASLT_REDUCTION_SCHEME_NONE : CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    cublasLtMatmulPreferenceOpaque_t preference;
    TRY(cublasLtMatmulPreferenceInit(&preference));
    TRY(cublasLtMatmulPreferenceSetAttribute(&preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                             &workspace, sizeof workspace));
    TRY(cublasLtMatmulPreferenceSetAttribute(
        &preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reductions, sizeof reductions));
    for (size_t i = 0; i < sizeof alignments / sizeof *alignments; i++)
        TRY(cublasLtMatmulPreferenceSetAttribute(&preference, alignments[i].attribute,
                                                 &alignments[i].bytes, sizeof(uint32_t)));
    TRY(cublasLtMatmulAlgoGetHeuristic(blas, &plan->product, &plan->b, &plan->a, &plan->c, &plan->c,
                                       &preference, most, proposals, found));
    return *found > 0 ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}

static cublasStatus_t run(const struct mla_cuda *cuda, struct plan *plan,
                          const struct mla_gemm *gemm)
{
    const float one = 1;
    const float zero = 0;
    return cublasLtMatmul(cuda->blas, &plan->product, &one, gemm->b, &plan->b, gemm->a, &plan->a,
                          &zero, gemm->c, &plan->c, gemm->c, &plan->c, &plan->algorithm,
                          cuda->workspace, MLA_CUDA_WORKSPACE_BYTES, mla_cuda_compute(cuda));
}

/* From A's first element to its last, bytes. */
static size_t a_bytes(const struct mla_gemm *gemm)
{
    int64_t last = (gemm->m - 1) * gemm->lda + (gemm->batch - 1) * gemm->a_stride + gemm->k;
    return (size_t)last * mla_dtype_bytes(MLA_BF16);
}

/* The shortest of a few runs, in ms; a huge number where the algorithm fails. As in a layer:
 * weights come from memory, A is in the L2 cache, of which nothing must be written back. */
static float time_of(const struct mla_cuda *cuda, const struct tuner *tuner, struct plan *plan,
                     const struct mla_gemm *gemm)
{
    enum { RUNS = 4 }; /* the first one warms up */
    cudaStream_t stream = mla_cuda_compute(cuda);
    float best = 1e30f;
    for (int i = 0; i < RUNS; i++) {
        float ms = 0;
        if (mla_cuda_launch_read(tuner->flush, tuner->flush_bytes, stream) != cudaSuccess ||
            mla_cuda_launch_read(gemm->a, a_bytes(gemm), stream) != cudaSuccess ||
            cudaEventRecord(tuner->begin, stream) != cudaSuccess ||
            run(cuda, plan, gemm) != CUBLAS_STATUS_SUCCESS ||
            cudaEventRecord(tuner->end, stream) != cudaSuccess)
            return 1e30f;
        if (cudaEventSynchronize(tuner->end) != cudaSuccess ||
            cudaEventElapsedTime(&ms, tuner->begin, tuner->end) != cudaSuccess)
            return 1e30f;
        if (i > 0 && ms < best)
            best = ms;
    }
    return best;
}

/* cuBLASLt's first proposal; while the backend tunes, the fastest of several. The product itself
 * is run for that: it has the same result each time. */
static cublasStatus_t choose(const struct mla_cuda *cuda, struct plan *plan,
                             const struct mla_gemm *gemm)
{
    enum { PROPOSALS_MAX = 12 };
    cublasLtMatmulHeuristicResult_t proposals[PROPOSALS_MAX];
    const struct tuner *tuner = &cuda->gemms->tuner;
    bool tune = cuda->base.tune && tuner->flush && !cuda->capturing;
    int found = 0;
    TRY(propose(cuda->blas, plan, tune ? PROPOSALS_MAX : 1, proposals, &found));
    int fastest = 0;
    float best = 1e30f;
    for (int i = 0; tune && i < found; i++) {
        plan->algorithm = proposals[i].algo;
        float ms = time_of(cuda, tuner, plan, gemm);
        if (ms < best) {
            best = ms;
            fastest = i;
        }
    }
    plan->algorithm = proposals[fastest].algo;
    return proposals[fastest].state;
}

/* The plan is every layer's; the bias is one layer's. */
static enum mla_status set_bias(struct mla_cuda *cuda, struct plan *plan,
                                const struct mla_gemm *gemm)
{
    return check(cuda,
                 cublasLtMatmulDescSetAttribute(&plan->product, CUBLASLT_MATMUL_DESC_BIAS_POINTER,
                                                &gemm->bias, sizeof gemm->bias),
                 "bias of a product", gemm);
}

static enum mla_status find_plan(struct mla_cuda *cuda, const struct mla_gemm *gemm,
                                 struct plan **out)
{
    struct key key = key_of(gemm);
    uint32_t set = set_of(&key);
    struct plan *plans = cuda->gemms->plans[set];
    for (int way = 0; way < WAYS; way++)
        if (memcmp(&plans[way].key, &key, sizeof key) == 0) {
            *out = &plans[way];
            return gemm->bias ? set_bias(cuda, &plans[way], gemm) : MLA_OK;
        }
    struct plan *plan = &plans[cuda->gemms->next[set]];
    *plan = (struct plan){.key = key};
    enum mla_status status = check(cuda, describe(plan), "description of a product", gemm);
    if (status == MLA_OK && gemm->bias)
        status = set_bias(cuda, plan, gemm);
    if (status == MLA_OK)
        status = check(cuda, choose(cuda, plan, gemm), "algorithm for a product", gemm);
    if (status != MLA_OK) {
        plan->key = (struct key){0};
        return status;
    }
    cuda->gemms->next[set] = (unsigned char)((cuda->gemms->next[set] + 1) % WAYS);
    *out = plan;
    return MLA_OK;
}

static enum mla_status run_own(struct mla_cuda *cuda, const struct mla_gemm *gemm)
{
    cudaError_t error = mla_cuda_skinny_launch(gemm, cuda->sms, mla_cuda_compute(cuda));
    return mla_cuda_check(cuda, error, "a product of few rows");
}

enum mla_status mla_cuda_gemm(struct mla_backend *backend, const struct mla_gemm *gemm)
{
    struct mla_cuda *cuda = mla_cuda_of(backend);
    struct plan *plan = NULL;
    assert(gemm->m >= 0 && gemm->n > 0 && gemm->k > 0 && gemm->batch >= 0);
    if (gemm->m == 0 || gemm->batch == 0)
        return MLA_OK;
    if (cuda->arch == 90 && mla_cuda_skinny_fits(gemm))
        return run_own(cuda, gemm);
    enum mla_status status = find_plan(cuda, gemm, &plan);
    return status == MLA_OK ? check(cuda, run(cuda, plan, gemm), "product", gemm) : status;
}
