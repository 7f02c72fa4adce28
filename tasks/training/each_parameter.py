"""A step of an optimiser that updates one parameter after the other."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Update = Callable[[Tensor, Tensor, dict[str, Any]], None]
"""(parameter, gradient, options of its group)"""


@torch.no_grad()
def update_each(
    optimizer: torch.optim.Optimizer, update: Update, closure: Callable[[], Any] | None
) -> Any:
    """Update every parameter that has a gradient; what `torch.optim.Optimizer.step` does.

    Args:
        optimizer: Whose parameters.
        update: Changes a parameter.
        closure: Computes the loss anew, and its gradient.

    Returns:
        What the closure returned; None without one.
    """
    loss = None
    if closure is not None:
        with torch.enable_grad():
            loss = closure()
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                update(parameter, parameter.grad, group)
    return loss
