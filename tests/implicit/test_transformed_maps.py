"""States and maps of all kinds under transforms."""

from typing import Any

import numpy as np
import pytest
import torch
from parameters import slow
from torch import Tensor, nn
from torch.func import grad, jacfwd, vmap
from transformations import (
    EVERYTHING,
    XS,
    Solve,
    W,
    X,
    agree,
    cell,
    draw,
    loss,
    right_or_refused,
)

import solvers
from implicit import fixed_point

# torch's own forward-mode formulas warn when they are first loaded.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
TIGHT = solvers.Anderson(rtol=1e-13, atol=1e-14)


# Kinds of maps: each function builds a `Solve` from a function that solves, ours or a reference.


def from_a_start(run: Any) -> Solve:
    return lambda x, w: run(lambda y, x: cell(y, x, w), 0.3 * x @ w, x)


def over_tokens(run: Any) -> Solve:
    return lambda x, w: run(
        lambda y, x: cell(0.4 * y.cumsum(1), x, w), torch.zeros_like(x)[None], x[None], batch_dims=2
    )[0]


def unbatched(run: Any) -> Solve:
    return lambda x, w: run(lambda y: cell(y, x, w), torch.zeros_like(x), batch_dims=0)


def of_a_tree(run: Any) -> Solve:
    def f(y: Any, x: Any, w: Tensor) -> Any:
        a, (b,) = y["a"], y["b"]
        return {"a": cell(b[:, 0], x["x"][0], w), "b": (0.3 * torch.stack((a, a.sin()), 1),)}

    def solve(x: Tensor, w: Tensor) -> Tensor:
        y0 = {"a": 0 * x, "b": (0 * torch.stack((x, x), 1),)}
        y = run(lambda y, x: f(y, x, w), y0, {"x": [x]})
        return torch.cat((y["a"], y["b"][0].flatten(1)), 1)

    return solve


def of_a_solve(run: Any) -> Solve:
    def solve(x: Tensor, w: Tensor) -> Tensor:
        def f(y: Tensor, x: Tensor) -> Tensor:
            return 0.3 * run(lambda z, y: 0.3 * cell(z, y, w), torch.zeros_like(y), y) + x

        return run(f, torch.zeros_like(x), x)

    return solve


def of_a_gradient(run: Any) -> Solve:
    """A gradient step on an energy, as in bilevel optimization."""

    def solve(x: Tensor, w: Tensor) -> Tensor:
        def energy(y: Tensor, x: Tensor) -> Tensor:
            return 0.5 * y.square().sum() + 0.2 * torch.cos(y @ w.mT + x).sum()

        return run(lambda y, x: y - 0.5 * grad(energy)(y, x), torch.zeros_like(x), x)

    return solve


def of_a_jacobian(run: Any) -> Solve:
    def solve(x: Tensor, w: Tensor) -> Tensor:
        jacobian = vmap(jacfwd(lambda y: torch.sin(y @ w.mT)))
        return run(lambda y, x: 0.3 * jacobian(y).sum(1) + 0.2 * x, torch.zeros_like(x), x)

    return solve


def of_a_handed_over_closure(run: Any) -> Solve:
    """The transform inside is given what `f` closes over, and its per-sample argument."""

    def solve(x: Tensor, w: Tensor) -> Tensor:
        def energy(y: Tensor, w: Tensor, x: Tensor) -> Tensor:
            return 0.5 * y.square().sum() + 0.2 * torch.cos(w @ y + x).sum()

        def f(y: Tensor, x: Tensor) -> Tensor:
            rows = vmap(lambda row, x: row.sin() * x, (0, None))(w, x[0]).sum(0)
            return y - 0.5 * vmap(grad(energy), (0, None, 0))(y, w, x) + 0.1 * rows

        return run(f, torch.zeros_like(x), x)

    return solve


def of_a_derivative_by_its_closure(run: Any) -> Solve:
    def solve(x: Tensor, w: Tensor) -> Tensor:
        def f(y: Tensor, x: Tensor) -> Tensor:
            return 0.2 * grad(lambda w: (y @ w).sin().sum())(w)[: len(y)] + 0.3 * x

        return run(f, torch.zeros_like(x), x)

    return solve


def of_a_complex_tensor(run: Any) -> Solve:
    """A spectral filter that `f` closes over, and a spectrum in its args."""

    def solve(x: Tensor, w: Tensor) -> Tensor:
        kernel, spectrum = torch.fft.rfft(w[0]) / 3, torch.fft.rfft(x)

        def f(y: Tensor, spectrum: Tensor) -> Tensor:
            mixed = torch.fft.rfft(torch.tanh(y)) * kernel + spectrum
            return torch.fft.irfft(mixed, n=y.shape[-1])

        return run(f, torch.zeros_like(x), spectrum)

    return solve


def of_missing_and_repeated_args(run: Any) -> Solve:
    """An optional argument, one tensor in several places of `args`, and as the start."""

    def solve(x: Tensor, w: Tensor) -> Tensor:
        def f(y: Tensor, mask: None, a: Tensor, both: list[Any], b: Tensor) -> Tensor:
            assert mask is None is both[1]
            return cell(y, 0.5 * a + 0.3 * both[0] * b, w)

        return run(f, x, None, x, [x, None], x)

    return solve


def of_constants(run: Any) -> Solve:
    """Statistics, which have no derivative; tensors that `f` makes; a name without a value."""
    norm = nn.BatchNorm1d(3, dtype=torch.float64).eval()
    norm.running_mean, norm.running_var = draw(3, seed=5), 1 + draw(3, seed=6).square()
    ones = np.ones(3)

    def solve(x: Tensor, w: Tensor) -> Tensor:
        def f(y: Tensor, x: Tensor) -> Tensor:
            if y is None:
                return later
            made = torch.from_numpy(ones) + torch.DoubleTensor([1.0] * 3)
            made = made + nn.Parameter(torch.ones(3, dtype=torch.float64))
            return cell(0.3 * norm(y), 0.1 * made * x, w)

        later = run(f, torch.zeros_like(x), x)
        return later

    return solve


def iterate(f: Any, y: Any, *args: Any, batch_dims: int = 1) -> Any:
    for _ in range(60):
        y = f(y, *args)
    return y


def run_tight(f: Any, y0: Any, *args: Any, batch_dims: int = 1) -> Any:
    return fixed_point(f, y0, *args, solver=TIGHT, max_steps=200, batch_dims=batch_dims).value


SHORT = ["grad", "jvp", "hessian", "closure", "vmap grad", "grad vmap", "vmap jvp", "vmap hessian"]
READING = [of_a_complex_tensor, of_missing_and_repeated_args, of_constants]
MAPS = [from_a_start, over_tokens, unbatched, of_a_tree, of_a_solve]
DIFFERENTIATING = [of_a_gradient, of_a_jacobian]
HANDING_OVER = [of_a_handed_over_closure, of_a_derivative_by_its_closure]


@pytest.mark.parametrize(
    ("build", "transform"),
    [
        slow(build, transform, unless=build is not of_a_solve or "hessian" not in transform)
        for build in MAPS
        for transform in SHORT
    ],
)
def test_states_starts_and_maps_of_all_kinds(build: Any, transform: str) -> None:
    apply = EVERYTHING[transform]
    agree(apply(build(run_tight)), apply(build(iterate)), 1e-8)


@pytest.mark.parametrize("transform", SHORT)
@pytest.mark.parametrize("build", READING)
def test_what_a_map_may_read(build: Any, transform: str) -> None:
    apply = EVERYTHING[transform]
    agree(apply(build(run_tight)), apply(build(iterate)), 1e-8)


def test_a_long_list_in_the_closure_is_not_searched() -> None:
    class Counting(list[int]):
        visited = 0

        def __iter__(self) -> Any:
            Counting.visited += 1
            return super().__iter__()

    data = Counting(range(100_000))
    value = grad(lambda x: run_tight(lambda y, x: 0.5 * y + x * data[1], 0 * x, x).sum())(X)
    agree(value, torch.full_like(X, 2.0))
    assert Counting.visited == 0


@pytest.mark.parametrize("transform", SHORT)
@pytest.mark.parametrize("build", DIFFERENTIATING)
def test_maps_that_differentiate_with_torch_func(build: Any, transform: str) -> None:
    apply = EVERYTHING[transform]
    agree(apply(build(run_tight)), apply(build(iterate)), 1e-7)


@pytest.mark.parametrize("transform", SHORT)
@pytest.mark.parametrize("build", HANDING_OVER)
def test_maps_that_hand_over_what_they_close_over(build: Any, transform: str) -> None:
    apply = EVERYTHING[transform]
    true = apply(build(iterate))
    right_or_refused(lambda: apply(build(run_tight)), true, "`f` hands a tensor")


def gradients(solve: Solve, *inputs: Tensor) -> tuple[Tensor, ...]:
    """First and second derivatives by ordinary autograd."""
    leaves = [leaf.clone().requires_grad_() for leaf in inputs]
    first = torch.autograd.grad(solve(*leaves).pow(3).sum(), leaves, create_graph=True)
    return *first, *torch.autograd.grad([g.square().sum() for g in first], leaves)


@pytest.mark.parametrize("build", [*MAPS, *READING, *DIFFERENTIATING, of_a_handed_over_closure])
def test_ordinary_backward(build: Any) -> None:
    agree(gradients(build(run_tight), X, W), gradients(build(iterate), X, W), 1e-7)


@pytest.mark.parametrize("build", MAPS + DIFFERENTIATING)
def test_ordinary_backward_through_a_vmapped_call(build: Any) -> None:
    found, true = (gradients(vmap(build(run), (0, None)), XS, W) for run in (run_tight, iterate))
    agree(found, true, 1e-7)


# Tensors that `f` does not read in its first call, at the start.


def late(run: Any) -> Solve:
    def solve(x: Tensor, w: Tensor) -> Tensor:
        def f(y: Tensor, x: Tensor) -> Tensor:
            if float(y.detach().abs().max()) < 1e-9:
                return 0.3 + 0 * x
            return cell(y, x, w)

        return run(f, torch.zeros_like(x), x)

    return solve


def routed(run: Any) -> Solve:
    """Two experts; one gets rows only after the first step."""

    def solve(x: Tensor, w: Tensor) -> Tensor:
        experts = [w, -0.5 * w]

        def f(y: Tensor, x: Tensor) -> Tensor:
            out = torch.zeros_like(y)
            for i, expert in enumerate(experts):
                rows = ((y[:, 0] > 0.05) == bool(i)).nonzero().flatten()
                if len(rows):
                    out = out.index_add(0, rows, cell(y[rows], x[rows], expert))
            return out

        return run(f, torch.zeros_like(x), x.abs() + 0.2)

    return solve


@pytest.mark.parametrize("transform", ["grad", "grad of a closure", "jvp", "jvp, one input", "vjp"])
@pytest.mark.parametrize("build", [late, routed])
def test_tensor_read_only_away_from_the_start(build: Any, transform: str) -> None:
    """It raises an error, since a gradient of zero would be silently wrong."""
    apply = EVERYTHING[transform]
    true = apply(build(iterate))
    right_or_refused(lambda: apply(build(run_tight)), true, "`f` read")


def test_error_inside_the_map_reaches_the_caller_and_leaves_no_mode_on() -> None:
    def f(y: Tensor, x: Tensor) -> Tensor:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        grad(lambda x: fixed_point(f, torch.zeros_like(x), x).value.sum())(X)
    agree(grad(loss(from_a_start(run_tight)))(X, W), grad(loss(from_a_start(iterate)))(X, W))
