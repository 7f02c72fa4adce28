"""Puzzles near given ones: with the same solution and other clues, still hard or harder.

Hard puzzles are rare: of the minimal puzzles that digging in random grids leads to, next to none
is as hard as those of the published lists. But near a hard puzzle there are others, which is how
many of those lists were made. Here a walk starts at a puzzle, and each step

1. shows one to three cells more, drawn at random;
2. takes away, in random order, the old clues that are no longer necessary, and then the new
   ones, so that a minimal puzzle is left;
3. stays where it was if the puzzle that is left has less than half the guesses of the first one
   (those of our solver), and less than 40.

Every puzzle that the walk comes to for the first time is a relative. A walk that stays where it
was instead if the number of guesses falls leads to a harder puzzle.

All have the solution of the first, so a relative of a training puzzle is a test puzzle in
disguise only if the two shared a solution already.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple
from random import Random

from tasks.puzzles.puzzle import Puzzle
from tasks.puzzles.workers import Job, answer, chunks, in_processes, num_cores
from tasks.sudoku.board import Board, parse
from tasks.sudoku.solver import Engine, complete, engine_for, single_bits

RELATIVES_VERSION = 1
"""Raise it with any change that makes the same call return other puzzles: caches depend on it."""

SOURCE = "relative"
"""The `source` of every puzzle made here."""

_MOST_SHOWN = 3  # with one cell a step mostly leads back; with four to much easier puzzles
_HARD = 40  # guesses of our solver; the hardest puzzles have few neighbours that are as hard
_FEWEST_STEPS, _STEPS_PER_RELATIVE = 150, 10  # then a walk gives up
_MOST_STEPS_UP = 2000
_MOST_GUESSES = 500  # of a search on a board larger than 9x9


def relatives(
    puzzles: Sequence[Puzzle], count: int, *, seed: int = 0, workers: int | None = None
) -> list[Puzzle]:
    """Make `count` relatives of each puzzle.

    Costs some 40 ms for each on one core, near the hardest puzzles.

    Args:
        puzzles: Each with one solution; see `generate` and `read_puzzles`.
        count: Relatives of each. A puzzle that has fewer within reach fills up with itself.
        seed: The same seed gives the same relatives.
        workers: Processes to share the work, by default one per CPU core.

    Returns:
        `count` puzzles for the first, for the second, and so on.
    """
    return _shared(puzzles, {"count": count, "seed": seed}, workers)


def harder(
    puzzles: Sequence[Puzzle], guesses: int, *, seed: int = 0, workers: int | None = None
) -> list[Puzzle]:
    """For each puzzle, one near it that takes our solver at least `guesses` guesses.

    Costs 0.2 s for 20 guesses from ordinary minimal 9x9 puzzles, on one core.

    Args:
        puzzles: Each with one solution. One that is hard enough stays as it is.
        guesses: The least rating, see `solver.complete`.
        seed: The same seed gives the same puzzles.
        workers: See `relatives`.

    Raises:
        ValueError: A walk did not come to one.
    """
    return _shared(puzzles, {"guesses": guesses, "seed": seed}, workers)


def _shared(puzzles: Sequence[Puzzle], what: Job, workers: int | None) -> list[Puzzle]:
    if workers == 1:
        return _work({"puzzles": [astuple(puzzle) for puzzle in puzzles], **what})
    workers = workers or num_cores()
    parts = chunks(range(len(puzzles)), workers)
    jobs = [{"puzzles": [astuple(puzzles[i]) for i in part], **what} for part in parts]
    return in_processes("tasks.sudoku.relatives", jobs, workers)


def _work(job: Job) -> list[Puzzle]:
    """Make the puzzles of one job; runs in a worker process."""
    puzzles, seed = [Puzzle(*row) for row in job["puzzles"]], job["seed"]
    if "guesses" in job:
        return [_climb(puzzle, job["guesses"], seed) for puzzle in puzzles]
    return [other for puzzle in puzzles for other in _walk(puzzle, job["count"], seed)]


def _walk(puzzle: Puzzle, count: int, seed: int) -> list[Puzzle]:
    rng = Random(f"{seed}/relatives/{puzzle.question}")
    engine, clues, solution = _start(puzzle)
    hard_enough = min(_guesses(clues, engine) / 2, _HARD)
    seen, known, found = {clues}, {clues}, []
    for _ in range(max(_FEWEST_STEPS, _STEPS_PER_RELATIVE * count)):
        if len(found) == count:
            break
        step = _step(clues, solution, engine, rng)
        if step not in seen:
            seen.add(step)
            if _guesses(step, engine) < hard_enough:
                continue
            known.add(step)
            found.append(complete(SOURCE, engine.digits(step), engine.board))
        clues = step if step in known else clues
    return found + [puzzle] * (count - len(found))


def _climb(puzzle: Puzzle, wanted: int, seed: int) -> Puzzle:
    rng = Random(f"{seed}/harder/{puzzle.question}")
    engine, clues, solution = _start(puzzle)
    guesses = _guesses(clues, engine)
    for _ in range(_MOST_STEPS_UP):
        if guesses >= wanted:
            return complete(puzzle.source, engine.digits(clues), engine.board)
        step = _step(clues, solution, engine, rng)
        if (number := _guesses(step, engine)) >= guesses:
            clues, guesses = step, number
    raise ValueError(
        f"No puzzle near {puzzle.question} was found that needs {wanted} guesses; the hardest "
        f"needs {guesses}. Ask for fewer."
    )


def _start(puzzle: Puzzle) -> tuple[Engine, int, int]:
    """The engine of the puzzle's board; its clues and its solution as sets of candidates."""
    board = Board.for_length(len(puzzle.question))
    engine = engine_for(board)
    clues, solution = (
        sum(engine.clue_bits(parse(text, board))) for text in (puzzle.question, puzzle.answer)
    )
    return engine, clues, solution


def _step(clues: int, solution: int, engine: Engine, rng: Random) -> int:
    """Another minimal puzzle with this solution, or the same one."""
    old, hidden = list(single_bits(clues)), list(single_bits(solution & ~clues))
    shown = rng.sample(hidden, min(rng.randint(1, _MOST_SHOWN), len(hidden)))
    rng.shuffle(old)
    clues |= sum(shown)
    for clue in old + shown:
        if engine.is_needed(clue, single_bits(clues & ~clue), _most_guesses(engine)) is False:
            clues &= ~clue
    return clues


def _guesses(clues: int, engine: Engine) -> int:
    """Those that a puzzle needs, or -1 if the search gave up, so that no walk goes there."""
    most = _most_guesses(engine)
    number = engine.search(*engine.start(single_bits(clues)), limit=2, most_guesses=most)[1]
    return -1 if number == most else number


def _most_guesses(engine: Engine) -> int | None:
    """Of a search, which may take very long on a large board."""
    return None if engine.board.side <= 9 else _MOST_GUESSES


if __name__ == "__main__":
    answer(_work)
