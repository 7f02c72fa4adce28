"""A plan on devices: shares, what fits, and formulas."""

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tasks.lm.config import PRESETS
from tasks.planning.cluster import (
    Cluster,
    duration,
    fit,
    fits,
    memory,
    recommend,
    scaling,
    steps_shown,
)
from tasks.planning.plan import Plan
from tasks.planning.stand_ins import FLOAT32
from tasks.planning.starving import reading_plan
from tasks.planning.step import ATTENTION
from tasks.training.reading import Reading


@pytest.fixture(scope="module")
def found() -> Plan:
    return Plan(PRESETS["tiny"])


def test_ddp_holds_everything_and_fsdp_its_share(found: Plan) -> None:
    size = FLOAT32 * found.num_parameters
    whole = memory(found, Cluster(), "DDP", False, 4)
    share = memory(found, Cluster(), "FSDP", False, 4)
    assert (whole.weights, whole.exchange) == (size, size)
    assert share.weights == pytest.approx(size / 8, abs=1)
    assert share.optimizer == pytest.approx(found.optimizer_bytes / 8, abs=1)
    assert share.activations == whole.activations
    assert memory(found, Cluster(), "DDP", True, 4).activations < whole.activations


def test_the_largest_micro_batch_is_the_largest(found: Plan) -> None:
    cluster = Cluster(gpus=2, gpu_memory=0.01)
    way = fit(found, cluster, "DDP", False)
    totals = [memory(found, cluster, "DDP", False, way.largest + more).total for more in (0, 1)]
    assert totals[0] <= cluster.usable_bytes < totals[1]
    assert way.parts * way.memory.micro_batch == PRESETS["tiny"].train.batch_size // 2
    assert way.memory.micro_batch <= way.largest


def test_less_memory_is_met_in_order_of_cost(found: Plan) -> None:
    def way(gpu_memory: float) -> tuple[str, bool] | None:
        cluster = Cluster(gpu_memory=gpu_memory)
        chosen, text = recommend(found, cluster, fits(found, cluster))
        assert text.startswith("Does not fit" if chosen is None else "Fits")
        return chosen and (chosen.memory.parallel, chosen.memory.checkpoint)

    plenty = memory(found, Cluster(), "DDP", False, 1).total
    sharded = memory(found, Cluster(), "FSDP", False, 1).total
    again = memory(found, Cluster(), "FSDP", True, 1).total
    assert again < sharded < plenty
    scale = 1e9 * 0.9
    assert way(1.001 * plenty / scale) == ("DDP", False)
    assert way(1.001 * sharded / scale) == ("FSDP", False)
    assert way(1.001 * again / scale) == ("FSDP", True)
    assert way(0.9 * again / scale) is None


def test_what_the_run_is_told_is_what_is_planned() -> None:
    told = PRESETS["tiny"].adapted(accumulate=4, checkpoint_activations=True)
    given, cluster = Plan(told), Cluster(gpus=2)
    ways = fits(given, cluster)
    assert [(way.memory.checkpoint, way.parts, way.memory.micro_batch) for way in ways] == [
        (True, 4, 2)
    ] * 2
    chosen, text = recommend(given, cluster, ways)
    assert chosen is ways[0]
    assert "4 micro-batches of 2 sequences per GPU" in text
    assert "`train` does so with `--accumulate 4 --checkpoint-activations`." in text
    with pytest.raises(
        ValueError, match="`accumulate` = 4 does not divide the 2 rows of each of 8"
    ):
        fits(given, Cluster(gpus=8))
    _, text = recommend(given, Cluster(gpus=2, gpu_memory=1e-3), fits(given, dataclasses.replace(
        cluster, gpu_memory=1e-3)))  # fmt: skip
    assert "2 sequences at a time take" in text
    assert "raise `--accumulate`" in text


def test_micro_batches_cost_fsdp_whole_gradients_and_more_gathering(found: Plan) -> None:
    size = FLOAT32 * found.num_parameters
    whole, part = (memory(found, Cluster(gpus=2), "FSDP", False, rows) for rows in (8, 4))
    assert part.exchange - whole.exchange == size
    assert part.slots == whole.slots == 8 * found.slot_bytes
    told = Plan(PRESETS["tiny"].adapted(accumulate=2))
    rows = scaling(told, Cluster(), 4, [2])
    assert rows[0]["fsdp_bytes"] == 5 / 2 * size


def test_time_and_cost_follow_from_operations(found: Plan) -> None:
    cluster = Cluster(gpus=4, utilisation=0.5, peak_tflops=1e-3, price=3.0)
    row = duration(found, cluster, 2, 10**9, False)
    speed = 4 * 0.5 * 1e9 / (found.flops(2) / PRESETS["tiny"].data.context)
    assert row["tokens_per_second"] == round(speed)
    assert row["days"] == pytest.approx(1e9 / speed / 86_400)
    assert row["cost"] == pytest.approx(row["days"] * 24 * 4 * 3.0)
    assert steps_shown(found) == [1, 2, 4, 8, 16, 32, 64]
    assert duration(found, cluster, 2, None, False)["days"] is None


@pytest.mark.parametrize("own_rows", [True, False])
def test_reading_takes_its_own_time(found: Plan, own_rows: bool) -> None:
    cluster = Cluster(gpus=4, utilisation=0.5, peak_tflops=1e-3)
    at_once = duration(found, cluster, 2, 10**9, False)
    reading = Reading("read", 1000.0, own_rows)
    row = duration(found, cluster, 2, 10**9, False, reading)
    seconds = 1e9 / 1000 / (4 if own_rows else 1)
    assert row["days"] == pytest.approx(at_once["days"] + seconds / 86_400, rel=1e-4)
    speed = at_once["tokens_per_second"]
    plan = reading_plan(reading, speed, 4)
    assert plan["wanted_per_core_second"] == round(speed / 4 if own_rows else speed)
    assert plan["times_the_need"] == pytest.approx(1000 / plan["wanted_per_core_second"], rel=1e-2)
    assert plan["share_of_time"] == pytest.approx(1 - at_once["days"] / row["days"], rel=1e-2)
    fast = reading_plan(Reading("read", 1e12, own_rows), speed, 4)
    assert "wait for data" in plan["advice"]
    assert "wait for data" not in fast["advice"]


def test_an_update_costs_one_forward_pass_of_the_refiner(found: Plan) -> None:
    config = PRESETS["tiny"]
    refiner = config.build().get_submodule("attractor.refiner.module")
    y = torch.zeros(1, config.data.context, config.model.width)
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        refiner(y, y)
    assert found.flops(9) - found.flops(4) == 5 * counter.get_total_flops()
    assert found.flops(4, checkpoint=True) > found.flops(4)


def test_volumes_are_those_of_the_ring_whatever_the_solver(found: Plan) -> None:
    size = FLOAT32 * found.num_parameters
    few, many = (scaling(found, Cluster(), steps, [1, 8, 64]) for steps in (1, 16))
    assert [row["ddp_bytes"] for row in few] == [0, 2 * 7 / 8 * size, 2 * 63 / 64 * size]
    assert [row["fsdp_bytes"] for row in few] == [1.5 * row["ddp_bytes"] for row in few]
    assert [row["ddp_bytes"] for row in few] == [row["ddp_bytes"] for row in many]
    assert many[1]["ddp_share"] < few[1]["ddp_share"]
    assert [row["batch"] for row in few] == [16, 16, 64]


def test_a_loop_is_as_long_as_the_longest_of_the_batch() -> None:
    alone = PRESETS["tiny"].adapted(model="parcae", loops=8, batch_size=1)
    assert alone.train_steps == 8
    assert 12 <= alone.changed(batch_size=64).train_steps <= 16
    assert alone.changed(loops=1).train_steps == 1
