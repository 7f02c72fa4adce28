"""The loss functions of training."""

import torch
from torch import Tensor
from torch.nn import functional as F

HALT_WEIGHT = 0.5


def answer_loss(logits: Tensor, target: Tensor, kind: str) -> Tensor:
    """Mean cross-entropy over cells.

    Args:
        logits: Shape (batch, cells, symbols).
        target: Classes, shape (batch, cells).
        kind: "softmax", or "stablemax": s(x) = x + 1 for x >= 0 and 1 / (1 - x) below replaces
            exp(x), in float64, so that a right answer cannot be made surer for ever.

    References:
        L. Prieto et al., Grokking at the Edge of Numerical Stability, arXiv:2501.04697, sec. 4
        (StableMax), as used by HRM and TRM.
    """
    flat, classes = _precise(logits.flatten(0, 1)), target.flatten()
    if kind == "softmax":
        return F.cross_entropy(flat, classes)
    x = flat.double()
    weight = torch.where(x >= 0, x.clamp(min=0) + 1, 1 / (1 - x.clamp(max=0)))
    return F.nll_loss((weight / weight.sum(-1, keepdim=True)).log(), classes).to(flat)


def halt_loss(halt: Tensor, right: Tensor) -> Tensor:
    """Weighted binary cross-entropy of "every cell is right"; shapes (batch,).

    References:
        A. Jolicoeur-Martineau, arXiv:2510.04871, sec. 4.6.
    """
    precise = _precise(halt)
    return HALT_WEIGHT * F.binary_cross_entropy_with_logits(precise, right.to(precise.dtype))


def _precise(logits: Tensor) -> Tensor:
    """The logits in float32, or in their own type if that is more precise."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
