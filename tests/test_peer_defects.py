"""Defects measured in torchdeq 0.1.0: none of them is here. Those of solving.

One test each. Numbers 9 to 15 and 18, on gradients, are in test_peer_defects_gradients.py.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from defects import SOLVERS, draw, matrix, tanh
from memory import PeakMemory
from torch import Tensor
from torch.utils import _pytree as pytree

import solvers
from implicit import SolveError, fixed_point
from solvers import Result
from solvers.testing.problems import rotation

# torch's own forward-mode formulas warn when they are first loaded.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")


def test_01_one_nan_sample_costs_nothing_and_spoils_no_iterate() -> None:
    """torchdeq: all samples run to the limit, 200 evaluations instead of 9, without a flag."""
    weight, x = matrix(0.5, 8), draw(5, 8)
    bad = x.clone()
    bad[2] = torch.nan
    sound = torch.tensor([0, 1, 3, 4])

    def breaks_later(y: Tensor, x: Tensor) -> Tensor:
        """0.5 y + x, until y comes near to the solution."""
        y_next = 0.5 * y + x
        return torch.where((y_next - 2 * x).norm() < 0.2, torch.nan, y_next)

    for name in SOLVERS:
        clean, s = (
            solvers.solve(
                tanh(weight), torch.zeros_like(x), x, solver=name, max_steps=200, throw=False
            )
            for x in (x, bad)
        )
        assert s.num_evals == clean.num_evals
        assert torch.equal(s.num_steps[sound], clean.num_steps[sound])
        assert torch.allclose(s.value[sound], clean.value[sound], rtol=1e-12)
        assert s.converged.tolist() == [True, True, False, True, True]
        assert int(s.result[2]) == Result.nonfinite
        assert int(s.num_steps[2]) == 0
    one = torch.ones(1, 1, dtype=torch.float64)
    s = solvers.solve(breaks_later, 0 * one, one, solver="picard", throw=False)
    assert int(s.result) == Result.nonfinite
    assert float(s.value) == 1.5
    assert float(s.residual) == 0.25


def test_02_divergence_is_reported_and_the_trace_starts_with_a_measured_residual() -> None:
    """torchdeq: silent; the trace starts with a sentinel of 1e8; no converged flag."""
    from solvers.tools.trace import trace

    def f(y: Tensor) -> Tensor:
        """y^2 + y + 1 has no real fixed point."""
        return y * y + y + 1

    y0 = torch.tensor([[0.5], [2.0]], dtype=torch.float64)
    for name in SOLVERS:
        s = solvers.solve(f, y0, solver=name, max_steps=60, throw=False)
        assert not s.converged.any()
        assert (s.residual >= 0.99).all()
        with pytest.raises(SolveError, match="2 of 2 samples did not converge"):
            solvers.solve(f, y0, solver=name, max_steps=60)
        with pytest.raises(SolveError):
            fixed_point(f, y0, solver=name, max_steps=60)
        seen = trace(f, y0, solver=name, max_steps=60)
        assert torch.equal(seen.residual[0], (f(y0) - y0).abs()[:, 0])
    s = solvers.solve(lambda y: 3 * y + 1, y0, solver="picard", max_steps=60, throw=False)
    assert s.result.tolist() == [Result.diverged, Result.diverged]
    assert "grew a million-fold" in Result.diverged.message
    assert int(s.num_steps.max()) < 20


def test_03_work_follows_need() -> None:
    """torchdeq: 2200 / 5400 / 900 rows of `f` where about 850 / 1890 / 360 suffice."""

    def rows(f: Callable[..., Tensor], y0: Tensor, *args: Tensor, name: str, rtol: float) -> int:
        seen = []

        def counting(y: Tensor, *args: Tensor) -> Tensor:
            seen.append(len(y))
            return f(y, *args)

        chosen = solvers.get_solver(name, rtol=rtol)
        s = solvers.solve(counting, y0, *args, solver=chosen, max_steps=500)
        assert s.rows_evaluated == sum(seen)
        assert s.num_evals == len(seen)
        # Rows that have stopped leave at a quarter of the batch, not one by one.
        assert sum(seen) <= 1.07 * int((s.num_steps + 1).sum())
        assert sum(seen) <= 0.4 * len(y0) * len(seen)
        return sum(seen)

    # Picard needs 7 evaluations at the rate 0.3 and 22 at 0.77: 90 * 7 + 10 * 22 rows.
    rate = torch.cat((torch.full((90, 1), 0.3), torch.full((10, 1), 0.77))).double()
    affine = rows(
        lambda y, rate: rate * y + 1, torch.zeros(100, 4).double(), rate, name="picard", rtol=1e-3
    )
    assert affine <= 850
    rate = torch.cat((torch.full((90, 1), 0.1), torch.full((10, 1), 0.97))).double()
    weight, x = matrix(1.0, 16), draw(100, 16)
    for name in SOLVERS:
        rows(
            lambda y, rate, x: rate * (y @ weight.T) + x, torch.zeros_like(x), rate, x,
            name=name, rtol=1e-5,
        )  # fmt: skip


def test_04_a_sample_is_the_same_whatever_its_batch_mates() -> None:
    """torchdeq: off by 3e-4 to 1e-3, 68 steps instead of 12, one line search for all."""
    weight, x = matrix(1.0, 8), draw(6, 8)
    rate = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9, 0.98], dtype=torch.float64)[:, None]

    def f(y: Tensor, rate: Tensor, x: Tensor) -> Tensor:
        # Summed row by row, so that f itself does not depend on the batch to the last bit.
        return rate * torch.tanh((weight * y[:, None]).sum(-1)) + x

    for name in [n for n in solvers.names() if "." not in n]:
        options: Any = {"solver": name, "max_steps": 500, "throw": False}
        batch = solvers.solve(f, torch.zeros_like(x), rate, x, **options)
        for i in range(6):
            row = slice(i, i + 1)
            alone = solvers.solve(f, torch.zeros_like(x[row]), rate[row], x[row], **options)
            assert int(alone.num_steps) == int(batch.num_steps[i])
            assert int(alone.result) == int(batch.result[i])
            # What remains are other orders of summation inside the solvers' small products.
            assert torch.allclose(alone.value[0], batch.value[i], rtol=1e-9, atol=1e-12)


def test_05_anderson_has_no_scale() -> None:
    """torchdeq at 1e-6: 80 evaluations, Picard 38, ridge 0 27; scaling by 1e-4 doubles them."""
    weight, x = matrix(0.9, 32), draw(16, 32)

    def solve(name: str, scale: float, **options: Any) -> solvers.Solution:
        return solvers.solve(
            lambda y, x: scale * torch.tanh(y / scale @ weight.T) + x, torch.zeros_like(x),
            scale * x, max_steps=500,
            solver=solvers.get_solver(name, rtol=1e-6, atol=0.0, **options),
        )  # fmt: skip

    plain = solve("anderson", 1.0)
    assert plain.num_evals <= 0.71 * solve("picard", 1.0).num_evals  # 27 of 38
    assert plain.num_evals <= solve("anderson", 1.0, ridge=0.0).num_evals + 1
    for scale in (1e-4, 1e-12, 1e4):
        scaled = solve("anderson", scale)
        assert int((scaled.num_steps - plain.num_steps).abs().max()) <= 1
        assert torch.allclose(scaled.value / scale, plain.value, rtol=1e-4, atol=1e-5)


def test_06_anderson_with_one_step_one_slot_and_half_precision() -> None:
    """torchdeq: the start unchanged; an IndexError; "lu_cpu not implemented"."""
    weight, x = matrix(0.5, 8), draw(3, 8)
    residuals = [
        solvers.solve(
            tanh(weight), torch.zeros_like(x), x, max_steps=k, throw=False, solver="anderson"
        ).residual
        for k in (0, 1, 2, 3)
    ]
    assert all((b < a).all() for a, b in itertools.pairwise(residuals))
    one = solvers.solve(tanh(weight), torch.zeros_like(x), x, max_steps=1, throw=False)
    assert torch.equal(one.value, x)
    s = solvers.solve(tanh(weight), torch.zeros_like(x), x, solver=solvers.Anderson(history=1))
    assert s.converged.all()
    for dtype in (torch.bfloat16, torch.float16):
        low = tanh(weight.to(dtype))
        loose = solvers.Anderson(rtol=2e-2)
        s = solvers.solve(low, torch.zeros_like(x).to(dtype), x.to(dtype), solver=loose)
        assert s.value.dtype == dtype
        assert s.converged.all()


def test_07_broyden_takes_the_memory_it_needs_and_converges_when_it_is_limited() -> None:
    """torchdeq: 400 MiB for 3 evaluations on 2 MiB; limited memory stalls at radius 0.99."""
    y0 = torch.zeros(512, 1024)  # 2 MiB
    x = torch.ones_like(y0)

    def peak(max_steps: int) -> int:
        with PeakMemory() as memory:
            s = solvers.solve(
                lambda y, x: 0.1 * y + x, y0, x, max_steps=max_steps,
                solver=solvers.Broyden(rtol=1e-2),
            )  # fmt: skip
        assert s.num_evals == 3
        return memory.peak

    assert peak(100) == peak(10) <= 40 * 2**20
    basis = torch.linalg.qr(draw(64, 64))[0]
    values = torch.linspace(-0.99, 0.99, 64, dtype=torch.float64)
    weight, x = basis @ torch.diag(values) @ basis.T, draw(8, 64, seed=2)

    def evaluations(**options: Any) -> int:
        solver = solvers.Broyden(rtol=1e-6, **options)
        s = solvers.solve(lambda y, x: y @ weight + x, 0 * x, x, solver=solver, max_steps=1000)
        assert s.converged.all()
        return s.num_evals

    assert evaluations(history=200) <= 57
    assert evaluations() <= 2 * 57
    assert max(evaluations(history=history) for history in (4, 8, 16, 30)) < 1000


def test_08_states_of_any_structure_and_dtype() -> None:
    """torchdeq: `(d,)` becomes d problems, dicts fail, mixed dtypes are silently promoted."""
    weight = matrix(0.9, 8)
    s = solvers.solve(lambda y: torch.tanh(y @ weight.T) + 1, torch.zeros(8).double(), batch_dims=0)
    assert s.residual.shape == s.num_steps.shape == ()
    assert s.converged
    norm = (torch.tanh(s.value @ weight.T) + 1 - s.value).square().mean().sqrt()
    assert torch.allclose(s.residual, norm)

    def f(y: dict[str, Any]) -> dict[str, Any]:
        a, (b, (c,)) = y["a"], y["rest"]
        return {
            "a": 0.5 * b.flatten(1)[:, :2].double() + 1,
            "rest": [0.5 * c.float().expand(3, 2, 2) - 1, (0.25 * a[:, :1, None].half(),)],
        }

    y0 = {
        "a": torch.zeros(3, 2, dtype=torch.float64),
        "rest": [torch.zeros(3, 2, 2), (torch.zeros(3, 1, 1, dtype=torch.float16),)],
    }
    for name in SOLVERS:
        s = solvers.solve(f, y0, solver=solvers.get_solver(name, rtol=1e-3))
        assert s.converged.shape == (3,)
        leaves = pytree.tree_leaves
        assert [p.dtype for p in leaves(s.value)] == [p.dtype for p in leaves(y0)]
        assert [p.shape for p in leaves(s.value)] == [p.shape for p in leaves(y0)]
        # a = b / 2 + 1, b = c / 2 - 1, c = a / 4 give a = 8 / 15.
        assert torch.allclose(s.value["a"], torch.full((3, 2), 8 / 15).double(), rtol=1e-2)
    with pytest.raises(TypeError, match="must return its input's dtype"):
        solvers.solve(lambda y: y.double(), torch.zeros(2, 2))


def test_16_the_spectral_radius_of_a_rotation() -> None:
    """torchdeq: 0.45 / 0.08 / 0.0 for 0.9 times a rotation by 60 / 85 / 90 degrees."""
    from implicit import spectral_radius

    for degrees in (60, 85, 90, 120, 180):
        c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        turn = 0.9 * torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
        for method in ("arnoldi", "power"):
            for product in ("jvp", "vjp"):
                estimate = spectral_radius(
                    lambda y, turn=turn: y @ turn.T, draw(3, 2), method=method, product=product
                )
                assert torch.allclose(estimate.radius, torch.full((3,), 0.9).double(), rtol=1e-6)
    problem = rotation(1.2)
    estimate = spectral_radius(problem.f, problem.y_star, *problem.args)
    assert torch.allclose(estimate.radius, torch.tensor(1.2).double(), rtol=1e-6)


def test_17_the_noise_floor_of_autocast_is_recognised() -> None:
    """torchdeq: the residual floors at 3e-3 and all steps are burnt."""
    weight, x = matrix(0.9, 64).float(), draw(8, 64).float()
    for name in SOLVERS:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            s = solvers.solve(
                tanh(weight), torch.zeros_like(x), x, max_steps=2000, throw=False,
                solver=solvers.get_solver(name, rtol=1e-6),
            )  # fmt: skip
            loose = solvers.get_solver(name, rtol=2e-2)
            t = solvers.solve(tanh(weight), torch.zeros_like(x), x, max_steps=2000, solver=loose)
        assert set(s.result.tolist()) <= {Result.stalled, Result.converged}
        assert int(s.num_steps.max()) < 1000
        assert float(s.residual.max()) < 2e-2
        assert t.converged.all()
        assert int(t.num_steps.max()) < 60
        assert s.value.dtype == s.residual.dtype == torch.float32
