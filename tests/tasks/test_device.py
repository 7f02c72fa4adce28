"""The device, and compiled blocks."""

import platform
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import tasks.sudoku
from models import Block
from tasks.device import choose_device, compile_blocks, has_fast_bfloat16, peak_memory
from tasks.experiments.run import run
from tasks.puzzles.experiment import GridExperiment
from tasks.sudoku.config import PRESETS
from tasks.sudoku.task import SudokuTask

TINY = PRESETS["tiny"].changed(batch_size=4, test_puzzles=4, eval_max_steps=2)


@pytest.mark.parametrize("name", ["gpu", "cpu:x", "mps", None])
def test_unknown_devices_are_refused(name: Any) -> None:
    with pytest.raises(ValueError, match=f"must be auto, cpu, cuda or cuda:N, got {name!r}"):
        choose_device(name)


def test_a_device_that_is_not_there_is_named_without_a_flag() -> None:
    """Which a caller in Python has not typed."""
    with pytest.raises(ValueError, match=r"^There is no device 'cuda:99': this machine has [^-]*$"):
        tasks.sudoku.load(device="cuda:99")


def test_the_peak_of_memory_grows_with_what_is_held() -> None:
    pytest.importorskip("resource", reason="a system that does not count so")
    before = peak_memory(torch.device("cpu"))["memory_gb"]
    held = torch.ones(int((before + 0.2) * 1e9 / 4))  # more than was ever in use
    after = peak_memory(torch.device("cpu"))["memory_gb"]
    assert before + 0.15 < after < before + 0.5 + held.numel() * 4 / 1e9


def test_every_block_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[object] = []
    monkeypatch.setattr(Block, "compile", lambda block: compiled.append(block))
    model = TINY.build()
    compile_blocks(model)
    assert len(compiled) == TINY.model.backbone_blocks + TINY.model.refiner_blocks
    assert all(isinstance(block, Block) for block in compiled)


def test_without_a_compiler_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_: None)
    with pytest.raises(ValueError, match=r"`--compile` needs a C\+\+ compiler"):
        compile_blocks(TINY.build())


def test_bfloat16_without_instructions_for_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert not has_fast_bfloat16(torch.device("cpu"))
    assert has_fast_bfloat16(torch.device("cuda"))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    assert has_fast_bfloat16(torch.device("cpu"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++ here")
def test_a_compiled_run_learns_the_same(tmp_path: Path) -> None:
    weights = []
    for compiled in (False, True):
        config = TINY.changed(steps=5, compile=compiled)
        folder = tmp_path / str(compiled)
        folder.mkdir()
        run(GridExperiment(SudokuTask()), "tiny", config, folder)
        weights.append(load_file(folder / "model.safetensors"))
    for name, plain in weights[0].items():
        assert torch.allclose(plain, weights[1][name], rtol=1e-3, atol=1e-5), name
