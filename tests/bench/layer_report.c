#include "tests/bench/layer_report.h"

#include "tests/bench/results.h"

#include <cblas.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>

enum { CPU_NAME_BYTES = 128 };

enum mla_status mla_layer_times_add(struct mla_layer_times *times, uint64_t whole_ns,
                                    const struct mla_role_time *layer,
                                    const struct mla_role_time *bare)
{
    enum mla_status status = MLA_OK;
    double gemms = 0, attention = (double)bare[MLA_ROLE_ATTEND].ns / 1e3;
    for (int role = 0; status == MLA_OK && role < MLA_ROLE_COUNT; role++) {
        times->one[role] = layer[role];
        if (mla_role_is_gemm(role))
            gemms += (double)bare[role].ns / 1e3;
        status = mla_series_add(&times->layer[role], (double)layer[role].ns / 1e3);
        if (status == MLA_OK)
            status = mla_series_add(&times->bare[role], (double)bare[role].ns / 1e3);
    }
    double whole = (double)whole_ns / 1e3;
    const struct {
        struct mla_series *series;
        double value;
    } sums[] = {
        {&times->whole, whole},
        {&times->bare_gemms, gemms},
        {&times->bare_attention, attention},
        {&times->bare_all, gemms + attention},
        {&times->ratio, whole / (gemms + attention)},
    };
    for (size_t i = 0; status == MLA_OK && i < sizeof sums / sizeof *sums; i++)
        status = mla_series_add(sums[i].series, sums[i].value);
    return status;
}

void mla_layer_times_fini(struct mla_layer_times *times)
{
    for (int role = 0; role < MLA_ROLE_COUNT; role++) {
        mla_series_fini(&times->layer[role]);
        mla_series_fini(&times->bare[role]);
    }
    mla_series_fini(&times->whole);
    mla_series_fini(&times->bare_gemms);
    mla_series_fini(&times->bare_attention);
    mla_series_fini(&times->bare_all);
    mla_series_fini(&times->ratio);
}

static void print_head(const struct mla_layer_options *options, const struct mla_config *c)
{
    char cpu[CPU_NAME_BYTES];
    mla_bench_device_name(&options->device, cpu, sizeof cpu);
    printf("CPU: %s; threads: %" PRIu32 "; OpenBLAS: %s; backend: cpu\n", cpu,
           options->device.threads, openblas_get_corename());
    printf("%s: hidden %" PRIu32 ", %" PRIu32 " heads, q_lora %" PRIu32 ", latent %" PRIu32
           ", nope %" PRIu32 ", rope %" PRIu32 ", v %" PRIu32 "; KV %s; one rank\n",
           options->config, c->hidden, c->heads, c->q_lora, c->latent, c->nope, c->rope, c->v,
           mla_dtype_name(options->kv_dtype));
    puts("Each round runs the layer as it is, the layer timed by operation, and the bare products\n"
         "through OpenBLAS on the same matrices in the same order. The weights are the same in\n"
         "every round, as they are. Bare attention is q k^T and scores v, without softmax.");
}

static double median(struct mla_series *series, double *least)
{
    struct mla_summary summary;
    mla_series_summarize(series, &summary);
    *least = series->count ? series->values[0] : 0;
    return summary.median;
}

static void print_rate(double flops, double us)
{
    if (flops > 0 && us > 0)
        printf(" %8.1f", flops / us / 1e3);
    else
        printf(" %8s", "");
}

static void print_roles(struct mla_layer_times *times)
{
    printf("%-16s %5s %10s %8s %10s %8s %7s\n", "", "calls", "layer us", "GFLOP/s", "bare us",
           "GFLOP/s", "ratio");
    for (int role = 0; role < MLA_ROLE_COUNT; role++) {
        const struct mla_role_time *one = &times->one[role];
        double least;
        double layer = median(&times->layer[role], &least);
        double bare = median(&times->bare[role], &least);
        if (one->calls == 0)
            continue;
        printf("%-16s %5" PRIu32 " %10.1f", mla_role_name(role), one->calls, layer);
        print_rate(one->cost.flops, layer);
        if (one->cost.flops > 0) {
            printf(" %10.1f", bare);
            print_rate(one->cost.flops, bare);
            printf(" %7.2f", layer / bare);
        }
        putchar('\n');
    }
}

static void print_sum(const char *name, struct mla_series *series, int digits)
{
    double least;
    double middle = median(series, &least);
    printf("%-40s %12.*f %12.*f\n", name, digits, middle, digits, least);
}

static void print_half(const char *title, struct mla_layer_times *times)
{
    if (times->whole.count == 0)
        return;
    printf("\n%s; medians of %zu rounds\n", title, times->whole.count);
    print_roles(times);
    printf("%-40s %12s %12s\n", "", "median", "least");
    print_sum("whole layer, us", &times->whole, 1);
    print_sum("bare GEMMs, us", &times->bare_gemms, 1);
    print_sum("bare attention, us", &times->bare_attention, 1);
    print_sum("bare GEMMs and attention, us", &times->bare_all, 1);
    print_sum("whole layer / bare, of the same round", &times->ratio, 3);
}

static json_t *series_json(struct mla_series *series)
{
    double least;
    double middle = median(series, &least);
    return json_pack("{s:f, s:f}", "median", middle, "least", least);
}

static json_t *half_json(struct mla_layer_times *times)
{
    json_t *roles = json_object();
    for (int role = 0; role < MLA_ROLE_COUNT; role++) {
        const struct mla_role_time *one = &times->one[role];
        if (one->calls == 0)
            continue;
        json_t *json = json_pack("{s:i, s:f, s:o}", "calls", (int)one->calls, "flops",
                                 one->cost.flops, "layer_us", series_json(&times->layer[role]));
        if (one->cost.flops > 0)
            json_object_set_new(json, "bare_us", series_json(&times->bare[role]));
        if (json_object_set_new(roles, mla_role_name(role), json) != 0) {
            json_decref(roles);
            return NULL;
        }
    }
    return json_pack("{s:i, s:o, s:o, s:o, s:o, s:o, s:o}", "rounds", (int)times->whole.count,
                     "operations", roles, "layer_us", series_json(&times->whole), "bare_gemms_us",
                     series_json(&times->bare_gemms), "bare_attention_us",
                     series_json(&times->bare_attention), "bare_us", series_json(&times->bare_all),
                     "ratio", series_json(&times->ratio));
}

static json_t *report_json(const struct mla_layer_options *options, struct mla_layer_times *decode,
                           struct mla_layer_times *prefill)
{
    char cpu[CPU_NAME_BYTES];
    mla_bench_device_name(&options->device, cpu, sizeof cpu);
    return json_pack("{s:s, s:s, s:s, s:s, s:i, s:s, s:i, s:i, s:i, s:i, s:o, s:o}", "config",
                     options->config, "cpu", cpu, "openblas", openblas_get_corename(), "backend",
                     "cpu", "threads", (int)options->device.threads, "kv_dtype",
                     mla_dtype_name(options->kv_dtype), "decode_rows", (int)options->decode_rows,
                     "context", (int)options->context, "prefill_tokens",
                     (int)options->prefill_tokens, "prefill_context", (int)options->prefill_context,
                     "decode", half_json(decode), "prefill", half_json(prefill));
}

enum mla_status mla_layer_report(const struct mla_layer_options *options,
                                 const struct mla_config *config, struct mla_layer_times *decode,
                                 struct mla_layer_times *prefill)
{
    char title[128];
    print_head(options, config);
    snprintf(title, sizeof title, "Decode of %" PRIu32 " sequences, %" PRIu32 " tokens of context",
             options->decode_rows, options->context);
    print_half(title, decode);
    snprintf(title, sizeof title, "Prefill of %" PRIu32 " tokens after %" PRIu32 " cached ones",
             options->prefill_tokens, options->prefill_context);
    print_half(title, prefill);
    if (options->prefill_tokens)
        printf("Bare prefill attention is causal in tiles of %d queries: what lies above the "
               "diagonal's\ntiles is left out, the tiles on it are whole.\n",
               MLA_BARE_TILE_ROWS);
    if (!options->device.json)
        return MLA_OK;

    json_t *json = report_json(options, decode, prefill);
    if (!json) {
        fputs("mla-bench: out of memory\n", stderr);
        return MLA_MEMORY;
    }
    return mla_bench_write(options->device.json, json);
}
