"""Optimisers, schedules of the learning rate, and averages of the weights."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tasks.training.adam_atan2 import AdamATan2
from tasks.training.each_parameter import update_each
from tasks.training.normuon import NorMuon
from tasks.training.options import Config

# Devices on which torch's AdamW has a fused kernel, and which are tried.
FUSED = ("cpu", "cuda")
BETAS, RELEASED_BETAS = (0.9, 0.95), (0.8, 0.95)


class Muon(torch.optim.Muon):
    """torch's Muon, which on a CPU computes in the precision of the weights.

    See `torch.optim.Muon`: arguments, state and, apart from rounding, updates are the same. torch
    iterates in bfloat16, for which many CPUs have no instructions. On such a CPU its update took
    as long as the rest of a training step of the default language model.

    References:
        K. Jordan et al., Muon, 2024.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every matrix that has a gradient."""
        if any(p.device.type != "cpu" for group in self.param_groups for p in group["params"]):
            return super().step(closure)
        return update_each(self, self._update, closure)

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        momentum = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        step = gradient.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum
        step = orthogonalised(step, group["ns_coefficients"], group["ns_steps"], group["eps"])
        rows, columns = parameter.shape
        if group["adjust_lr_fn"] == "match_rms_adamw":
            scale = 0.2 * max(rows, columns) ** 0.5
        else:
            scale = max(1.0, rows / columns) ** 0.5
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(step, alpha=-group["lr"] * scale)


def orthogonalised(
    matrix: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
) -> Tensor:
    """Bring the singular values near 1, and keep the singular vectors, by Newton-Schulz.

        X <- P X,    P = a I + S,    S = b G + c G^2,    G = X X^T

    All G and P are polynomials of the first G, and commute. So instead of X, which is wider, G is
    iterated, G <- P G P, and the product of the P. Five steps of a matrix with four times as many
    columns as rows take 0.6 of the time so. Rounding of G grows with each step, so that after five
    it is computed anew.

    Args:
        matrix: Shape (m, n).
        coefficients: a, b and c.
        steps: Iterations.
        eps: Smallest norm to divide by at first.

    References:
        J. Zhang, N. Amsel, B. Chen, T. Dao, Gram Newton-Schulz, 2026, restarts included.
    """
    a, b, c = coefficients
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix).to(torch.promote_types(matrix.dtype, torch.float32))
    x = x / x.norm().clamp(min=eps)
    for begun in range(0, steps, 5):
        gram = x @ x.T
        # The product of the P is scale I + rest.
        scale: float = 1.0
        rest: Any = None
        for left in reversed(range(min(5, steps - begun))):
            s = torch.addmm(gram, gram, gram, beta=b, alpha=c)
            rest = s if rest is None else torch.addmm(s, s, rest, beta=scale).add_(rest, alpha=a)
            scale *= a
            if left:
                half = torch.addmm(gram, s, gram, beta=a)
                gram = torch.addmm(half, half, s, beta=a)
        x = torch.addmm(x, rest, x, beta=scale)
    return (x.T if tall else x).to(matrix)


FINAL_RATE, COOL_DOWN = 0.01, 0.5


def cosine(progress: float) -> float:
    """Cosine schedule: falls from 1 to FINAL_RATE along half a wave."""
    return FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * progress))


def trapezoid(progress: float) -> float:
    """Trapezoid schedule: 1, then linear to FINAL_RATE in the last COOL_DOWN of the budget."""
    return max(FINAL_RATE, trapezoid_to_zero(progress))


def trapezoid_to_zero(progress: float) -> float:
    """Trapezoid schedule whose line ends at 0, as in the released runs of language models."""
    return min(1.0, (1 - progress) / COOL_DOWN)


def constant(progress: float) -> float:
    """Constant schedule: 1 throughout, as TRM, HRM, EqR and the Attractor train on puzzles."""
    return 1.0


SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": cosine,
    "trapezoid": trapezoid,
    "trapezoid-to-zero": trapezoid_to_zero,
    "constant": constant,
}


def build_optimizers(model: nn.Module, config: Config) -> list[torch.optim.Optimizer]:
    """AdamW or AdamATan2; or another one for matrices within blocks, and AdamW for all others.

    Muon's updates are scaled to the size of AdamW's, so that one learning rate serves both. Those
    of NorMuon are not, and AdamW trains what is solved, too: as in the public code of
    arXiv:2605.12466, where AdamW's betas are 0.8 and 0.95.

    References:
        K. Jordan et al., Muon, 2024. J. Liu et al., Muon is Scalable for LLM Training,
        arXiv:2502.16982 (the scale).
    """
    train = config.train
    rate, decay = train.learning_rate, train.weight_decay
    # One kernel for all parameters, where torch has it.
    fused = all(parameter.device.type in FUSED for parameter in model.parameters())
    if train.optimizer == "adamw":
        return [torch.optim.AdamW(model.parameters(), rate, BETAS, weight_decay=decay, fused=fused)]
    if train.optimizer == "adam-atan2":
        return [AdamATan2(model.parameters(), rate, BETAS, decay)]
    matrices, others = _matrices_within_blocks(model)
    if train.optimizer == "muon":
        muon = Muon(matrices, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
        return [muon, torch.optim.AdamW(others, rate, BETAS, weight_decay=decay, fused=fused)]
    solving = getattr(model, "solving", None)
    solved = {} if solving is None else {id(p): p for p in solving.parameters()}
    groups = [
        {"params": [p for p in others if id(p) not in solved], "share": train.adamw_rate},
        *(
            {
                "params": [p for p in solved.values() if (p.ndim > 1) == decays],
                "share": train.adamw_rate * train.refiner_rate,
                "weight_decay": train.refiner_decay if decays else 0.0,
            }
            for decays in (True, False)
        ),
    ]
    shared = [group for group in groups if group["params"]]
    adamw = torch.optim.AdamW(shared, rate, RELEASED_BETAS, 1e-10, 0.0, fused=fused)
    matrices = [p for p in matrices if id(p) not in solved]
    return [NorMuon(matrices, rate, decay), adamw] if matrices else [adamw]


def _matrices_within_blocks(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """The matrices of linear maps and convolutions, and all other parameters."""
    outside = [m for m in model.modules() if isinstance(m, nn.Embedding)]
    outside += [m for m in (getattr(model, "vocabulary", None),) if m is not None]  # and its head
    embeddings = {id(p) for m in outside for p in m.parameters()}
    matrices, others = [], []
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            # By name and shape: GPT-2's linear layers are no `nn.Linear`.
            linear = name == "weight" and parameter.ndim == 2
            inner = linear and id(parameter) not in embeddings
            (matrices if inner else others).append(parameter)
    return matrices, others


def named(optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, torch.optim.Optimizer]:
    """Optimisers by the names of their states in a checkpoint."""
    others = [f"optimizer_{number}" for number in range(3, len(optimizers) + 1)]
    return dict(zip(["optimizer", "second_optimizer", *others], optimizers, strict=False))


def averaged(model: nn.Module, most: float) -> AveragedModel:
    """A copy for the exponential average of the weights, always in evaluation mode.

    Args:
        model: Trained.
        most: The decay. It is smaller at first, as it would keep the initial weights.
    """

    def average(averages: Any, current: Any, count: Any) -> None:
        decay = min(most, (1 + int(count)) / (10 + int(count)))
        get_ema_multi_avg_fn(decay)(averages, current, count)

    copy = AveragedModel(model, multi_avg_fn=average)
    return copy.eval()
