"""A loss over the good samples has the gradient that it has without the bad ones."""

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import vmap

import implicit
import solvers
from implicit import fixed_point
from implicit.testing.oracles import relative_error

MODES = pytest.mark.parametrize("mode", implicit.backward_modes())
GOOD = torch.tensor([0, 1, 3, 4])
DTYPE = torch.float64


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DTYPE)


WEIGHT, X = 0.2 * draw(4, 4, seed=1), draw(5, 4, seed=2)


def solved(f: Any, y0: Any, *args: Any, mode: str, **options: Any) -> implicit.Solution:
    name = "broyden" if mode == "shine" else "anderson"
    solver = solvers.get_solver(name, rtol=1e-12)
    options = {"throw": False, "max_steps": 100} | options
    return fixed_point(f, y0, *args, solver=solver, backward=mode, **options)


def of_args(weight: Tensor, x: Tensor, mode: str) -> implicit.Solution:
    f = lambda y, x: torch.tanh(y @ weight + x) + 0 * x  # noqa: E731
    return solved(f, torch.zeros_like(x), x, mode=mode)


def of_a_start(weight: Tensor, x: Tensor, mode: str) -> implicit.Solution:
    """Only the start is bad, and there are no args."""
    return solved(lambda y: torch.tanh(y @ weight) + 0.3, x.detach(), mode=mode)


def of_a_logarithm(weight: Tensor, x: Tensor, mode: str) -> implicit.Solution:
    """`f` is not defined at the points to which its finite arguments lead."""

    def f(y: Tensor, x: Tensor) -> Tensor:
        shift = torch.where(x.isfinite(), 3.0, -30.0)
        return 0.5 * torch.log((y @ weight).tanh() + shift) + x.nan_to_num()

    return solved(f, torch.zeros_like(x), x, mode=mode)


def of_a_tree(weight: Tensor, x: Tensor, mode: str) -> implicit.Solution:
    """An integer argument, and several tensors."""

    def f(y: dict[str, Tensor], given: dict[str, Tensor], i: Tensor) -> dict[str, Tensor]:
        a = torch.tanh(y["b"].flatten(1) @ weight + given["x"]) + 0 * given["x"]
        return {"a": a + weight[i], "b": 0.3 * y["a"].sin().view(-1, 2, 2)}

    y0 = {"a": torch.zeros_like(x), "b": torch.zeros_like(x).view(-1, 2, 2)}
    return solved(f, y0, {"x": x}, torch.arange(len(x)) % 4 * 0, mode=mode)


def of_a_finite_start(weight: Tensor, x: Tensor, mode: str) -> implicit.Solution:
    """`f` is not defined at a start that is finite, whatever the arguments."""
    y0 = torch.ones_like(x).where(x.isfinite().all(1, keepdim=True), -1.0)
    f = lambda y, x: 2 + torch.tanh(torch.log(y) @ weight + x)  # noqa: E731
    return solved(f, y0, x.nan_to_num(0.0, 0.0, 0.0), mode=mode)


def of_a_closure(weight: Tensor, x: Tensor, mode: str) -> implicit.Solution:
    """The bad tensor is closed over, used in ways that save it, its results and its inverse."""

    def f(y: Tensor) -> Tensor:
        gate = torch.softmax(x, 1) * x.square().log1p() / (1 + x.abs())
        return 0.5 * torch.tanh(y @ weight + x) + 0.1 * gate @ weight

    return solved(f, torch.zeros_like(x), mode=mode)


MAPS = [of_args, of_a_start, of_a_logarithm, of_a_finite_start, of_a_tree, of_a_closure]


def gradients(map_: Callable[..., implicit.Solution], x: Tensor, mode: str) -> list[Tensor]:
    """First derivatives of a loss over the samples that converged, by the weight and by x."""
    weight, x = WEIGHT.clone().requires_grad_(), x.clone().requires_grad_()
    s = map_(weight, x, mode)
    assert s.converged.tolist() == x.isfinite().all(1).tolist()
    y = s.value["a"] if isinstance(s.value, dict) else s.value
    loss = y[s.converged].pow(3).sum()
    return list(torch.autograd.grad(loss, [weight, x], materialize_grads=True))


@MODES
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("map_", MAPS)
def test_bad_sample_leaves_the_gradient_of_the_good_ones(
    map_: Callable[..., implicit.Solution], bad: float, mode: str
) -> None:
    spoiled = X.clone()
    spoiled[2, 1] = bad
    found, true = gradients(map_, spoiled, mode), gradients(map_, X[GOOD], mode)
    assert relative_error([found[0]], [true[0]]) < 1e-12
    assert torch.allclose(found[1][GOOD], true[1], rtol=1e-12, atol=1e-15)
    assert not found[1][2].any()


@MODES
def test_a_loss_over_the_bad_sample_has_no_finite_gradient(mode: str) -> None:
    spoiled = X.clone()
    spoiled[2, 1] = torch.nan
    weight, x = WEIGHT.clone().requires_grad_(), spoiled.requires_grad_()
    s = of_args(weight, x, mode)
    assert s.value[2].isnan().any() or not s.converged[2]
    loss = s.value.nan_to_num().pow(3).sum() + s.value[2].sum()
    warned = pytest.warns(UserWarning, match="gradient is approximate")
    with warned if mode == "exact" else contextlib.nullcontext():
        by_weight, by_x = torch.autograd.grad(loss, [weight, x])
    assert not by_weight.isfinite().all()
    assert not by_x[2].isfinite().all()


@pytest.mark.parametrize("mode", ["exact", "jacobian_free", "neumann", "phantom"])
@pytest.mark.parametrize("per_token", [True, False])
def test_tokens(mode: str, per_token: bool) -> None:
    """An argument of one token is replaced alone, one of a row for all of its tokens."""
    mix = torch.full((3, 3), 0.2, dtype=DTYPE).tril()
    x, row = draw(4, 3, 4, seed=3), draw(4, 4, seed=4)
    (x if per_token else row)[1, 2] = torch.nan

    def gradient(x: Tensor, row: Tensor, good: Any) -> Tensor:
        weight = WEIGHT.clone().requires_grad_()

        def f(y: Tensor, x: Tensor, *row: Tensor) -> Tensor:
            shared = row[0][:, None] if row else 0.0
            return torch.tanh(mix @ y @ weight + x + shared)

        args = (x,) if per_token else (x, row)
        s = solved(f, torch.zeros_like(x), *args, mode=mode, batch_dims=2)
        return torch.autograd.grad(s.value[good].pow(3).sum(), weight)[0]

    rows = torch.tensor([0, 2, 3])
    true = gradient(x[rows], row[rows], slice(None))
    assert relative_error([gradient(x, row, rows)], [true]) < 1e-9
    if per_token:
        assert gradient(x, row, (1, slice(2))).isfinite().all()


@pytest.mark.parametrize("bad", [False, True])
@pytest.mark.parametrize("mode", ["exact", "neumann", "phantom", "shine", "unrolled"])
def test_a_weight_that_was_changed_meanwhile_is_noticed(mode: str, bad: bool) -> None:
    """With and without bad samples, as by the step of an optimiser before `backward`."""
    weight, x = WEIGHT.clone().requires_grad_(), X.clone()
    if bad:
        x[2, 1] = torch.nan
    s = of_a_closure(weight, x, mode)
    with torch.no_grad():
        weight.mul_(0.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        s.value[s.converged].sum().backward()


@MODES
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
@pytest.mark.filterwarnings("ignore:Sparse CSR:UserWarning")
def test_a_sparse_matrix_that_f_is_given_or_closes_over(layout: torch.layout, mode: str) -> None:
    """It couples nodes 0 and 1 only; node 2 is NaN."""
    dense = torch.tensor([[0.1, 0.3, 0], [0.2, 0.1, 0], [0, 0, 0.5]], dtype=DTYPE)
    matrix = dense.to_sparse(layout=layout)

    def gradient(bad: float, *given: Tensor) -> Tensor:
        weight = (0.2 * draw(4, 4)).requires_grad_()
        x = torch.cat([X[:2], X[2:3] * bad])

        def f(y: Tensor, *given: Tensor) -> Tensor:
            return torch.tanh((given[0] if given else matrix) @ y @ weight + x)

        options: dict[str, Any] = {"mode": mode, "independent": False}
        solved(f, torch.zeros(3, 4, dtype=DTYPE), *given, **options).value[:2].sum().backward()
        assert weight.grad is not None
        return weight.grad

    good = gradient(1.0)
    assert good.abs().sum() > 0
    for given in ((), (matrix,)):
        assert relative_error([gradient(torch.nan, *given)], [good]) < 1e-6


@pytest.mark.parametrize("map_", [of_args, of_a_closure])
def test_second_derivatives_are_those_of_the_good_samples(
    map_: Callable[..., implicit.Solution],
) -> None:
    def second(x: Tensor) -> Tensor:
        weight = WEIGHT.clone().requires_grad_()
        s = map_(weight, x, "exact")
        loss = s.value[s.converged].pow(3).sum()
        (first,) = torch.autograd.grad(loss, weight, create_graph=True)
        return torch.autograd.grad(first.square().sum(), weight)[0]

    spoiled = X.clone()
    spoiled[2, 1] = torch.nan
    assert relative_error([second(spoiled)], [second(X[GOOD])]) < 1e-11


def test_a_batch_of_finite_samples_costs_no_more_calls() -> None:
    calls = []

    def f(y: Tensor, x: Tensor) -> Tensor:
        calls.append(1)
        return 0.5 * y + x

    s = solved(f, torch.zeros_like(X), X, mode="unrolled")
    assert len(calls) == s.num_evals
    spoiled = X.clone()
    spoiled[0] = torch.nan
    s = solved(f, torch.zeros_like(X), spoiled, mode="unrolled")
    assert len(calls) - s.num_evals < s.num_evals
    assert s.num_evals < s.rows_evaluated <= len(X) * s.num_evals


@pytest.mark.filterwarnings("ignore:The gradient is approximate:UserWarning")
@pytest.mark.parametrize("mode", ["exact", "jacobian_free", "neumann", "phantom"])
@pytest.mark.parametrize("transform", ["grad", "jvp", "hessian", "vmap grad", "grad vmap"])
def test_transforms(transform: str, mode: str) -> None:
    """The bad sample's args are mapped over, or not."""
    spoiled = X.clone()
    spoiled[2, 1] = torch.nan
    direction = draw(4, 4, seed=7)

    def run(x: Tensor, keep: Any) -> Any:
        def loss(weight: Tensor, x: Tensor = x) -> Tensor:
            y = of_args(weight, x, mode).value[keep]
            return (y.pow(3) + y).sum()

        apply: dict[str, Callable[[], Any]] = {
            "grad": lambda: torch.func.grad(loss)(WEIGHT),
            "jvp": lambda: torch.func.jvp(loss, (WEIGHT,), (direction,))[1],
            "hessian": lambda: torch.func.jacrev(torch.func.grad(loss))(WEIGHT),
            "vmap grad": lambda: vmap(torch.func.grad(loss))(torch.stack((WEIGHT, direction / 9))),
            "grad vmap": lambda: torch.func.grad(
                lambda w: vmap(loss, (None, 0))(w, torch.stack((x, 2 * x))).sum()
            )(WEIGHT),
        }
        return apply[transform]()

    found, true = run(spoiled, GOOD), run(X[GOOD], slice(None))
    assert torch.allclose(found, true, rtol=1e-11, atol=1e-12)
    if transform in ("grad", "jvp"):
        made_up = run(spoiled, slice(1, 3))
        assert not made_up.isfinite().all()


@MODES
@pytest.mark.filterwarnings("ignore:The gradient is approximate")
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_batch_of_bad_samples_alone_has_a_gradient_of_zero(mode: str, bad: float) -> None:
    weight = WEIGHT.clone().requires_grad_()
    for solve in (of_args, of_a_tree):
        s = solve(weight, torch.full_like(X, bad), mode)
        assert not s.converged.any()
        value = s.value if isinstance(s.value, Tensor) else s.value["a"]
        (found,) = torch.autograd.grad(value[s.converged].sum(), weight)
        assert torch.equal(found, torch.zeros_like(weight))
