"""Released weights of TRM, HRM and EqR as checkpoints of ours, and files that are none of them."""

import dataclasses
import json
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import published
import pytest
import torch
from torch import Tensor

from tasks.maze.__main__ import main as maze
from tasks.maze.config import PRESETS as MAZES
from tasks.puzzles.files import write_puzzles
from tasks.puzzles.published_weights import MODELS, expected_shapes
from tasks.runs import load_model
from tasks.sudoku.__main__ import main
from tasks.sudoku.board import Board
from tasks.sudoku.config import PRESETS
from tasks.sudoku.generate import generate
from tasks.sudoku.task import SudokuTask

ARCH = """arch:
  H_cycles: 3
  H_init_std: 1.0
  L_cycles: 6
  lambda_: 0.95
  halt_max_steps: 2
  loss:
    L_cycles: 99
    name: losses@ACTLossHead
  num_heads: 2
  pos_encodings: rope
  puzzle_emb_len: 16
  rms_norm_eps: 1.0e-05
data_paths:
- data/sudoku
epochs: 50000
"""
CASES = [case for case in published.RECORDED if case != "reasoner"]
Write = Callable[..., Path]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Presets of the recorded networks, named as their cases, in a folder without others."""
    monkeypatch.chdir(tmp_path)
    others = {name: each for name, each in PRESETS.items() if each.model.name not in MODELS}
    recorded = {f"small-{case}": published.config(case) for case in CASES}
    # A dict of its own, so that the presets keep their order.
    monkeypatch.setattr(SudokuTask, "presets", {**others, **recorded})


def state(case: str = "trm", prefix: str = "_orig_mod.model.inner.") -> dict[str, Tensor]:
    weights = published.weights(case, torch.float32)
    return {f"{prefix}{name}": weight for name, weight in weights.items()}


def convert(source: Any, case: str = "trm", out: str = "run") -> int:
    return main(["convert", str(source), "--preset", f"small-{case}", "--out", out])


def refused(source: Any, capsys: pytest.CaptureFixture[str], case: str = "trm") -> str:
    assert convert(source, case) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not Path("run").exists()
    return error


@pytest.mark.parametrize("case", [case for case in CASES if not case.startswith("eqr")])
def test_a_converted_model_makes_the_published_update(case: str) -> None:
    torch.save(state(case), "step_65104")
    assert convert("step_65104", case) == 0
    model, config = load_model(SudokuTask(), Path("run/checkpoint.safetensors"), device="cpu")
    assert config == published.config(case)
    with torch.no_grad():
        out = model(published.questions(), max_steps=2 if case == "hrm" else 3)
    # In float32, whose rounding three cycles of these maps magnify.
    expected = published.RECORDED[case]
    assert published.summary(out.logits) == pytest.approx(expected["logits"], abs=2e-3, rel=1e-3)
    assert out.halt.tolist() == pytest.approx(expected["halt"], abs=2e-3)


def eqr_checkpoint(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """As its `save_checkpoint` writes it, with classes of its own among the values."""
    module = types.ModuleType("models.eqr")
    for name in ("ModelCarry", "LatentCarry"):
        made = dataclasses.make_dataclass(name, ["z_H", "z_L"])
        made.__module__ = "models.eqr"
        setattr(module, name, made)
    monkeypatch.setitem(sys.modules, "models.eqr", module)
    weights, other = state("eqr-mixer"), torch.ones(3)
    return {
        "step": 50_000,
        "model": {name: torch.zeros_like(weight) for name, weight in weights.items()},
        "ema": {
            "mu": 0.999,
            "shadow": {n.replace("_orig_mod.", ""): w for n, w in weights.items()},
        },
        "carry": module.ModelCarry(module.LatentCarry(other, other), other),
        "numpy": np.random.RandomState(0).get_state(),
        "rng": {"torch": torch.random.get_rng_state(), "cuda": None},
        "config": {"arch": {"L_cycles": 6, "lambda_": 0.95, "num_heads": 8, "halt_max_steps": 16}},
    }


def test_the_averages_of_eqr_are_taken_and_its_other_values_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.save(eqr_checkpoint(monkeypatch), "step_5_run.pth")
    monkeypatch.delitem(sys.modules, "models.eqr")
    assert convert("step_5_run.pth", "eqr-mixer") == 0
    model, config = load_model(SudokuTask(), Path("run/checkpoint.safetensors"), device="cpu")
    assert config.solve.eval_max_steps == 48
    weights = published.weights("eqr-mixer", torch.float32)
    assert torch.equal(model.encoder.embedding.weight, weights["embed_tokens.embedding_weight"][1:])
    assert torch.equal(model.halt.bias, weights["q_head.bias"][:1])


def test_eval_solve_and_noise_of_a_converted_folder(capsys: pytest.CaptureFixture[str]) -> None:
    Path("released").mkdir()
    torch.save(state("eqr"), "released/step_20")
    torch.save({}, "released/step_3")
    Path("released/all_config.yaml").write_text(ARCH.replace("  puzzle_emb_len: 16\n", ""))
    assert convert("released", "eqr") == 0
    said = capsys.readouterr().out
    assert "positions are those of released/all_config.yaml." in said
    assert "python -m tasks.sudoku eval --checkpoint run --data FILE" in said
    write_puzzles(Path("puzzles.csv"), generate(2, Board.of(9), (40, 40), workers=1))
    told = []
    for options in ([], [], ["--path-noise"]):
        call = ["eval", "--checkpoint", "run", "--data", "puzzles.csv", "--quick"]
        torch.manual_seed(0)
        assert main([*call, *options, "--json", "result.json"]) == 0
        told.append(json.loads(Path("result.json").read_text())["eval"])
    assert told[0]["max_steps"] == 6  # two segments of three updates
    assert told[0] == told[1]
    assert told[0]["median_residual"] != told[2]["median_residual"]


def test_path_noise_needs_a_model_that_has_it(capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(state(), "step_1")
    assert convert("step_1") == 0
    assert main(["eval", "--checkpoint", "run", "--path-noise"]) == 2
    assert "`--path-noise` has an effect only on a model that is an eqr" in capsys.readouterr().err


def test_mazes_have_their_own_symbols() -> None:
    config = MAZES["maze-unique-eqr-260k"]
    shapes = expected_shapes(config, 0)
    assert shapes["embed_tokens.embedding_weight"] == (6, 128)  # padding and "# SGo"
    weights = {name: torch.full(shape, 0.01) for name, shape in shapes.items()}
    weights["embed_tokens.embedding_weight"] = torch.arange(6.0)[:, None].expand(6, 128)
    weights["lm_head.weight"] = weights["embed_tokens.embedding_weight"]
    weights["H_init"] = weights["L_init"] = torch.zeros(128)
    torch.save({"model": weights}, "eqr.pth")
    assert maze(["convert", "eqr.pth", "--preset", "maze-unique-eqr-260k"]) == 0
    from tasks.maze.task import MazeTask

    path = Path("runs/maze/maze-unique-eqr-260k/checkpoint.safetensors")
    model, _ = load_model(MazeTask(), path, device="cpu")
    assert model.encoder.embedding.weight[:, 0].tolist() == [1, 2, 3, 4]
    assert model.head.weight[:, 0].tolist() == [1, 2, 3, 4, 5]


def changed(name: str, change: Callable[[Tensor], Any] | None) -> dict[str, Tensor]:
    weights = state()
    key = f"_orig_mod.model.inner.{name}"
    if change is None:
        del weights[key]
    else:
        weights[key] = change(weights.get(key, torch.zeros(2)))
    return weights


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (changed("lm_head.weight", None), "missing: lm_head.weight."),
        (changed("odd", torch.ones_like), "not of this network: odd."),
        (changed("q_head.bias", lambda w: w[:1]), "q_head.bias ((1,) in the file, (2,) in the"),
        (changed("H_init", lambda w: w / 0), "no finite real numbers: H_init."),
        (changed("H_init", lambda w: w.long()), "no finite real numbers: H_init."),
    ],
)
def test_weights_that_do_not_fit(
    weights: dict[str, Tensor], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(weights, "step_1")
    error = refused("step_1", capsys)
    assert "The weights in step_1 are not those of 'small-trm'. " in error
    assert message in error
    assert "No preset of sudoku has these weights." in error


def test_a_preset_of_another_network_names_the_right_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    torch.save(state("trm-mixer"), "step_1")
    error = refused("step_1", capsys)
    assert "missing: L_level.layers.0.self_attn.qkv_proj.weight" in error
    assert "L_level.layers.0.mlp_t.gate_up_proj.weight" in error
    assert "The file has the weights of 'small-trm-mixer': name one of these" in error


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("L_cycles: 4", "`L_cycles` is 4 and must be 6"),
        ("num_heads: 4", "`num_heads` is 4 and must be 2"),
        ("pos_encodings: learned", "`pos_encodings` is 'learned' and must be 'rope'"),
        ("puzzle_emb_len: 0", "`puzzle_emb_len` is 0 and must be 16"),
    ],
)
def test_a_network_of_another_configuration(
    line: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(state(), "step_1")
    name = line.partition(":")[0]
    lines = [f"  {line}" if each.startswith(f"  {name}:") else each for each in ARCH.split("\n")]
    Path("all_config.yaml").write_text("\n".join(lines))
    error = refused("step_1", capsys)
    assert f"The network of all_config.yaml is not that of 'small-trm': {message}." in error


class Command:
    """A pickle that would run a command."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("run",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (Command(), "cannot be read"),
        ([torch.ones(2)], "step_1 holds list, expected names and tensors (a state dict)"),
        ({"a": 1}, "step_1 holds a dictionary in which 'a' is no tensor"),
        ({"model": {"a": torch.ones(2), "b": "c"}}, "a dictionary in which 'b' is no tensor"),
        ({"model.a": torch.ones(2), "a": torch.ones(2)}, "has two tensors 'a'"),
    ],
)
def test_what_is_no_file_of_weights(
    content: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(content, "step_1")
    error = refused("step_1", capsys)
    if isinstance(content, Command):
        message = "can be read without running code in it"
        assert "write its weights alone: `torch.save(weights, 'step_0')`" in error
    assert message in error


def test_what_is_no_pickle_and_no_file(capsys: pytest.CaptureFixture[str]) -> None:
    Path("step_1").write_bytes(b"\x00no pickle")
    assert "step_1 is no file of weights" in refused("step_1", capsys)
    assert "There is no file or folder gone. Download" in refused("gone", capsys)
    Path("folder").mkdir()
    assert "the newest there: none. Name the file itself." in refused("folder", capsys)
    for name in ("a.pth", "b.pth"):
        Path("folder", name).touch()
    assert "the newest there: a.pth, b.pth. Name the file itself." in refused("folder", capsys)


def test_presets_and_folders_that_cannot_be_taken(capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(state(), "step_1")
    assert main(["convert", "step_1", "--preset", "tiny", "--out", "run"]) == 2
    error = capsys.readouterr().err
    assert "'tiny' is no network whose weights were released. Those are small-trm, " in error
    assert convert("step_1") == 0
    capsys.readouterr()
    assert convert("step_1") == 2
    assert "run already holds a run." in capsys.readouterr().err
