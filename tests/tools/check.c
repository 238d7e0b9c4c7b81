/* mla-check: drives a running service through a golden case, cut in many ways, and compares. */
#include "tests/tools/check.h"

#include "proto/parse.h"
#include "tests/lib/payload_option.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char usage[] =
    "usage: mla-check CASE_DIR --endpoint E [--tolerance T] [--reply-dtype f32|bf16]\n"
    "\n"
    "Gives the sequences of a golden case (config.json, case.json, golden.safetensors) to a\n"
    "running service, cut into steps in many ways, and compares every output row. Prints a row\n"
    "per cut: the largest ||out - golden|| / ||golden|| of a sequence and of a single row.\n"
    "\n"
    "  --endpoint E        of the service (tcp://host:port or ipc:///path)\n"
    "  --tolerance T       of a sequence; a single row may have 10 T (1e-5; with bf16 1e-2)\n"
    "  --reply-dtype D     dtype of the outputs: f32 or bf16 (f32)\n"
    "  --payload D         auto, or inline: no shared memory, also on the service's host (auto)\n"
    "  --curve-keys DIR    for a service on tcp with keys: client.key and server.pub\n"
    "\n"
    "Ends with 0 when all cuts are within the tolerance, 1 when not, 2 for wrong options, 3 or 4\n"
    "for a wrong case, 5 for a wrong endpoint, 7 when the service does not answer.\n";

static const double bf16_tolerance = 1e-2;

struct options {
    const char *dir, *endpoint, *curve_keys;
    double tolerance; /* 0: the dtype's own */
    enum mla_dtype reply_dtype;
    bool payload_inline;
};

enum option_id {
    OPTION_ENDPOINT = 256,
    OPTION_TOLERANCE,
    OPTION_REPLY_DTYPE,
    OPTION_PAYLOAD,
    OPTION_KEYS,
    OPTION_HELP
};

static const struct option known[] = {
    {"endpoint", required_argument, NULL, OPTION_ENDPOINT},
    {"tolerance", required_argument, NULL, OPTION_TOLERANCE},
    {"reply-dtype", required_argument, NULL, OPTION_REPLY_DTYPE},
    {"payload", required_argument, NULL, OPTION_PAYLOAD},
    {"curve-keys", required_argument, NULL, OPTION_KEYS},
    {"help", no_argument, NULL, OPTION_HELP},
    {0},
};

static bool set_tolerance(const char *text, double *out)
{
    char *end = NULL;
    *out = strtod(text, &end);
    return end != text && *end == '\0' && *out > 0 && isfinite(*out);
}

static bool set(void *context, int id, const char *text)
{
    struct options *out = context;
    switch (id) {
    case OPTION_ENDPOINT:
        out->endpoint = text;
        return true;
    case OPTION_TOLERANCE:
        return set_tolerance(text, &out->tolerance);
    case OPTION_REPLY_DTYPE:
        out->reply_dtype = strcmp(text, "bf16") == 0 ? MLA_BF16 : MLA_F32;
        return strcmp(text, mla_dtype_name(out->reply_dtype)) == 0;
    case OPTION_PAYLOAD:
        return mla_payload_set(text, &out->payload_inline);
    default:
        out->curve_keys = text;
        return true;
    }
}

static enum mla_status read_options(int argc, char **argv, struct options *out)
{
    *out = (struct options){.reply_dtype = MLA_F32};
    enum mla_status status = mla_parse_command(argc, argv, known, usage, set, out, &out->dir);
    if (status != MLA_OK)
        return status;
    if (!out->dir || !out->endpoint) {
        fputs("mla-check: a case folder and --endpoint must be given (mla-check --help)\n", stderr);
        return MLA_OPTION;
    }
    if (out->tolerance == 0)
        out->tolerance = out->reply_dtype == MLA_F32 ? 1e-5 : bf16_tolerance;
    return MLA_OK;
}

/* The service must be of the case's model and serve its layers and lengths. */
static bool service_fits(const struct check *check)
{
    const struct mla_config *config = &check->golden.config;
    const struct mla_hello_reply *info = check->info;
    const struct {
        const char *name;
        uint32_t ours, theirs;
    } dims[] = {
        {"hidden_size", config->hidden, info->dims.hidden},
        {"num_attention_heads", config->heads, info->dims.heads},
        {"q_lora_rank", config->q_lora, info->dims.q_lora},
        {"kv_lora_rank", config->latent, info->dims.latent},
        {"qk_nope_head_dim", config->nope, info->dims.nope},
        {"qk_rope_head_dim", config->rope, info->dims.rope},
        {"v_head_dim", config->v, info->dims.v},
    };
    for (size_t i = 0; i < sizeof dims / sizeof dims[0]; i++)
        if (dims[i].ours != dims[i].theirs) {
            fprintf(stderr,
                    "mla-check: the service runs another model: its %s is %" PRIu32
                    ", the case's %" PRIu32 ".\n",
                    dims[i].name, dims[i].theirs, dims[i].ours);
            return false;
        }
    for (uint32_t i = 0; i < check->golden.layer_count; i++) {
        bool served = false;
        for (uint32_t j = 0; j < info->layer_count; j++)
            served = served || info->layers[j] == check->golden.layers[i];
        if (!served) {
            fprintf(stderr, "mla-check: the service does not serve layer %" PRIu32 ".\n",
                    check->golden.layers[i]);
            return false;
        }
    }
    for (uint32_t i = 0; i < check->golden.sequence_count; i++)
        if (check->golden.lengths[i] > info->context_max) {
            fprintf(stderr,
                    "mla-check: sequence %" PRIu32 " has %" PRIu32
                    " tokens, the service takes %" PRIu32 ".\n",
                    i, check->golden.lengths[i], info->context_max);
            return false;
        }
    return true;
}

static enum mla_status check_init(struct check *check)
{
    /* At most: each sequence with its forks, or a track for each step. */
    check->track_capacity = 8 * check->golden.sequence_count + CHECK_STEPS;
    check->tracks = calloc(check->track_capacity, sizeof *check->tracks);
    size_t layers = check->golden.layer_count;
    double *sums = calloc(2 * layers * check->track_capacity, sizeof *sums);
    check->rows = calloc((size_t)2 * check->info->dims.hidden, sizeof *check->rows);
    if (!check->tracks || !sums || !check->rows) {
        free(sums);
        fprintf(stderr, "mla-check: out of memory\n");
        return MLA_MEMORY;
    }
    for (uint32_t i = 0; i < check->track_capacity; i++) {
        check->tracks[i].difference = sums + 2 * layers * i;
        check->tracks[i].norm = sums + 2 * layers * i + layers;
    }
    return MLA_OK;
}

static void check_fini(struct check *check)
{
    mla_client_close_connection(&check->client); /* first: it may still read and write slots */
    for (uint32_t i = 0; i < CHECK_SLOTS; i++) {
        free(check->slots[i].x_grown);
        free(check->slots[i].y_grown);
    }
    if (check->tracks)
        free(check->tracks[0].difference);
    free(check->tracks);
    free(check->rows);
    mla_case_close(&check->golden);
}

/* Every slot has room for all sequences of the case in one step, in either dtype. */
static enum mla_status make_parts(struct check *check)
{
    uint64_t rows = 0;
    void *memory = NULL;
    for (uint32_t i = 0; i < check->golden.sequence_count; i++)
        rows += check->golden.lengths[i];
    if (rows > check->info->step_tokens_max)
        rows = check->info->step_tokens_max;
    check->part_bytes = rows * check->info->dims.hidden * sizeof(float);
    check->part_bytes = (check->part_bytes + MLA_REGION_ALIGNMENT - 1) / MLA_REGION_ALIGNMENT *
                        MLA_REGION_ALIGNMENT;
    size_t slot_bytes = 2 * check->part_bytes;
    enum mla_status status = mla_client_memory(check->client, CHECK_SLOTS * slot_bytes, &memory);
    if (status != MLA_OK)
        return check_failed(check, "memory for payloads", status);
    for (uint32_t i = 0; i < CHECK_SLOTS; i++)
        check->slots[i].part = (uint8_t *)memory + i * slot_bytes;
    printf("payloads: %s\n", mla_client_is_shared(check->client) ? "shared memory" : "inline");
    return MLA_OK;
}

/* The largest error of a sequence in a layer; NaN where there is one. */
static double worst_error(const struct check *check)
{
    double worst = 0;
    for (uint32_t i = 0; i < check->track_count; i++)
        for (uint32_t layer = 0; layer < check->golden.layer_count; layer++) {
            const struct check_track *track = &check->tracks[i];
            if (track->norm[layer] == 0)
                continue; /* none of its rows was kept */
            double error = sqrt(track->difference[layer] / track->norm[layer]);
            if (isnan(error) || error > worst)
                worst = error;
        }
    return worst;
}

/* Runs one cut and prints its row. */
static enum mla_status run_cut(struct check *check, const struct check_cut *cut, bool *ok)
{
    enum mla_dtype dtype = check->dtype, reply_dtype = check->reply_dtype;
    double tolerance = check->tolerance;
    check->cut = cut->name;
    check->track_count = 0;
    check->compared = 0;
    check->row_worst = 0;
    check->differing = 0;
    enum mla_status status = cut->run(check, cut->argument);
    if (check->reply_dtype == MLA_BF16)
        tolerance = fmax(tolerance, bf16_tolerance);
    check->dtype = dtype;
    check->reply_dtype = reply_dtype;
    if (status != MLA_OK)
        return status;
    double error = worst_error(check);
    *ok = error <= tolerance && check->row_worst <= CHECK_ROW_TOLERANCE * tolerance &&
          check->compared > 0 && check->differing == 0;
    printf("%-26s %9" PRIu32 " %8" PRIu64 " %12.2e %12.2e   %s\n", cut->name, check->track_count,
           check->compared, error, check->row_worst, *ok ? "ok" : "FAIL");
    if (check->differing > 0)
        printf("  %" PRIu32 " repeated RUNs gave other bits\n", check->differing);
    fflush(stdout);
    return MLA_OK;
}

/* What was used before must be used after, unless others use the service as well. */
static enum mla_status check_leaks(struct check *check, const struct mla_stats *before, bool *ok)
{
    struct mla_stats after;
    check->cut = "blocks given back";
    enum mla_status status = mla_client_stats(check->client, &after);
    if (status != MLA_OK)
        return check_failed(check, "STATS", status);
    bool alone = before->clients == 1 && after.clients == 1;
    bool same = before->blocks_used == after.blocks_used && after.sequences == before->sequences &&
                after.steps_open == before->steps_open &&
                after.blocks_used + after.blocks_free == after.blocks_total;
    *ok = same || !alone;
    printf("%-26s %9" PRIu64 " sequences, %" PRIu64 " of %" PRIu64 " blocks used%s   %s\n",
           check->cut, after.sequences, after.blocks_used, after.blocks_total,
           alone ? "" : " (not judged: there are other clients)", *ok ? "ok" : "FAIL");
    return MLA_OK;
}

/* *ok: every cut is within the tolerance. */
static enum mla_status run_all(struct check *check, bool *ok)
{
    struct mla_stats before;
    enum mla_status status = mla_client_stats(check->client, &before);
    if (status != MLA_OK)
        return check_failed(check, "STATS", status);
    printf("%-26s %9s %8s %12s %12s\n", "cut", "sequences", "rows", "max error", "worst row");
    *ok = true;
    bool cut_ok = true;
    for (uint32_t i = 0; i < check_cut_count && status == MLA_OK; i++) {
        status = run_cut(check, &check_cuts[i], &cut_ok);
        *ok = *ok && cut_ok;
    }
    if (status == MLA_OK) {
        status = check_leaks(check, &before, &cut_ok);
        *ok = *ok && cut_ok;
    }
    return status;
}

static enum mla_status run(const struct options *options, struct check *check, bool *ok)
{
    char why[MLA_SENTENCE_BYTES_MAX];
    enum mla_status status = mla_case_open(options->dir, &check->golden, why);
    if (status != MLA_OK) {
        fprintf(stderr, "mla-check: %s: %s\n", options->dir, why);
        return status;
    }
    struct mla_client_options client_options = {.timeout_ms = CHECK_TIMEOUT_MS,
                                                .payload_inline = options->payload_inline,
                                                .curve_keys = options->curve_keys};
    status = mla_client_connect(options->endpoint, &client_options, &check->client);
    if (status != MLA_OK) /* the client has said why */
        return status;
    check->info = mla_client_info(check->client);
    check->dtype = MLA_F32;
    check->reply_dtype = options->reply_dtype;
    check->tolerance = options->tolerance;
    check->cut = "start";
    if (!service_fits(check))
        return MLA_COUNT;
    status = check_init(check);
    if (status == MLA_OK)
        status = make_parts(check);
    return status == MLA_OK ? run_all(check, ok) : status;
}

int main(int argc, char **argv)
{
    static struct check check; /* its steps are large */
    struct options options;
    bool ok = false;
    enum mla_status status = read_options(argc, argv, &options);
    if (status != MLA_OK)
        return status == MLA_AGAIN ? 0 : mla_status_exit_code(status);
    status = run(&options, &check, &ok);
    check_fini(&check);
    if (status != MLA_OK)
        return mla_status_exit_code(status);
    puts(ok ? "all ok" : "FAILED");
    return ok ? 0 : 1;
}
