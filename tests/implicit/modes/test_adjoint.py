"""The adjoint equation: its tolerance and budget, warnings, and the solutions kept."""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from parameters import PEERS_WHEN_SLOW
from torch import Tensor, nn

import solvers
from implicit import (
    Exact,
    FixedPointLayer,
    Neumann,
    SolveContext,
    SolveError,
    WarmStart,
    fixed_point,
)
from implicit.modes.adjoint import solve_affine
from implicit.testing.oracles import dense_gradient, relative_error, solve_densely
from solvers.registry import LINEAR
from solvers.torch_internals import pytree

ADJOINT = pytest.mark.parametrize("name", [*PEERS_WHEN_SLOW, *solvers.linear_names()])
TIGHT = solvers.Anderson(rtol=1e-12, atol=0.0)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@ADJOINT
def test_a_singular_equation_is_not_called_converged(name: str) -> None:
    """A stationary distribution: the columns of I - J^T sum to zero, so that no u exists."""
    theta = draw(5, 5).requires_grad_()
    cost = torch.linspace(0, 1, 5, dtype=torch.float64)
    start = torch.full((1, 5), 0.2, dtype=torch.float64)
    s = fixed_point(
        lambda p: p @ torch.softmax(theta, 1), start, solver=solvers.Anderson(rtol=1e-10, atol=0.0),
        backward=Exact(solver=name), max_steps=300,
    )  # fmt: skip
    with pytest.warns(UserWarning, match=r"above the tolerance 1.0e-10 \* rms\(v\)"):
        (gradient,) = torch.autograd.grad((s.value @ cost).sum(), theta)
    assert not s.adjoints[0].converged.any()
    assert gradient.isfinite().all()


def test_a_cotangent_lost_in_rounding_is_not_claimed_beside_a_large_one() -> None:
    """u = v + u has no solution, though nothing is left of v beside a u of 1e20."""
    rate, v, start = torch.tensor([[[1.0], [0.5]], [[1.0], [1e15]], [[1e20], [0.0]]]).double()
    context = SolveContext(independent=True)
    picard = solvers.Picard(rtol=1e-10)
    (u,), s = solve_affine(lambda u: [v + rate * u[0]], [v], [start], picard, 100, context)
    assert s.converged.tolist() == [False, True]
    assert torch.allclose(u[1], 2 * v[1])


@ADJOINT
@pytest.mark.parametrize("warm", [False, True])
def test_a_zero_cotangent_converges_at_once(name: str, warm: bool) -> None:
    """Also beside others, and from a warm start."""
    weight, x = 0.2 * draw(4, 4), draw(3, 4, seed=1).requires_grad_()
    mode = Exact(solver=name, warm_start=WarmStart() if warm else None)
    s = fixed_point(lambda y, x: torch.tanh(y @ weight) + x, torch.zeros_like(x), x, backward=mode)
    torch.autograd.grad(s.value.sum(), x, retain_graph=True)
    (found,) = torch.autograd.grad(s.value[0].sum(), x)
    assert s.adjoints[1].converged.all()
    if "." not in name:  # one call of a peer is for all samples
        assert s.adjoints[1].num_steps[1:].tolist() == [0, 0]
    assert not found[1:].any()


@ADJOINT
@pytest.mark.parametrize("kind", ["nodes", "nodes with args", "tokens"])
def test_a_sample_that_the_loss_leaves_out_is_solved_for_with_the_others(
    name: str, kind: str
) -> None:
    """Nodes of a graph, or tokens: their cotangent is zero, but their u is not."""
    tokens = kind == "tokens"
    mix = torch.rand(6, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64).tril()
    mix = (0.8 * mix / mix.sum(1, keepdim=True)).requires_grad_()
    x = draw(6, 3, seed=3).requires_grad_()

    def f(y: Tensor, *args: Tensor) -> Tensor:
        return torch.tanh(mix @ y) + x

    y0 = torch.zeros(1, 6, 3, dtype=torch.float64) if tokens else torch.zeros_like(x)
    args = () if kind == "nodes" else (torch.zeros(len(y0)),)
    s = fixed_point(
        f, y0.detach(), *args, solver=TIGHT, backward=Exact(solver=name, max_steps=300),
        batch_dims=2 if tokens else 1, max_steps=200, independent=None if tokens else False,
    )  # fmt: skip
    v = torch.zeros_like(s.value)
    v[..., -1, :] = 1
    found = torch.autograd.grad(s.value, [x, mix], v)
    assert s.adjoints[0].converged.all()
    assert s.adjoints[0].residual.shape == s.residual.shape
    y_star = solve_densely(f, y0.detach())
    assert relative_error(list(found), dense_gradient(f, y_star, (), v, [x, mix])) < 1e-9


@pytest.mark.parametrize("name", ["gmres", "bicgstab"])
def test_linear_solvers_on_causal_maps(name: str) -> None:
    """One system per row, which they solve where tokens one by one would not do."""
    for seed in range(6):
        mix = torch.rand(12, 12, generator=torch.Generator().manual_seed(seed)).double().tril()
        mix = mix / mix.sum(1, keepdim=True)
        weight = draw(4, 4, seed=seed)
        weight = (1.5 * weight / torch.linalg.matrix_norm(weight, 2)).requires_grad_()
        x = draw(2, 12, 4, seed=seed + 50)
        f = functools.partial(lambda mix, w, y, x: torch.tanh(mix @ y @ w + x), mix, weight)
        mode = Exact(solver=name, max_steps=200)
        s = fixed_point(
            f, torch.zeros_like(x), x, solver=TIGHT, backward=mode, batch_dims=2, max_steps=400
        )
        v = torch.cos(3 * s.value.detach())
        found = torch.autograd.grad(s.value, [weight], v)
        assert s.adjoints[0].converged.all()
        y_star = solve_densely(f, s.value.detach(), x)
        assert relative_error(list(found), dense_gradient(f, y_star, (x,), v, [weight])) < 1e-9


@pytest.mark.parametrize("name", ["gmres", "bicgstab"])
def test_the_best_u_is_returned_on_failure(name: str) -> None:
    """Its residual is the one reported, and no larger than the start's."""
    weight = draw(40, 40)
    weight = 0.98 * weight / torch.linalg.matrix_norm(weight, 2)
    x = draw(3, 40, seed=1).requires_grad_()
    mode = Exact(solver=name, max_steps=9)
    s = fixed_point(
        lambda y, x: y @ weight + x, torch.zeros_like(x), x, solver=TIGHT, backward=mode,
        max_steps=500,
    )  # fmt: skip
    v = draw(3, 40, seed=2)
    with pytest.warns(UserWarning, match=r"failed\. .*in 9 steps of .*most often: max_steps"):
        (u,) = torch.autograd.grad(s.value, x, v)
    residual = (v + u @ weight.T - u).square().mean(1).sqrt()
    assert torch.allclose(s.adjoints[0].residual, residual)
    assert (residual <= (v @ weight.T).square().mean(1).sqrt()).all()


class Normed(nn.Module):
    """A recorded backward pass through its norm has no forward mode."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(8, 8, dtype=torch.float64)
        self.norm = nn.GroupNorm(2, 8, dtype=torch.float64)

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        return 0.4 * torch.tanh(self.norm(self.inner(y)) + x)


def test_newton_krylov_needs_no_forward_mode_for_the_adjoint() -> None:
    module, x = Normed(), draw(3, 8)

    def gradient(name: str) -> tuple[Tensor, solvers.Solution]:
        mode = Exact(solver=name, max_steps=60)
        s = fixed_point(module, torch.zeros_like(x), x, solver=TIGHT, backward=mode)
        (found,) = torch.autograd.grad(s.value.pow(3).sum(), module.inner.weight)
        return found, s.adjoints[0]

    found, adjoint = gradient("newton_krylov")
    assert adjoint.converged.all()
    assert relative_error([found], [gradient("gmres")[0]]) < 1e-10


def test_the_adjoint_of_any_product_can_be_asked_for() -> None:
    """`adjoint` alone solves u = v + J^T u, J given by its products."""
    weight, v = 0.2 * draw(4, 4), draw(3, 4, seed=1)
    context = SolveContext(solver=TIGHT)
    (u,) = Exact(solver="gmres").adjoint(lambda u: [u[0] @ weight], [v], context)
    assert torch.allclose(u - u @ weight, v)
    assert context.adjoints[0].converged.all()


def test_a_clipped_series_is_bounded_for_each_sample() -> None:
    """u is sum_k rate^k v, shortened where it is longer than `clip` * |v|."""
    rate = torch.tensor([[0.9], [0.1], [0.9]], dtype=torch.float64)
    v = draw(3, 4)
    v[2] = 0
    series = (1 - rate**9) / (1 - rate) * v
    (u,) = Neumann(terms=8, clip=2.0).adjoint(lambda u: [rate * u[0]], [v], SolveContext())
    assert torch.allclose(u[0], 2 * v[0])
    assert torch.allclose(u[1:], series[1:])


def badly_scaled(mode: Exact, double: bool = False) -> tuple[list[Tensor], solvers.Solution]:
    """Stiffness that differs by entry, from 1 to 1e4."""
    stiff = torch.logspace(0, 4, 30, dtype=torch.float64)
    mix = (0.1 * draw(30, 30)).requires_grad_()
    x = draw(4, 30, seed=1).requires_grad_()

    def f(y: tuple[Tensor], x: Tensor) -> tuple[Tensor]:
        return (y[0] - stiff * (y[0] - torch.tanh(0.3 * y[0] @ mix) - x),)

    y_star = solve_densely(lambda y: f((y,), x.detach())[0].detach() + 0 * y, x.detach() * 0)
    newton = solvers.NewtonKrylov(rtol=1e-12, atol=0.0)
    y0 = (torch.zeros_like(y_star),)
    s = fixed_point(f, y0, x, solver=newton, backward=mode, max_steps=60, throw=False)
    found = torch.autograd.grad(s.value[0].sum(), [mix, x], create_graph=double)
    if double:
        found = torch.autograd.grad(found[0].square().sum(), [mix, x])
    return list(found), s.adjoints[0]


def jacobi(u: tuple[Tensor]) -> tuple[Tensor]:
    return (u[0] / torch.logspace(0, 4, 30, dtype=torch.float64),)


@pytest.mark.parametrize("double", [False, True])
def test_a_preconditioner_saves_steps_and_changes_no_gradient(double: bool) -> None:
    gmres = LINEAR.get("gmres", rtol=1e-11, atol=0.0, history=60)
    plain, without = badly_scaled(Exact(solver=gmres, max_steps=400), double)
    found, adjoint = badly_scaled(Exact(solver=gmres, max_steps=400, preconditioner=jacobi), double)
    assert adjoint.converged.all()
    assert without.converged.all()
    assert int(adjoint.num_steps.max()) < int(without.num_steps.max()) / 2
    assert relative_error(found, plain) < 1e-7
    (u,), (same,) = pytree.tree_leaves(adjoint.value), pytree.tree_leaves(without.value)
    assert torch.allclose(u, same, rtol=1e-6)


def test_a_preconditioner_is_checked() -> None:
    with pytest.raises(TypeError, match="`preconditioner` must be a function from a cotangent"):
        Exact(preconditioner=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must return the structure and shapes of the cotangent"):
        badly_scaled(Exact(solver="gmres", preconditioner=lambda u: u[0]))
    with pytest.raises(ValueError, match="must return the structure and shapes of the cotangent"):
        badly_scaled(Exact(solver="gmres", preconditioner=lambda u: (None,)))


def failing(layer: Callable[..., Any], x: Tensor) -> None:
    layer(torch.zeros_like(x), x).value.sum().backward()


def failing_transformed(layer: Callable[..., Any], x: Tensor) -> None:
    torch.func.grad(lambda x: layer(torch.zeros_like(x), x).value.sum())(x)


@pytest.mark.parametrize("step", [failing, failing_transformed])
def test_a_failing_adjoint_warns_once_per_layer(step: Callable[..., None]) -> None:
    """The warning says what failed; the residuals of every step are in `adjoints`."""
    x = draw(3, 8)
    first, second = (
        FixedPointLayer(Normed(), solver=TIGHT, backward=Exact(max_steps=1)) for _ in range(2)
    )
    for kind in ("always", "default"):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter(kind)  # type: ignore[arg-type]
            for _ in range(5):
                step(first, x)
                step(second, x)
        texts = [str(warning.message) for warning in caught]
        assert len(texts) == 2
        assert all("A residual for `Normed`" in text for text in texts)
        assert all("1.0e-12 * rms(v) in 1 steps of Anderson" in text for text in texts)


def test_a_failing_adjoint_of_a_function_made_anew_warns_once() -> None:
    def train() -> None:
        for _ in range(3):
            weight = torch.full((3, 3), 0.2, requires_grad=True)
            s = fixed_point(
                lambda y, w=weight: torch.tanh(y @ w) + 1, torch.zeros(2, 3),
                backward=Exact(max_steps=0),
            )  # fmt: skip
            s.value.sum().backward()

    with pytest.warns(UserWarning, match="gradient is approximate") as caught:
        train()
    assert len(caught) == 1


def test_failing_adjoints_of_decorated_functions_warn_by_their_own_names() -> None:
    def decorated(f: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return functools.wraps(f)(lambda *given: f(*given))

    def halves(y: Tensor, x: Tensor) -> Tensor:
        return 0.5 * y + x

    def thirds(y: Tensor, x: Tensor) -> Tensor:
        return y / 3 + x

    x = torch.ones(2, 3, requires_grad=True)
    for f, name in ((halves, "halves"), (thirds, "thirds")):
        s = fixed_point(decorated(f), torch.zeros(2, 3), x, backward=Exact(max_steps=0))
        with pytest.warns(UserWarning, match=f"A residual for `.*{name}`"):
            s.value.sum().backward()


def test_a_warm_start_saves_steps_unless_the_shapes_have_changed() -> None:
    mode, weight = Exact(warm_start=WarmStart()), 0.2 * draw(4, 4)
    steps = []
    for size in (3, 3, 5, 5):
        x = draw(size, 4, seed=1).requires_grad_()
        s = fixed_point(
            lambda y, x: torch.tanh(y @ weight) + x, torch.zeros_like(x), x, backward=mode,
            solver=TIGHT,
        )  # fmt: skip
        s.value.sum().backward()
        assert s.adjoints[0].converged.all()
        steps.append(s.adjoints[0].num_steps.max().item())
    assert steps[0] > 3
    assert steps[1] <= 1
    assert steps[2] > 3
    assert steps[3] <= 1


def test_a_failing_adjoint_raises_every_time_it_is_asked_to() -> None:
    layer = FixedPointLayer(Normed(), backward=Exact(max_steps=0, on_failure="raise"))
    for _ in range(2):
        with pytest.raises(SolveError):
            failing(layer, draw(3, 8))


def test_the_newest_adjoint_solutions_are_kept() -> None:
    x = draw(1, 20, seed=5).requires_grad_()
    s = fixed_point(lambda y, x: 0.5 * torch.tanh(y) + x, torch.zeros_like(x), x)
    for i in range(20):
        torch.autograd.grad(s.value[0, i], x, retain_graph=True)
    assert len(s.adjoints) == 8
    assert s.adjoints[-1].value[0, -1] > 0.5
    assert not s.adjoints[-1].value[0, :-1].any()


def test_a_mode_may_be_used_without_a_solve() -> None:
    b = torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
    context = SolveContext(solver=TIGHT)
    value = Exact().attach(lambda y: y / 2 + b, 2 * b.detach(), context)
    value.sum().backward()
    assert torch.allclose(b.grad, torch.full_like(b, 2.0))
    assert context.adjoints[0].value.shape == (2, 3)
