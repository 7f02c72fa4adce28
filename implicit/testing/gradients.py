"""Properties of a backward mode: is its gradient what the mode promises, with every solver?

Most compare it with dense linear algebra.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from implicit.base import BackwardMode
from implicit.fixed_point import fixed_point
from implicit.modes.unrolled import Unrolled
from implicit.testing.oracles import (
    dense_gradient,
    relative_error,
    solve_densely,
    state_gradient,
)
from solvers import Broyden, FixedPointSolver, Solution, solve
from solvers.testing.evidence import (
    Failures,
    budget,
    differ,
    equal,
    label,
    promised,
    share,
    tight,
    unless,
)
from solvers.testing.problems import PROBLEMS, Problem, leaves
from solvers.torch_internals import pytree


class Example:
    """The map tanh(W y + x + e) with e = sin(b), which closes over a leaf and a computed tensor.

    Args:
        norm: Spectral norm of W.
        seed: Seed of all random numbers.
    """

    def __init__(self, norm: float = 0.6, seed: int = 0):
        g = torch.Generator().manual_seed(seed)
        weight = torch.randn(4, 4, generator=g, dtype=torch.float64)
        self.weight = (norm * weight / torch.linalg.matrix_norm(weight, 2)).requires_grad_()
        self.x = torch.randn(3, 4, generator=g, dtype=torch.float64, requires_grad=True)
        self.b = torch.randn(4, generator=g, dtype=torch.float64, requires_grad=True)
        self.v = torch.randn(3, 4, generator=g, dtype=torch.float64)
        self.computed = torch.sin(self.b)
        self.y0 = torch.zeros(3, 4, dtype=torch.float64, requires_grad=True)
        self.wanted = [self.x, self.weight, self.b]

    def f(self, y: Tensor, x: Tensor) -> Tensor:
        """Evaluate the map."""
        return torch.tanh(y @ self.weight.T + x + self.computed)

    def gradients(self, solver: FixedPointSolver, mode: str | BackwardMode) -> list[Tensor]:
        """Gradients through a solve to the last digits."""
        s = fixed_point(
            self.f, self.y0, self.x, solver=tight(solver, 1e-12, 1e-14), backward=mode,
            max_steps=budget(solver, 300),
        )  # fmt: skip
        return list(torch.autograd.grad(s.value, self.wanted, self.v, retain_graph=True))

    def dense(self, mode: BackwardMode | None = None) -> list[Tensor]:
        """Gradients by dense algebra: the exact ones, or those that a mode states."""
        y_star = solve_densely(self.f, self.y0.detach(), self.x.detach())
        return dense_gradient(
            self.f, y_star, (self.x,), self.v, self.wanted, *([stated(mode)] if mode else [])
        )


def stated(mode: BackwardMode) -> Callable[[Tensor], Tensor]:
    """The function from J to what a mode has in place of (I - J)^-1; for modes that state it."""

    def inverse(jacobian: Tensor) -> Tensor:
        found = mode.in_place_of_inverse(jacobian)
        assert found is not None
        return found

    return inverse


def states(mode: BackwardMode) -> bool:
    """Whether a mode states what it has in place of the inverse."""
    return mode.in_place_of_inverse(torch.zeros(1, 1, dtype=torch.float64)) is not None


def the_error_is_within_the_bias_of_the_mode(
    mode: BackwardMode, solver: FixedPointSolver
) -> Failures:
    """The gradient is that of dense algebra, up to the bias that the mode declares.

    It is taken with respect to args, to leaves that `f` closes over, and to tensors from which
    closed-over ones were computed. The reference mode, `unrolled`, is compared too.
    """
    example = Example(0.6 * share(solver))
    error = relative_error(example.gradients(solver, mode), example.dense())
    bias = max(mode.bias, BackwardMode.bias)  # the solve has an error, too
    yield from unless(error <= bias, f"relative error {error:.2g}, bias {bias:g}")


def the_gradient_meets_its_formula(mode: BackwardMode, solver: FixedPointSolver) -> Failures:
    """The gradient is v^T M df/dtheta, with the M that the mode has in place of the inverse."""
    if states(mode):
        example = Example(0.6 * share(solver))
        error = relative_error(example.gradients(solver, mode), example.dense(mode))
        bound = 1e-6 if isinstance(mode, Unrolled) else 1e-9
        yield from unless(error < bound, f"relative error {error:.2g}, bound {bound:g}")


def gradients_of_the_zoo(mode: BackwardMode, solver: FixedPointSolver) -> Failures:
    """The formula holds for stiff, non-normal, rotating and tree-valued maps as well."""
    if isinstance(mode, Unrolled) or mode.moves_value or not states(mode):
        return  # Thousands of recorded steps; or a value, and so a Jacobian, at another point.
    for p in PROBLEMS:
        if p.args:
            yield from label(p.name, _one_of_the_zoo(mode, solver, p))


def _one_of_the_zoo(mode: BackwardMode, solver: FixedPointSolver, p: Problem) -> Failures:
    args = tuple(arg.clone().requires_grad_() for arg in p.args)
    s = fixed_point(
        p.f, p.y0, *args, solver=tight(solver, 1e-11, 1e-13), backward=mode, throw=False,
        max_steps=budget(solver, 4000),
    )  # fmt: skip
    if not s.converged.all():
        if promised(solver, p.radius, real=p.real, size=p.size):
            yield s.describe()
        return
    v = pytree.tree_map(lambda leaf: torch.cos(3 * leaf), p.y_star)
    found = torch.autograd.grad(leaves(s.value), args, leaves(v))
    if mode.solves_adjoint:
        yield from label("adjoint", unless(s.adjoints[0].converged, s.adjoints[0].describe()))
    true = state_gradient(p.f, p.y_star, args, v, list(args), stated(mode))
    error = relative_error(found, true)
    yield from unless(error < 1e-7, f"relative error {error:.2g}")


def the_value_is_the_solvers(mode: BackwardMode, solver: FixedPointSolver) -> Failures:
    """The value is the point where the solver measured the residual, unless the mode moves it."""
    example = Example(0.6 * share(solver))
    given: dict[str, Any] = {"solver": solver, "max_steps": budget(solver, 50)}
    plain = solve(example.f, example.y0, example.x, **given)
    s = fixed_point(example.f, example.y0, example.x, backward=mode, **given)
    yield from equal("residual", s.residual, plain.residual)
    if mode.moves_value:
        yield from differ("value", s.value, plain.value, atol=1e-4)
    else:
        yield from equal("value", s.value, plain.value)


def each_leaf_of_a_nested_state_has_its_gradient(
    mode: BackwardMode, solver: FixedPointSolver
) -> Failures:
    """Each leaf alone gets its gradient, where leaves have different shapes and are coupled."""
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
    s = fixed_point(
        f, y0, x, solver=tight(solver, 1e-12, 1e-14), backward=mode, throw=False,
        max_steps=budget(solver, 300),
    )  # fmt: skip
    if not s.converged.all():
        # Of z, a and b alone df/dy has the norms 0.3, 0.4 and 0.33, and little beyond.
        if promised(solver, 0.5, real=False, size=4):
            yield s.describe()
        return
    found_leaves, spec = pytree.tree_flatten(s.value)
    y_star = pytree.tree_map(lambda leaf: leaf.detach(), s.value)
    for chosen in range(3):
        v = [torch.full_like(leaf, i == chosen) for i, leaf in enumerate(found_leaves)]
        # One recorded step may leave a leaf without any dependence.
        found = [torch.zeros_like(w), torch.zeros_like(x)]
        if found_leaves[chosen].requires_grad:
            total = found_leaves[chosen].sum()
            found = torch.autograd.grad(total, [w, x], retain_graph=True, materialize_grads=True)
        if not states(mode):
            yield from unless(found[1].isfinite(), f"leaf {chosen}: gradient {found}")
            continue
        true = state_gradient(f, y_star, (x,), pytree.tree_unflatten(v, spec), [w, x], stated(mode))
        for name, a, b in zip("wx", found, true, strict=True):
            yield from differ(f"leaf {chosen}, gradient to {name}", a, b, atol=1e-6)


def the_start_gets_no_gradient_unless_steps_are_recorded(mode: BackwardMode) -> Failures:
    """The start gets no gradient, since the solution does not depend on it."""
    example = Example()
    s = fixed_point(example.f, example.y0, example.x, backward=mode, max_steps=5, throw=False)
    s.value.sum().backward()
    has = example.y0.grad is not None
    yield from unless(has == isinstance(mode, Unrolled), "a gradient" if has else "no gradient")


def trees_and_tokens_have_the_gradient_of_the_joined_state(mode: BackwardMode) -> Failures:
    """A dict state with a verdict per token has the gradient of the same state as one tensor."""
    g = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, 4, generator=g, dtype=torch.float64, requires_grad=True)

    def joined(y: Tensor, x: Tensor) -> Tensor:
        return 0.4 * torch.tanh(y.flip(-1)) + x

    def tree(y: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
        both = joined(torch.cat((y["a"], y["b"]), -1), x)
        return {"a": both[..., :1], "b": both[..., 1:]}

    def solved(f: Callable, y0: object) -> Solution:
        return fixed_point(
            f,
            y0,
            x,
            solver=Broyden(rtol=1e-12, atol=1e-13),
            backward=mode,
            max_steps=200,
            batch_dims=2,
        )

    a = solved(joined, torch.zeros_like(x))
    b = solved(tree, {"a": torch.zeros_like(x[..., :1]), "b": torch.zeros_like(x[..., 1:])})
    shapes = [tuple(s.residual.shape) for s in (a, b)]
    yield from unless(shapes == [(2, 3), (2, 3)], f"residuals of shapes {shapes}")
    (true,) = torch.autograd.grad(a.value.square().sum(), x)
    (found,) = torch.autograd.grad(b.value["a"].square().sum() + b.value["b"].square().sum(), x)
    yield from differ("gradient to x", found, true, atol=1e-9)


def an_unbatched_state_has_its_gradient(mode: BackwardMode) -> Failures:
    """A state without batch dims is one sample; here its Jacobian flips a vector and halves it."""
    b = torch.ones(3, dtype=torch.float64, requires_grad=True)
    s = fixed_point(
        lambda y: 0.5 * y.flip(0) + b, torch.zeros(3, dtype=torch.float64), backward=mode,
        batch_dims=0,
    )  # fmt: skip
    (found,) = torch.autograd.grad(s.value.sum(), b)
    flip = 0.5 * torch.eye(3, dtype=torch.float64).flip(0)
    inverse = mode.in_place_of_inverse(flip)
    if inverse is None:
        error = relative_error([found], [torch.full_like(b, 2.0)])
        yield from unless(error <= mode.bias, f"relative error {error:.2g}, bias {mode.bias:g}")
    else:
        yield from differ("gradient to b", found, inverse.sum(0), atol=1e-3)


def compaction_changes_no_gradient(mode: BackwardMode) -> Failures:
    """The gradient is the same whether stopped samples leave the batch or stay in it."""
    g = torch.Generator().manual_seed(2)
    rate = torch.linspace(0.1, 0.9, 12, dtype=torch.float64)[:, None]
    x = torch.randn(12, 4, generator=g, dtype=torch.float64, requires_grad=True)

    def gradient(compact: bool) -> Tensor:
        s = fixed_point(
            lambda y, rate, x: rate * torch.sin(y.roll(1, -1)) + x, torch.zeros_like(x), rate, x,
            solver=Broyden(rtol=1e-10), backward=mode, max_steps=300,
            compact=compact,
        )  # fmt: skip
        return torch.autograd.grad(s.value.square().sum(), x)[0]

    yield from differ("gradient to x", gradient(True), gradient(False), atol=1e-10)


def small_budgets_work(mode: BackwardMode) -> Failures:
    """Budgets of 0, 1 and 2 steps work, and the only warning is that of a failed adjoint solve."""
    for max_steps in range(3):
        example = Example()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            s = fixed_point(
                example.f, example.y0, example.x, backward=mode, max_steps=max_steps, throw=False
            )
            s.value.sum().backward()
        case = f"max_steps={max_steps}"
        yield from unless(s.num_steps <= max_steps, f"{case}: more steps than the budget")
        said = [str(w.message) for w in caught]
        warned = [text for text in said if "gradient is approximate" in text]
        right = bool(warned) if mode.solves_adjoint else not said
        yield from unless(right, f"{case}: warnings {said}")


def a_solve_without_a_step_has_a_graph(mode: BackwardMode) -> Failures:
    """A start within tolerance and an empty batch have a backward pass, although without a step."""
    example = Example()
    start = fixed_point(example.f, example.y0, example.x).value.detach().requires_grad_()
    for y0, x in ((start, example.x), (example.y0[:0], example.x[:0])):
        s = fixed_point(example.f, y0, x, backward=mode)
        yield from unless(~s.num_steps.bool(), "steps from a start within tolerance")
        v = example.v[: len(x)]
        case = f"{len(x)} samples"
        found = torch.autograd.grad(s.value, example.wanted[1:], v, retain_graph=True)
        zero = not any(bool(g.any()) for g in found)
        if isinstance(mode, Unrolled):
            yield from unless(zero, f"{case}: a gradient to weights that no step has met")
            to_start = torch.autograd.grad(s.value, y0, v, retain_graph=True)[0]
            yield from equal(f"{case}: gradient to the start", to_start, v)
        elif len(x):
            yield from unless(not zero, f"{case}: no gradient to the weights")
