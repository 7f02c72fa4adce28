"""Every transform of `torch.func` and autograd, and their nestings, as functions of a solve.

Applied to `fixed_point` and to an iteration written out in plain operations, they must agree.
"""

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad, functional
from torch.func import grad, hessian, jacfwd, jacrev, jvp, linearize, vjp, vmap
from torch.utils import _pytree as pytree

Solve = Callable[[Tensor, Tensor], Tensor]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def contraction(*batch: int) -> Tensor:
    weight = draw(*batch, 3, 3, seed=1)
    return 0.5 * weight / torch.linalg.matrix_norm(weight, 2)[..., None, None]


# One batch of 2 samples, and 4 of them.
X, W, V = draw(2, 3), contraction(), draw(2, 3, seed=2)
XS, WS, VS = draw(4, 2, 3), contraction(4), draw(4, 2, 3, seed=2)


def cell(y: Tensor, x: Tensor, w: Tensor) -> Tensor:
    return torch.tanh(y @ w.mT + x)


def loss(solve: Solve) -> Solve:
    return lambda x, w: solve(x, w).pow(3).sum()


def agree(found: Any, true: Any, tolerance: float = 1e-9) -> None:
    found_leaves, true_leaves = pytree.tree_leaves(found), pytree.tree_leaves(true)
    assert len(found_leaves) == len(true_leaves) > 0
    for a, b in zip(found_leaves, true_leaves, strict=True):
        assert a.shape == b.shape
        assert (a - b).detach().abs().max() <= tolerance * b.detach().abs().max().clamp(min=1)


FIRST: dict[str, Callable[[Solve], Any]] = {
    "grad": lambda s: grad(loss(s), (0, 1))(X, W),
    "vjp": lambda s: vjp(s, X, W)[1](V),
    "jacrev": lambda s: jacrev(s, (0, 1))(X, W),
    "jacrev in chunks": lambda s: jacrev(s, (0, 1), chunk_size=2)(X, W),
    "grad of a closure": lambda s: grad(lambda w: loss(s)(X, w))(W),
    "autograd.functional.jacobian": lambda s: functional.jacobian(s, (X, W)),
    "autograd.functional.vjp": lambda s: functional.vjp(s, (X, W), V)[1],
    "autograd.functional.jvp": lambda s: functional.jvp(s, (X, W), (V, WS[0]))[1],
}
FORWARD: dict[str, Callable[[Solve], Any]] = {
    "jvp": lambda s: jvp(s, (X, W), (V, WS[0])),
    "jvp, one input": lambda s: jvp(lambda w: s(X, w), (W,), (WS[0],)),
    "jacfwd": lambda s: jacfwd(s, (0, 1))(X, W),
}
SECOND: dict[str, Callable[[Solve], Any]] = {
    "hessian": lambda s: hessian(loss(s), (0, 1))(X, W),
    "jacrev jacfwd": lambda s: jacrev(jacfwd(loss(s), (0, 1)), (0, 1))(X, W),
    "jacfwd jacfwd": lambda s: jacfwd(jacfwd(loss(s), (0, 1)), (0, 1))(X, W),
    "jacrev jacrev": lambda s: jacrev(jacrev(loss(s), (0, 1)), (0, 1))(X, W),
    "grad of a penalty": lambda s: grad(lambda x, w: grad(loss(s))(x, w).square().sum(), 1)(X, W),
    "jvp of grad": lambda s: jvp(grad(loss(s), (0, 1)), (X, W), (V, WS[0])),
    "vjp of jvp": lambda s: vjp(lambda x: jvp(s, (x, W), (V, WS[0]))[1], X)[1](V),
    "jvp of jvp": lambda s: jvp(lambda x: jvp(s, (x, W), (V, WS[0]))[1], (X,), (V,)),
    "autograd.functional.hessian": lambda s: functional.hessian(loss(s), (X, W)),
    "autograd.functional.hvp": lambda s: functional.hvp(loss(s), (X, W), (V, WS[0])),
    "autograd.functional.vhp": lambda s: functional.vhp(loss(s), (X, W), (V, WS[0])),
}
THIRD: dict[str, Callable[[Solve], Any]] = {
    "jacrev hessian": lambda s: jacrev(hessian(loss(s)))(X, W),
    "jacfwd jacfwd jacrev": lambda s: jacfwd(jacfwd(jacrev(loss(s), 1)))(X, W),
    "vmap jacfwd hessian": lambda s: vmap(jacfwd(hessian(loss(s))), (0, None))(XS[:2], W),
}
# Forward mode without torch.func.
DUAL: dict[str, Callable[[Solve], Any]] = {
    "dual_level": lambda s: dual(s),
    "dual_level around backward": lambda s: dual_of_gradient(s),
}
# What need not work, with the words that a refusal must use.
REFUSABLE: dict[str, tuple[Callable[[Solve], Any], str]] = {
    "linearize": (lambda s: linearize(s, X, W)[1](V, WS[0]), "linearize"),
    "vectorize": (lambda s: functional.jacobian(s, (X, W), vectorize=True), "vectorize"),
    "forward jacobian": (
        lambda s: functional.jacobian(s, (X, W), strategy="forward-mode", vectorize=True),
        "vectorize",
    ),
    "forward hessian": (
        lambda s: functional.hessian(
            loss(s), (X, W), outer_jacobian_strategy="forward-mode", vectorize=True
        ),
        "vectorize",
    ),
    "is_grads_batched": (lambda s: batched_cotangents(s), "is_grads_batched"),
}
MAPPED: dict[str, Callable[[Solve], Any]] = {
    "args": lambda s: vmap(s, (0, None))(XS, W),
    "closure": lambda s: vmap(s, (None, 0))(X, WS),
    "both": lambda s: vmap(s)(XS, WS),
    "last dim": lambda s: vmap(s, (-1, -3), out_dims=1)(XS.movedim(0, -1), WS),
    "middle dim": lambda s: vmap(s, (1, -2))(XS.movedim(0, 1), WS.movedim(0, 1)),
    "in chunks": lambda s: vmap(s, chunk_size=3)(XS, WS),
    "vmap vmap": lambda s: vmap(vmap(s, (None, 0)), (0, None))(XS[:3], WS),
    "vmap vmap, one of them": lambda s: vmap(vmap(s, (0, None)), (0, None))(XS[None], W),
    "one sample": lambda s: vmap(s, (0, None))(XS[:1], W),
}
MAPPED_FIRST: dict[str, Callable[[Solve], Any]] = {
    "vmap grad": lambda s: vmap(grad(loss(s), (0, 1)), (0, None))(XS, W),
    "vmap grad, of a closure": lambda s: vmap(grad(loss(s), 1), (None, 0))(X, WS),
    "grad vmap": lambda s: grad(lambda x, w: vmap(loss(s), (0, None))(x, w).sum(), (0, 1))(XS, W),
    "vmap jacrev": lambda s: vmap(jacrev(s, (0, 1)))(XS, WS),
    "jacrev vmap": lambda s: jacrev(vmap(s, (None, 0)), (0, 1))(X, WS[:2]),
    "vmap vjp": lambda s: vmap(lambda x, w, v: vjp(s, x, w)[1](v))(XS, WS, VS),
    "vmap of cotangents": lambda s: vmap(vjp(s, X, W)[1])(VS),
    "vmap vmap grad": lambda s: vmap(vmap(grad(loss(s), 1), (None, 0)), (0, None))(XS[:3], WS),
}
MAPPED_FORWARD: dict[str, Callable[[Solve], Any]] = {
    "vmap jvp": lambda s: vmap(lambda x, w, t: jvp(s, (x, w), (t, w)))(XS, WS, VS),
    "vmap of tangents": lambda s: vmap(lambda t: jvp(s, (X, W), (t, W)))(VS),
    "jvp vmap": lambda s: jvp(vmap(s, (0, None)), (XS, W), (VS, WS[0])),
    "vmap jacfwd": lambda s: vmap(jacfwd(s, (0, 1)))(XS, WS),
}
MAPPED_SECOND: dict[str, Callable[[Solve], Any]] = {
    "vmap hessian": lambda s: vmap(hessian(loss(s), (0, 1)), (0, None))(XS, W),
    "vmap jacrev jacrev": lambda s: vmap(jacrev(jacrev(loss(s))))(XS, WS),
    "hessian vmap": lambda s: hessian(lambda w: vmap(loss(s), (0, None))(XS, w).sum())(W),
    "vmap hessian, of a closure": lambda s: vmap(lambda w: hessian(lambda x: loss(s)(x, w))(X))(WS),
}
EVERYTHING = FIRST | FORWARD | SECOND | MAPPED | MAPPED_FIRST | MAPPED_FORWARD | MAPPED_SECOND


ALL_MAPPED = MAPPED | MAPPED_FIRST | MAPPED_FORWARD | MAPPED_SECOND


def dual(solve: Solve) -> tuple[Tensor | None, ...]:
    with forward_ad.dual_level():
        x, w = forward_ad.make_dual(X, V), forward_ad.make_dual(W, WS[0])
        value, tangent = forward_ad.unpack_dual(solve(x, w))
        return value, tangent


def dual_of_gradient(solve: Solve) -> Tensor | None:
    with forward_ad.dual_level():
        leaf = X.clone().requires_grad_()
        x = forward_ad.make_dual(leaf, V)
        (gradient,) = torch.autograd.grad(loss(solve)(x, W), x, create_graph=True)
        return forward_ad.unpack_dual(gradient).tangent


def batched_cotangents(solve: Solve) -> tuple[Tensor, ...]:
    x, w = X.clone().requires_grad_(), W.clone().requires_grad_()
    return torch.autograd.grad(solve(x, w), (x, w), VS, is_grads_batched=True)


def right_or_refused(apply: Callable[[], Any], true: Any, words: str) -> None:
    """The right answer, or an error that matches."""
    try:
        found = apply()
    except (NotImplementedError, RuntimeError, ValueError) as error:
        if re.search(words, str(error)):
            return
        raise
    agree(found, true, 1e-8)
