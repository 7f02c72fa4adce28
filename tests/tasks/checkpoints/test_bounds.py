"""A file's configuration, weights and other content are compared before they cost anything."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tasks.checkpoints import sharded
from tasks.checkpoints.checkpoint import bounded_by, load_weights
from tasks.checkpoints.file import CheckpointError
from tasks.lm.config import LanguageConfig
from tasks.sudoku.config import SudokuConfig
from tests.support.hostile_files import CONFIGS, configurations, good, loader, write, wrong_answer

CONFIG = CONFIGS["sudoku"]


@pytest.mark.parametrize("name", CONFIGS)
def test_good_files_are_read(name: str, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    good(name).save(path)
    loader(name)(path)


def test_hostile_configurations_give_one_kind_of_error(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    tried = 0
    for name, label, checkpoint in configurations(every=97):
        checkpoint.save(path)
        assert wrong_answer(loader(name), path) is None, label
        tried += 1
    assert tried > 50


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="the unit of the peak is that of Linux")
def test_refusing_a_file_takes_less_than_300_mb(tmp_path: Path) -> None:
    """Thousands of files of at most 1 MB, in a process of their own, whose peak is measured."""
    write(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.hostile_files", str(tmp_path)],
        cwd=Path(__file__).parents[3], env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=True, timeout=1800,
    )  # fmt: skip
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["files"] > 5000
    assert found["wrong"] == {}
    assert found["grown_mb"] <= 300, found["by"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"refiner_blocks": 500}, r"here .*more than the \d+ weight tensors in the file"),
        ({"refiner_blocks": 10**6}, r"`refiner_blocks` = 1,000,000"),
        ({"width": 1500}, r"here .*tensor of [\d,]+ numbers, of which the file has [\d,]+\)"),
    ],
)
def test_a_model_larger_than_its_file_is_not_built(options: dict[str, int], message: str) -> None:
    weights, config = CONFIG.build().state_dict(), CONFIG.changed(**options)
    with pytest.raises(CheckpointError, match=message), bounded_by(weights, config, "here"):
        config.build()


def test_what_fits_is_built_as_ever() -> None:
    torch.manual_seed(0)
    plain = CONFIG.build().state_dict()
    torch.manual_seed(0)
    with bounded_by(plain, CONFIG, "here"):
        bounded = CONFIG.build()
    assert all(torch.equal(bounded.state_dict()[name], value) for name, value in plain.items())


def test_a_real_number_that_is_whole_is_no_size() -> None:
    config = LanguageConfig.of(vocabulary=257, width=8, backbone_blocks=0, rope_base=50_000)
    with bounded_by(config.build().state_dict(), config, "here"):
        config.build()


def test_weights_that_do_not_fit_are_named() -> None:
    model = SudokuConfig.of(side=4, min_clues=4, max_clues=6, width=8).build()
    weights = dict(model.state_dict())
    name = next(iter(weights))
    weights["evil"], weights[name] = torch.zeros(1), weights[name].double()
    del weights["head.0.bias"]
    with pytest.raises(CheckpointError) as caught:
        load_weights(model, weights, Path("here"))
    text = str(caught.value)
    assert "missing: head.0.bias" in text
    assert "not of this model: evil" in text
    assert f"{name} ((3, 8) float64 in the file, (3, 8) float32 in the model)" in text


SHARDS: dict[str, object] = {
    "far behind the end": {"a": {"saved_offsets": [10**10]}},
    "not from the first column": {"a": {"saved_offsets": [0, 3]}},
    "negative": {"a": {"saved_offsets": [-2, 0]}},
    "no numbers": {"a": {"saved_offsets": ["evil", 0]}},
    "of another tensor": {"b": {"saved_offsets": [0, 0]}},
}


@pytest.mark.parametrize("offsets", SHARDS.values(), ids=SHARDS)
def test_shards_that_do_not_make_up_a_tensor(offsets: object, tmp_path: Path) -> None:
    name = "shard-00001-model-00001-of-00001.safetensors"
    info = {"DCP_SHARDING_INFO": json.dumps(offsets)}
    save_file({"a": torch.zeros(2, 2)}, tmp_path / name, info)
    sharded.write_manifest(tmp_path, {"step": 1}, {name: sharded.checksum(tmp_path / name)})
    with pytest.raises(CheckpointError, match="is not a readable checkpoint"):
        sharded.read(tmp_path)


def test_a_shard_that_is_there_twice(tmp_path: Path) -> None:
    names = [f"shard-0000{i}-model-00001-of-00001.safetensors" for i in (1, 2)]
    info = {"DCP_SHARDING_INFO": json.dumps({"a": {"saved_offsets": [0, 0]}})}
    for name in names:
        save_file({"a": torch.zeros(2, 2)}, tmp_path / name, info)
    sums = {name: sharded.checksum(tmp_path / name) for name in names}
    sharded.write_manifest(tmp_path, {"step": 1}, sums)
    with pytest.raises(CheckpointError, match="shards of a do not make up one tensor"):
        sharded.read(tmp_path)
