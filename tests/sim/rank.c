/* What a rank does: follows plans, keeps a cache, computes its rows. */
#include "tests/sim/sim.h"

#include <string.h>

void rank_plan(struct sim *sim, struct sim_rank *rank, const struct mla_plan_message *plan)
{
    if (plan->slot >= sim->core_options.steps_open_max || plan->microbatch_count > SIM_ROWS_MAX ||
        plan->entry_count > SIM_ROWS_MAX || plan->run_count > SIM_ROWS_MAX)
        sim_fail(sim, "a plan beyond its limits");
    struct sim_slot *slot = &rank->slots[plan->slot];
    slot->step = plan->step;
    slot->microbatch_count = plan->microbatch_count;
    slot->entry_count = plan->entry_count;
    slot->run_count = plan->run_count;
    for (uint32_t i = 0; i < plan->microbatch_count; i++)
        slot->microbatches[i] = mla_plan_microbatch_at(plan, i);
    for (uint32_t i = 0; i < plan->entry_count; i++)
        slot->entries[i] = mla_plan_entry_at(plan, i);
    for (uint32_t i = 0; i < plan->run_count; i++)
        slot->runs[i] = mla_plan_run_at(plan, i);
    uint32_t block = 0;
    for (uint32_t i = 0; i < plan->table_count; i++) {
        struct mla_plan_table table = mla_plan_table_at(plan, i);
        if (table.table >= SIM_SEQUENCES_MAX || table.first + table.count > SIM_BLOCKS_A_SEQUENCE)
            sim_fail(sim, "a plan names places beyond a block table");
        for (uint32_t k = 0; k < table.count; k++)
            rank->tables[table.table][table.first + k] = mla_plan_block_at(plan, block++);
    }
    for (uint32_t i = 0; i < plan->copy_count; i++) {
        struct mla_plan_copy copy = mla_plan_copy_at(plan, i);
        for (uint32_t layer = 0; layer < SIM_LAYERS; layer++)
            memcpy(rank->kv[layer][copy.dst], rank->kv[layer][copy.src],
                   sizeof rank->kv[layer][copy.dst]);
    }
}

static uint64_t *kv_at(struct sim *sim, struct sim_rank *rank, uint32_t layer, uint32_t table,
                       uint32_t position)
{
    uint32_t block = rank->tables[table][position / MLA_BLOCK_TOKENS];
    if (block >= rank->blocks)
        sim_fail(sim, "position %u of table %u has no block", position, table);
    return &rank->kv[layer][block][position % MLA_BLOCK_TOKENS];
}

void rank_compute(struct sim *sim, struct sim_rank *rank, const struct mla_work *work,
                  const uint64_t *x, uint64_t *out)
{
    const struct sim_slot *slot = &rank->slots[work->slot];
    const struct mla_plan_microbatch *microbatch = &slot->microbatches[work->microbatch];
    uint32_t layer = work->layer - 3;
    for (int writes = 1; writes >= 0; writes--) {
        uint32_t row = 0;
        for (uint32_t i = 0; i < microbatch->entry_count; i++) {
            const struct mla_plan_entry *entry = &slot->entries[microbatch->entry_first + i];
            uint32_t end = entry->start + entry->tokens;
            uint64_t context = layer_begin(layer);
            for (uint32_t p = writes ? entry->start : 0; p < end; p++) {
                uint64_t *kv = kv_at(sim, rank, layer, entry->table, p);
                if (writes)
                    *kv = layer_kv(layer, x[row + p - entry->start], p);
                context = layer_attend(context, *kv);
                if (!writes && p >= entry->start)
                    out[row + p - entry->start] = layer_out(context, x[row + p - entry->start]);
            }
            row += entry->tokens;
        }
    }
}

void rank_check_work(struct sim *sim, const struct sim_rank *rank, const struct mla_work *work,
                     uint32_t ranks, uint32_t r, uint32_t *first)
{
    const struct sim_slot *slot = &rank->slots[work->slot];
    if (slot->step != work->step || work->microbatch >= slot->microbatch_count)
        sim_fail(sim, "a WORK of a step that is not in its slot");
    const struct mla_plan_microbatch *microbatch = &slot->microbatches[work->microbatch];
    uint32_t share = microbatch->padded / ranks;
    *first = share * r;
    uint32_t rows = microbatch->rows > *first ? microbatch->rows - *first : 0;
    if (work->rows != (rows < share ? rows : share) || microbatch->rows > SIM_ROWS_MAX)
        sim_fail(sim, "rank %u got %u rows of %u", r, work->rows, microbatch->rows);
}
