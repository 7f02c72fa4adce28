"""States and maps of other kinds: complex ones, scaled leaves, auxiliary outputs."""

from typing import Any

import pytest
import torch
from torch import Tensor

import implicit
import solvers
from implicit import FixedPointLayer, fixed_point

D, C = torch.float64, torch.complex128
NATIVE = [name for name in solvers.names() if "." not in name]
TIGHT = solvers.Anderson(rtol=1e-12, atol=1e-14)


def draw(seed: int, *shape: int, dtype: torch.dtype = D) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def rotated(y: Tensor, x: Tensor) -> Tensor:
    """A map that is not analytic, since it takes conjugates."""
    return 0.4j * y * torch.cos(y.abs()) + 0.2 * y.conj() + x


@pytest.mark.parametrize("name", NATIVE)
def test_a_complex_state_is_two_real_ones(name: str) -> None:
    x = 0.3 * draw(0, 3, 4, dtype=C)

    def real(y: Tensor, x: Tensor) -> Tensor:
        whole = rotated(*(torch.view_as_complex(part.unflatten(1, (4, 2))) for part in (y, x)))
        return torch.view_as_real(whole).flatten(1)

    flat = torch.view_as_real(x).flatten(1)
    options: dict[str, Any] = {"solver": name, "max_steps": 100}
    a = solvers.solve(rotated, torch.zeros_like(x), x, **options)
    b = solvers.solve(real, torch.zeros_like(flat), flat, **options)
    assert a.value.dtype == C
    assert torch.allclose(torch.view_as_real(a.value).flatten(1), b.value, atol=1e-12)
    assert torch.equal(a.num_steps, b.num_steps)
    assert torch.allclose(a.residual, b.residual, rtol=1e-6, atol=1e-12)


def test_gradients_through_a_complex_state() -> None:
    x = (0.3 * draw(0, 3, 4, dtype=C)).requires_grad_()

    def gradient(mode: Any, solver: Any) -> Tensor:
        s = fixed_point(
            rotated, torch.zeros(3, 4, dtype=C), x, solver=solver, backward=mode, max_steps=300
        )
        return torch.autograd.grad(s.value.abs().square().sum(), x)[0]

    true = gradient("unrolled", solvers.Picard(rtol=1e-13, atol=1e-15))
    assert torch.allclose(gradient("exact", TIGHT), true, atol=1e-9)
    assert torch.allclose(gradient(implicit.Phantom(steps=80), TIGHT), true, atol=1e-9)
    assert torch.allclose(gradient(implicit.Neumann(terms=80), TIGHT), true, atol=1e-9)


def test_a_scale_keeps_a_small_leaf_from_being_lost() -> None:
    def f(y: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"big": 0.1 * y["big"] + 1e4, "small": 0.9 * y["small"] + 0.01}

    y0 = {"big": torch.zeros(2, 3, dtype=D), "small": torch.zeros(2, 2, dtype=D)}
    true = torch.full((2, 2), 0.1, dtype=D)
    lost = solvers.solve(f, y0, solver="picard", max_steps=400)
    assert not torch.allclose(lost.value["small"], true, rtol=0.1)
    for small in (0.1, torch.tensor([0.1, 0.2])):
        scale = {"big": 1e4, "small": small}
        s = solvers.solve(f, y0, solver="picard", max_steps=400, scale=scale)
        assert torch.allclose(s.value["small"], true, rtol=1e-3)
        parts = [(f(s.value)[key] - s.value[key]) / scale[key] for key in y0]
        rms = torch.cat(parts, 1).square().mean(1).sqrt()
        assert torch.allclose(s.residual, rms, rtol=1e-6)

    def small(shift: Tensor) -> Tensor:
        s = fixed_point(
            lambda y: {"big": f(y)["big"], "small": 0.9 * y["small"] + shift}, y0, solver="picard",
            max_steps=400, scale=scale,
        )  # fmt: skip
        return s.value["small"]

    shifts = torch.tensor([0.01, 0.02], dtype=D)
    assert torch.allclose(torch.func.vmap(small)(shifts), torch.stack((true, 2 * true)), rtol=1e-3)


@pytest.mark.parametrize(
    ("scale", "error", "message"),
    [
        ({"a": 0.0}, ValueError, "a positive number or a tensor of them"),
        ({"a": torch.ones(5)}, ValueError, r"one sample, of shape \(3,\)"),
        (1.0, TypeError, "must have the structure of `y0`"),
    ],
)
def test_a_wrong_scale_is_refused(scale: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        solvers.solve(lambda y: y, {"a": torch.zeros(2, 3)}, scale=scale)


def test_a_scale_broadcasts_to_one_sample() -> None:
    y0 = torch.zeros(5, 3, 4)
    for shape in ((), (1,), (4,), (3, 1), (1, 4), (3, 4)):
        assert solvers.solve(lambda y: 0.5 * y + 1, y0, scale=torch.ones(shape)).converged.all()
    for shape in ((2,), (3,), (2, 4), (3, 2), (1, 3, 4)):
        with pytest.raises(ValueError, match=r"broadcasts to one sample, of shape \(3, 4\)"):
            solvers.solve(lambda y: 0.5 * y + 1, y0, scale=torch.ones(shape))


@pytest.mark.parametrize("mode", implicit.backward_modes())
def test_auxiliary_outputs_are_those_of_the_value_and_carry_gradients(mode: str) -> None:
    x = draw(1, 3, 4).requires_grad_()
    calls = []

    def f(y: Tensor, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        calls.append(y)
        return 0.5 * y + x, {"energy": (y * y).sum(1)}

    solver = solvers.Broyden(rtol=1e-12) if mode == "shine" else TIGHT
    given: Any = implicit.Phantom(steps=60) if mode == "phantom" else mode
    given = implicit.Neumann(terms=60) if mode == "neumann" else given
    s = fixed_point(
        f, torch.zeros(3, 4, dtype=D), x, solver=solver, backward=given, has_aux=True, max_steps=90
    )
    assert torch.allclose(s.aux["energy"], (s.value * s.value).sum(1))
    (found,) = torch.autograd.grad(s.aux["energy"].sum(), x)
    assert found.isfinite().all()
    if mode not in ("jacobian_free", "shine"):
        assert torch.allclose(found, 8 * x, atol=1e-6)
    plain = solvers.solve(f, torch.zeros(3, 4, dtype=D), x.detach(), solver=solver, has_aux=True)
    assert torch.allclose(plain.aux["energy"], (4 * x * x).sum(1))
    del calls[:]
    counted = solvers.solve(f, torch.zeros(3, 4, dtype=D), x.detach(), has_aux=True)
    assert counted.num_evals == len(calls)
    assert counted.rows_evaluated == sum(len(y) for y in calls)


def test_auxiliary_outputs_of_layers_and_transforms() -> None:
    class Pair(torch.nn.Module):
        def forward(self, y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
            return 0.5 * y + x, y.sum()

    layer, x = FixedPointLayer(Pair(), solver=TIGHT, has_aux=True), draw(2, 3, 4)
    zeros = torch.zeros_like(x)
    assert torch.allclose(layer(zeros, x).aux, 2 * x.sum())
    gradient = torch.func.grad(lambda x: layer(zeros, x).aux)(x)
    assert torch.allclose(gradient, torch.full_like(x, 2.0))
    with pytest.raises(TypeError, match=r"must return a pair \(y, aux\): got Tensor"):
        fixed_point(lambda y, x: 0.5 * y + x, zeros, x, has_aux=True)
