"""Every backward mode with every solver, against dense linear algebra.

The properties are those of `implicit.testing`, which run on a mode of anyone; one test for each.
"""

import inspect

import pytest
import torch
from parameters import PEERS_WHEN_SLOW, long
from torch import Tensor

import implicit
import solvers
from implicit import JacobianFree, Neumann, Phantom, fixed_point
from implicit.registry import MODES
from implicit.testing import PAIRED, PROPERTIES, fits, gradients, pairs
from implicit.testing.gradients import Example
from implicit.testing.oracles import dense_gradient, relative_error, solve_densely
from solvers.testing import Property

SOLVERS = pytest.mark.parametrize("solver", PEERS_WHEN_SLOW)
# The peers' solvers take minutes for the zoo.
ZOO = [long(name, unless="scipy" in name) if "." in name else name for name in solvers.names()]
# Every mode with its defaults, and a few with other options.
MODES_AND_MORE = [
    *implicit.backward_modes(), Phantom(steps=1), Phantom(steps=3, damping=0.4), Phantom(steps=60),
    Neumann(terms=0), Neumann(terms=60),
]  # fmt: skip
EACH_PAIR = [prop for prop in PAIRED if prop is not gradients.gradients_of_the_zoo]


def ids(value: object) -> str:
    return getattr(value, "__name__", str(value))


@pytest.mark.parametrize("mode", MODES_AND_MORE, ids=ids)
@pytest.mark.parametrize("prop", PROPERTIES, ids=ids)
def test_property(mode: str | implicit.BackwardMode, prop: Property) -> None:
    assert list(prop(MODES.resolve(mode))) == []


@SOLVERS
@pytest.mark.parametrize("mode", MODES_AND_MORE, ids=ids)
@pytest.mark.parametrize("prop", EACH_PAIR, ids=ids)
def test_property_of_a_pair(solver: str, mode: str | implicit.BackwardMode, prop: Property) -> None:
    found, chosen = solvers.get_solver(solver), MODES.resolve(mode)
    if not fits(chosen, found):
        assert (solver, mode) not in pairs()
        return
    assert list(prop(chosen, found)) == []


@pytest.mark.parametrize("solver", ZOO)
def test_exact_gradients_of_the_zoo(solver: str) -> None:
    prop = gradients.gradients_of_the_zoo
    assert list(prop(implicit.Exact(), solvers.get_solver(solver))) == []


@pytest.mark.parametrize("mode", MODES_AND_MORE, ids=ids)
def test_gradients_of_the_zoo(mode: str | implicit.BackwardMode) -> None:
    prop = gradients.gradients_of_the_zoo
    assert list(prop(MODES.resolve(mode), solvers.Anderson())) == []


def test_the_suite_runs_every_property() -> None:
    """The properties are the public generator functions of a mode in `implicit.testing`."""
    found = {
        value
        for value in vars(gradients).values()
        if inspect.isgeneratorfunction(value)
        and value.__module__ == gradients.__name__
        and not value.__name__.startswith("_")
    }
    assert found == {*PROPERTIES, *PAIRED}


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
    """Gradients reach args, closed-over leaves, and the leaves of closed-over computed tensors."""
    if mode == "unrolled" and (solver, mode) not in pairs():
        pytest.skip("this solver's steps cannot be recorded")
    example = Example()
    assert (
        relative_error(example.gradients(solvers.get_solver(solver), mode), example.dense())
        < tolerance
    )


@SOLVERS
def test_the_bias_of_phantom_falls_with_its_steps(solver: str) -> None:
    example = Example()
    true = example.dense()
    errors = [
        relative_error(example.gradients(solvers.get_solver(solver), Phantom(steps=k)), true)
        for k in (1, 2, 4, 8, 16)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.05
    assert errors[-1] < 1e-3


@SOLVERS
def test_one_phantom_step_is_the_jacobian_free_gradient(solver: str) -> None:
    example = Example()
    one = example.gradients(solvers.get_solver(solver), Phantom(steps=1))
    free = example.gradients(solvers.get_solver(solver), JacobianFree())
    assert relative_error(one, free) < 1e-9


@SOLVERS
def test_jacobian_free_gradient_is_the_cotangent_through_one_application(solver: str) -> None:
    example = Example()
    y_star = solve_densely(example.f, example.y0.detach(), example.x.detach())
    once = torch.autograd.grad(example.f(y_star, example.x), example.wanted, example.v)
    # A graph of its own for each: the computed tensor belongs to the first.
    found = Example().gradients(solvers.get_solver(solver), "jacobian_free")
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
    found = Example().gradients(solvers.get_solver(solver), Phantom(steps=steps, damping=damping))
    assert relative_error(found, list(true)) < 1e-9


@pytest.mark.parametrize("mode", [Phantom(steps=3, damping=0.4), Neumann(terms=8)], ids=ids)
def test_the_bias_of_a_mode_is_that_of_its_series(mode: implicit.BackwardMode) -> None:
    """For J = 0.6, where (I - J)^-1 is 2.5."""
    found = mode.in_place_of_inverse(torch.full((1, 1), 0.6, dtype=torch.float64))
    assert found is not None
    assert 1 - found.item() / 2.5 == pytest.approx(mode.bias)


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
    if batch_dims == 2 and not tight.promises.tokens:
        with pytest.raises(ValueError, match="refuses `batch_dims=2`"):
            fixed_point(f, torch.zeros_like(x), x, solver=tight, batch_dims=batch_dims)
        return
    s = fixed_point(f, torch.zeros_like(x), x, solver=tight, max_steps=400, batch_dims=batch_dims)
    assert s.residual.shape == x.shape[:batch_dims]
    v = torch.cos(3 * s.value.detach())
    found = torch.autograd.grad(s.value, [x, mix], v)
    assert s.adjoints[0].residual.shape == x.shape[:batch_dims]
    y_star = solve_densely(f, torch.zeros_like(x).detach(), x.detach())
    assert relative_error(list(found), dense_gradient(f, y_star, (x,), v, [x, mix])) < 1e-8


def test_an_estimate_beyond_the_trust_of_shine_is_not_used() -> None:
    """Anderson's gives |u| = 2 |v| here, beyond the default of 1.3: one application is left."""
    b = torch.ones(3, dtype=torch.float64, requires_grad=True)
    y0 = torch.zeros(3, dtype=torch.float64)
    s = fixed_point(lambda y: 0.5 * y.flip(0) + b, y0, backward="shine", batch_dims=0)
    (found,) = torch.autograd.grad(s.value.sum(), b)
    assert torch.allclose(found, torch.ones_like(b), atol=1e-3)
