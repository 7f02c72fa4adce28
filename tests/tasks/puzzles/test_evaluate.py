"""What evaluation shows of a solve."""

import itertools
from typing import Any

import pytest
import torch
from counted_progress import Counted

from tasks.puzzles import evaluate as module
from tasks.puzzles.config import ModelName
from tasks.puzzles.evaluate import evaluate, predict, solve_batch, step_curve, trajectory
from tasks.puzzles.search import solve_from_starts
from tasks.sudoku.config import PRESETS


@pytest.mark.parametrize("solver", ["picard", "broyden"])
@pytest.mark.parametrize("name", ["attractor", "reasoner"])
def test_a_trajectory_is_the_solver_s_own(name: ModelName, solver: str) -> None:
    torch.manual_seed(0)
    config = PRESETS["tiny"].changed(model=name, solver=solver, rtol=1e-3)
    model: Any = config.build().double().eval()
    x = torch.randint(0, 5, (16,))
    frames = trajectory(model, x, 64)
    found, state = solve_batch(model, x[None], max_steps=64)
    assert [number for number, _, _ in frames] == list(range(len(frames)))
    assert len(frames) == int(found.num_steps) + 1
    assert bool(found.converged)
    _, residual, probabilities = frames[-1]
    assert residual == pytest.approx(found.residual.item(), rel=1e-3)
    assert torch.equal(probabilities.argmax(-1), predict(model, x[None], max_steps=64).classes[0])
    assert torch.allclose(probabilities.log(), model.read(state)[0].log_softmax(-1), atol=1e-5)
    assert frames[0][1] > residual


@pytest.mark.parametrize(("most", "expected"), [(5, [3, 2]), (3, [3]), (100, [3, 3, 1])])
def test_so_many_puzzles_are_restarted_and_no_more(
    most: int, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH", 3)
    monkeypatch.setattr(module, "RESTARTED", most)
    seen: list[int] = []

    def perturbed(state: torch.Tensor, strength: float, _: torch.Generator) -> torch.Tensor:
        seen.append(len(state))
        return state

    monkeypatch.setattr(module, "perturbed", perturbed)
    torch.manual_seed(0)
    model: Any = PRESETS["tiny"].changed(rtol=1e-3).build().eval()
    x = torch.randint(0, 5, (7, 16))
    figures, found = evaluate(model, x, torch.zeros_like(x), max_steps=64)
    assert seen == expected
    assert figures["restarted"] == sum(expected)
    assert bool(found.converged.all())
    assert figures["restart_agreement"] == 1.0


@pytest.mark.parametrize("name", ["attractor", "transformer"])
def test_every_solve_of_an_evaluation_is_a_step_of_its_progress(
    name: ModelName, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH", 3)
    config = PRESETS["tiny"].changed(model=name)
    model: Any = config.build().eval()
    x, progress = torch.randint(0, 5, (7, 16)), Counted()
    evaluate(model, x, torch.zeros_like(x), 8, progress=progress)
    if name == "transformer":
        assert progress.parts == [["answers", 3, 3]]
        return
    step_curve(model, x, torch.zeros_like(x), 8, progress)
    solve_from_starts(
        model, x, max_steps=8, breadth=4, noise=1.0, valid=lambda x, _: x[:, 0] > 0,
        progress=progress,
    )  # fmt: skip
    assert progress.parts == [
        ["answers, with more steps, and from perturbed states", 9, 9],
        ["accuracy by solver steps, of 7", 12, 12],
        ["answers from 4 starts", 12, 12],
    ]


def test_a_residual_that_rises_does_not_stop_the_show() -> None:
    torch.manual_seed(0)
    model: Any = PRESETS["tiny"].changed(rtol=0.0, solver="picard").build().eval()
    with torch.no_grad():  # a map that turns: its residual goes up and down
        for parameter in model.solving.module.parameters():
            parameter.mul_(6)
    frames = trajectory(model, torch.randint(0, 5, (16,)), 24)
    residuals = [residual for _, residual, _ in frames]
    assert len(frames) == 24 + 1
    assert any(later > earlier for earlier, later in itertools.pairwise(residuals))
    assert len(set(residuals)) == len(residuals)
