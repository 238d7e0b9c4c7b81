/* Memory that clients and ranks share. It is there until the end of the run: who has it, keeps it.
 */
#include "tests/sim/sim.h"

#include <stdlib.h>
#include <string.h>

enum mla_status region_make(struct sim *sim, uint64_t number, uint64_t bytes, struct mla_grant *out)
{
    if (sim->region_count == SIM_REGIONS_MAX || random_chance(&sim->random, 50))
        return MLA_SYSTEM;
    struct sim_region *region = &sim->regions[sim->region_count++];
    *region = (struct sim_region){.number = number, .bytes = bytes, .granted = true};
    region->data = calloc(1, bytes);
    if (!region->data)
        sim_fail(sim, "no memory for a region");
    *out = (struct mla_grant){.region = number, .bytes = bytes, .path_bytes = 2, .path = "/x"};
    return MLA_OK;
}

/* The newest of this number: they begin again with every coordinator. */
struct sim_region *region_find(struct sim *sim, uint64_t number)
{
    for (uint32_t i = sim->region_count; i-- > 0;)
        if (sim->regions[i].number == number)
            return &sim->regions[i];
    return NULL;
}

void region_end(struct sim *sim, uint64_t number)
{
    struct sim_region *region = region_find(sim, number);
    if (!region || !region->granted)
        sim_fail(sim, "region %llu is removed and is not there", (unsigned long long)number);
    region->granted = false;
}

void regions_free(struct sim *sim)
{
    for (uint32_t i = 0; i < sim->region_count; i++) {
        if (sim->regions[i].granted)
            sim_fail(sim, "region %llu is left", (unsigned long long)sim->regions[i].number);
        free(sim->regions[i].data);
    }
}

static int place_of(const struct sim_rank *rank, uint64_t number)
{
    for (int i = 0; i < SIM_MAPPED_MAX; i++)
        if (rank->mapped[i] && rank->mapped[i]->number == number)
            return i;
    return -1;
}

bool rank_attach(struct sim *sim, struct sim_rank *rank, uint64_t number)
{
    struct sim_region *region = region_find(sim, number);
    if (!region || place_of(rank, number) >= 0)
        sim_fail(sim, "a rank is to map region %llu", (unsigned long long)number);
    if (!region->granted || random_chance(&sim->random, 30))
        return false;
    for (int i = 0; i < SIM_MAPPED_MAX; i++)
        if (!rank->mapped[i]) {
            rank->mapped[i] = region;
            return true;
        }
    sim_fail(sim, "more regions than clients");
}

void rank_detach(struct sim *sim, struct sim_rank *rank, uint64_t number)
{
    int at = place_of(rank, number);
    for (const struct packet *packet = rank->inbox; packet; packet = packet->next) {
        static struct mla_worker_message later;
        if (mla_worker_message_decode(packet->head, packet->head_bytes, &later) == MLA_OK &&
            later.header.type == MLA_WORK && later.u.work.region == number)
            sim_fail(sim, "WORK in region %llu after its end", (unsigned long long)number);
    }
    if (at >= 0)
        rank->mapped[at] = NULL;
}

/* The element of row `row` of the microbatch in a payload that begins at `at`. */
static uint8_t *row_at(struct sim *sim, const struct sim_rank *rank, const struct mla_work *work,
                       uint32_t row, uint64_t at, size_t row_bytes)
{
    const struct sim_slot *slot = &rank->slots[work->slot];
    int mapped = place_of(rank, work->region);
    if (mapped < 0)
        sim_fail(sim, "WORK in region %llu, which the rank does not have",
                 (unsigned long long)work->region);
    struct sim_region *region = rank->mapped[mapped];
    uint32_t run = 0;
    for (uint32_t m = 0; m < work->microbatch; m++)
        for (uint32_t rows = 0; rows < slot->microbatches[m].rows; run++)
            rows += slot->runs[run].count;
    while (row >= slot->runs[run].microbatch_row + slot->runs[run].count)
        run++;
    uint64_t client_row = slot->runs[run].client_row + row - slot->runs[run].microbatch_row;
    if (at + (client_row + 1) * row_bytes > region->bytes)
        sim_fail(sim, "WORK beyond its region");
    return region->data + at + client_row * row_bytes;
}

void rank_read(struct sim *sim, const struct sim_rank *rank, const struct mla_work *work,
               uint32_t first, uint64_t *x)
{
    size_t bytes = SIM_HIDDEN * mla_dtype_bytes((enum mla_dtype)work->dtype);
    for (uint32_t i = 0; i < work->rows; i++)
        memcpy(&x[i], row_at(sim, rank, work, first + i, work->input_at, bytes), sizeof *x);
}

void rank_write(struct sim *sim, const struct sim_rank *rank, const struct mla_work *work,
                uint32_t first, const uint64_t *out, uint64_t epoch)
{
    size_t bytes = SIM_HIDDEN * mla_dtype_bytes((enum mla_dtype)work->reply_dtype);
    for (uint32_t i = 0; i < work->rows; i++) {
        uint8_t *row = row_at(sim, rank, work, first + i, work->output_at, bytes);
        memcpy(row, &out[i], sizeof *out);
        if (work->reply_dtype == MLA_F32)
            memcpy(row + sizeof *out, &epoch, sizeof epoch);
    }
}
