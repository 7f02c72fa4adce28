"""Checkpoints: exact, atomic, and clear about files that are none."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tasks.checkpoints.checkpoint import (
    Checkpoint,
    load_weights,
    optimizer_tensors,
    restore_optimizer,
)
from tasks.checkpoints.file import CheckpointError, NewerFormat
from tasks.maze.config import PRESETS as MAZES
from tasks.sudoku.config import PRESETS as SUDOKUS


def test_round_trip_is_exact(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    tensors = {"model": {"a.b": torch.randn(3)}, "random": {"data": torch.arange(4)}}
    Checkpoint(tensors, {"step": 3, "history": [{"loss": 0.5}]}).save(path)
    loaded = Checkpoint.load(path)
    assert torch.equal(loaded.tensors["model"]["a.b"], tensors["model"]["a.b"])
    assert torch.equal(loaded.tensors["random"]["data"], tensors["random"]["data"])
    assert loaded.meta == {"step": 3, "history": [{"loss": 0.5}]}
    assert [p.name for p in tmp_path.iterdir()] == ["c.safetensors"]


def test_failed_save_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.safetensors"
    Checkpoint({"model": {"a": torch.zeros(2)}}, {"step": 1}).save(path)

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("tasks.checkpoints.file.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        Checkpoint({"model": {"a": torch.ones(2)}}, {"step": 2}).save(path)
    assert Checkpoint.load(path).meta["step"] == 1


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"No checkpoint at .*nowhere"):
        Checkpoint.load(tmp_path / "nowhere")


@pytest.mark.parametrize("kept", [0, 7, 60, 200])
def test_truncated_file(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "c.safetensors"
    Checkpoint({"model": {"a": torch.zeros(200)}}, {"step": 1}).save(path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match="may be truncated"):
        Checkpoint.load(path)


WANTED = "Name the folder of a run, or its checkpoint.safetensors or model.safetensors."


def test_foreign_file(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="not a checkpoint of this project") as caught:
        Checkpoint.load(path)
    assert WANTED in str(caught.value)


@pytest.mark.parametrize("content", [b"# A readme, in words", b'{"task": "sudoku"}', b"PK" * 99])
def test_a_file_of_another_kind_is_said_to_be_one(content: bytes, tmp_path: Path) -> None:
    """And not to be a damaged checkpoint, for which one would train again."""
    path = tmp_path / "README.md"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.load(path)
    assert str(caught.value) == f"{path} is no checkpoint: not a safetensors file. {WANTED}"


@pytest.mark.parametrize("form", ["attractor-models-3", "99"])
def test_a_newer_format_says_what_to_update(form: str, tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    save_file({"a": torch.zeros(2)}, path, {"format": form, "meta": "{}"})
    with pytest.raises(NewerFormat, match=r"newer version .*`pip install --upgrade attractor-m"):
        Checkpoint.load(path)


@pytest.mark.parametrize("form", ["attractor-models-sharded-2", "99", 99])
def test_a_newer_format_of_a_folder_says_so_too(form: object, tmp_path: Path) -> None:
    content = {"format": form, "meta": "{}", "files": {}, "sha256": ""}
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(NewerFormat, match=r"newer version .*`pip install --upgrade attractor-m"):
        Checkpoint.load(tmp_path)


def test_pickle_is_not_executed(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    torch.save({"a": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError):
        Checkpoint.load(path)


def test_weights_that_do_not_fit() -> None:
    with pytest.raises(CheckpointError, match="do not fit this model"):
        load_weights(torch.nn.Linear(2, 2), {"weight": torch.zeros(3, 3)}, Path("here"))


@pytest.mark.parametrize(
    ("model", "layout", "said"),
    [
        ("eqr", "image", ["EqR damped its state"]),
        ("eqr", "mixer", ["EqR damped its state", "norms with learned gains"]),
        ("trm", "mixer", ["256 hidden numbers"]),
        ("reasoner", "attention", ["norms with learned gains"]),
        ("transformer", "attention", ["norms with learned gains"]),
    ],
)
def test_weights_of_networks_that_have_changed(model: str, layout: str, said: list[str]) -> None:
    """Named as they were before blocks of TRM, HRM and EqR became those published."""
    module = MAZES["tiny"].adapted(model=model, layout=layout).build()
    earlier = {}
    for name, weight in module.state_dict().items():
        name = name.replace("module.net.", "module.f.net.") if model == "eqr" else name
        earlier[name] = weight
        stem, found, _ = name.partition(".mixer.")
        if found and layout != "image":
            earlier |= {f"{stem}.{part}_norm.weight": torch.ones(16) for part in ("mixer", "mlp")}
    with pytest.raises(CheckpointError) as caught:
        load_weights(module, earlier, Path("here"))
    message = str(caught.value)
    assert message.startswith("The weights in here were trained by an earlier version")
    assert all(part in message for part in said)
    assert ("EqR" in message) == (model == "eqr")
    assert "Evaluate them with the version that trained them, or train again." in message
    load_weights(module, module.state_dict(), Path("here"))


@pytest.mark.parametrize("model", ["trm", "hrm", "transformer"])
@pytest.mark.parametrize("layout", ["attention", "mixer"])
def test_weights_from_before_encoder_and_head_became_those_published(
    model: str, layout: str
) -> None:
    module = SUDOKUS["tiny"].adapted(model=model, layout=layout).build()
    earlier = {}
    for name, weight in module.state_dict().items():
        earlier[name.replace("embedding.weight", "symbol.weight")] = weight
        if name == "head.weight":
            earlier["head.bias"] = torch.ones(len(weight))
        if name.endswith("embedding.weight"):
            stem = name.removesuffix("embedding.weight")
            earlier |= {f"{stem}places.{kind}.weight": torch.ones(4, 32) for kind in range(3)}
    with pytest.raises(CheckpointError) as caught:
        load_weights(module, earlier, Path("here"))
    message = str(caught.value)
    assert message.startswith("The weights in here were trained by an earlier version")
    assert "a head with biases, and halted by the mean over all cells" in message
    assert "Evaluate them with the version that trained them, or train again." in message


def test_a_message_is_no_command_to_a_terminal() -> None:
    module = torch.nn.Linear(2, 3)
    weights = {**module.state_dict(), "\x1b[2Jevil\ud800\n": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"not of this model: \\x1b\[2Jevil\\ud800\\n\."):
        load_weights(module, weights, None)


def test_optimizer_goes_on_as_if_never_stopped() -> None:
    def make() -> tuple[torch.nn.Linear, torch.optim.Optimizer]:
        torch.manual_seed(0)
        layer = torch.nn.Linear(2, 2)
        return layer, torch.optim.AdamW(layer.parameters(), lr=0.1)

    def step(layer: torch.nn.Linear, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        layer(torch.ones(1, 2)).square().sum().backward()
        optimizer.step()

    layer, optimizer = make()
    step(layer, optimizer)
    saved, weights = (
        optimizer_tensors(optimizer),
        {k: v.clone() for k, v in layer.state_dict().items()},
    )
    saved = {k: v.clone() for k, v in saved.items()}
    step(layer, optimizer)
    other, second = make()
    other.load_state_dict(weights)
    restore_optimizer(second, saved)
    step(other, second)
    assert torch.equal(other.weight, layer.weight)


def test_weights_of_another_kind_of_model_are_not_taken_for_earlier_ones() -> None:
    first, second = (MAZES["tiny"].changed(model=name) for name in ("attractor", "transformer"))
    with pytest.raises(CheckpointError, match="do not fit this model") as caught:
        load_weights(second.build(), first.build().state_dict(), Path("here"))
    assert "earlier version" not in str(caught.value)
