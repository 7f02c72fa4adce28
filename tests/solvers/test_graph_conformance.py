"""The conformance suite on the loop of a graph, with the operator run step by step in Python."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from parameters import long, slow
from torch import Tensor

import solvers.graph
from solvers import FixedPointSolver, Solution
from solvers.graph import GraphLoop
from solvers.registry import LINEAR
from solvers.testing import PROPERTIES, SEEDED, report, resolve

ALL = [
    "aitken", "anderson", "anderson_safe", "anderson_type1", "broyden", "picard", "squarem",
    *LINEAR.names(),
]  # fmt: skip
# Those that need more than the usual methods; the others are run now and then.
CASES: dict[str, Callable[..., Any]] = {"anderson": pytest.param, "broyden": slow, "gmres": slow}
# No sample leaves a graph.
NOT_HERE = {"work_follows_need", "leaving_the_batch_changes_no_answer"}


def stepped(
    goes_on: Callable[..., Tensor], body: Callable[..., tuple[Tensor, ...]], carried: Any
) -> Any:
    while goes_on(*carried):
        carried = body(*carried)
    return carried


def in_graph(
    self: FixedPointSolver, f: Any, y0: Any, args: tuple[Any, ...] = (), **options: Any
) -> Solution:
    options.pop("compact", None)
    solution = GraphLoop(f, y0, *args, solver=self, **options).solution()
    counts = {name: int(getattr(solution, name)) for name in ("num_evals", "rows_evaluated")}
    return dataclasses.replace(solution, **counts)


@pytest.fixture(autouse=True)
def graph_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every solve of the suite is one of the graph's loop."""
    monkeypatch.setattr(solvers.graph, "while_loop", stepped)
    monkeypatch.setattr(FixedPointSolver, "iterate", in_graph)


@pytest.mark.parametrize("name", [CASES.get(name, long)(name) for name in ALL])
def test_conforms(name: str) -> None:
    chosen = resolve(name)
    runs: list[Any] = [(p, (chosen,)) for p in PROPERTIES if p.__name__ not in NOT_HERE]
    runs += [(p, (chosen, seed)) for p in SEEDED if p.__name__ not in NOT_HERE for seed in range(2)]
    with torch.no_grad():
        report(chosen, runs)
