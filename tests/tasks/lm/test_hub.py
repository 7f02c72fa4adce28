"""Folders in the form of the Hugging Face Hub: exactly the model that was saved, or an error."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("huggingface_hub")

from tasks.checkpoints.file import CheckpointError
from tasks.lm.hub import PretrainedLM
from tests.support.hostile_files import CONFIGS, folders, good, wrong_answer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A good one."""
    PretrainedLM(CONFIGS["lm"].to_json(), "").save_pretrained(tmp_path)
    return tmp_path


def test_what_was_saved_is_read_and_saved_again(folder: Path, tmp_path: Path) -> None:
    model = PretrainedLM.from_pretrained(folder)
    model.save_pretrained(tmp_path / "again")
    again = PretrainedLM.from_pretrained(str(tmp_path / "again"))
    ids = torch.arange(8)[None]
    assert torch.equal(model(ids).logits, again(ids).logits)
    assert not again.training


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("model.vocabulary.embedding.weight"), "missing: model.vocab"),
        (lambda weights: weights.update(evil=torch.zeros(2)), "not of this model: evil"),
        (
            lambda weights: weights.update({n: w.half() for n, w in weights.items()}),
            "of another shape or type: .*float16 in the file, .*float32 in the model",
        ),
    ],
)
def test_missing_and_foreign_weights_are_named(folder: Path, change: Any, message: str) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        PretrainedLM.from_pretrained(folder)


def test_broken_folders_give_one_kind_of_error(tmp_path: Path) -> None:
    for label, load in folders(tmp_path / "folder"):
        assert wrong_answer(load, tmp_path / "folder") is None, label


def test_the_configuration_of_another_architecture(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_layer": 10**9}))
    with pytest.raises(CheckpointError, match=r"config\.json is not the configuration of a lang"):
        PretrainedLM.from_pretrained(folder)


def test_a_checkpoint_of_another_task(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    good("sudoku").save(path)
    with pytest.raises(CheckpointError, match="was trained on 'sudoku', not on 'lm'"):
        PretrainedLM.of_checkpoint(path)
