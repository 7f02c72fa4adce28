"""Test-time scaling: more steps (depth), more starts (breadth), and guesses where rules are broken.

A solve that ends in a wrong answer has often left some cells undecided, and other starts seldom
lead it elsewhere. An attempt of `search` then adds guesses to the question, one at a time: a cell
is drawn where two symbols compete, it is given its most likely symbol, and the solve goes on from
where it was. Since rules can be checked without knowing the solution, an attempt ends as soon as
the answer keeps them and fits the question as it was asked; wrong guesses are dropped with their
attempt, and none begins with a guess that another one began with. Every second attempt begins in
the cell of the one before with its next symbol: where two compete, one of them is right.

References:
    Equilibrium Reasoners, arXiv:2605.21488, sec. 4 (depth, breadth, selection by residual, and
    the four cases of `diagnose`).
"""

import dataclasses
from collections.abc import Callable, Generator
from typing import Any, get_args

import torch
from torch import Tensor

from models import GridModel
from solvers.torch_internals import pytree
from tasks.output import SILENT, Progress, wilson
from tasks.puzzles.evaluate import (
    Choice,
    Predictions,
    batches,
    joined_state,
    perturbed,
    solve_batch,
    solve_parts,
)

Validity = Callable[[Tensor, Tensor], Tensor]
"""(x, classes) -> whether each answer keeps the rules, shape (puzzles,); needs no solution."""


@dataclasses.dataclass(frozen=True)
class Starts:
    """The answers of a set from several starts; every tensor leads with (starts, puzzles).

    Attributes:
        predictions: One for each start; the first start is the model's own, undisturbed.
        valid: Whether the answer keeps the rules, shape (starts, puzzles).
    """

    predictions: list[Predictions]
    valid: Tensor

    def choose(self, choice: Choice, breadth: int) -> Predictions:
        """One answer per puzzle, from the first `breadth` starts.

        "residual" takes the smallest residual; "vote" the answer that most starts agree on,
        and of equals the one with the smallest residual; "valid" an answer that keeps the
        rules if there is one, by residual.
        """
        taken = Predictions(*map(torch.stack, zip(*self.predictions[:breadth], strict=True)))
        best = self.best(choice, breadth)
        rows = torch.arange(len(best))
        return Predictions(*(values[best, rows] for values in taken))

    def best(self, choice: Choice, breadth: int) -> Tensor:
        """The number of the start that `choose` takes, for each puzzle."""
        residual = torch.stack([each.residual for each in self.predictions[:breadth]])
        residual = residual.nan_to_num(nan=float("inf"))
        rank = residual / (1 + residual)  # in [0, 1): only breaks ties below
        rank = rank.nan_to_num(nan=1.0)
        if choice == "vote":
            classes = torch.stack([each.classes for each in self.predictions[:breadth]])
            votes = (classes[:, None] == classes[None]).all(-1).sum(1)
            rank = rank - votes
        elif choice == "valid":
            rank = rank - self.valid[:breadth].float()
        return rank.argmin(0)


@torch.no_grad()
def solve_from_starts(
    model: GridModel, x: Tensor, *, max_steps: int, breadth: int, noise: float, valid: Validity,
    progress: Progress = SILENT,
) -> Starts:  # fmt: skip
    """Solve a set from the model's own start and `breadth - 1` others, with one fixed seed.

    Args:
        model: In evaluation mode; it must have a solve.
        x: Inputs, shape (puzzles, cells).
        max_steps: Budget of solver updates, from each start.
        breadth: How many starts, at least 1.
        noise: How far the others are from the first: root mean square of the noise over that
            of the start. A model that starts at random makes its own.
        valid: See `Validity`.
        progress: Told of each solve.
    """
    generator, device = torch.Generator().manual_seed(0), next(model.parameters()).device
    torch.manual_seed(0)
    columns: list[list[Predictions]] = []
    progress.begin(f"answers from {breadth} starts", breadth * len(batches(x)))
    for rows in batches(x):
        column = []
        for number in range(breadth):
            start, _ = model.problem(rows.to(device))  # type: ignore[union-attr]
            if number:
                start = perturbed(start, noise, generator)
            start = pytree.tree_map(lambda leaf: leaf.contiguous(), start)
            column.append(solve_batch(model, rows, max_steps=max_steps, start=start)[0])
            progress.advance()
        columns.append(column)
    predictions = [Predictions.join(parts) for parts in zip(*columns, strict=True)]
    return Starts(predictions, torch.stack([valid(x, p.classes) for p in predictions]))


def breadth_curve(starts: Starts, target: Tensor) -> list[dict[str, Any]]:
    """Exact accuracy at 1, 2, 4, ... starts, for each way to choose."""
    rows, breadth = [], 1
    while breadth <= len(starts.predictions):
        row: dict[str, Any] = {"breadth": breadth}
        for choice in get_args(Choice):
            chosen = starts.choose(choice, breadth)
            row[choice] = (chosen.classes == target).all(1).double().mean().item()
        rows.append(row)
        breadth *= 2
    return rows


def calibration(predictions: Predictions, target: Tensor) -> list[dict[str, Any]]:
    """Exact accuracy by final residual, one row for each decade, with the interval of 95 %.

    In a good model, answers with a small residual are right.
    """
    right = (predictions.classes == target).all(1)
    decade = predictions.residual.clamp(1e-12, 1e3).log10().floor()
    rows: list[dict[str, Any]] = []
    for low in sorted(set(decade[decade.isfinite()].tolist())):
        inside = right[decade == low]
        share = inside.double().mean().item()
        rows.append(
            {
                "residual": f"1e{int(low):+03d} to 1e{int(low) + 1:+03d}",
                "puzzles": len(inside),
                "exact_accuracy": share,
                "interval": wilson(share, len(inside)),
            }
        )
    return rows


CASES = {
    "broad": "a right attractor, broad and stable: every start ends in the right answer; "
    "depth is all it takes",
    "coexist": "right and wrong attractors coexist: some starts end right, others settle on a "
    "wrong answer; breadth helps",
    "hard_to_reach": "the right one is hard to reach: some start ends right or none settles; "
    "depth and breadth help",
    "no_attractor": "no correct attractor: every start settles, and none on the right answer; "
    "only training helps",
}
SETTLED = 1e-3


def diagnose(starts: Starts, target: Tensor) -> dict[str, float]:
    """Share of puzzles in each of the four cases; a start has settled below a residual of 1e-3."""
    right = torch.stack([(p.classes == target).all(1) for p in starts.predictions])
    settled = torch.stack([p.residual < SETTLED for p in starts.predictions])
    wrong = (settled & ~right).any(0)
    broad = right.all(0)
    coexist = right.any(0) & wrong
    stuck = ~right.any(0) & settled.all(0)
    shares = {"broad": broad, "coexist": coexist, "no_attractor": stuck}
    shares["hard_to_reach"] = ~(broad | coexist | stuck)
    return {name: shares[name].double().mean().item() for name in CASES}


Assume = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(questions, a cell of each, a class of each) -> the questions with these cells filled in."""

# How much a guess prefers cells where two symbols are equally likely. Four attempts at 40 training
# puzzles of the Sudoku-Extreme kind brought 25 % solved to 53 % with 4, and to 45 % with 1.
SHARPNESS = 4


Searching = Generator[tuple[Tensor, Any], tuple[Tensor, Any], list[Tensor]]
"""Asks for solves: yields questions and where to start, None for the model's own start; is sent
their logits, on the CPU, and the state in which the solve ended. Returns what `search` does."""


@torch.no_grad()
def search(
    model: GridModel,
    x: Tensor,
    *,
    valid: Validity,
    assume: Assume,
    max_steps: int,
    attempts: int,
    guesses: int,
    seed: int = 0,
    progress: Progress = SILENT,
) -> tuple[list[Tensor], float]:
    """Answer a set of questions, and try again where an answer breaks the rules.

    Args:
        model: In evaluation mode; it must have a solve.
        x: Questions, shape (puzzles, cells).
        valid: Whether answers keep the rules and fit their questions.
        assume: See `Assume`.
        max_steps: Budget of solver updates of the first solve, and after each guess.
        attempts: How often to begin anew.
        guesses: Cells assumed per attempt, at most.
        seed: Of the guesses.
        progress: Told of each solve, and of those that a batch needed no more.

    Returns:
        The classes after 0, 1, ..., `attempts` attempts, each of shape (puzzles, cells), and the
        solver updates that all this took for a puzzle, on average.
    """
    generator, updates = torch.Generator().manual_seed(seed), 0

    def solve(x: Tensor, start: Any) -> tuple[Tensor, Any]:
        nonlocal updates
        parts = solve_parts(model, x, max_steps=max_steps, start=start)
        updates += sum(int(out.solution.num_steps.sum()) for out in parts)
        return torch.cat([out.logits for out in parts]).cpu(), joined_state(parts)

    most = 1 + attempts * guesses  # solves of a batch
    progress.begin(f"search by {attempts} attempts at guessing", most * len(batches(x)))

    def found(rows: Tensor) -> list[Tensor]:
        solves = 0
        searching = attempts_at(rows, valid, assume, attempts, guesses, generator)
        asked = next(searching)
        try:
            while True:
                answer = solve(*asked)
                solves += 1
                progress.advance()
                asked = searching.send(answer)
        except StopIteration as ended:
            progress.advance(most - solves)
            return ended.value

    answers = [torch.cat(parts) for parts in zip(*map(found, batches(x)), strict=True)]
    return answers, updates / max(1, len(x))


def attempts_at(
    x: Tensor,
    valid: Validity,
    assume: Assume,
    attempts: int,
    guesses: int,
    generator: torch.Generator,
) -> Searching:
    """Search as `search` does, and leave it to the caller how a batch is solved.

    Args:
        x: Questions, shape (puzzles, cells).
        valid: See `search`.
        assume: See `Assume`.
        attempts: See `search`.
        guesses: See `search`.
        generator: Draws the guesses.
    """
    logits, state = yield x, None
    found, first = [logits.argmax(-1)], torch.zeros_like(logits, dtype=torch.bool)
    begun = torch.zeros_like(x[:, 0])  # the cell in which the last attempt began
    for attempt in range(attempts):
        classes = found[-1].clone()
        rows = (~valid(x, classes)).nonzero()[:, 0]
        question, at, belief = x[rows], _take(state, rows), logits[rows]
        for number in range(guesses if len(rows) else 0):
            done = first[rows] if number == 0 else torch.zeros_like(first[rows])
            again = begun[rows] if number == 0 and attempt % 2 else None
            cells, symbols = _guess(question, belief, done, generator, again)
            if number == 0:
                first[rows, cells, symbols], begun[rows] = True, cells
            question = assume(question, cells, symbols)
            belief, at = yield question, at
            answer = belief.argmax(-1)
            right = valid(x[rows], answer)
            classes[rows[right]] = answer[right]
            left = (~right).nonzero()[:, 0]
            rows, question, belief = rows[left], question[left], belief[left]
            at = _take(at, left)
            if len(rows) == 0:
                break
        found.append(classes)
    return found


def _guess(
    x: Tensor, logits: Tensor, done: Tensor, generator: torch.Generator, cells: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Draw a blank cell of each question, or take `cells`; its symbol is the likeliest not done.

    A cell is the more likely the closer its second most likely symbol is to the first, and the
    likelier the symbol that it would be given.
    """
    probability = logits.double().softmax(-1)
    second = probability.topk(2, dim=-1).values[..., 1]
    likely, symbols = probability.masked_fill(done, 0.0).max(-1)
    # Where all is decided, wrongly, any blank cell will do; where none is blank, any cell.
    weight = torch.where(x == 0, torch.minimum(second, likely) ** SHARPNESS + 1e-9, 1e-15)
    if cells is None:
        cells = torch.multinomial(weight, 1, generator=generator)[:, 0]
    return cells, symbols[torch.arange(len(x)), cells]


def _take(state: Any, rows: Tensor) -> Any:
    return pytree.tree_map(lambda leaf: leaf[rows.to(leaf.device)], state)
