#include "tests/bench/run_parts.h"

static const struct {
    const char *name, *key;
} names[MLA_PART_COUNT] = {
    [MLA_PART_TO_COORDINATOR] = {"client to coordinator", "to_coordinator_us"},
    [MLA_PART_QUEUED] = {"queued in the coordinator", "queued_us"},
    [MLA_PART_WIRE] = {"to the workers and back", "wire_us"},
    [MLA_PART_COMPUTE] = {"compute", "compute_us"},
    [MLA_PART_COLLECTIVES] = {"collectives", "collectives_us"},
    [MLA_PART_GATHER] = {"gather", "gather_us"},
    [MLA_PART_TO_CLIENT] = {"coordinator to client", "to_client_us"},
    [MLA_PART_TOTAL] = {"total", "total_us"},
    [MLA_PART_NOT_COMPUTE] = {"not compute", "not_compute_us"},
};

enum mla_status mla_run_parts_add(struct mla_run_parts *parts, uint64_t sent_ns,
                                  uint64_t returned_ns, const struct mla_run_times *times)
{
    double total = (double)(returned_ns - sent_ns);
    double held = (double)(times->replied_ns - times->received_ns);
    double told =
        (double)times->queued_ns + times->compute_ns + times->collective_ns + times->gathered_ns;
    const double spans_ns[MLA_PART_COUNT] = {
        [MLA_PART_TO_COORDINATOR] = (double)times->received_ns - (double)sent_ns,
        [MLA_PART_QUEUED] = times->queued_ns,
        [MLA_PART_WIRE] = held - told,
        [MLA_PART_COMPUTE] = times->compute_ns,
        [MLA_PART_COLLECTIVES] = times->collective_ns,
        [MLA_PART_GATHER] = times->gathered_ns,
        [MLA_PART_TO_CLIENT] = (double)returned_ns - (double)times->replied_ns,
        [MLA_PART_TOTAL] = total,
        [MLA_PART_NOT_COMPUTE] = total - times->compute_ns,
    };
    if (times->received_ns < sent_ns || times->replied_ns > returned_ns)
        parts->clocks_differ = true;
    for (int i = 0; i < MLA_PART_COUNT; i++) {
        enum mla_status status = mla_series_add(&parts->parts[i], spans_ns[i] / 1e3);
        if (status != MLA_OK)
            return status;
    }
    return MLA_OK;
}

enum mla_status mla_run_parts_append(struct mla_run_parts *parts, const struct mla_run_parts *from)
{
    enum mla_status status = MLA_OK;
    parts->clocks_differ |= from->clocks_differ;
    for (int i = 0; i < MLA_PART_COUNT && status == MLA_OK; i++)
        status = mla_series_append(&parts->parts[i], &from->parts[i]);
    return status;
}

void mla_run_parts_fini(struct mla_run_parts *parts)
{
    for (int i = 0; i < MLA_PART_COUNT; i++)
        mla_series_fini(&parts->parts[i]);
}

void mla_run_parts_print(struct mla_run_parts *parts, const char *title, FILE *out)
{
    if (parts->parts[MLA_PART_TOTAL].count == 0)
        return;
    fprintf(out, "\n%s (%zu), microseconds\n", title, parts->parts[MLA_PART_TOTAL].count);
    fprintf(out, "%-28s %12s %12s\n", "", "median", "P99");
    for (int i = 0; i < MLA_PART_COUNT; i++) {
        struct mla_summary summary;
        mla_series_summarize(&parts->parts[i], &summary);
        fprintf(out, "%-28s %12.1f %12.1f\n", names[i].name, summary.median, summary.p99);
    }
    if (parts->clocks_differ)
        fputs("The coordinator's clock is not this host's: the parts from the client and back to "
              "it are wrong, their sum is right.\n",
              out);
}

json_t *mla_run_parts_json(struct mla_run_parts *parts)
{
    json_t *json = json_pack("{s:I}", "runs", (json_int_t)parts->parts[MLA_PART_TOTAL].count);
    for (int i = 0; json && i < MLA_PART_COUNT; i++) {
        struct mla_summary summary;
        mla_series_summarize(&parts->parts[i], &summary);
        if (json_object_set_new(
                json, names[i].key,
                json_pack("{s:f, s:f}", "median", summary.median, "p99", summary.p99)) != 0) {
            json_decref(json);
            json = NULL;
        }
    }
    return json;
}
