"""Defects measured in torchdeq 0.1.0: none of them is here. Those of gradients and modules.

One test each. Numbers 1 to 8, 16 and 17, on solving, are in test_peer_defects.py.
"""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from defects import SOLVERS, draw, matrix, tanh, tight
from torch import Tensor, nn
from torch._dynamo.exc import Unsupported

import implicit
import solvers
from implicit import Exact, FixedPointLayer, SolveError, fixed_point
from implicit.testing.oracles import dense_gradient, relative_error, solve_densely, state_gradient

# torch's own forward-mode formulas warn when they are first loaded.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")


def solved(x: Tensor, weight: Tensor, **options: Any) -> Tensor:
    options = {"solver": tight(), "max_steps": 500} | options
    return fixed_point(tanh(weight), torch.zeros_like(x), x, **options).value


def test_09_the_default_gradient_is_right() -> None:
    """torchdeq: off by 32 % / 56 % / 60 % at radius 0.5 / 0.9 / 0.99, and nothing says so."""
    for radius in (0.5, 0.9, 0.99):
        weight, x = matrix(radius, 16), 0.3 * draw(4, 16)
        leaves = [weight.requires_grad_(), x.requires_grad_()]
        f, v = tanh(weight), draw(4, 16, seed=3)
        s = fixed_point(f, torch.zeros_like(x), x, max_steps=500)
        found = list(torch.autograd.grad(s.value, leaves, v))
        y_star = solve_densely(f, torch.zeros_like(x), x.detach())
        assert relative_error(found, dense_gradient(f, y_star, (x,), v, leaves)) < 1e-3
        assert s.adjoints[0].converged.all()
    # A gradient that is not right says so.
    weak = Exact(solver="picard", max_steps=2)
    s = fixed_point(f, torch.zeros_like(x), x, max_steps=500, backward=weak)
    with pytest.warns(UserWarning, match="gradient is approximate"):
        torch.autograd.grad(s.value, leaves, v)
    assert not s.adjoints[0].converged.all()


def test_10_second_backward_and_one_layer_twice() -> None:
    """torchdeq: the second is the one-step gradient; the other recurses without end."""
    weight, x = matrix(0.9, 4).requires_grad_(), draw(2, 4).requires_grad_()
    for name in SOLVERS:
        loss = solved(x, weight, solver=tight(name)).pow(3).sum()
        first = torch.autograd.grad(loss, [x, weight], retain_graph=True)
        second = torch.autograd.grad(loss, [x, weight])
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))

    class Map(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(0.5 * weight.detach())

        def forward(self, y: Tensor, x: Tensor) -> Tensor:
            return tanh(self.weight)(y, x)

    layer = FixedPointLayer(Map(), tight(), max_steps=500)

    def twice(x: Tensor, weight: Tensor) -> Tensor:
        zero = torch.zeros_like(x)
        call = torch.func.functional_call
        once = call(layer, {"module.weight": weight}, (zero, x)).value
        return call(layer, {"module.weight": weight}, (zero, once)).value

    half = (0.5 * weight.detach()).requires_grad_()
    assert torch.autograd.gradcheck(twice, (x, half), atol=1e-6)


def test_11_several_states_and_early_convergence_keep_the_exact_gradient() -> None:
    """torchdeq: with `indexing` the exact gradient silently becomes a phantom, 56 % off."""
    rate = torch.tensor([[0.05], [0.5], [0.9]], dtype=torch.float64)
    x = draw(3, 2).requires_grad_()

    def f(y: dict[str, Tensor], x: Tensor, rate: Tensor) -> dict[str, Tensor]:
        a, b = y["a"], y["b"]
        return {"a": rate * b[:, 0].sin() + x, "b": rate[:, None] * a[:, None].tanh() + 0.5}

    zero = {"a": torch.zeros_like(x), "b": torch.zeros(3, 1, 2).double()}
    y_star = solvers.solve(f, zero, x.detach(), rate, solver=tight(), max_steps=500).value
    # The last sample starts at its solution.
    start = {k: torch.cat((zero[k][:2].detach(), y_star[k][2:])) for k in zero}
    v = {k: torch.cos(3 * leaf) for k, leaf in y_star.items()}
    true = state_gradient(f, y_star, (x, rate), v, [x])
    for name in SOLVERS:
        s = fixed_point(f, start, x, rate, solver=tight(name), max_steps=500)
        assert s.num_steps.unique().numel() == 3
        assert int(s.num_steps[2]) == 0
        found = torch.autograd.grad(list(s.value.values()), [x], list(v.values()))
        assert relative_error(list(found), true) < 1e-8


def test_12_second_derivatives_and_forward_mode_are_right() -> None:
    """torchdeq: Hessian-vector products off by 0.84, forward mode by 33 %, without an error."""
    weight, x = matrix(0.6, 3).requires_grad_(), draw(2, 3).requires_grad_()
    assert torch.autograd.gradgradcheck(solved, (x, weight), atol=1e-6)
    assert torch.autograd.gradcheck(solved, (x, weight), check_forward_ad=True, atol=1e-6)

    def unrolled(x: Tensor, weight: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        for _ in range(120):
            y = tanh(weight)(y, x)
        return y

    def product(solve: Callable[..., Tensor]) -> list[Tensor]:
        loss = solve(x, weight).pow(3).sum()
        first = torch.autograd.grad(loss, [x, weight], create_graph=True)
        along = [draw(*leaf.shape, seed=5) for leaf in (x, weight)]
        return list(torch.autograd.grad(first, [x, weight], along))

    assert relative_error(product(solved), product(unrolled)) < 1e-8
    given = ((x.detach(), weight.detach()), (draw(2, 3, seed=6), draw(3, 3, seed=7)))
    found, true = (torch.func.jvp(solve, *given)[1] for solve in (solved, unrolled))
    assert relative_error([found], [true]) < 1e-8


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.filterwarnings("ignore:.*Function.*should not be instantiated:DeprecationWarning")
def test_13_transforms_compile_and_export() -> None:
    """torchdeq: func and vmap raise; 15 graph breaks, compiled anew until the limit."""
    weight, xs = matrix(0.6, 3), draw(4, 2, 3)
    x = xs[0]

    def unrolled(x: Tensor, weight: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        for _ in range(120):
            y = tanh(weight)(y, x)
        return y

    def all_of(solve: Callable[..., Tensor]) -> list[Tensor]:
        def loss(x: Tensor, weight: Tensor) -> Tensor:
            return solve(x, weight).pow(3).sum()

        return [
            *torch.func.grad(loss, (0, 1))(x, weight),
            *torch.func.jacrev(solve, (0, 1))(x, weight),
            torch.func.jvp(solve, (x, weight), (x, weight))[1],
            torch.func.vmap(solve, (0, None))(xs, weight),
            *torch.func.vmap(torch.func.grad(loss, (0, 1)), (0, None))(xs, weight),
        ]

    assert relative_error(all_of(solved), all_of(unrolled)) < 1e-8

    class Map(nn.Module):
        def forward(self, y: Tensor, x: Tensor) -> Tensor:
            return torch.tanh(0.5 * y) + x

    def breaks(max_steps: int) -> int:
        endless = solvers.Picard(rtol=0.0, atol=0.0)
        layer = FixedPointLayer(Map(), endless, max_steps=max_steps, compact=False)
        torch._dynamo.reset()
        seen = torch._dynamo.explain(lambda x: layer(torch.zeros_like(x), x.sin()).value.cos())(x)
        return seen.graph_break_count

    assert breaks(3) == breaks(9) < 15
    layer = FixedPointLayer(Map())
    with pytest.raises(Unsupported):
        torch.compile(layer, backend="eager", fullgraph=True)(torch.zeros_like(x), x)
    with pytest.raises((RuntimeError, Unsupported)):
        torch.export.export(layer, (torch.zeros_like(x), x))


def test_14_failed_adjoints_and_misspelt_options_are_not_silent() -> None:
    """torchdeq: silent; its options cannot be set, are swallowed, and the dict is modified."""
    x = draw(2, 4).requires_grad_()

    def value(backward: Any) -> Tensor:
        f = tanh(matrix(0.9, 4))
        return fixed_point(f, torch.zeros_like(x), x, max_steps=500, backward=backward).value.sum()

    with pytest.warns(UserWarning, match=r"adjoint equation .* failed.* in 2 steps"):
        value(Exact(solver="picard", max_steps=2)).backward()
    with pytest.raises(SolveError, match="did not converge in 2 steps"):
        value(Exact(solver="picard", max_steps=2, on_failure="raise")).backward()
    s = fixed_point(
        tanh(matrix(0.9, 4)), torch.zeros_like(x), x, max_steps=500,
        backward=Exact(solver=solvers.Broyden(rtol=1e-11, atol=0.0, history=30), max_steps=77),
    )  # fmt: skip
    s.value.sum().backward()
    assert float(s.adjoints[0].residual.max()) < 1e-10
    options = {"rtol": 1e-3, "history": 4}
    kept = copy.deepcopy(options)
    solver = solvers.get_solver("anderson", **options)
    fixed_point(tanh(matrix(0.5, 4)), torch.zeros_like(x), x, solver=solver)
    assert options == kept
    with pytest.raises(ValueError, match=r"Unknown option .* 'max_step'.*"):
        implicit.get_backward("exact", max_step=3)
    with pytest.raises(ValueError, match="Did you mean 'history'"):
        solvers.get_solver("anderson", histroy=3)
    with pytest.raises(TypeError, match="f_tol"):
        solvers.Anderson(f_tol=1e-3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="max_iter"):
        fixed_point(torch.cos, torch.zeros(1, 1), max_iter=3)  # type: ignore[call-arg]


def test_15_map_without_its_state_and_the_rule_for_noise_and_statistics() -> None:
    """torchdeq: a RuntimeError; BatchNorm counts 33 calls in one step, dropout redraws.

    Our rule: `f` is one fixed function for the length of a call, and is called as often as
    solver and mode need. Training-mode BatchNorm and dropout break it; evaluation mode keeps it.
    """
    b = torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
    for name in SOLVERS:
        for mode in ("exact", "jacobian_free", "phantom", "unrolled", "neumann"):
            s = fixed_point(lambda y: 3 * b, 0 * b, solver=name, backward=mode)
            assert torch.equal(torch.autograd.grad(s.value.sum(), b)[0], torch.full_like(b, 3))
    rule = " ".join((implicit.__doc__ or "").split())
    assert "Dropout inside `f` draws another mask in every call" in rule
    assert "BatchNorm in training mode updates its statistics in every call" in rule

    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.drop = nn.BatchNorm1d(3), nn.Dropout(0.5)
            self.calls = 0

        def forward(self, y: Tensor, x: Tensor) -> Tensor:
            self.calls += 1
            return 0.3 * self.drop(self.norm(y)) + x

    torch.manual_seed(0)
    layer = FixedPointLayer(Noisy().double(), max_steps=20)
    x = draw(8, 3).requires_grad_()
    module = layer.module
    assert isinstance(module, Noisy)
    layer.eval()
    before = copy.deepcopy(module.state_dict())
    s = layer(torch.zeros_like(x), x)
    s.value.sum().backward()
    assert s.converged.all()
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    layer.train()
    module.calls = 0
    with torch.no_grad():
        s = layer(torch.zeros_like(x), x)
    assert int(module.norm.num_batches_tracked or 0) == module.calls == s.num_evals


def test_18_evaluation_mode_detaches_nothing() -> None:
    """torchdeq's `eval()` detaches the output without a word."""

    class Map(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4, dtype=torch.float64)

        def forward(self, y: Tensor, x: Tensor) -> Tensor:
            return torch.tanh(0.5 * self.inner(y)) + x

    torch.manual_seed(0)
    x = draw(3, 4).requires_grad_()
    for mode in ("exact", "jacobian_free", "phantom", "unrolled", "neumann"):
        layer = FixedPointLayer(Map(), tight(), mode, max_steps=200)
        wanted = [x, *layer.parameters()]
        found = [
            torch.autograd.grad(layer.train(flag)(torch.zeros_like(x), x).value.sum(), wanted)
            for flag in (True, False)
        ]
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
        assert all(bool(g.any()) for g in found[1])
