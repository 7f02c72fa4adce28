"""Muon on a CPU: torch's updates, without its rounding."""

from typing import Any

import pytest
import torch
from torch import nn

from tasks.training.optimizers import Muon, orthogonalised

SHAPES = [(8, 8), (24, 8), (8, 24)]
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def matrices(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    g = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=g).to(dtype)) for shape in SHAPES]


@pytest.mark.parametrize("scale", [None, "original", "match_rms_adamw"])
@pytest.mark.parametrize("nesterov", [True, False])
def test_steps_are_those_of_torch_but_for_its_rounding(scale: str | None, nesterov: bool) -> None:
    options: dict[str, Any] = {
        "lr": 0.1, "weight_decay": 0.3, "adjust_lr_fn": scale, "nesterov": nesterov,
    }  # fmt: skip
    ours, theirs, before = matrices(), matrices(), matrices()
    pairs = [(ours, Muon(ours, **options)), (theirs, torch.optim.Muon(theirs, **options))]
    for parameters, optimizer in pairs:
        g = torch.Generator().manual_seed(1)
        for _ in range(3):
            for p in parameters:
                p.grad = torch.randn(p.shape, generator=g)
            optimizer.step()
    for a, b, start in zip(ours, theirs, before, strict=True):
        assert (a - b).norm() < 0.02 * (b - start).norm()
        first, second = (
            o.state[p]["momentum_buffer"] for p, (_, o) in zip((a, b), pairs, strict=True)
        )
        assert torch.equal(first, second)


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_values_come_near_one_and_vectors_stay(shape: tuple[int, int]) -> None:
    g = torch.Generator().manual_seed(0)
    u, s, v = torch.linalg.svd(torch.randn(shape, generator=g).double(), full_matrices=False)
    s = s.clamp(min=0.05 * s.amax())  # smaller ones need more steps
    result = orthogonalised(u @ torch.diag(s) @ v, COEFFICIENTS, 5, 1e-7)
    values = u.T @ result @ v.T
    assert torch.allclose(values, torch.diag(values.diagonal()), atol=1e-12)
    assert ((values.diagonal() > 0.6) & (values.diagonal() < 1.3)).all()


@pytest.mark.parametrize("shape", [(96, 24), (24, 96), (48, 48)])
@pytest.mark.parametrize("steps", [0, 1, 5, 7])
@pytest.mark.parametrize(
    ("dtype", "precision"), [(torch.float64, 1e-11), (torch.float32, 5e-3), (torch.bfloat16, 0.05)]
)
def test_iterations_are_those_of_newton_and_schulz(
    shape: tuple[int, int], steps: int, dtype: torch.dtype, precision: float
) -> None:
    a, b, c = COEFFICIENTS
    g = torch.Generator().manual_seed(0)
    # Of low rank, where a Gram matrix has eigenvalues below zero by rounding.
    gradient = torch.randn(shape[0], 3, generator=g) @ torch.randn(3, shape[1], generator=g)
    gradient = gradient.to(dtype)
    expected = gradient.double() / gradient.double().norm()
    for _ in range(steps):
        gram = expected @ expected.T
        expected = a * expected + (b * gram + c * gram @ gram) @ expected
    found = orthogonalised(gradient, COEFFICIENTS, steps, 1e-7)
    assert found.dtype == dtype
    assert (found.double() - expected).norm() < precision * expected.norm()


def test_what_has_no_gradient_stays_and_a_closure_is_called() -> None:
    parameters = matrices(torch.float64)
    optimizer = Muon(parameters, lr=0.1)

    def closure() -> float:
        parameters[0].square().sum().backward()
        return 3.0

    before = [p.detach().clone() for p in parameters]
    assert optimizer.step(closure) == 3.0
    changed = [not torch.equal(p, q) for p, q in zip(parameters, before, strict=True)]
    assert changed == [True, False, False]


def test_a_gradient_of_zeros_moves_nothing() -> None:
    parameter = nn.Parameter(torch.ones(3, 4))
    parameter.grad = torch.zeros(3, 4)
    Muon([parameter], lr=0.1, weight_decay=0.0).step()
    assert torch.equal(parameter, torch.ones(3, 4))
