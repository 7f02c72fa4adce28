"""Batches of prepared tokens: order, rows of several processes, and going on exactly."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from token_folders import GENERATOR, load, run_on_text

from tasks.checkpoints.checkpoint import Checkpoint
from tasks.experiments.run import train
from tasks.lm.config import LanguageConfig
from tasks.lm.experiment import TextExperiment
from tasks.lm.prepare import prepare
from tasks.lm.shard_batches import Order, ShardedBatches
from tasks.lm.shards import MANIFEST
from tasks.training.task import SourceLost


@pytest.fixture
def source(tmp_path: Path) -> LanguageConfig:
    """A small run on the text itself."""
    return run_on_text(tmp_path / "text")


@pytest.fixture
def folder(tmp_path: Path, source: LanguageConfig) -> Path:
    """The tokens in several files."""
    prepare(tmp_path / "tokens", source, shard_tokens=5000)
    return tmp_path / "tokens"


@pytest.fixture
def config(folder: Path, source: LanguageConfig) -> LanguageConfig:
    """The same run on the prepared tokens."""
    return source.changed(shards=folder)


def of_pass(batches: ShardedBatches, number: int) -> list[int]:
    """The row of tokens of a pass, document by document."""
    store, count = batches.store, batches.order.count
    documents = batches.order(np.arange(number * count, (number + 1) * count))
    return store.read(documents, 0, store.num_tokens).tolist()


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 16, 17, 100, 1000])
def test_the_order_of_each_pass_is_another_permutation(count: int) -> None:
    order = Order(count, seed=3)
    places = np.arange(4 * count)
    passes = [order(places)[n * count : (n + 1) * count] for n in range(4)]
    for found in passes:
        assert sorted(found.tolist()) == list(range(count))
    assert order(places[::-1]).tolist() == np.concatenate(passes)[::-1].tolist()
    if count >= 16:
        others = [order(places), Order(count, seed=4)(places)]
        assert len({tuple(found) for found in (*passes, others[1][:count])}) == 5


def test_the_order_stays_that_of_earlier_versions() -> None:
    """Otherwise runs could not go on after an update."""
    assert Order(10, seed=0)(np.arange(20)).tolist() == [
        9, 6, 4, 2, 7, 5, 0, 3, 1, 8, 9, 3, 2, 7, 4, 6, 1, 5, 8, 0
    ]  # fmt: skip


def test_the_order_is_far_from_the_files_order() -> None:
    """Neighbours in the order lie a third of the files apart, as in a uniform permutation."""
    found = Order(10_000, seed=0)(np.arange(10_000))
    assert np.abs(np.diff(found)).mean() == pytest.approx(10_000 / 3, rel=0.03)
    assert abs(np.corrcoef(found, np.arange(10_000))[0, 1]) < 0.03


def test_every_token_is_predicted_once_in_each_pass(
    config: LanguageConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    batches = load(config)
    row = of_pass(batches, 0) + of_pass(batches, 1)
    assert sorted(row[: len(row) // 2]) == sorted(row[len(row) // 2 :])
    found: list[int] = []
    for size in (1, 7, 30, 2, 400, 100):
        x, target = batches.batch(size, GENERATOR, 0.0)
        assert x.shape == target.shape == (size, 16)
        assert x.flatten().tolist() == row[len(found) : len(found) + 16 * size]
        found += target.flatten().tolist()
    assert found == row[1 : 1 + len(found)]
    while len(found) < len(row) // 2:
        found += batches.batch(100, GENERATOR, 0.0)[1].flatten().tolist()
    assert f"All {batches.order.count} documents are read" in capsys.readouterr().out


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_read_their_rows_of_the_same_batch(
    config: LanguageConfig, processes: int
) -> None:
    whole, each = load(config), [load(config) for _ in range(processes)]
    for _ in range(5):
        x, target = whole.batch(8, GENERATOR, 0.0)
        rows = torch.arange(8).chunk(processes)
        parts = [one.share(mine, 8, GENERATOR, 0.0) for one, mine in zip(each, rows, strict=True)]
        assert torch.equal(torch.cat([part[0] for part in parts]), x)
        assert torch.equal(torch.cat([part[1] for part in parts]), target)
        assert all(one.state_dict() == whole.state_dict() for one in each)


def test_any_rows_can_be_read(config: LanguageConfig) -> None:
    one, other = load(config), load(config)
    x, target = one.batch(8, GENERATOR, 0.0)
    rows = torch.tensor([0, 1, 4, 7])
    found = other.share(rows, 8, GENERATOR, 0.0)
    assert torch.equal(found[0], x[rows])
    assert torch.equal(found[1], target[rows])
    assert other.share(rows[:0], 8, GENERATOR, 0.0)[0].shape == (0, 16)
    assert other.state_dict() == load_after(one, 8).state_dict()


def load_after(batches: ShardedBatches, rows: int) -> ShardedBatches:
    batches.batch(rows, GENERATOR, 0.0)
    return batches


def test_batches_go_on_exactly_from_any_position(config: LanguageConfig) -> None:
    batches = load(config)
    number = 2 * batches.store.num_tokens // (16 * 33)
    positions, given = [], []
    for _ in range(number):
        positions.append(json.dumps(batches.state_dict()))
        given.append(batches.batch(33, GENERATOR, 0.0))
    assert json.loads(positions[-1])["pass"] == 1
    for at, position in enumerate(positions):
        other = load(config)
        other.load_state_dict(json.loads(position))
        assert torch.equal(torch.stack(other.batch(33, GENERATOR, 0.0)), torch.stack(given[at]))
        if at + 1 < number:
            assert json.dumps(other.state_dict()) == positions[at + 1]


@pytest.mark.parametrize("state", [
    None, {}, {"pass": 0, "document": 0}, {"pass": 0, "document": 10**6, "offset": 0},
    {"pass": 0, "document": 0, "offset": 10**6}, {"pass": -1, "document": 0, "offset": 0},
    {"pass": 2**60, "document": 0, "offset": 0}, {"pass": True, "document": 0, "offset": 0},
    {"pass": 0, "document": "x" * 10_000, "offset": 0},
])  # fmt: skip
def test_a_position_of_other_data_is_refused(config: LanguageConfig, state: Any) -> None:
    with pytest.raises(
        ValueError, match=r"^the position .{0,100} (in the data is none|lies behind)"
    ):
        load(config).load_state_dict(state)


def test_a_run_resumes_to_the_same_weights(config: LanguageConfig, tmp_path: Path) -> None:
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    whole, _, _ = train(TextExperiment(), "tiny", config, tmp_path / "whole")

    class Breaking(TextExperiment):
        def load(self, *arguments: Any, **options: Any) -> Any:
            data = super().load(*arguments, **options)
            data.batches.store.read = self._broken(data.batches)
            return data

        def _broken(self, batches: Any) -> Any:
            read, left = batches.store.read, [5]

            def broken(*arguments: Any) -> Any:
                left[0] -= 1
                if left[0] < 0:
                    raise SourceLost("The disk is gone.")
                return read(*arguments)

            return broken

    with pytest.raises(SourceLost, match="go on with `train --resume"):
        train(Breaking(), "tiny", config, tmp_path / "parts")
    kept = Checkpoint.load(tmp_path / "parts" / "checkpoint.safetensors")
    assert kept.meta["step"] == 5
    parts, _, _ = train(TextExperiment(), "tiny", config, tmp_path / "parts", kept)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(parts.model.state_dict()[name], value), name
    assert parts.task.state_dict() == whole.task.state_dict()
    assert set(kept.meta["data"]) == {"shards"}
    changed = json.loads((config.data.shards / MANIFEST).read_text()) | {"source": "another"}
    (config.data.shards / MANIFEST).write_text(json.dumps(changed))
    with pytest.raises(ValueError, match=r"^`shards` = .* changed since this run began"):
        train(TextExperiment(), "tiny", config, tmp_path / "parts", kept)
