"""NorMuon with cautious weight decay, as the public code of arXiv:2605.12466 trains matrices.

    m  <- (1 - mu) g + mu m,    o = polar factor of (1 - mu) g + mu m
    v  <- (1 - beta) mean(o^2) + beta v               for each row, or each column of a wide matrix
    o' = o / sqrt(v), brought back to the Frobenius norm of o
    W  <- W - eta sqrt(max(1, rows / columns)) (o' + lambda W [o' W >= 0])

mu rises from 0.85 in the first 300 steps, and lambda falls to zero with the budget.

References:
    Z. Li et al., NorMuon, arXiv:2510.05491 (the second moment of rows). N. Amsel et al., The Polar
    Express, arXiv:2505.16932 (the polar factor). L. Chen et al., Cautious Weight Decay,
    arXiv:2510.12402. `recpre/optim/muon_adamw.py` of https://github.com/jacobfa/Attractor (their
    constants, and the order of the steps).
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from tasks.training.each_parameter import update_each

# Of the Polar Express: (a, b, c) of X <- a X + (b G + c G^2) X with G = X X^T, step by step.
POLAR = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
# The first iterate has a Frobenius norm below 1 by this margin.
MARGIN = 1.02
FIRST_MOMENTUM, MOMENTUM, WARM_UP = 0.85, 0.95, 300


class NorMuon(torch.optim.Optimizer):
    """See the module.

    Args:
        params: Matrices.
        lr: eta, of updates whose singular values are about 1.
        weight_decay: lambda at the beginning.
        beta: Of the second moment.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float, weight_decay: float = 0.2, beta: float = 0.95
    ):
        options = {"lr": lr, "weight_decay": weight_decay, "decay_at_first": weight_decay}
        super().__init__(params, options | {"momentum": FIRST_MOMENTUM, "beta": beta})

    def advance(self, step: int, progress: float) -> None:
        """Set what changes in the course of a run.

        Args:
            step: Steps that were taken.
            progress: Share of the budget that is used.
        """
        rise = min(step / WARM_UP, 1.0) * (MOMENTUM - FIRST_MOMENTUM)
        for group in self.param_groups:
            group["momentum"] = FIRST_MOMENTUM + rise
            group["weight_decay"] = group["decay_at_first"] * (1 - progress)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every matrix that has a gradient."""
        return update_each(self, self._update, closure)

    def _update(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        rows, columns = weight.shape
        dim = -1 if rows >= columns else -2
        state = self.state[weight]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(weight)
            state["second_moment"] = torch.zeros_like(weight.mean(dim, keepdim=True))
        momentum = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        update = polar_factor(gradient.lerp(momentum, group["momentum"]))
        squares = update.square().mean(dim, keepdim=True)
        second = state["second_moment"].lerp_(squares.to(weight), 1 - group["beta"])
        scale = second.clamp_min(1e-10).rsqrt()
        norm, scaled = squares.sum().sqrt(), (squares * scale.square()).sum().sqrt()
        update = update * scale * (norm / scaled.clamp_min(1e-10))
        rate = group["lr"] * max(1.0, rows / columns) ** 0.5
        agrees = (update * weight >= 0).to(weight)
        weight.mul_(1 - rate * group["weight_decay"] * agrees).sub_(update, alpha=rate)


def polar_factor(matrix: Tensor) -> Tensor:
    """Bring the singular values near 1, and keep the singular vectors.

    On a GPU it is computed in bfloat16, as by `torch.optim.Muon`; many CPUs have no instructions
    for that.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x if x.is_cpu else x.bfloat16()
    x = x / (x.norm() * MARGIN + 1e-6)
    for a, b, c in POLAR:
        gram = x @ x.T
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return (x.T if tall else x).to(matrix)
