"""The exact mode: derivatives of first and second order, and the evidence for them."""

import gc
import weakref

import pytest
import torch
from parameters import PEERS_WHEN_SLOW, slow
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import solvers
from implicit import BackwardMode, Exact, Neumann, SolveError, fixed_point
from implicit.testing.oracles import dense_gradient, solve_densely

SOLVERS = pytest.mark.parametrize("name", PEERS_WHEN_SLOW)


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


@pytest.mark.parametrize(
    "name",
    [slow(name, unless=name in ("anderson", "broyden", "picard")) for name in solvers.names()],
)
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


@pytest.mark.parametrize("wanted", [0, 1, 2])
def test_third_derivative_is_refused(wanted: int) -> None:
    inputs = make()
    (first,) = torch.autograd.grad(value(*inputs).pow(3).sum(), inputs[0], create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), inputs[0], create_graph=True)
    with pytest.raises(NotImplementedError, match="For a third one use `backward='unrolled'`"):
        torch.autograd.grad(second.sum(), inputs[wanted])


def test_gradient_penalty_trains_parameters_as_differences_say() -> None:
    """d/dW of |dL/dx|^2, the mixed second derivative, against central differences."""
    x, weight, b = make()

    def penalty(weight: Tensor) -> Tensor:
        loss = value(x, weight, b).pow(3).sum()
        return torch.autograd.grad(loss, x, create_graph=True)[0].square().sum()

    (found,) = torch.autograd.grad(penalty(weight), weight)
    h, direction = 1e-5, torch.full_like(weight, 0.5)
    shifted = [
        penalty((weight + sign * h * direction).detach().requires_grad_()) for sign in (1, -1)
    ]
    difference = (shifted[0] - shifted[1]) / (2 * h)
    assert torch.allclose((found * direction).sum(), difference, rtol=1e-6)


def test_second_derivatives_of_trees_tokens_and_constants() -> None:
    x = make()[0]
    tight = {"solver": solvers.Anderson(rtol=1e-13, atol=1e-14), "max_steps": 200}

    def tree(x: Tensor) -> Tensor:
        s = fixed_point(
            lambda y, x: (0.4 * y[1].sin() + x, 0.3 * y[0].cos() * x), (x * 0, x * 0), x, **tight
        )
        return s.value[0] * s.value[1]

    def tokens(x: Tensor) -> Tensor:
        s = fixed_point(
            lambda y, x: 0.4 * y.cumsum(1).sin() + x, x[..., None] * 0, x[..., None],
            batch_dims=2, **tight,
        )  # fmt: skip
        return s.value

    def constant(x: Tensor) -> Tensor:
        return fixed_point(lambda y, x: x.sin(), x * 0, x, **tight).value

    for function in (tree, tokens, constant):
        assert torch.autograd.gradcheck(function, (x,))
        assert torch.autograd.gradgradcheck(function, (x,))


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


@SOLVERS
def test_second_backward_through_one_graph_gives_the_same_gradient(name: str) -> None:
    """torchdeq's hook silently gives the one-step gradient the second time."""
    inputs = make()
    loss = value(*inputs, name).pow(3).sum()
    first = torch.autograd.grad(loss, inputs, retain_graph=True)
    second = torch.autograd.grad(loss, inputs)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_every_first_order_backward_appends_one_adjoint() -> None:
    """Also where `f` uses its state many times, so that cotangents are sums of many terms."""
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(6)).requires_grad_()

    def f(y: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
        a, b = y["a"], y["b"]
        mixed = 0.2 * torch.sin(a) * b.roll(1, -1).cos() + 0.1 * (a * a).tanh()
        return {"a": mixed + 0.1 * b + x, "b": 0.3 * mixed * x + 0.2 * b.tanh()}

    zero = torch.zeros(3, 4)
    s = fixed_point(f, {"a": zero, "b": zero}, x)
    loss = (s.value["a"] * s.value["b"]).sum()
    for count in (1, 2):
        torch.autograd.grad(loss, x, retain_graph=True)
        assert len(s.adjoints) == count
    torch.autograd.grad(loss, x, create_graph=True)
    assert len(s.adjoints) == 3
    assert all(bool(adjoint.converged.all()) for adjoint in s.adjoints)


def test_second_derivatives_leave_evidence_too() -> None:
    x, weight, _ = make()
    s = fixed_point(lambda y, x: torch.tanh(y @ weight.T + x), torch.zeros_like(x), x)
    (first,) = torch.autograd.grad(s.value.pow(3).sum(), x, create_graph=True)
    first.sum().backward()
    assert len(s.adjoints) > 1
    assert all(bool(adjoint.converged.all()) for adjoint in s.adjoints)


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


def test_a_sample_whose_adjoint_failed_may_get_the_jacobian_free_gradient() -> None:
    """The others keep theirs, 1 / (1 - rate)."""
    rate, x = torch.tensor([[1e-4], [0.9]]).double(), torch.ones(2, 1).double().requires_grad_()
    mode = Exact(solver="picard", max_steps=2, on_failure="jacobian_free")
    s = fixed_point(lambda y, rate, x: rate * y + x, torch.zeros(2, 1).double(), rate, x,
                    backward=mode)  # fmt: skip
    with pytest.warns(UserWarning, match="The gradient is approximate"):
        s.value.sum().backward()
    assert x.grad[0].item() == pytest.approx(1 / (1 - 1e-4), rel=1e-7)
    assert x.grad[1].item() == 1


@pytest.mark.parametrize("mode", [Exact(), Neumann(terms=20)], ids=str)
def test_map_that_ignores_its_state_or_part_of_it(mode: BackwardMode) -> None:
    """torchdeq raises a RuntimeError in backward."""
    b = torch.ones(2, 2, requires_grad=True)
    s = fixed_point(lambda y: b * 3, torch.zeros(2, 2), backward=mode)
    s.value.sum().backward()
    assert torch.equal(b.grad, torch.full_like(b, 3))
    b.grad = None
    zero = torch.zeros(2, 2)
    s = fixed_point(
        lambda y: {"a": 0.5 * y["a"] + b, "b": 2 * b}, {"a": zero, "b": zero}, backward=mode
    )
    (s.value["a"] + s.value["b"]).sum().backward()
    assert torch.allclose(b.grad, torch.full_like(b, 4), atol=1e-3)


def test_compaction_changes_no_second_derivative() -> None:
    x = make()[0]
    rate = torch.tensor([[0.05], [0.9]], dtype=torch.float64)

    def product(compact: bool) -> Tensor:
        s = fixed_point(
            lambda y, rate, x: rate * torch.sin(y.roll(1, -1)) + x, torch.zeros_like(x), rate, x,
            solver=solvers.Anderson(rtol=1e-12), max_steps=300, compact=compact,
        )  # fmt: skip
        (first,) = torch.autograd.grad(s.value.pow(3).sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x)[0]

    assert torch.allclose(product(True), product(False), rtol=1e-9)


@pytest.mark.filterwarnings("ignore:The gradient is approximate")
@pytest.mark.parametrize("where", ["cotangent", "arg"])
def test_one_bad_sample_spoils_no_gradient_of_another(where: str) -> None:
    x, weight, _ = make()

    def gradient(x: Tensor, spoil: bool) -> Tensor:
        x = x.detach().clone()
        if spoil and where == "arg":
            x[0] = torch.nan
        x.requires_grad_()
        s = fixed_point(
            lambda y, x: torch.tanh(y @ weight.T + x), torch.zeros_like(x), x, throw=False
        )
        v = torch.ones_like(x)
        if spoil and where == "cotangent":
            v[0] = torch.nan
        (found,) = torch.autograd.grad(s.value, x, v)
        assert s.converged.tolist() == [not (spoil and where == "arg"), True]
        assert s.adjoints[0].converged.tolist() == [not spoil, True]
        return found

    spoiled = gradient(x, True)
    assert torch.allclose(spoiled[1], gradient(x, False)[1], rtol=1e-4)
    assert not spoiled[0].isfinite().all()


def test_saved_tensors_may_be_moved_or_recomputed() -> None:
    x, weight, b = make()
    true = torch.autograd.grad(value(x, weight, b).sum(), [x, weight, b])
    with torch.autograd.graph.save_on_cpu():
        moved = value(x, weight, b).sum()
    again = checkpoint(value, x, weight, b, use_reentrant=False).sum()
    for loss in (moved, again):
        found = torch.autograd.grad(loss, [x, weight, b])
        assert all(torch.equal(a, c) for a, c in zip(found, true, strict=True))


def test_checkpoint_inside_the_map() -> None:
    x, weight, _ = make()

    def f(y: Tensor, x: Tensor) -> Tensor:
        return checkpoint(lambda y, x: torch.tanh(y @ weight.T + x), y, x, use_reentrant=False)

    def solve(x: Tensor) -> Tensor:
        tight = solvers.Anderson(rtol=1e-12)
        return fixed_point(f, torch.zeros_like(x), x, solver=tight).value

    assert torch.autograd.gradcheck(solve, (x,), atol=1e-6)


def test_graph_and_evidence_are_freed_without_the_garbage_collector() -> None:
    x, weight, _ = make()
    gc.disable()
    try:
        s = fixed_point(lambda y, x: torch.tanh(y @ weight.T + x), torch.zeros_like(x), x)
        s.value.sum().backward()
        kept = [weakref.ref(s.value), weakref.ref(s.adjoints[0].residual)]
        del s
        assert [reference() for reference in kept] == [None, None]
    finally:
        gc.enable()


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


def test_second_derivatives_through_layers_in_series() -> None:
    """One map is solved twice, and once more at the result."""
    x, weight, b = make()
    assert torch.autograd.gradgradcheck(
        lambda x, weight: value(value(x, weight, b), weight, b), (x, weight)
    )


@pytest.mark.parametrize("scale", [1e-10, 1e-6])
def test_gradient_is_linear_in_the_loss(scale: float) -> None:
    """A mean over a large batch has small cotangents, which need the same accuracy."""
    x, weight, _ = make()
    s = fixed_point(lambda y, x: torch.tanh(y @ weight.T) + x, torch.zeros_like(x), x)
    (plain,) = torch.autograd.grad(s.value.sum(), x, retain_graph=True)
    (scaled,) = torch.autograd.grad(scale * s.value.sum(), x)
    assert torch.allclose(scaled / scale, plain, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_forward_mode_is_right_or_refused_from_a_warm_start() -> None:
    x, weight, _ = (tensor.detach() for tensor in make())

    def solve(y0: Tensor, x: Tensor) -> Tensor:
        return fixed_point(lambda y, x: torch.tanh(y @ weight.T) + x, y0, x).value

    y_star = solve(torch.zeros_like(x), x)
    try:
        _, found = torch.func.jvp(lambda x: solve(y_star, x), (x,), (torch.ones_like(x),))
    except (RuntimeError, NotImplementedError):
        return
    jacobian = torch.autograd.functional.jacobian(lambda x: solve(y_star, x), x).reshape(6, 6)
    assert torch.allclose(found.flatten(), jacobian.sum(1), rtol=1e-3)


def test_value_may_be_changed_in_place_as_any_output_may() -> None:
    x, weight, b = make()
    true = torch.autograd.grad((2 * value(x, weight, b)).sum(), x)[0]
    changed = value(x, weight, b)
    changed.mul_(2)
    assert torch.equal(torch.autograd.grad(changed.sum(), x)[0], true)
