/* Which decode microbatches are replayed, and that a replay is right for every plan. The graphs
 * are a recording backend's; tests/conformance/test_layer_cuda.c does the same on a GPU. */
#include "tests/lib/layer_world.h"
#include "tests/lib/recording_backend.h"

#include <criterion/criterion.h>

static const struct model model = {"small", 48, 4, 24, 32, 16, 8, 12, true, true, PLAIN};

static struct mla_recording recording;

static void begin(void)
{
    struct mla_backend *inner = NULL;
    cr_assert_eq(mla_backend_cpu_create(1, &inner), MLA_OK);
    mla_recording_init(&recording, inner);
    recording.base.unified = false; /* so that there are turns to take */
    world_begin(&model, &recording.base, MLA_F32, 64, 2e-6);
}

/* Fills sequences 0 and 1, eagerly: it is prefill. */
static void prefill(void)
{
    plan_microbatch(&world_plan, MLA_PREFILL);
    plan_entry(&world_plan, 0, 0, 70);
    plan_entry(&world_plan, 1, 0, 30);
    world_run_step("prefill");
    cr_assert_eq(recording.captured, 0);
}

Test(graphs, every_way_through_the_layer)
{
    begin();
    world_check_all();
    cr_expect_gt(recording.captured, 0);
    cr_expect_gt(recording.replayed, 0);
    uint32_t captured = recording.captured;
    world_end();
    cr_expect_eq(recording.destroyed, captured);
}

/* As a worker starts: all are there before the first step, and no step captures more. */
Test(graphs, captured_at_the_start)
{
    begin();
    world_capture();
    cr_expect_eq(recording.captured, 12, "two layers, three buckets, two turns");
    world_check_all();
    cr_expect_eq(recording.captured, 12);
    cr_expect_gt(recording.replayed, 0);
    world_end();
    cr_expect_eq(recording.destroyed, 12);
}

/* The second of a turn's two runs replays what the first captured; the next step's both do. */
Test(graphs, captured_once)
{
    begin();
    prefill();
    for (uint32_t i = 0; i < 3; i++) {
        plan_microbatch(&world_plan, MLA_DECODE);
        plan_entry(&world_plan, 0, 70 + i, 1);
        plan_pad(&world_plan, 4);
        world_run_step("decode");
        cr_expect_eq(recording.captured, 4, "one for each layer and turn");
        cr_expect_eq(recording.replayed, 4 + 8 * i);
    }
    world_end();
}

Test(graphs, no_bucket_no_graph)
{
    begin();
    prefill();
    plan_microbatch(&world_plan, MLA_DECODE);
    plan_entry(&world_plan, 0, 70, 1);
    plan_pad(&world_plan, 5);
    world_run_step("decode");
    cr_expect_eq(recording.captured, 0);
    world_end();
}

Test(graphs, two_open_steps_take_turns)
{
    begin();
    world_check_pair();
    cr_expect_eq(recording.captured, 4);
    world_end();
}

Test(graphs, refused_captures_run_eagerly)
{
    begin();
    recording.refuse = true;
    world_check_all();
    cr_expect_eq(recording.replayed, 0);
    cr_expect_eq(world_graphs.mode, MLA_GRAPHS_OFF);
    world_end();
}
