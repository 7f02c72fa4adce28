"""Autocast to bfloat16: what stays in float32, whether verdicts are true, and gradients."""

from collections.abc import Callable

import pytest
import torch
from parameters import PEERS_WHEN_SLOW
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import implicit
import solvers
from implicit import FixedPointLayer, fixed_point
from implicit.testing import pairs
from implicit.testing.oracles import relative_error
from solvers import Result

# Rounding to bfloat16 leaves a residual of about this share of y.
NOISE = 4e-3
LOOSE = 2e-2


class Pull(nn.Module):
    """A contraction by about 0.5; its product is what autocast rounds."""

    def __init__(self, size: int = 32):
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(size, size)
        with torch.no_grad():
            self.inner.weight.div_(2 * torch.linalg.matrix_norm(self.inner.weight, 2))
        self.dtypes: set[torch.dtype] = set()

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        product = self.inner(y.float())  # float64 is not autocast
        self.dtypes.add(product.dtype)
        return torch.tanh(product + x)


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    x = torch.randn(6, 32, generator=torch.Generator().manual_seed(1)).to(dtype)
    return torch.zeros_like(x), x


def autocast(enabled: bool = True) -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled)


def gradient(s: solvers.Solution, wanted: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(s.value.square().sum(), wanted, retain_graph=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", PEERS_WHEN_SLOW)
def test_state_keeps_its_dtype_and_residuals_are_float32_or_wider(
    name: str, dtype: torch.dtype
) -> None:
    model, (y0, x) = Pull(), inputs(dtype)
    with autocast():
        s = solvers.solve(
            model, y0, x, solver=solvers.get_solver(name, rtol=5 * LOOSE), throw=False
        )
    assert model.dtypes == {torch.bfloat16}
    assert s.value.dtype == dtype
    assert s.residual.dtype == torch.promote_types(dtype, torch.float32)
    assert s.converged.all()


@pytest.mark.parametrize("name", ["anderson", "broyden", "anderson_type1", "aitken"])
def test_coefficients_are_computed_outside_of_autocast(name: str) -> None:
    """The solver's own arithmetic is the same, to the last bit, when `f` is not affected."""

    def f(y: Tensor, x: Tensor) -> Tensor:
        with autocast(False):
            return torch.tanh(0.8 * y.roll(1, -1) + x)

    y0, x = inputs()
    options = {"solver": solvers.get_solver(name, rtol=1e-5), "max_steps": 100}
    plain = solvers.solve(f, y0, x, **options)  # type: ignore[arg-type]
    with autocast():
        s = solvers.solve(f, y0, x, **options)  # type: ignore[arg-type]
    assert torch.equal(s.value, plain.value)
    assert torch.equal(s.residual, plain.residual)
    assert torch.equal(s.num_steps, plain.num_steps)


@pytest.mark.parametrize("rtol", [LOOSE, 1e-5])
@pytest.mark.parametrize("name", PEERS_WHEN_SLOW)
def test_verdict_is_what_a_fresh_evaluation_says(name: str, rtol: float) -> None:
    """The map is evaluated again at the value returned, under autocast as in the solve."""
    model, (y0, x) = Pull(), inputs()
    with autocast(), torch.no_grad():
        s = solvers.solve(
            model, y0, x, solver=solvers.get_solver(name, rtol=rtol, atol=0.0), throw=False
        )
        fy = model(s.value, x).float()
    residual = (fy - s.value).square().mean(1).sqrt()
    scale = fy.square().mean(1).sqrt()
    assert torch.allclose(s.residual, residual, rtol=1e-3, atol=1e-3 * NOISE)
    assert torch.equal(s.converged, residual <= rtol * scale)


@pytest.mark.parametrize("name", ["anderson", "anderson_safe", "broyden", "picard"])
def test_noise_floor_is_recognised(name: str) -> None:
    """Budget 1000: a tolerance below the noise ends as `stalled`, one above it soon converges.

    torchdeq's residual floors at 3e-3 and it burns all steps.
    """
    model, (y0, x) = Pull(), inputs()

    def f(y: Tensor, x: Tensor) -> Tensor:
        # Rounding that depends on the call, as on an accelerator: the residual is never 0.
        return model(y + 1e-3 * torch.randn(y.shape, generator=noise), x)

    noise = torch.Generator().manual_seed(2)
    with autocast():
        tight = solvers.get_solver(name, rtol=1e-6, atol=0.0)
        s = solvers.solve(f, y0, x, solver=tight, max_steps=1000, throw=False)
        loose = solvers.get_solver(name, rtol=LOOSE)
        t = solvers.solve(f, y0, x, solver=loose, max_steps=1000, throw=False)
    assert (s.result == Result.stalled).all()
    assert int(s.num_steps.max()) < 250
    assert float(s.residual.max()) < 10 * NOISE
    assert t.converged.all()
    assert int(t.num_steps.max()) < 20


@pytest.mark.parametrize("name", ["anderson", "anderson_safe", "broyden", "picard"])
def test_deterministic_rounding_does_not_use_up_the_budget(name: str) -> None:
    model, (y0, x) = Pull(), inputs()
    with autocast():
        tight = solvers.get_solver(name, rtol=1e-6, atol=0.0)
        s = solvers.solve(model, y0, x, solver=tight, max_steps=1000, throw=False)
    assert set(s.result.tolist()) <= {Result.converged, Result.stalled}
    assert int(s.num_steps.max()) < 250


def backward_of(mode: str, solver: solvers.FixedPointSolver) -> implicit.BackwardMode:
    if mode != "exact":
        return implicit.get_backward(mode)
    # SciPy's Krylov method gives up on a rounded adjoint map.
    linear = solvers.Anderson(rtol=LOOSE) if "scipy" in type(solver).__module__ else solver
    return implicit.get_backward("exact", solver=linear)


@pytest.mark.parametrize(("name", "mode"), pairs())
def test_gradient_is_float32_and_the_same_inside_and_outside(name: str, mode: str) -> None:
    loose = solvers.get_solver(name, rtol=LOOSE)
    layer = FixedPointLayer(Pull(), loose, backward_of(mode, loose))
    y0, x = inputs()
    wanted = [x.requires_grad_(), *layer.parameters()]
    with autocast():
        s = layer(y0, x)
        inside = gradient(s, wanted)
    outside = gradient(s, wanted)
    assert s.converged.all()
    assert {g.dtype for g in inside + outside} == {torch.float32}
    if mode == "unrolled":  # autograd of the solver's steps, which autocast affects
        assert relative_error(inside, outside) < NOISE
    else:
        assert all(torch.equal(a, b) for a, b in zip(inside, outside, strict=True))


@pytest.mark.parametrize("mode", implicit.backward_modes())
def test_gradient_is_near_the_float32_one(mode: str) -> None:
    loose, (y0, x) = solvers.Anderson(rtol=LOOSE), inputs()
    layer = FixedPointLayer(Pull(), loose, backward_of(mode, loose))
    wanted = [x.requires_grad_(), *layer.parameters()]
    plain = gradient(layer(y0, x), wanted)
    with autocast():
        s = layer(y0, x)
    assert relative_error(gradient(s, wanted), plain) < 0.05


def test_adjoint_evidence_is_float32() -> None:
    loose, (y0, x) = solvers.Anderson(rtol=LOOSE), inputs()
    with autocast():
        s = fixed_point(Pull(), y0, x.requires_grad_(), solver=loose)
        s.value.sum().backward()
    assert s.adjoints[0].residual.dtype == torch.float32
    assert s.adjoints[0].converged.all()


def test_second_derivatives_inside_and_outside() -> None:
    loose, (y0, x) = solvers.Anderson(rtol=LOOSE), inputs()
    x.requires_grad_()

    def second(outside: bool) -> Tensor:
        with autocast():
            s = fixed_point(Pull(), y0, x, solver=loose)
            if not outside:
                return penalty(s)
        return penalty(s)

    def penalty(s: solvers.Solution) -> Tensor:
        (first,) = torch.autograd.grad(s.value.pow(3).sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x)[0]

    assert torch.equal(second(True), second(False))
    assert second(True).dtype == torch.float32
    assert second(True).isfinite().all()


@pytest.mark.parametrize(
    "build", [lambda y: {"a": y, "b": (y[:, :5],)}, lambda y: [y.double(), y.bfloat16()]]
)
def test_every_leaf_of_a_tree_keeps_its_dtype(build: Callable[[Tensor], object]) -> None:
    model, (y0, x) = Pull(), inputs()
    leaves = pytree.tree_leaves
    start = build(y0)

    def f(y: object, x: Tensor) -> object:
        first, *_ = leaves(y)
        return pytree.tree_map(lambda leaf: leaf.to(torch.bfloat16), build(model(first, x)))

    with autocast():
        s = solvers.solve(f, start, x, solver=solvers.Anderson(rtol=LOOSE))
    assert [a.dtype for a in leaves(s.value)] == [a.dtype for a in leaves(start)]


def test_without_autocast_another_dtype_is_refused() -> None:
    y0, x = inputs()
    with pytest.raises(TypeError, match=r"must return its input's dtype: got torch\.bfloat16"):
        solvers.solve(lambda y, x: y.bfloat16(), y0, x)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_torch_func_under_autocast() -> None:
    loose, (y0, x) = solvers.Anderson(rtol=LOOSE), inputs()
    model = Pull()

    def value(x: Tensor) -> Tensor:
        return fixed_point(model, y0, x, solver=loose).value.square().sum()

    with autocast():
        found = torch.func.grad(value)(x)
        mapped = torch.func.vmap(torch.func.grad(value))(x[None].expand(3, -1, -1))
    (true,) = torch.autograd.grad(value(x.requires_grad_()), x)
    assert found.dtype == mapped.dtype == torch.float32
    assert relative_error([found.detach(), *mapped.detach()], [true] * 4) < 0.05


@pytest.mark.parametrize("mode", [*implicit.backward_modes()])
def test_a_dict_may_come_back_in_another_order_of_keys(mode: str) -> None:
    """Under autocast, where the leaves are cast, as without it."""
    x = torch.linspace(-1, 1, 12).view(3, 4)

    def f(y: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
        return {"b": 0.5 * torch.tanh(y["b"]) + weight + 1, "a": 0.1 * weight * y["a"] + x}

    found = []
    for enabled in (False, True):
        weight = torch.full((4,), 0.3, requires_grad=True)
        y0 = {"a": torch.zeros_like(x), "b": torch.zeros_like(x)}
        solver = "broyden" if mode == "shine" else "anderson"
        with autocast(enabled):
            s = implicit.fixed_point(f, y0, x, solver=solver, backward=mode)
        (grad,) = torch.autograd.grad(s.value["a"].sum() + 3 * s.value["b"].sum(), weight)
        found.append((s.value["a"], s.value["b"], grad))
    for plain, cast in zip(*found, strict=True):
        assert torch.allclose(cast, plain, rtol=1e-4)
