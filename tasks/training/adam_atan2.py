"""AdamW with an arctangent in place of the division: TRM, HRM and EqR train with it."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from tasks.training.each_parameter import update_each


class AdamATan2(torch.optim.Optimizer):
    """AdamW whose step is bounded, needs no epsilon, and ignores the scale of the gradient.

        p <- (1 - lr * weight_decay) p
        m <- beta1 m + (1 - beta1) g,    v <- beta2 v + (1 - beta2) g^2
        p <- p - lr / (1 - beta1^t) * atan2(m, sqrt(v / (1 - beta2^t)))

    Where |m| is small beside the root it is AdamW, and a large ratio gives at most pi / 2. As in
    the CUDA kernel of the published runs, m is not divided by its correction within the arctangent,
    but the step is.

    Args:
        params: To train.
        lr: Learning rate.
        betas: Decays of the averages m and v.
        weight_decay: Times the rate, the share of a weight that each step takes away.

    References:
        K. Everett et al., Scaling Exponents Across Parameterizations and Optimizers, ICML 2024,
        arXiv:2407.05872, sec. 4. The kernel: `csrc/adam_atan2.cu` of the package `adam-atan2`
        0.0.3.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 1e-2,
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient."""
        return update_each(self, self._update, closure)

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            # On the CPU, where a number may wait to be combined with tensors of any device.
            state["step"] = torch.zeros((), dtype=torch.float32, device="cpu")
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        step, (beta1, beta2) = state["step"].double(), group["betas"]
        mean = state["exp_avg"].lerp_(gradient, 1 - beta1)
        square = state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        root = square.sqrt().div_((1 - beta2**step).sqrt())
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.sub_(torch.atan2(mean, root).mul_(group["lr"] / (1 - beta1**step)))
