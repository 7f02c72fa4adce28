"""Every backward mode with every solver, against dense linear algebra."""

import pytest
import torch
from oracles import dense_gradient, relative_error, solve_densely, state_gradient
from problems import PEERS_WHEN_SLOW, PROBLEMS, Problem, leaves, pairs
from torch import Tensor
from torch.utils import _pytree as pytree

import implicit
import solvers
from implicit import JacobianFree, Phantom, fixed_point

SOLVERS = pytest.mark.parametrize("solver", solvers.names())
MODES = pytest.mark.parametrize("mode", implicit.backward_modes())
PAIRS = pytest.mark.parametrize(("solver", "mode"), pairs())


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
    if mode == "unrolled" and (solver, mode) not in pairs():
        pytest.skip("this solver's steps cannot be recorded")
    example = Example()
    assert relative_error(example.gradients(solver, mode), example.dense()) < tolerance


@pytest.mark.parametrize("solver", PEERS_WHEN_SLOW)
@pytest.mark.parametrize("problem", [p for p in PROBLEMS if p.args], ids=lambda p: p.name)
def test_exact_gradient_on_the_zoo(problem: Problem, solver: str) -> None:
    """Stiff, non-normal, rotating and tree-valued maps, each against dense linear algebra."""
    args = tuple(arg.clone().requires_grad_() for arg in problem.args)
    tight = solvers.get_solver(solver, rtol=1e-11, atol=1e-13)
    s = fixed_point(problem.f, problem.y0, *args, solver=tight, max_steps=4000, throw=False)
    if not s.converged.all():
        assert solver.endswith("picard")
        assert not problem.contracts
        return
    v = pytree.tree_map(lambda leaf: torch.cos(3 * leaf), problem.y_star)
    found = torch.autograd.grad(leaves(s.value), args, leaves(v))
    assert s.adjoints[0].converged.all()
    true = state_gradient(problem.f, problem.y_star, args, v, list(args))
    assert relative_error(list(found), true) < 1e-7


@PAIRS
def test_gradient_agrees_with_the_unrolled_one_within_the_bias_of_the_mode(
    solver: str, mode: str
) -> None:
    example = Example()
    reference = solver if (solver, "unrolled") in pairs() else "anderson"
    true = example.gradients(reference, "unrolled")
    error = relative_error(example.gradients(solver, mode), true)
    biased = {
        "phantom": (1e-4, 0.2),
        "jacobian_free": (0.01, 0.7),
        "neumann": (1e-9, 0.05),
        "shine": (0.0, 0.7),
    }
    low, high = biased.get(mode, (0.0, 1e-6))
    assert low <= error <= high


@SOLVERS
def test_phantom_bias_falls_with_steps_and_default_is_no_secret(solver: str) -> None:
    example = Example()
    true = example.dense()
    errors = [
        relative_error(example.gradients(solver, Phantom(steps=k)), true) for k in (1, 2, 4, 8, 16)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.05
    assert errors[-1] < 1e-3


@SOLVERS
def test_one_phantom_step_is_the_jacobian_free_gradient(solver: str) -> None:
    example = Example()
    one = example.gradients(solver, Phantom(steps=1))
    free = example.gradients(solver, JacobianFree())
    assert relative_error(one, free) < 1e-9


@SOLVERS
def test_jacobian_free_gradient_is_the_cotangent_through_one_application(solver: str) -> None:
    example = Example()
    y_star = solve_densely(example.f, example.y0.detach(), example.x.detach())
    once = torch.autograd.grad(example.f(y_star, example.x), example.wanted, example.v)
    # A graph of its own for each: the computed tensor belongs to the first.
    found = Example().gradients(solver, "jacobian_free")
    assert relative_error(found, list(once)) < 1e-9


@SOLVERS
@pytest.mark.parametrize("damping", [0.0, 0.4])
def test_phantom_meets_its_formula(solver: str, damping: float) -> None:
    """(1 - damping) * sum_{i < steps} H^i in place of (I - J)^-1, as its docstring says."""
    example, steps = Example(), 3
    y_star = solve_densely(example.f, example.y0.detach(), example.x.detach())
    jacobian = torch.autograd.functional.jacobian(
        lambda y: example.f(y, example.x), y_star
    ).reshape(12, 12)
    h = damping * torch.eye(12, dtype=torch.float64) + (1 - damping) * jacobian
    series = sum(torch.linalg.matrix_power(h, i) for i in range(steps))
    u = (1 - damping) * (series.T @ example.v.flatten()).view_as(example.v)
    true = torch.autograd.grad(example.f(y_star, example.x), example.wanted, u)
    found = Example().gradients(solver, Phantom(steps=steps, damping=damping))
    assert relative_error(found, list(true)) < 1e-9


@MODES
def test_start_gets_no_gradient_except_unrolled(mode: str) -> None:
    example = Example()
    s = fixed_point(example.f, example.y0, example.x, backward=mode, max_steps=5, throw=False)
    (gradient,) = torch.autograd.grad(s.value.sum(), example.y0, allow_unused=True)
    assert (gradient is not None) == (mode == "unrolled")


@PAIRS
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

    tight = solvers.Broyden(rtol=1e-12, atol=1e-13)
    options = {"solver": tight, "backward": mode, "max_steps": 200, "batch_dims": 2}
    a = fixed_point(joined, torch.zeros_like(x), x, **options)  # type: ignore[arg-type]
    start = {"a": torch.zeros_like(x[..., :1]), "b": torch.zeros_like(x[..., 1:])}
    b = fixed_point(tree, start, x, **options)  # type: ignore[arg-type]
    assert a.residual.shape == b.residual.shape == (2, 3)
    (true,) = torch.autograd.grad(a.value.square().sum(), x)
    (found,) = torch.autograd.grad(sum(p.square().sum() for p in b.value.values()), x)
    assert torch.allclose(found, true, atol=1e-9)


@SOLVERS
@pytest.mark.parametrize("batch_dims", [0, 1, 2])
def test_exact_gradient_for_every_number_of_batch_dims(solver: str, batch_dims: int) -> None:
    """A causal mix of tokens, each with a verdict of its own under `batch_dims=2`."""
    g = torch.Generator().manual_seed(4)
    mix = torch.rand(5, 5, generator=g, dtype=torch.float64).tril()
    mix = (0.8 * mix / mix.sum(1, keepdim=True)).requires_grad_()
    x = torch.randn(2, 5, 3, generator=g, dtype=torch.float64, requires_grad=True)

    def f(y: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(mix @ y) + x

    tight = solvers.get_solver(solver, rtol=1e-12, atol=1e-14)
    s = fixed_point(f, torch.zeros_like(x), x, solver=tight, max_steps=400, batch_dims=batch_dims)
    assert s.residual.shape == x.shape[:batch_dims]
    v = torch.cos(3 * s.value.detach())
    found = torch.autograd.grad(s.value, [x, mix], v)
    assert s.adjoints[0].residual.shape == x.shape[:batch_dims]
    y_star = solve_densely(f, torch.zeros_like(x).detach(), x.detach())
    assert relative_error(list(found), dense_gradient(f, y_star, (x,), v, [x, mix])) < 1e-8


@PAIRS
def test_nested_state_gives_the_gradient_of_each_leaf(mode: str, solver: str) -> None:
    """Leaves of different shapes, coupled; each alone as the output."""
    w = torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)
    x = torch.tensor([[-0.9], [0.2], [1.1]], dtype=torch.float64, requires_grad=True)

    def f(y: tuple[Tensor, list[Tensor]], x: Tensor) -> tuple[Tensor, list[Tensor]]:
        z, (a, b) = y
        return w * z.tanh() + 0.3 * b[:, 0] + x, [
            0.4 * a.sin() + z[:, :1],
            0.3 * b.cos() * x[:, None],
        ]

    zero = torch.zeros_like(x).detach()
    y0 = (torch.cat((zero, zero), 1), [zero, zero.view(3, 1, 1)])
    tight = solvers.get_solver(solver, rtol=1e-12, atol=1e-14)
    long: dict[str, implicit.BackwardMode] = {
        "phantom": Phantom(steps=60),
        "neumann": implicit.Neumann(terms=60),
    }
    s = fixed_point(f, y0, x, solver=tight, backward=long.get(mode, mode), max_steps=300)
    found_leaves, spec = pytree.tree_flatten(s.value)
    y_star = pytree.tree_map(lambda leaf: leaf.detach(), s.value)
    for chosen in range(3):
        v = [torch.full_like(leaf, i == chosen) for i, leaf in enumerate(found_leaves)]
        found = torch.autograd.grad(
            found_leaves[chosen].sum(), [w, x], retain_graph=True, materialize_grads=True
        )
        true = state_gradient(f, y_star, (x,), pytree.tree_unflatten(v, spec), [w, x])
        if mode not in ("jacobian_free", "shine"):
            assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, true, strict=True))
        elif (
            chosen == 1 and mode == "jacobian_free"
        ):  # Its own equation does not mention w, and one application is all.
            assert not found[0].any()
            assert true[0].any()


@MODES
def test_unbatched_state(mode: str) -> None:
    b = torch.ones(3, dtype=torch.float64, requires_grad=True)
    s = fixed_point(
        lambda y: 0.5 * y.flip(0) + b, torch.zeros(3, dtype=torch.float64), backward=mode,
        batch_dims=0,
    )  # fmt: skip
    s.value.sum().backward()
    terms = sum(0.5**i for i in range(9))
    expected = {"jacobian_free": 1.0, "phantom": 1.875, "neumann": terms}.get(mode, 2.0)
    if mode == "shine":  # Anderson's estimate gives |u| = 2 |v|, beyond the default trust of 1.3
        expected = 1.0
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
    s.value.sum().backward()


@MODES
def test_a_solve_without_a_step_has_a_graph(mode: str) -> None:
    """From a start within tolerance, and for an empty batch; the gradient of nothing is zero."""
    example = Example()
    start = fixed_point(example.f, example.y0, example.x).value.detach().requires_grad_()
    for y0, x in ((start, example.x), (example.y0[:0], example.x[:0])):
        s = fixed_point(example.f, y0, x, backward=mode)
        assert not s.num_steps.any()
        v = example.v[: len(x)]
        found = torch.autograd.grad(s.value, example.wanted[1:], v, retain_graph=True)
        if mode == "unrolled":
            assert not any(g.any() for g in found)
            assert torch.equal(torch.autograd.grad(s.value, y0, v, retain_graph=True)[0], v)
        elif len(x):
            assert all(g.any() for g in found)
