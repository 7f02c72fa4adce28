"""Gradient accumulation: a batch in four parts trains as the whole does, in less memory."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from parameters import slow

from tasks.checkpoints.checkpoint import Checkpoint
from tasks.lm.config import LanguageConfig
from tasks.lm.data import Batches, Corpus
from tasks.lm.tokenizer import train_tokenizer
from tasks.maze.config import MazeConfig
from tasks.maze.task import MazeTask
from tasks.planning.peak_memory import PeakMemory
from tasks.puzzles.experiment import Batches as GridBatches
from tasks.sudoku.config import SudokuConfig
from tasks.sudoku.task import SudokuTask
from tasks.training.micro_batches import micro_batch
from tasks.training.options import Config
from tasks.training.trainer import Trainer

# Maps that are hardly trained need not contract.
pytestmark = pytest.mark.filterwarnings("ignore:Step .. the map does not contract")

STEPS = 5
COMMON: dict[str, Any] = {"steps": STEPS, "batch_size": 8, "warmup": 1, "rtol": 1e-3}
PUZZLES: dict[str, Any] = {
    **COMMON, "width": 16, "segments": 3, "refill": True, "train_max_steps": 6, "train_puzzles": 16,
    "test_puzzles": 4,
}  # fmt: skip
SUDOKU: dict[str, Any] = {**PUZZLES, "side": 4, "min_clues": 6, "max_clues": 8}
TEXT: dict[str, Any] = {
    **COMMON, "vocabulary": 257, "context": 16, "width": 32, "num_heads": 2, "eval_tokens": 64,
    "backbone_blocks": 1, "train_max_steps": 6, "optimizer": "adamw",
}  # fmt: skip
# Figures of held-out text are sums in float32, of at most 80 tokens or 32 entries.
SUMMED = 80 * torch.finfo(torch.float32).eps
CASES: dict[str, Any] = {
    "sudoku": SudokuConfig.of(**SUDOKU),
    # Noise is drawn for each part in turn, and is that of the whole batch.
    "noisy start": SudokuConfig.of(**SUDOKU, start_noise=0.1),
    "halting": SudokuConfig.of(**SUDOKU, model="reasoner", halting="q-learning", loss="stablemax"),
    "unrolled": SudokuConfig.of(**SUDOKU).changed(model="unrolled"),
    "maze": MazeConfig.of(**PUZZLES, side=7, min_path=8),
    "lm": LanguageConfig.of(**TEXT),
    "exact": LanguageConfig.of(**TEXT | {"rtol": 1e-4, "train_max_steps": 40}, backward="exact"),
    "lengths of loops": LanguageConfig.of(**TEXT).changed(model="parcae"),
    "checkpointed": LanguageConfig.of(**TEXT, checkpoint_activations=True),
}


def make(config: Config, folder: Path, dtype: torch.dtype = torch.float32) -> Trainer:
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    if isinstance(config, LanguageConfig):
        tokens = torch.randint(60, 120, (2000,), generator=torch.Generator().manual_seed(1))
        batches: Any = Batches(Corpus(train_tokenizer([], 257), tokens, tokens[:80]), config)
        steps = config.solve.train_steps
    else:
        assert isinstance(config, SudokuConfig | MazeConfig)
        task: Any = SudokuTask() if isinstance(config, SudokuConfig) else MazeTask()
        puzzles, held_out = task.make(config)
        shown = task.encode(held_out, config)
        batches = GridBatches(task.sampler(puzzles, config), len(puzzles), shown, max_steps=4)
        steps = config.train_steps
    return Trainer(batches, config.build().to(dtype), config, folder, max_steps=steps, meta={})


def run(trainer: Trainer) -> list[dict[str, float]]:
    """The figures of every step, but for the time."""
    rows: list[dict[str, float]] = []
    inner = trainer._log

    def note(figures: dict[str, float], reporter: Any) -> None:
        rows.append(dict(figures))
        inner(figures, reporter)

    trainer._log = note  # type: ignore[method-assign]
    if trainer.step == 0:
        torch.manual_seed(0)
    trainer.run()
    return rows


@pytest.mark.parametrize(
    "name",
    [
        slow(name, unless=name in ("sudoku", "noisy start", "halting", "lm", "exact"))
        for name in CASES
    ],
)
def test_four_parts_train_as_the_whole(name: str, tmp_path: Path) -> None:
    """In float64: a residual of float32 is near its rounding, which other kernels do otherwise."""
    config = CASES[name]
    whole, parts = (
        make(config.changed(accumulate=n), tmp_path / str(n), torch.float64) for n in (1, 4)
    )
    check_equal(whole, parts)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("name", [slow(name, unless=name in ("sudoku", "lm")) for name in CASES])
def test_two_parts_side_by_side_train_as_the_whole(name: str, tmp_path: Path) -> None:
    whole, parts = (make(CASES[name], tmp_path / str(n), torch.float64) for n in (1, 2))
    whole.parts = 1
    check_equal(whole, parts)
    draws = name in ("noisy start", "lengths of loops")
    assert parts.parts == (1 if draws else 2)


def test_a_look_measures_the_same_with_two_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its solves are watched: of each held-out sample there is one, and it is solved to the end."""
    trainer = make(CASES["sudoku"].changed(test_puzzles=8), tmp_path)
    expected = trainer._validate()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert trainer._validate() == expected


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(("rows", "expected"), [(7, 1), (9, 1), (10, 2)])
def test_parts_side_by_side_are_equal_and_not_small(
    rows: int, expected: int, tmp_path: Path
) -> None:
    trainer = make(CASES["sudoku"].changed(batch_size=rows), tmp_path)
    trainer.run()
    assert trainer.parts == expected


def check_equal(whole: Trainer, parts: Trainer) -> None:
    """Run both; all figures and samples are the same."""
    expected, found = run(whole), run(parts)
    assert len(expected) == STEPS
    for row, other in zip(expected, found, strict=True):
        assert list(row) == list(other)
        for figure in row:
            if figure.startswith("test_radius"):  # of samples that are looked at together
                continue
            rel = SUMMED if figure.startswith("test_") else 1e-9
            assert other[figure] == pytest.approx(row[figure], rel=rel, nan_ok=True), figure
    assert whole.samples is not None
    assert parts.samples is not None
    for tensor in ("x", "target", "age"):
        assert torch.equal(getattr(whole.samples, tensor), getattr(parts.samples, tensor))


@pytest.mark.slow
def test_noise_of_its_own_leaves_the_data_alone(tmp_path: Path) -> None:
    """A model that draws several times in a pass sees other noise, and the same puzzles."""
    config = CASES["sudoku"].changed(model="eqr", segments=1)
    whole, parts = (make(config.changed(accumulate=n), tmp_path / str(n)) for n in (1, 4))
    expected, found = run(whole), run(parts)
    assert whole.samples is not None
    assert parts.samples is not None
    assert torch.equal(whole.samples.x, parts.samples.x)
    assert expected[0]["loss"] != found[0]["loss"]
    assert expected[0]["loss"] == pytest.approx(found[0]["loss"], rel=0.2)


@pytest.mark.parametrize("name", ["sudoku", "lm", "exact"])
def test_memory_falls(name: str, tmp_path: Path) -> None:
    """Live tensors at the worst moment, besides those that are there before the first step."""
    size = {"context": 64} if name != "sudoku" else {"width": 32, "train_puzzles": 32}
    peaks = []
    for parts in (1, 4):
        config = CASES[name].changed(**size, batch_size=32, steps=2, accumulate=parts)
        trainer = make(config, tmp_path / str(parts))
        trainer.task.validate = lambda model: {}  # type: ignore[method-assign]
        with PeakMemory() as live:
            trainer.run()
        peaks.append(live.peak)
    assert peaks[1] < 0.5 * peaks[0]


@pytest.mark.parametrize("bad", [0, 1, 3])
def test_a_part_that_is_not_finite_skips_the_step(bad: int, tmp_path: Path) -> None:
    trainer = make(CASES["sudoku"].changed(accumulate=4), tmp_path)
    before: dict[int, list[torch.Tensor]] = {}
    inner, calls = trainer.model.forward, iter(range(999))

    def forward(*args: Any, **kwargs: Any) -> Any:
        out, call = inner(*args, **kwargs), next(calls)
        before[trainer.step] = [p.detach().clone() for p in trainer.model.parameters()]
        broken = call == 2 * 4 + bad
        return dataclasses.replace(out, logits=out.logits * (float("nan") if broken else 1.0))

    trainer.model.forward = forward  # type: ignore[method-assign]
    with pytest.warns(UserWarning, match="Step 3 is skipped"):
        trainer.run()
    assert all(p.isfinite().all() for p in trainer.model.parameters())
    assert all(map(torch.equal, before[2], before[3]))
    assert not all(map(torch.equal, before[3], before[4]))


def test_a_run_in_parts_goes_on_to_the_same_numbers(tmp_path: Path) -> None:
    config = CASES["noisy start"].changed(accumulate=4)
    whole = make(config, tmp_path / "whole")
    expected = run(whole)
    begun = make(config, tmp_path / "half")
    half = tmp_path / "two-steps"

    def note(figures: dict[str, float], reporter: Any) -> None:
        if begun.step == 2:
            begun.save()
            half.write_bytes(begun.path.read_bytes())

    begun._log = note  # type: ignore[method-assign]
    torch.manual_seed(0)
    begun.run()
    ended = make(config, tmp_path / "half")
    ended.restore(Checkpoint.load(half))
    assert ended.step == 2
    assert [row["loss"] for row in run(ended)] == [row["loss"] for row in expected[2:]]
    for name, value in whole.model.state_dict().items():
        assert torch.equal(ended.model.state_dict()[name], value), name


def test_state_is_kept_only_for_a_segment_to_come(tmp_path: Path) -> None:
    trainer = make(CASES["lm"], tmp_path)
    trainer.run()
    assert trainer.samples is not None
    assert trainer.samples.state is None


def test_batches_that_do_not_divide_are_refused() -> None:
    assert micro_batch(24, 2, 3) == 4
    with pytest.raises(
        ValueError, match=r"= 5 does not divide the 12 rows of each of 2 .* 1, 2, 3, 4, 6, 12\."
    ):
        micro_batch(24, 2, 5)
    with pytest.raises(ValueError, match=r"= 7 does not divide the 24 rows\. It may be 1, 2, 3"):
        micro_batch(24, 1, 7)
    with pytest.raises(ValueError, match="`accumulate` must be at least 1, got 0"):
        SudokuConfig.of(accumulate=0)
