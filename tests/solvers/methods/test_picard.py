"""What only Picard promises."""

from typing import Any

import pytest
import torch
from parameters import slow
from torch import Tensor

import solvers
from solvers import Picard
from solvers.graph import solve_in_graph
from solvers.testing.problems import distance, linear, rotation


def test_picard_with_damping_reaches_eigenvalues_below_minus_one() -> None:
    x = torch.ones(2, 3, dtype=torch.float64)

    def f(y: Tensor, x: Tensor) -> Tensor:
        return -1.5 * y + x

    plain = solvers.solve(f, 0 * x, x, solver=Picard(), max_steps=200, throw=False)
    damped = solvers.solve(f, 0 * x, x, solver=Picard(damping=0.5), max_steps=200)
    assert not plain.converged.any()
    assert torch.allclose(damped.value, x / 2.5, atol=1e-4)


def test_picard_is_the_plain_iteration() -> None:
    p = linear(0.9, normal=True)
    y = p.y0
    for _ in range(4):
        y = 0.3 * y + 0.7 * p.f(y, *p.args)
    s = solvers.solve(p.f, p.y0, *p.args, solver=Picard(damping=0.3), max_steps=4, throw=False)
    assert torch.allclose(s.value, y)


def test_undamped_rotation_beyond_one_fails_without_a_false_claim() -> None:
    p = rotation(1.2)
    s = solvers.solve(p.f, p.y0, *p.args, solver="picard", max_steps=50, throw=False)
    assert not s.converged.any()
    assert distance(s.value, p.y0) == 0  # the start is the best point it saw


def test_damping_solves_a_rotation_that_the_plain_iteration_cannot() -> None:
    """d + (1 - d) 1.2 i has modulus 0.89 at d = 0.4, where 1.2 i has 1.2."""
    p = rotation(1.2)
    s = solvers.solve(p.f, p.y0, *p.args, solver=Picard(damping=0.4, rtol=1e-8), max_steps=400)
    assert distance(s.value, p.y_star) < 1e-6


@pytest.mark.filterwarnings("ignore:.*torch._prims_common.check.*:FutureWarning")
@pytest.mark.parametrize("loop", ["eager", slow("graph")])
def test_the_last_point_is_kept_on_request(loop: str) -> None:
    """As from a plain loop where the residual grows; a sample that converges stays where it did."""
    factor = torch.tensor([[-1.1], [0.5]], dtype=torch.float64)
    y0 = torch.ones(2, 3, dtype=torch.float64)

    def f(y: Tensor, factor: Tensor) -> Tensor:
        return factor * y + 1

    def solve(solver: Picard) -> solvers.Solution:
        if loop == "eager":
            return solvers.solve(f, y0, factor, solver=solver, max_steps=40, throw=False)
        options: Any = {"solver": solver, "max_steps": 40, "batch_dims": 1, "independent": True}
        graph = torch.compile(solve_in_graph, fullgraph=True, backend="eager", dynamic=False)
        return graph(f, y0, (factor,), scale=None, **options)

    best, last = solve(Picard()), solve(Picard(keeps_last=True))
    y = y0[0]
    for _ in range(40):
        y = f(y, factor[0])
    assert torch.equal(best.value[0], y0[0])
    assert torch.allclose(last.value[0], y, rtol=1e-12)
    assert torch.allclose(last.residual[0], (f(y, factor[0]) - y).square().mean().sqrt())
    assert last.converged.tolist() == [False, True]
    assert torch.equal(last.value[1], best.value[1])
    assert last.num_steps.tolist() == best.num_steps.tolist()
