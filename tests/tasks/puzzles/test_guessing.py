"""Search by guessed cells: it fills blanks, keeps what is right, and forgets wrong guesses."""

import dataclasses

import pytest
import torch
from counted_progress import Counted
from torch import Tensor, nn

from tasks.maze.task import MazeTask
from tasks.puzzles.search import search
from tasks.sudoku.task import SudokuTask

PUZZLES, CELLS = 40, 7


@dataclasses.dataclass
class Steps:
    num_steps: Tensor


@dataclasses.dataclass
class Out:
    logits: Tensor
    state: Tensor
    solution: Steps


class TwoWays(nn.Module):
    """Answers every cell with the class of a given one; torn between two where none is given.

    The last cell of a question is its label, 10 + the class that is right, and is not read.
    """

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self.asked: list[Tensor] = []

    def forward(self, x: Tensor, *, start: Tensor | None, max_steps: int) -> Out:
        self.asked.append(x)
        given = x[:, :-1].amax(1) - 1  # -1 where all is blank
        logits = torch.zeros(*x.shape, 3)
        logits[..., 2] = -9.0
        logits[:, ::2, 0] += 1e-3  # so that an answer without a given cell is never right
        logits[:, 1::2, 1] += 1e-3
        known = given >= 0
        logits[known] = 9.0 * torch.nn.functional.one_hot(given[known], 3)[:, None].float()
        state = torch.zeros(len(x), 1) if start is None else start + 1
        return Out(logits, state, Steps(torch.full((len(x),), max_steps)))


def assume(x: Tensor, cells: Tensor, classes: Tensor) -> Tensor:
    return x.scatter(1, cells[:, None], classes[:, None] + 1)


def valid(x: Tensor, classes: Tensor) -> Tensor:
    return (classes[:, :-1] == x[:, -1:] - 10).all(1)


def run(attempts: int, guesses: int = 1, seed: int = 0) -> tuple[list[float], TwoWays]:
    """Half of the questions show a cell; of the others, a guess is right half of the time."""
    target = torch.arange(PUZZLES) % 2
    x = torch.zeros(PUZZLES, CELLS, dtype=torch.long)
    x[:, -1] = target + 10
    x[: PUZZLES // 2, 0] = target[: PUZZLES // 2] + 1
    model = TwoWays().eval()
    progress = Counted()
    found, updates = search(
        model, x, valid=valid, assume=assume, max_steps=3, attempts=attempts, guesses=guesses,
        seed=seed, progress=progress,
    )  # fmt: skip
    ((_, total, done),) = progress.parts
    assert total == done == 1 + attempts * guesses  # all are done, where fewer were needed
    assert updates == 3 * sum(map(len, model.asked)) / PUZZLES
    return [valid(x, classes).float().mean().item() for classes in found], model


def test_without_attempts_it_is_one_solve() -> None:
    scores, model = run(0)
    assert scores == [0.5]
    assert len(model.asked) == 1


def test_each_attempt_solves_more_and_loses_nothing() -> None:
    scores, model = run(8)
    assert scores == sorted(scores)
    assert 0.6 < scores[1] < 0.9
    assert scores[8] > 0.95
    # Only those still open are asked again.
    sizes = [len(asked) for asked in model.asked]
    assert sizes == [PUZZLES, *(round(PUZZLES * (1 - score)) for score in scores[: len(sizes) - 1])]


def test_guesses_fill_blanks_with_likely_symbols_and_are_dropped_with_their_attempt() -> None:
    _, model = run(2, guesses=2)
    given = [(asked[:, :-1] > 0).sum(1) for asked in model.asked[1:]]
    assert (given[0] == 1).all()
    assert (given[1] == 2).all()
    assert (given[2] == 1).all()
    assert all(asked[:, :-1].max() <= 2 for asked in model.asked)


def test_no_two_attempts_begin_with_the_same_guess() -> None:
    x, model = torch.zeros(3, CELLS, dtype=torch.long), TwoWays().eval()
    never = lambda x, classes: torch.zeros(len(x), dtype=torch.bool)  # noqa: E731
    search(model, x, valid=never, assume=assume, max_steps=3, attempts=12, guesses=1)
    first, *asked = (asked.tolist() for asked in model.asked)
    for puzzle in range(len(first)):
        assert len({tuple(each[puzzle]) for each in asked}) == len(asked) == 12


def test_every_second_attempt_tries_the_other_symbol_of_the_same_cell() -> None:
    x, model = torch.zeros(5, CELLS, dtype=torch.long), TwoWays().eval()
    never = lambda x, classes: torch.zeros(len(x), dtype=torch.bool)  # noqa: E731
    search(model, x, valid=never, assume=assume, max_steps=3, attempts=6, guesses=1)
    _, *asked = model.asked
    for one, other in zip(asked[::2], asked[1::2], strict=True):
        assert torch.equal(one.argmax(1), other.argmax(1))
        assert {1, 2} == {*one.amax(1).tolist(), *other.amax(1).tolist()}
        assert (one.amax(1) != other.amax(1)).all()


def test_the_same_seed_guesses_the_same() -> None:
    first, again, other = (run(1, seed=seed)[1].asked[1] for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_sudoku_takes_guesses_and_mazes_refuse_them() -> None:
    x = torch.zeros(2, 16, dtype=torch.long)
    filled = SudokuTask().assume(x, torch.tensor([3, 0]), torch.tensor([1, 2]))
    assert filled[0, 3] == 2
    assert filled[1, 0] == 3
    assert filled.count_nonzero() == 2
    assert x.count_nonzero() == 0
    with pytest.raises(ValueError, match=r"`--attempts` guesses cells .* maze"):
        MazeTask().assume(x, torch.tensor([0, 0]), torch.tensor([0, 0]))
