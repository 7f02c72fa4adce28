"""Every backward mode with every solver, against dense linear algebra."""

import pytest
import torch
from oracles import dense_gradient, solve_densely
from torch import Tensor

import implicit
import solvers
from implicit import Exact, JacobianFree, Phantom, fixed_point

SOLVERS = pytest.mark.parametrize("solver", solvers.names())
MODES = pytest.mark.parametrize("mode", implicit.backward_modes())


class Example:
    """tanh(W y + U x + e) with e = sin(b), so that f closes over a leaf and a computed tensor."""

    def __init__(self, seed: int = 0):
        g = torch.Generator().manual_seed(seed)
        weight = torch.randn(4, 4, generator=g, dtype=torch.float64)
        self.weight = (0.6 * weight / torch.linalg.matrix_norm(weight, 2)).requires_grad_()
        self.x = torch.randn(3, 4, generator=g, dtype=torch.float64, requires_grad=True)
        self.b = torch.randn(4, generator=g, dtype=torch.float64, requires_grad=True)
        self.v = torch.randn(3, 4, generator=g, dtype=torch.float64)
        self.computed = torch.sin(self.b)
        self.y0 = torch.zeros(3, 4, dtype=torch.float64, requires_grad=True)
        self.wanted = [self.x, self.weight, self.b]

    def f(self, y: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(y @ self.weight.T + x + self.computed)

    def gradients(self, solver: str, mode: str | implicit.BackwardMode) -> list[Tensor]:
        tight = solvers.get_solver(solver, rtol=1e-12, atol=1e-14)
        s = fixed_point(self.f, self.y0, self.x, solver=tight, backward=mode, max_steps=300)
        return list(torch.autograd.grad(s.value, self.wanted, self.v, retain_graph=True))

    def dense(self) -> list[Tensor]:
        y_star = solve_densely(self.f, self.y0.detach(), self.x.detach())
        return dense_gradient(self.f, y_star, (self.x,), self.v, self.wanted)


def error(found: list[Tensor], true: list[Tensor]) -> float:
    return max(float((a - b).norm() / b.norm()) for a, b in zip(found, true, strict=True))


@SOLVERS
@pytest.mark.parametrize(
    ("mode", "tolerance"),
    [
        ("exact", 1e-9),
        ("unrolled", 1e-6),
        (Phantom(steps=60), 1e-9),
        (Phantom(steps=60, damping=0.3), 1e-6),
    ],
)
def test_gradient_equals_the_dense_one(
    solver: str, mode: str | implicit.BackwardMode, tolerance: float
) -> None:
    """To explicit args, to closed-over leaves and to what lies behind computed tensors."""
    example = Example()
    assert error(example.gradients(solver, mode), example.dense()) < tolerance


@SOLVERS
def test_phantom_bias_falls_with_steps_and_default_is_no_secret(solver: str) -> None:
    example = Example()
    true = example.dense()
    errors = [error(example.gradients(solver, Phantom(steps=k)), true) for k in (1, 2, 4, 8, 16)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.05
    assert errors[-1] < 1e-3


@SOLVERS
def test_one_phantom_step_is_the_jacobian_free_gradient(solver: str) -> None:
    example = Example()
    one = example.gradients(solver, Phantom(steps=1))
    free = example.gradients(solver, JacobianFree())
    assert error(one, free) < 1e-9


@MODES
def test_start_gets_no_gradient_except_unrolled(mode: str) -> None:
    example = Example()
    s = fixed_point(
        example.f, example.y0, example.x, backward=mode, solver="picard", max_steps=5, throw=False
    )
    (gradient,) = torch.autograd.grad(s.value.sum(), example.y0, allow_unused=True)
    assert (gradient is not None) == (mode == "unrolled")


@MODES
@SOLVERS
def test_value_is_the_solvers_and_where_the_residual_was_measured(solver: str, mode: str) -> None:
    example = Example()
    plain = solvers.solve(example.f, example.y0, example.x, solver=solver)
    s = fixed_point(example.f, example.y0, example.x, solver=solver, backward=mode)
    assert torch.equal(s.residual, plain.residual)
    if mode == "phantom":
        assert torch.allclose(s.value, plain.value, atol=1e-4)
    else:
        assert torch.equal(s.value, plain.value)


@MODES
def test_trees_and_tokens(mode: str) -> None:
    """A dict state with a verdict per token gives the gradient of the joined tensor state."""
    g = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, 4, generator=g, dtype=torch.float64, requires_grad=True)

    def joined(y: Tensor, x: Tensor) -> Tensor:
        return 0.4 * torch.tanh(y.flip(-1)) + x

    def tree(y: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
        both = joined(torch.cat((y["a"], y["b"]), -1), x)
        return {"a": both[..., :1], "b": both[..., 1:]}

    tight = solvers.Picard(rtol=1e-12, atol=1e-13)
    options = {"solver": tight, "backward": mode, "max_steps": 200, "batch_dims": 2}
    a = fixed_point(joined, torch.zeros_like(x), x, **options)  # type: ignore[arg-type]
    start = {"a": torch.zeros_like(x[..., :1]), "b": torch.zeros_like(x[..., 1:])}
    b = fixed_point(tree, start, x, **options)  # type: ignore[arg-type]
    assert a.residual.shape == b.residual.shape == (2, 3)
    (true,) = torch.autograd.grad(a.value.square().sum(), x)
    (found,) = torch.autograd.grad(sum(p.square().sum() for p in b.value.values()), x)
    assert torch.allclose(found, true, atol=1e-9)


@MODES
def test_unbatched_state(mode: str) -> None:
    b = torch.ones(3, dtype=torch.float64, requires_grad=True)
    s = fixed_point(
        lambda y: 0.5 * y.flip(0) + b, torch.zeros(3, dtype=torch.float64), backward=mode,
        batch_dims=0,
    )  # fmt: skip
    s.value.sum().backward()
    expected = {"jacobian_free": 1.0, "phantom": 1.875}.get(mode, 2.0)
    assert torch.allclose(b.grad, torch.full_like(b, expected), atol=1e-3)


@MODES
def test_compaction_changes_no_gradient(mode: str) -> None:
    g = torch.Generator().manual_seed(2)
    rate = torch.linspace(0.1, 0.9, 12, dtype=torch.float64)[:, None]
    x = torch.randn(12, 4, generator=g, dtype=torch.float64, requires_grad=True)

    def gradient(compact: bool) -> Tensor:
        s = fixed_point(
            lambda y, rate, x: rate * torch.sin(y.roll(1, -1)) + x, torch.zeros_like(x), rate, x,
            solver=solvers.Anderson(rtol=1e-10), backward=mode, max_steps=300, compact=compact,
        )  # fmt: skip
        return torch.autograd.grad(s.value.square().sum(), x)[0]

    assert torch.allclose(gradient(True), gradient(False), atol=1e-10)


@MODES
@pytest.mark.parametrize("max_steps", [0, 1, 2])
def test_small_budgets_work_in_every_mode(mode: str, max_steps: int) -> None:
    example = Example()
    if mode == "exact":
        with pytest.warns(UserWarning, match="gradient is approximate"):
            backward(example, mode, max_steps)
    else:
        backward(example, mode, max_steps)


def backward(example: Example, mode: str, max_steps: int) -> None:
    s = fixed_point(
        example.f, example.y0, example.x, backward=mode, max_steps=max_steps, throw=False
    )
    assert int(s.num_steps.max()) <= max_steps
    if s.value.requires_grad and (mode != "unrolled" or max_steps):
        s.value.sum().backward()


def test_names_options_and_types_are_checked() -> None:
    with pytest.raises(ValueError, match=r"Unknown backward mode 'exakt'.*Did you mean 'exact'"):
        fixed_point(torch.cos, torch.zeros(1, 1), backward="exakt")
    with pytest.raises(ValueError, match="Did you mean 'steps'"):
        implicit.get_backward("phantom", step=3)
    with pytest.raises(TypeError, match="Expected a backward mode name"):
        fixed_point(torch.cos, torch.zeros(1, 1), backward=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`steps` must be an integer of at least 1, got 0"):
        Phantom(steps=0)
    with pytest.raises(ValueError, match="must lie in"):
        Phantom(damping=1.0)
    with pytest.raises(ValueError, match="'warn' or 'raise', got 'ignore'"):
        Exact(on_failure="ignore")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Did you mean 'picard'"):
        Exact(solver="picardy")
