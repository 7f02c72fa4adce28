"""Choose a solver by measurement: time the candidates on the caller's own problem."""

import dataclasses
import math
import random
import time
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch

from solvers.base import FixedPointSolver
from solvers.checks import check_integer
from solvers.entry_points import BrokenEntryPoint
from solvers.packing import StatePacking
from solvers.registry import SOLVERS, get_solver, names
from solvers.tools.benchmark import Benchmark, Candidate, kept_random_state
from solvers.tools.tuning import TuningResult
from solvers.types import Map, State

# Options to try of each native solver besides its defaults.
VARIANTS: dict[str, tuple[dict[str, Any], ...]] = {
    "anderson": ({"history": 3}, {"history": 5}, {"history": 12}, {"damping": 0.3}),
    "anderson_safe": ({"history": 4},),
    "anderson_type1": ({"history": 4},),
    "broyden": ({"history": 8}, {"history": 32}),
    "picard": ({"damping": 0.3}, {"damping": 0.6}),
}
# The first solve of a candidate is broken off at HOPELESS times the best time so far, and some time
# more, since the time of a very short first solve is unreliable.
HOPELESS, GRACE_SECONDS = 3.0, 2e-3
# A candidate stays in the race up to BEHIND times the best time. Times within a factor of TIE are
# equal.
BEHIND, TIE = 2.0, 1.05


@torch.no_grad()
def autotune(
    f: Map,
    y0: State,
    *args: Any,
    rtol: float = 1e-5,
    atol: float = 1e-8,
    max_steps: int = 200,
    batch_dims: int = 1,
    candidates: Iterable[str | FixedPointSolver] | None = None,
    rounds: int = 3,
    graphs: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> TuningResult:
    """Measure solvers on this problem and return the fastest that solves all of it.

    Each candidate first solves once, and is broken off at 3 times the best time so far of
    one that converged on all samples. Those that converged are then timed in interleaved rounds
    of shuffled order; a candidate that takes more than twice the best time drops out. The lowest
    median wall time wins; within 5 %, fewer evaluations do, then less memory, then the order
    of the candidates. The choice holds for the data, batch size and machine it was made on.

    Every solve starts from the caller's random state (Python's, torch's, the device's), which
    is restored. Modules stay in their training or evaluation mode, and buffers that `f` itself
    writes, such as BatchNorm's in training mode, change. Cost: one solve per candidate, which may
    be long where it does not converge, and `rounds` more for each that is timed.

    Args:
        f: See `solve`.
        y0: See `solve`; at least one sample.
        *args: See `solve`.
        rtol: Tolerance of every candidate, whatever its own.
        atol: See `rtol`.
        max_steps: Budget of updates, at least 1. A candidate that needs more has failed.
        batch_dims: See `solve`.
        candidates: Registered names (with default options) and instances; by default every
            solver of this library that is registered, some with several options.
        rounds: Timed solves of each candidate that takes part in the race, at least 1.
        graphs: How many of the fastest candidates race once more with `loop="graph"`. Compiling
            one takes half a minute, which does not count; nor does a graph drop samples.
        clock: Source of seconds; one of your own makes the choice reproducible.

    Returns:
        A `TuningResult`. If no candidate converged on all samples, those that converged on the
        most are timed; if none converged on any, the smallest worst residual wins. A warning and
        `advice` say so.

    Raises:
        ValueError: No candidates or samples, an unknown name, or a bad budget or tolerance.
        TypeError: A candidate is neither a name nor a solver; or as `solve`.
        Exception: Whatever `f` raises. If only its derivative raises, the candidates that need
            one are left out instead.

    Example:
        >>> x = torch.linspace(-1, 1, 8).view(4, 2)
        >>> f = lambda y, x: 0.99 * y + x
        >>> tuning = autotune(f, torch.zeros_like(x), x, candidates=["anderson", "picard"])
        >>> tuning.name
        'anderson'
    """
    for label, value, least in (
        ("max_steps", max_steps, 1),
        ("rounds", rounds, 1),
        ("graphs", graphs, 0),
    ):
        check_integer(label, value, least)
    packing = StatePacking(y0, batch_dims)
    if not packing.num_samples:
        raise ValueError(f"`y0` has no samples to measure: batch shape {(*packing.batch_shape,)}.")
    entrants = _candidates(default_candidates() if candidates is None else candidates, rtol, atol)
    benchmark = Benchmark(f, y0, args, packing, max_steps, clock)
    with kept_random_state(packing.device):
        _try_all(benchmark, entrants)
        racing = _race(benchmark, _worth_a_race(entrants), rounds)
        compiled = _compiled(benchmark, racing, graphs)
        entrants += compiled
        able = [one for one in compiled if one.num_converged == racing[0].num_converged]
        if able:
            racing = _race(benchmark, racing + _worth_a_race(able), rounds)
        winner, verdict = _decide(benchmark, racing, entrants)
    advice = _advice(winner, packing.num_samples)
    if advice:
        warnings.warn(advice, stacklevel=2)
    entrants.sort(key=lambda candidate: candidate.rank(winner))
    return TuningResult(
        solver=winner.solver,
        name=_name(winner.solver),
        options=_options(winner.solver),
        loop=winner.loop,
        table=tuple(candidate.trial(packing.num_samples) for candidate in entrants),
        num_evals=benchmark.num_evals,
        advice=advice,
        verdict=verdict,
    )


def default_candidates() -> list[FixedPointSolver]:
    """Return every solver of this library and of yours with its defaults, then the variants.

    One that an installed package names and that cannot be loaded is left out, with a warning.
    """
    native = []
    for name in (name for name in names() if "." not in name):
        try:
            if name in SOLVERS:
                native.append(name)
        except BrokenEntryPoint as error:
            warnings.warn(f"Not tried: {error}", stacklevel=3)
    variants = [(name, options) for name in native for options in VARIANTS.get(name, ())]
    return [
        get_solver(name, **options) for name, options in [*((n, {}) for n in native), *variants]
    ]


def _candidates(
    candidates: Iterable[str | FixedPointSolver], rtol: float, atol: float
) -> list[Candidate]:
    """Make one candidate for each different solver, all at the same tolerances."""
    listed = [candidates] if isinstance(candidates, str | FixedPointSolver) else candidates
    resolved = [SOLVERS.resolve(candidate) for candidate in listed]
    entrants: list[Candidate] = []
    for solver in resolved:
        solver = dataclasses.replace(solver, rtol=rtol, atol=atol)
        if all(solver != candidate.solver for candidate in entrants):
            entrants.append(Candidate(solver, _label(solver)))
    if not entrants:
        raise ValueError(
            "`candidates` is empty. Pass names or solvers, or leave it out to try all of: "
            f"{', '.join(names())}."
        )
    return entrants


def _try_all(benchmark: Benchmark, entrants: list[Candidate]) -> None:
    """Solve once with each candidate, under a time limit once one has solved all samples."""
    benchmark.warm_up()
    best: Candidate | None = None
    for candidate in entrants:
        limit = math.inf if best is None else HOPELESS * best.first_seconds + GRACE_SECONDS
        benchmark.try_once(candidate, limit)
        if candidate.broken_off and best and candidate.num_evals < best.num_evals:
            # Few calls took much time: perhaps something was loaded at its first use, such as
            # forward mode. Solving again shows whether that was the cause.
            benchmark.try_once(candidate, limit)
        if candidate.broken_off:
            candidate.reason = f"broken off at {HOPELESS:g} times the best time so far"
        elif candidate.num_converged == benchmark.packing.num_samples:
            best = min(best or candidate, candidate, key=lambda candidate: candidate.first_seconds)
    errors = [candidate.refused for candidate in entrants if candidate.refused]
    if len(errors) == len(entrants):
        raise errors[0]


def _worth_a_race(entrants: list[Candidate]) -> list[Candidate]:
    """The candidates that converged on the most samples, if any, and are not far too slow."""
    most = max(candidate.num_converged for candidate in entrants)
    best = [candidate for candidate in entrants if candidate.num_converged == most]
    if most == 0:
        return [min(best, key=lambda candidate: candidate.worst_residual)]
    limit = HOPELESS * min(candidate.first_seconds for candidate in best) + GRACE_SECONDS
    return [candidate for candidate in best if candidate.first_seconds <= limit]


def _compiled(benchmark: Benchmark, racing: list[Candidate], count: int) -> list[Candidate]:
    """The fastest candidates that a graph can hold, compiled."""
    able = [one for one in racing if not (one.solver.whole or one.solver.calls_map)]
    fastest = sorted(able, key=lambda candidate: candidate.seconds)[:count]
    graphs = [Candidate(one.solver, f"{one.label} in a graph", "graph") for one in fastest]
    for candidate in graphs:
        benchmark.compile(candidate)
    return graphs


def _race(benchmark: Benchmark, racing: list[Candidate], rounds: int) -> list[Candidate]:
    """Time candidates side by side; return those that stayed in until the last round."""
    for number in range(rounds if len(racing) > 1 else 1):
        order = list(racing)
        random.Random(number).shuffle(order)
        for candidate in order:
            benchmark.time(candidate)
        limit = BEHIND * min(min(candidate.times) for candidate in racing)
        racing = [candidate for candidate in racing if min(candidate.times) <= limit]
    return racing


def _decide(
    benchmark: Benchmark, racing: list[Candidate], entrants: list[Candidate]
) -> tuple[Candidate, str]:
    """Choose the winner and say why it won; record for the others why they lost."""
    fastest = min(candidate.seconds for candidate in racing)
    tied = [candidate for candidate in racing if candidate.seconds <= TIE * fastest]
    fewest = min(candidate.num_evals for candidate in tied)
    frugal = [candidate for candidate in tied if candidate.num_evals == fewest]
    memory = {
        candidate: benchmark.memory(candidate) if len(frugal) > 1 else 0.0 for candidate in frugal
    }
    winner = min(frugal, key=lambda candidate: memory[candidate])
    for candidate in entrants:
        if candidate in tied:
            candidate.reason = _tie(candidate, winner, memory)
        elif not candidate.reason:
            candidate.reason = (
                f"{_ratio(candidate.seconds, winner.seconds):.2f} times the winner's time"
            )
    winner.reason = "won"
    peers = [e for e in entrants if e is not winner and e.num_converged == winner.num_converged]
    if winner.num_converged == 0:
        return winner, (
            f"{winner.label} wins by default: no candidate converged on any sample, and its worst "
            f"residual, {winner.worst_residual:.1e}, is the smallest."
        )
    total = benchmark.packing.num_samples
    most = f"all {total}" if winner.num_converged == total else f"{winner.num_converged} of {total}"
    why = _why(winner, tied, peers, memory)
    return winner, f"{winner.label} wins: it converged on {most} samples, {why}."


def _tie(candidate: Candidate, winner: Candidate, memory: dict[Candidate, float]) -> str:
    """Say why a candidate lost that was as fast as the winner."""
    if candidate.num_evals > winner.num_evals:
        return f"as fast, but more evaluations ({candidate.num_evals} against {winner.num_evals})"
    if memory[candidate] > memory[winner]:
        return "as fast with as few evaluations, but more memory"
    return "equal in all, but later in the list"


def _why(
    winner: Candidate, tied: list[Candidate], peers: list[Candidate], memory: dict[Candidate, float]
) -> str:
    """The last clause of the verdict: what distinguishes the winner."""
    if not peers:
        return "as no other candidate did in time"
    took = f"{1e3 * winner.seconds:.3g} ms"
    if len(tied) == 1:
        second = min(peers, key=lambda candidate: candidate.seconds)
        ratio = _ratio(second.seconds, winner.seconds)
        return (
            f"and its {took} are the least: {second.label}, the next, took {ratio:.2f} times that"
        )
    close = f"its {took} are the least or within {TIE - 1:.0%} of that"
    if len(memory) == 1:
        return f"{close}, and among the equally fast it needs the fewest evaluations"
    if sum(size == memory[winner] for size in memory.values()) == 1:
        return f"{close}, and none as fast with as few evaluations needs as little memory"
    return f"{close}, and among its equals it is the first in the list"


def _advice(winner: Candidate, num_samples: int) -> str:
    """What went wrong and what to do; empty if all samples converged."""
    if winner.num_converged == num_samples:
        return ""
    return (
        f"NO CANDIDATE CONVERGED ON ALL SAMPLES. The best, {winner.label}, did on "
        f"{winner.num_converged} of {num_samples} and left a worst relative residual of "
        f"{winner.worst_residual:.1e}. {winner.failure.message}"
    )


def _ratio(seconds: float, winner_seconds: float) -> float:
    return seconds / winner_seconds if winner_seconds else math.inf


def _name(solver: FixedPointSolver) -> str:
    """The registered name, or the class's own."""
    registered = {cls: name for name, cls in SOLVERS.classes().items()}
    return registered.get(type(solver), type(solver).__name__)


def _options(solver: FixedPointSolver) -> dict[str, Any]:
    return {item.name: getattr(solver, item.name) for item in dataclasses.fields(solver)}


def _label(solver: FixedPointSolver) -> str:
    """The name, and the options that differ from the defaults, without tolerances."""
    fields = {item.name: item.default for item in dataclasses.fields(solver)}
    told = [
        f"{key}={value!r}"
        for key, value in _options(solver).items()
        if key not in ("rtol", "atol") and value != fields[key]
    ]
    return f"{_name(solver)}({', '.join(told)})" if told else _name(solver)
