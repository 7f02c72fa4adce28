"""Warnings of maps that stop contracting: at the right time, once, with options that exist."""

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from implicit import FixedPointLayer, Phantom
from solvers import Broyden, Picard
from tasks.checkpoints.checkpoint import Checkpoint
from tasks.lm.config import LanguageConfig
from tasks.puzzles.experiment import Batches
from tasks.sudoku.board import Board
from tasks.sudoku.config import SudokuConfig
from tasks.sudoku.generate import generate
from tasks.sudoku.task import SudokuTask
from tasks.training.metrics import solve_metrics, step_metrics
from tasks.training.monitor import ConvergenceMonitor
from tasks.training.trainer import Trainer

PUZZLE, TEXT = SudokuConfig.of(side=4, min_clues=6, max_clues=8), LanguageConfig.of()
GOOD = {
    "step": 100.0, "loss": 1.0, "converged": 0.0, "residual": 1e-1, "solver_steps": 3.0,
    "test_converged": 1.0, "test_residual": 1e-6, "test_steps": 20.0, "test_radius": 0.7,
    "test_radius_real": 0.3, "test_expanding": 0.0,
}  # fmt: skip


def monitor(
    config: Any = PUZZLE, solver: Any = None, backward: Any = "phantom"
) -> ConvergenceMonitor:
    return ConvergenceMonitor(FixedPointLayer(nn.Identity(), solver or Picard(), backward), config)


def read(reader: ConvergenceMonitor, *changes: dict[str, float]) -> list[str | None]:
    return [reader.read({**GOOD, **change}) for change in changes]


class Scaled(nn.Module):
    """y -> y @ matrix + x."""

    def __init__(self, matrix: list[list[float]]):
        super().__init__()
        self.matrix = torch.tensor(matrix)

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        return y @ self.matrix + x


def look(
    reader: ConvergenceMonitor, layer: FixedPointLayer, steps: int, loss: float = 1.0
) -> str | None:
    x = torch.ones(8, 2)
    with solve_metrics(layer) as figures, torch.no_grad():
        solution = layer(torch.zeros(8, 2), x, max_steps=steps)
    return reader.read({"step": 100.0, "loss": loss, **step_metrics(solution), **figures})


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        ([[0.5, 0.0], [0.0, 0.2]], None),
        ([[0.0, -0.9], [0.9, 0.0]], None),
        (
            [[0.0, -1.1], [1.1, 0.0]],
            r"radius of 1\.10 .* oscillate.*`--damping 0\.6` brings .*0\.7",
        ),
        ([[-1.5, 0.0], [0.0, 0.2]], r"radius of 1\.50 .* oscillate.*`--damping 0\.6`"),
        ([[1.2, 0.0], [0.0, 0.2]], r"radius of 1\.20 .* run away.*real part of 1\.20.*damping"),
    ],
)
def test_hand_made_maps(matrix: list[list[float]], expected: str | None) -> None:
    layer = FixedPointLayer(Scaled(matrix), Picard(rtol=1e-3), "jacobian_free")
    reader = ConvergenceMonitor(layer, PUZZLE)
    assert look(reader, layer, steps=100) is None  # one look proves nothing
    found = look(reader, layer, steps=100)
    if expected is None:
        assert found is None
    else:
        assert re.search(expected, found or "")
        assert "A larger budget will not help" in found or "a larger budget will not" in found  # type: ignore[operator]


def test_the_damping_that_is_advised_works() -> None:
    matrix = [[0.0, -1.1], [1.1, 0.0]]
    damped = FixedPointLayer(Scaled(matrix), Picard(rtol=1e-3, damping=0.6), "jacobian_free")
    assert damped(torch.zeros(1, 2), torch.ones(1, 2), max_steps=100).converged.all()


def test_a_budget_too_short_is_told_from_a_map_that_expands() -> None:
    layer = FixedPointLayer(nn.Identity(), Picard(rtol=1e-3), "phantom")
    reader = ConvergenceMonitor(layer, PUZZLE.changed(rtol=1e-3, eval_max_steps=20))
    found = []
    for scale in (0.5, 0.97, 0.97, 0.97):  # 20 steps suffice for 0.5 alone
        layer.module = Scaled([[scale, 0.0], [0.0, scale]])
        found.append(look(reader, layer, steps=20))
    *before, last = found
    assert before == [None] * 3
    assert last is not None
    assert "0% of held-out samples converge, after 100% before" in last
    needed = re.search(
        r"contracts \(spectral radius 0.97\).* 20 steps is short: .* some (\d+)", last
    )
    assert needed
    # Another so many steps are enough.
    x = torch.ones(1, 2)
    more = int(needed[1])
    assert layer(torch.zeros(1, 2), x, max_steps=20 + more).converged.all()
    assert not layer(torch.zeros(1, 2), x, max_steps=20 + more // 2).converged.any()
    assert "`--eval-max-steps`" in last
    assert "damping" not in last


def test_unconverged_training_segments_of_a_puzzle_are_no_symptom() -> None:
    assert read(monitor(), *[{"converged": 0.0, "test_converged": 0.98}] * 8) == [None] * 8


def test_the_look_at_which_a_puzzle_is_understood_is_no_symptom() -> None:
    """Measured on 6x6 Sudoku: for one look no solve converges, then all do."""
    shares, radii = [1.0, 1.0, 0.0, 0.95, 1.0, 0.99], [0.61, 0.81, 0.99, 0.68, 0.7, 0.7]
    rows = [
        {"test_converged": share, "test_radius": radius}
        for share, radius in zip(shares, radii, strict=True)
    ]
    assert read(monitor(), *rows) == [None] * 6


def test_models_with_a_fixed_number_of_steps_are_not_judged() -> None:
    rows = [{"test_converged": 0.0, "test_expanding": 1.0, "test_radius": 2.0}] * 5
    assert read(monitor(solver=Picard(rtol=0.0, atol=0.0)), *rows) == [None] * 5
    assert ConvergenceMonitor(nn.Linear(1, 1), PUZZLE).read({**GOOD, **rows[0]}) is None


BAD = {"test_converged": 0.1, "test_expanding": 1.0, "test_radius": 1.3, "test_radius_real": 0.2}


def test_a_warning_comes_once_until_its_cause_has_gone() -> None:
    said = [text is not None for text in read(monitor(), *[BAD] * 2, *[{}] * 2, *[BAD] * 2)]
    assert said == [False, True, False, False, False, True]
    said = [text is not None for text in read(monitor(), {}, *[BAD] * 6)]
    assert said == [False, False, True, True, False, False, False]  # expanding, then falling too


def test_a_solver_that_needs_no_contraction_is_said_to_cope() -> None:
    """Measured on mazes: radii of 1.1 to 1.5, and nearly all converge."""
    config = PUZZLE.changed(solver="broyden")
    reader = monitor(config, Broyden(), Phantom())
    found = read(reader, *[{**BAD, "test_converged": 0.94}] * 2)[1] or ""
    assert "`broyden` finds them all the same" in found
    assert "`--backward exact`" in found
    assert "damping" not in found


def test_residuals_that_grow_while_the_loss_falls() -> None:
    sizes = [1e-5, 3e-5, 1e-4, 4e-4]
    rows = [
        {"test_residual": size, "loss": 1 - 0.1 * i, "test_converged": 0.2, "step": 100.0 * (i + 1)}
        for i, size in enumerate(sizes)
    ]
    found = read(monitor(), *rows)
    assert found[:3] == [None] * 3
    assert "4.0e-04, after 1.0e-05 at step 100" in (found[3] or "")
    assert "The map contracts" in (found[3] or "")
    rising = [{**row, "loss": 1 + i} for i, row in enumerate(rows)]
    assert read(monitor(), *rising) == [None] * 4


def test_a_training_budget_too_short_is_for_models_with_one_solve_a_sample() -> None:
    rows = [{"converged": 0.2, "test_converged": 1.0}] * 3
    found = read(monitor(TEXT, backward="jacobian_free"), *rows)
    assert found[:2] == [None] * 2
    assert "20% of training samples converge" in (found[2] or "")
    assert "`--train-max-steps`" in (found[2] or "")
    assert read(monitor(TEXT), *rows) == [None] * 3  # phantom: truncated on purpose


@pytest.mark.parametrize("config", [PUZZLE, TEXT])
@pytest.mark.parametrize("backward", ["phantom", "jacobian_free", "exact"])
def test_every_option_that_is_named_exists(config: Any, backward: str) -> None:
    bad = [
        BAD,
        {**BAD, "test_radius_real": 1.3},
        {**BAD, "test_converged": 0.9},
        {"test_converged": 0.1, "test_residual": 1e-2},
        {"converged": 0.1},
    ]
    options = set(config.flat()) - set(config.unused())
    texts = []
    for change in bad:
        reader = monitor(config.changed(backward=backward), backward=backward)
        texts += [text for text in read(reader, {}, *[change] * 3) if text]
    assert len(texts) >= 5
    for text in texts:
        named = {flag.replace("-", "_") for flag in re.findall(r"--([a-z-]+)", text)}
        assert named <= options, text


def make(folder: Path, steps: int) -> Trainer:
    folder.mkdir(exist_ok=True)
    config = PUZZLE.changed(steps=steps, width=8, batch_size=4, warmup=1)
    task, puzzles = SudokuTask(), generate(16, Board.of(4), clues=(6, 8), seed=3)
    held_out = task.encode(puzzles[:4], config)
    batches = Batches(task.sampler(puzzles, config), len(puzzles), held_out, max_steps=4)
    torch.manual_seed(0)
    trainer = Trainer(batches, config.build(), config, folder, max_steps=2, meta={})
    inner = trainer._validate
    trainer._validate = lambda: {**inner(), **BAD}  # type: ignore[method-assign]
    return trainer


def test_a_run_that_goes_on_remembers_what_was_said(tmp_path: Path) -> None:
    first = make(tmp_path / "run", steps=12)
    with pytest.warns(UserWarning, match="does not contract") as said:
        first.run()
    assert len(said) == 1
    second = make(tmp_path / "run", steps=24)
    second.restore(Checkpoint.load(first.path))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second.run()
    assert second.step == 24
    # A run that has forgotten would have said it again.
    third = make(tmp_path / "other", steps=24)
    with pytest.warns(UserWarning, match="does not contract"):
        third.run()


def test_looks_in_the_warm_up_do_not_count() -> None:
    rows = [{**BAD, "step": step} for step in (10.0, 30.0, 50.0, 60.0, 70.0)]
    said = [text is not None for text in read(monitor(), *rows)]
    assert said == [False] * 4 + [True]
