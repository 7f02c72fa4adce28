"""The exact mode: derivatives of first and second order, and the evidence for them."""

import warnings

import pytest
import torch
from oracles import dense_gradient, solve_densely
from torch import Tensor, nn

import solvers
from implicit import Exact, FixedPointLayer, SolveError, fixed_point

SOLVERS = pytest.mark.parametrize("name", solvers.names())


def make(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(3, 3, generator=g, dtype=torch.float64)
    weight = (0.6 * weight / torch.linalg.matrix_norm(weight, 2)).requires_grad_()
    x = torch.randn(2, 3, generator=g, dtype=torch.float64, requires_grad=True)
    b = torch.randn(3, generator=g, dtype=torch.float64, requires_grad=True)
    return x, weight, b


def value(x: Tensor, weight: Tensor, b: Tensor, name: str = "anderson") -> Tensor:
    computed = torch.sin(b)
    return fixed_point(
        lambda y, x: torch.tanh(y @ weight.T + x + computed), torch.zeros_like(x), x,
        solver=solvers.get_solver(name, rtol=1e-13, atol=1e-14), max_steps=300,
    ).value  # fmt: skip


@SOLVERS
def test_gradcheck_and_gradgradcheck(name: str) -> None:
    inputs = make()
    assert torch.autograd.gradcheck(lambda *i: value(*i, name), inputs)
    assert torch.autograd.gradgradcheck(lambda *i: value(*i, name), inputs)


def test_hessian_vector_product_agrees_with_differences() -> None:
    """torchdeq's runs and is wrong by 0.84."""
    x, weight, b = make()
    direction = torch.randn(2, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def gradient(x: Tensor, create_graph: bool) -> Tensor:
        loss = value(x, weight, b).pow(3).sum()
        return torch.autograd.grad(loss, x, create_graph=create_graph)[0]

    (product,) = torch.autograd.grad((gradient(x, True) * direction).sum(), x)
    h = 1e-5
    shifted = [gradient((x + s * h * direction).detach().requires_grad_(), False) for s in (1, -1)]
    assert torch.allclose(product, (shifted[0] - shifted[1]) / (2 * h), atol=1e-8)


def test_third_derivative_is_refused() -> None:
    x, weight, b = make()
    (first,) = torch.autograd.grad(value(x, weight, b).pow(3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="first and second derivatives only"):
        torch.autograd.grad(second.sum(), x)


@SOLVERS
def test_adjoint_by_any_solver_with_evidence(name: str) -> None:
    x, weight, _ = make()
    adjoint = solvers.get_solver(name, rtol=1e-11, atol=1e-13)

    def f(y: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(y @ weight.T + x)

    forward = solvers.Anderson(rtol=1e-12)
    s = fixed_point(
        f, torch.zeros_like(x), x, solver=forward, backward=Exact(solver=adjoint, max_steps=300)
    )
    assert s.adjoints == []
    v = torch.ones_like(x)
    found = torch.autograd.grad(s.value, [x, weight], v)
    assert len(s.adjoints) == 1
    assert s.adjoints[0].converged.all()
    assert s.adjoints[0].residual.shape == (2,)
    y_star = solve_densely(f, torch.zeros(2, 3, dtype=torch.float64), x.detach())
    for a, c in zip(found, dense_gradient(f, y_star, (x,), v, [x, weight]), strict=True):
        assert torch.allclose(a, c, atol=1e-9)


def test_second_backward_through_one_graph_gives_the_same_gradient() -> None:
    """torchdeq's hook silently gives the one-step gradient the second time."""
    x, weight, b = make()
    loss = value(x, weight, b).sum()
    first = torch.autograd.grad(loss, x, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(loss, x)[0], first)


def test_failed_adjoint_warns_or_raises_as_the_caller_says() -> None:
    b = torch.ones(1, 2, dtype=torch.float64, requires_grad=True)

    def run(on_failure: str) -> None:
        mode = Exact(solver="picard", max_steps=2, on_failure=on_failure)  # type: ignore[arg-type]
        fixed_point(
            lambda y: 0.9 * y + b, torch.zeros(1, 2).double(), backward=mode
        ).value.sum().backward()

    with pytest.warns(UserWarning, match="adjoint equation .* failed"):
        run("warn")
    with pytest.raises(SolveError, match="1 of 1 samples did not converge in 2 steps"):
        run("raise")


def test_map_that_ignores_its_state_or_part_of_it() -> None:
    """torchdeq raises a RuntimeError in backward."""
    b = torch.ones(2, 2, requires_grad=True)
    s = fixed_point(lambda y: b * 3, torch.zeros(2, 2))
    s.value.sum().backward()
    assert torch.equal(b.grad, torch.full_like(b, 3))
    b.grad = None
    zero = torch.zeros(2, 2)
    s = fixed_point(lambda y: {"a": 0.5 * y["a"] + b, "b": 2 * b}, {"a": zero, "b": zero})
    (s.value["a"] + s.value["b"]).sum().backward()
    assert torch.allclose(b.grad, torch.full_like(b, 4), atol=1e-3)


def test_nothing_to_differentiate_costs_nothing() -> None:
    calls = []

    def f(y: Tensor) -> Tensor:
        calls.append(1)
        return 0.5 * y + 1

    s = fixed_point(f, torch.zeros(2, 2))
    assert not s.value.requires_grad
    assert len(calls) == s.num_evals + 1
    with torch.no_grad():
        calls.clear()
        s = fixed_point(f, torch.zeros(2, 2))
        assert len(calls) == s.num_evals


def test_one_layer_applied_three_times() -> None:
    """torchdeq's hook recurses without end."""
    x, weight, _ = make()

    def apply(x: Tensor) -> Tensor:
        return fixed_point(
            lambda y, x: torch.tanh(y @ weight.T + x), torch.zeros_like(x), x,
            solver=solvers.Anderson(rtol=1e-12), max_steps=200,
        ).value  # fmt: skip

    assert torch.autograd.gradcheck(lambda x: apply(apply(apply(x))), (x,), atol=1e-5)


def test_a_fixed_point_inside_a_fixed_point() -> None:
    x = torch.tensor([[0.3, -0.2]], dtype=torch.float64, requires_grad=True)
    tight = solvers.Anderson(rtol=1e-12)

    def outer(x: Tensor) -> Tensor:
        def f(y: Tensor, x: Tensor) -> Tensor:
            inner = fixed_point(
                lambda z, y: 0.3 * torch.cos(z) + y, y.detach(), y, solver=tight, max_steps=100
            )
            return 0.4 * inner.value + x

        return fixed_point(f, torch.zeros_like(x), x, solver=tight, max_steps=100).value

    assert torch.autograd.gradcheck(outer, (x,), atol=1e-5)


def test_gradient_to_module_parameters_and_training() -> None:
    torch.manual_seed(0)

    class Map(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, y: Tensor, x: Tensor) -> Tensor:
            return torch.tanh(0.5 * self.inner(y) + x)

    layer = FixedPointLayer(Map())
    x, target = torch.randn(8, 4), 0.3 * torch.randn(8, 4)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = (layer(torch.zeros(8, 4), x).value - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_one_warning_free_step_under_autocast() -> None:
    """Bfloat16 inside `f`, float32 state, residuals and coefficients."""
    torch.manual_seed(0)
    linear, x = nn.Linear(8, 8), torch.randn(4, 8)
    with warnings.catch_warnings(), torch.autocast("cpu", dtype=torch.bfloat16):
        warnings.simplefilter("error")
        s = fixed_point(
            lambda y, x: torch.tanh(0.3 * linear(y) + x), torch.zeros(4, 8), x,
            solver=solvers.Anderson(rtol=2e-2),
        )  # fmt: skip
    assert s.value.dtype == s.residual.dtype == torch.float32
    s.value.sum().backward()
    assert linear.weight.grad is not None
