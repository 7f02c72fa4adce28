"""The evidence of solves under transforms: residuals, verdicts, and samples that fail."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, jacrev, jvp, vmap
from transformations import (
    XS,
    V,
    W,
    X,
    agree,
    cell,
    draw,
)

from implicit import SolveError, fixed_point
from solvers import Result

# torch's own forward-mode formulas warn when they are first loaded.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")


def evidence(x: Tensor, **options: Any) -> tuple[Tensor, ...]:
    s = fixed_point(lambda y, x: cell(y, x, W), torch.zeros_like(x), x, **options)
    return s.value, s.residual, s.converged, s.result, s.num_steps


@pytest.mark.parametrize("mode", ["exact", "jacobian_free", "phantom", "neumann"])
@pytest.mark.parametrize("solver", ["picard", "anderson", "broyden"])
def test_evidence_is_that_of_separate_solves(solver: str, mode: str) -> None:
    rates = torch.tensor([0.1, 1.0, 3.0, 0.5], dtype=torch.float64)[:, None, None]
    options = {"solver": solver, "backward": mode}
    found = vmap(lambda x: evidence(x, **options))(rates * XS)
    assert [tuple(part.shape) for part in found] == [(4, 2, 3)] + [(4, 2)] * 4
    separate = [evidence(x, **options) for x in rates * XS]
    true = [torch.stack(parts) for parts in zip(*separate, strict=True)]
    for a, b in zip(found[:2], true[:2], strict=True):
        assert torch.allclose(a, b, rtol=1e-8, atol=1e-12)
    assert all(torch.equal(a, b) for a, b in zip(found[2:], true[2:], strict=True))
    assert found[4].unique().numel() > 1


def test_evidence_of_two_mapped_dims_and_of_unbatched_states() -> None:
    found = vmap(vmap(lambda x: evidence(x)))(XS[None].expand(5, -1, -1, -1))
    assert [tuple(part.shape) for part in found[1:]] == [(5, 4, 2)] * 4
    found = vmap(lambda x: evidence(x, batch_dims=0))(XS[:, 0])
    assert [tuple(part.shape) for part in found[1:]] == [(4,)] * 4
    found = vmap(lambda x: evidence(x, batch_dims=2))(draw(4, 2, 5, 3))
    assert [tuple(part.shape) for part in found[1:]] == [(4, 2, 5)] * 4


def test_evidence_under_reverse_and_forward_mode() -> None:
    def value(x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        y, *rest = evidence(x)
        return y.pow(3).sum(), tuple(rest)

    plain = evidence(X)[1:]
    forward: Any = jvp(value, (X,), (V,), has_aux=True)
    for found in (grad(value, has_aux=True)(X)[1], forward[2]):
        assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))


@pytest.mark.parametrize("mode", ["exact", "jacobian_free", "phantom", "neumann"])
@pytest.mark.parametrize("solver", ["picard", "anderson", "broyden"])
def test_a_bad_sample_harms_no_other(solver: str, mode: str) -> None:
    """Other samples keep their value and gradient, in other mapped calls and in the same one."""
    bad = XS.clone()
    bad[1, 0] = torch.nan

    def solve(x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        y, *rest = evidence(x, solver=solver, backward=mode, throw=False)
        return y.pow(3).sum(), tuple(rest)

    (found, (_, converged, result, steps)), (true, (*_, true_steps)) = (
        vmap(grad(solve, has_aux=True))(xs) for xs in (bad, XS)
    )
    sound = torch.ones(4, 2, dtype=torch.bool)
    sound[1, 0] = False
    assert torch.equal(converged, sound)
    assert int(result[1, 0]) == Result.nonfinite
    assert torch.equal(steps[sound], true_steps[sound])
    assert torch.allclose(found[sound], true[sound], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("transform", [grad, jacrev])
def test_a_bad_sample_of_a_mapped_call_harms_no_gradient_of_the_others(transform: Any) -> None:
    bad, sound = XS.clone(), torch.ones(4, 2, 1, dtype=torch.bool)
    bad[1, 0], sound[1, 0] = torch.nan, False

    def loss(xs: Tensor) -> Tensor:
        y, *_ = vmap(lambda x: evidence(x, backward="exact", throw=False))(xs)
        return torch.where(sound, y, 0).pow(3).sum()

    found, true = transform(loss)(bad), transform(loss)(XS)
    assert torch.allclose(found[sound[..., 0]], true[sound[..., 0]], rtol=1e-6)


def test_slow_sample_is_reported_and_the_others_stay() -> None:
    rates = torch.tensor([0.2, 0.999, 0.2, 0.2], dtype=torch.float64)

    def solve(rate: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        s = fixed_point(
            lambda y, x: rate * y + x, torch.zeros_like(x), x, solver="picard", throw=False
        )
        return s.value, s.converged, s.num_steps

    value, converged, steps = vmap(solve)(rates, XS)
    assert converged.all(1).tolist() == [True, False, True, True]
    assert steps[1].tolist() == [50, 50]
    assert int(steps[[0, 2, 3]].max()) < 12
    keep = torch.tensor([0, 2, 3])
    agree(value[keep], XS[keep] / 0.8, 1e-4)


@pytest.mark.parametrize("mode", ["exact", "jacobian_free", "phantom", "neumann"])
@pytest.mark.parametrize(
    "transform", [vmap, grad, lambda f: vmap(grad(f)), lambda f: lambda x: jvp(f, (x,), (x,))]
)
def test_failure_raises_through_every_transform(transform: Any, mode: str) -> None:
    def solve(x: Tensor) -> Tensor:
        f = lambda y, x: 0.99 * y + x  # noqa: E731
        return fixed_point(
            f, torch.zeros_like(x), x, solver="picard", backward=mode, max_steps=3
        ).value.sum()

    with pytest.raises(SolveError, match=r"samples did not converge in 3 steps") as caught:
        transform(solve)(XS)
    found = caught.value.solution
    assert not found.converged.any()
    assert isinstance(found.value, Tensor)  # the structure of y0
    assert found.value.shape[: found.residual.ndim] == found.residual.shape
