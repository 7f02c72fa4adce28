"""Each backward mode under each transform, against plain operations."""

from typing import Any

import pytest
import torch
from parameters import PEERS_WHEN_SLOW
from torch import Tensor
from torch.func import grad, hessian, vjp
from transformations import (
    ALL_MAPPED,
    DUAL,
    EVERYTHING,
    FIRST,
    FORWARD,
    MAPPED,
    MAPPED_FIRST,
    MAPPED_FORWARD,
    MAPPED_SECOND,
    REFUSABLE,
    SECOND,
    THIRD,
    Solve,
    V,
    W,
    X,
    agree,
    cell,
    loss,
    right_or_refused,
)

import implicit
import solvers
from implicit import fixed_point
from implicit.testing.oracles import dense_gradient, relative_error, solve_densely

# torch's own forward-mode formulas warn when they are first loaded.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")

# Modes whose gradient is that of a few applications of `f` from the detached solution.
APPLICATIONS = {"jacobian_free": 1, "phantom": 4, "neumann": 9}


def solved(mode: Any = "exact", solver: str = "anderson", **options: Any) -> Solve:
    tight = solvers.get_solver(solver, rtol=1e-13, atol=1e-14)

    def solve(x: Tensor, w: Tensor) -> Tensor:
        return fixed_point(
            lambda y, x: cell(y, x, w), torch.zeros_like(x), x,
            solver=tight, backward=mode, max_steps=200, **options,
        ).value  # fmt: skip

    return solve


def reference(mode: str = "exact") -> Solve:
    """What a mode differentiates, written in operations that every transform supports."""

    def solve(x: Tensor, w: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        for _ in range(60):
            y = cell(y, x, w)
        if mode in APPLICATIONS:
            y = y.detach()
            for _ in range(APPLICATIONS[mode]):
                y = cell(y, x, w)
        return y

    return solve


@pytest.mark.parametrize("solver", ["picard", "anderson", "broyden"])
@pytest.mark.parametrize("transform", EVERYTHING)
def test_exact(transform: str, solver: str) -> None:
    apply = EVERYTHING[transform]
    agree(apply(solved("exact", solver)), apply(reference()), 1e-8)


@pytest.mark.parametrize("solver", PEERS_WHEN_SLOW)
@pytest.mark.parametrize("transform", ["vmap jvp", "vmap vmap grad", "vmap hessian"])
def test_exact_with_every_solver(transform: str, solver: str) -> None:
    apply = EVERYTHING[transform]
    agree(apply(solved("exact", solver)), apply(reference()), 1e-7)


@pytest.mark.parametrize("transform", THIRD)
def test_third_derivatives(transform: str) -> None:
    agree(THIRD[transform](solved()), THIRD[transform](reference()), 1e-7)


@pytest.mark.parametrize("mode", ["exact", "unrolled"])
@pytest.mark.parametrize("transform", DUAL)
def test_forward_mode_of_autograd(transform: str, mode: str) -> None:
    solver = "picard" if mode == "unrolled" else "anderson"
    agree(DUAL[transform](solved(mode, solver)), DUAL[transform](reference()), 1e-8)


@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning")
@pytest.mark.parametrize("transform", REFUSABLE)
def test_what_torch_traces_is_right_or_refused(transform: str) -> None:
    apply, words = REFUSABLE[transform]
    right_or_refused(lambda: apply(solved()), apply(reference()), words)


@pytest.mark.parametrize("transform", EVERYTHING)
def test_jacobian_free_is_one_application(transform: str) -> None:
    apply = EVERYTHING[transform]
    agree(apply(solved("jacobian_free")), apply(reference("jacobian_free")))


@pytest.mark.parametrize("mode", ["phantom", "neumann"])
@pytest.mark.parametrize("transform", [*FIRST, *MAPPED, *MAPPED_FIRST])
def test_phantom_and_neumann_are_a_few_applications(transform: str, mode: str) -> None:
    """Second derivatives of `neumann` hold the solution fixed, those of applications do not."""
    apply = EVERYTHING[transform]
    agree(apply(solved(mode)), apply(reference(mode)))


@pytest.mark.parametrize("transform", [*FORWARD, *MAPPED_FORWARD])
def test_neumann_forward(transform: str) -> None:
    apply = EVERYTHING[transform]
    agree(apply(solved("neumann")), apply(reference("neumann")))


@pytest.mark.parametrize("transform", [*FORWARD, *SECOND, *MAPPED_FORWARD, *MAPPED_SECOND])
def test_phantom_forward_and_second(transform: str) -> None:
    apply = EVERYTHING[transform]
    agree(apply(solved("phantom")), apply(reference("phantom")))


@pytest.mark.parametrize("transform", [*FIRST, *FORWARD, *SECOND])
def test_unrolled(transform: str) -> None:
    apply = EVERYTHING[transform]
    agree(apply(solved("unrolled", "picard")), apply(reference()), 1e-8)


@pytest.mark.parametrize("transform", ALL_MAPPED)
def test_unrolled_under_vmap_is_right_or_refused(transform: str) -> None:
    apply = EVERYTHING[transform]
    true = apply(reference())
    right_or_refused(lambda: apply(solved("unrolled", "picard")), true, "unrolled.*vmap")


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("mode", implicit.backward_modes())
def test_every_mode_gives_what_it_gives_without_transforms(mode: str, order: int) -> None:
    value = loss(solved(mode, "broyden" if mode == "shine" else "anderson"))
    x = X.clone().requires_grad_()
    (first,) = torch.autograd.grad(value(x, W), x, create_graph=True)
    if order == 1:
        right_or_refused(lambda: grad(value)(X, W), first, mode)
    else:
        (true,) = torch.autograd.grad((first * V).sum(), x)
        right_or_refused(lambda: vjp(lambda x: grad(value)(x, W), X)[1](V)[0], true, mode)


def test_first_order_agrees_with_dense_algebra() -> None:
    x, w = X.clone().requires_grad_(), W.clone().requires_grad_()
    y_star = solve_densely(lambda y, x: cell(y, x, W), torch.zeros_like(X), X)
    true = dense_gradient(lambda y, x: cell(y, x, w), y_star, (x,), V, [x, w])
    assert relative_error(list(vjp(solved(), X, W)[1](V)), true) < 1e-9


def test_hessian_agrees_with_the_closed_form() -> None:
    """y = t W y + x has the sum 1^T (I - t W)^-1 x, with 2 * 1^T W^2 (I - t W)^-3 x its second."""
    t, eye = torch.tensor(0.7, dtype=torch.float64), torch.eye(3, dtype=torch.float64)

    def value(t: Tensor, x: Tensor) -> Tensor:
        tight = solvers.Anderson(rtol=1e-13)
        y0 = torch.zeros_like(x)
        return fixed_point(lambda y, x: t * (y @ W.mT) + x, y0, x, solver=tight).value.sum()

    inverse = torch.linalg.inv(eye - t * W)
    agree(hessian(value)(t, X), 2 * (W @ W @ inverse @ inverse @ inverse @ X.mT).sum(), 1e-8)
