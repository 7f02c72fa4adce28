"""The figures of solves: right for maps of known radius, and free of side effects on training."""

import contextlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from implicit import FixedPointLayer
from solvers import Picard, Solution
from tasks.distributed import Group
from tasks.puzzles.experiment import Batches
from tasks.sudoku.board import Board
from tasks.sudoku.config import SudokuConfig
from tasks.sudoku.generate import generate
from tasks.sudoku.task import SudokuTask
from tasks.training import trainer as train
from tasks.training.metrics import loss_metrics, solve_metrics, step_metrics
from tasks.training.trainer import Trainer

PUZZLES = generate(16, Board.of(4), clues=(6, 8), seed=3)


def rotation(scale: float, degrees: float) -> Tensor:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return scale * torch.tensor([[c, -s], [s, c]], dtype=torch.float64)


class Affine(nn.Module):
    """y -> y @ matrix + x, and in training some noise on top."""

    def __init__(self, matrix: Tensor, noise: float = 0.0):
        super().__init__()
        self.matrix, self.noise = nn.Parameter(matrix), noise

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        noise = self.noise * torch.randn_like(y) if self.training and self.noise else 0
        return y @ self.matrix + x + noise


def look(map_: nn.Module, x: Tensor, max_steps: int = 60, batch_dims: int = 1) -> dict[str, float]:
    layer = FixedPointLayer(
        map_, Picard(rtol=1e-3), "jacobian_free", max_steps=max_steps, batch_dims=batch_dims
    )
    with solve_metrics(nn.Sequential(layer)) as figures, torch.no_grad():
        layer(torch.zeros_like(x), x)
        assert not figures
    layer(torch.zeros_like(x), x)  # after the look, nobody watches
    return figures


@pytest.mark.parametrize(
    ("matrix", "radius", "real", "converged"),
    [
        (rotation(0.5, 0), 0.5, 0.5, 1.0),
        (rotation(0.9, 60), 0.9, 0.45, 1.0),
        (rotation(1.1, 60), 1.1, 0.55, 0.0),
        (rotation(1.1, 180), 1.1, -1.1, 0.0),
        (torch.diag(torch.tensor([1.3, 0.2]).double()), 1.3, 1.3, 0.0),
    ],
)
def test_figures_of_a_known_map(
    matrix: Tensor, radius: float, real: float, converged: float
) -> None:
    figures = look(Affine(matrix), torch.ones(6, 2).double(), max_steps=200)
    assert figures["test_radius"] == pytest.approx(radius, rel=1e-5)
    assert figures["test_radius_max"] == pytest.approx(radius, rel=1e-5)
    assert figures["test_radius_real"] == pytest.approx(real, rel=1e-5)
    assert figures["test_expanding"] == float(radius > 1)
    assert figures["test_converged"] == converged
    assert (figures["test_residual"] <= 1e-3) == bool(converged)


def test_a_look_without_a_solve_has_no_figures() -> None:
    with solve_metrics(nn.Linear(2, 2)) as figures:
        pass
    assert figures == {}


def test_figures_are_those_of_all_solves_of_a_look() -> None:
    layer = FixedPointLayer(Affine(rotation(0.5, 0)), Picard(rtol=1e-3), "jacobian_free")
    with solve_metrics(layer) as figures, torch.no_grad():
        x = torch.ones(3, 2).double()
        done = layer(torch.zeros_like(x), x)
        layer(torch.zeros_like(x[:1]), x[:1], max_steps=2)
    assert figures["test_converged"] == 0.75
    assert figures["test_steps"] == (3 * int(done.num_steps[0]) + 2) / 4


class Tokens(nn.Module):
    """Causal: a token is `scale` times itself, plus much of each token before it."""

    def __init__(self, scale: Tensor):
        super().__init__()
        self.scale = scale

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        before = y.cumsum(1) - y
        return self.scale[:, None] * y + 3 * before.flip(-1) + x


def test_a_token_is_measured_by_itself() -> None:
    """The whole sequence, far from normal, shows large values to a short Krylov space."""
    scale = torch.linspace(0.2, 0.5, 64).double()
    figures = look(Tokens(scale), torch.ones(2, 64, 3).double(), max_steps=3, batch_dims=2)
    assert figures["test_radius_max"] == pytest.approx(0.5, rel=1e-4)
    assert figures["test_expanding"] == 0


@pytest.mark.parametrize("rows", [1, 2, 9])
def test_states_of_several_tensors_and_few_rows(rows: int) -> None:
    class Pair(nn.Module):
        def forward(self, state: tuple[Tensor, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
            y, z = state
            return 0.9 * z, x - 0.4 * y

    layer = FixedPointLayer(Pair(), Picard(rtol=1e-3), "jacobian_free")
    with solve_metrics(layer) as figures, torch.no_grad():
        x = torch.ones(rows, 5).double()
        layer((x, x), x)
    assert figures["test_radius"] == pytest.approx(0.6, rel=1e-4)


def test_noise_of_training_is_neither_measured_nor_drawn() -> None:
    layer = FixedPointLayer(Affine(rotation(0.9, 60), 0.1), Picard(), "jacobian_free")
    x = torch.ones(4, 2).double()
    draws = []
    for watching in (False, True):
        torch.manual_seed(0)
        with torch.no_grad():
            if watching:
                with solve_metrics(layer) as figures:
                    layer(x, x, max_steps=3)
            else:
                layer(x, x, max_steps=3)
        draws.append(torch.rand(3))
    assert torch.equal(*draws)
    assert layer.module.training
    assert figures["test_radius"] == pytest.approx(0.9, rel=1e-5)


def test_figures_of_a_step() -> None:
    solution = Solution(
        value=torch.zeros(4, 1), residual=torch.tensor([0.1, 0.4, 0.2, 0.3]), num_evals=5,
        result=torch.tensor([0, 1, 0, 1]), num_steps=torch.tensor([1, 4, 1, 4]), rows_evaluated=9,
    )  # fmt: skip
    assert step_metrics(solution) == pytest.approx(
        {"converged": 0.5, "residual": 0.2, "residual_90": 0.3, "solver_steps": 2.5}
    )
    assert step_metrics(None) == {}


def test_losses_of_a_step() -> None:
    """Of the rows in each segment alone, also where another row has no finite loss."""
    rows = torch.tensor([1.0, 2.0, 4.0, math.nan])
    first, last = torch.tensor([1, 0, 1, 0]).bool(), torch.tensor([0, 1, 0, 0]).bool()
    loss = torch.tensor(0.5)
    found = loss_metrics(loss, rows, first, last, Group())
    assert found == {"loss": 0.5, "first_segment_loss": 2.5, "last_segment_loss": 2.0}
    found = loss_metrics(loss, rows, first, ~first & first, Group())
    assert "last_segment_loss" not in found
    assert loss_metrics(loss, None, first, last, Group()) == {"loss": 0.5}


class Two(Group):
    """Two processes that have the same rows, but for these numbers of the other."""

    def all_reduce(self, metrics: dict[str, float]) -> dict[str, float]:
        other = {"first": 6.0, "num_first": 1.0}
        return {name: (value + other.get(name, value)) / 2 for name, value in metrics.items()}


def test_samples_of_all_processes_count_alike() -> None:
    rows, first = torch.tensor([1.0, 2.0, 3.0]), torch.ones(3).bool()
    found = loss_metrics(torch.tensor(2.0), rows, first, first, Two())
    assert found["first_segment_loss"] == pytest.approx((1 + 2 + 3 + 6) / 4)
    assert found["last_segment_loss"] == pytest.approx(2.0)


def make(folder: Path, **options: Any) -> Trainer:
    folder.mkdir(exist_ok=True)
    config = SudokuConfig.of(
        side=4, min_clues=6, max_clues=8, steps=12, width=8, batch_size=4, **options
    )
    task = SudokuTask()
    held_out = task.encode(PUZZLES[:6], config)
    batches = Batches(task.sampler(PUZZLES, config), len(PUZZLES), held_out, max_steps=4)
    torch.manual_seed(0)
    return Trainer(batches, config.build(), config, folder, max_steps=2, meta={})


@pytest.mark.parametrize("model", ["attractor", pytest.param("eqr", marks=pytest.mark.slow)])
def test_watching_changes_no_number_of_training(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = make(tmp_path / "seen", model=model)
    seen.run()
    monkeypatch.setattr(train, "solve_metrics", lambda _: contextlib.nullcontext({}))
    blind = make(tmp_path / "blind", model=model)
    blind.run()
    assert [row["loss"] for row in seen.history.rows] == [row["loss"] for row in blind.history.rows]
    for name, value in blind.average.state_dict().items():
        assert torch.equal(seen.average.state_dict()[name], value), name
    assert all("test_radius" in row for row in seen.history.rows if "test_exact" in row)
    assert all({"converged", "residual", "residual_90"} <= set(row) for row in seen.history.rows)
    assert not any("test_radius" in row for row in blind.history.rows)


def test_a_step_calls_the_map_no_more_often_than_its_solve(tmp_path: Path) -> None:
    trainer = make(tmp_path)
    calls = []
    trainer.model.solving.module.register_forward_hook(lambda *_: calls.append(1))  # type: ignore[union-attr]
    trainer.run()
    # Per step 2 free updates with the measuring call, and 2 recorded ones.
    assert len(calls) == 12 * 5


def test_the_loss_of_first_and_last_segments_is_logged_apart(tmp_path: Path) -> None:
    """In each step, another one of the four samples begins its solve, and another one ends it."""
    trainer = make(tmp_path, segments=4)
    expected: list[Tensor] = []
    found: list[dict[str, float]] = []

    def note(_: object, given: object, out: Any) -> None:
        assert trainer.samples is not None
        logits, target = out.logits.detach(), trainer.samples.target
        expected.append(cross_entropy(logits.mT, target, reduction="none").mean(1))

    trainer.model.register_forward_hook(note)
    trainer._log = lambda metrics, _: found.append(metrics)  # type: ignore[method-assign]
    trainer.run()
    # All are new in the first step, and count as older.
    assert found[0]["first_segment_loss"] == pytest.approx(found[0]["loss"], rel=1e-5)
    for step in range(1, 12):
        first, last = expected[step][-step % 4].item(), expected[step][(3 - step) % 4].item()
        assert found[step]["first_segment_loss"] == pytest.approx(first, rel=1e-5)
        assert found[step]["last_segment_loss"] == pytest.approx(last, rel=1e-5)


@pytest.mark.parametrize("options", [{"segments": 1}, {"model": "transformer"}])
def test_one_segment_has_no_first_and_last(tmp_path: Path, options: dict[str, Any]) -> None:
    trainer = make(tmp_path, **options)
    trainer.run()
    assert not [name for name in trainer.history.rows[-1] if name.endswith("segment_loss")]
