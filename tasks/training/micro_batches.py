"""A batch in micro-batches, each of which goes forward and backward alone: gradient accumulation.

    mean over a batch of the loss  =  sum over its N micro-batches of (their mean / N)

The gradients add up in the same way. What a backward pass needs is kept for one micro-batch at a
time. On a CPU a micro-batch is itself computed in parts side by side, in the same way.

What is random in a model is drawn for one micro-batch after the other, from one generator. On a
CPU, the lengths of Parcae's loops and the noise at the start of a solve are therefore those of
the whole batch; where a pass draws more than once ("eqr"), and on a GPU, they depend on N.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from solvers.torch_internals import pytree
from solvers.types import State
from tasks.training.metrics import Evidence

HALT_WEIGHT = 0.5


def answer_loss(
    logits: Tensor, target: Tensor, kind: str, reduction: Literal["mean", "none"] = "mean"
) -> Tensor:
    """Mean cross-entropy over cells.

    Args:
        logits: Shape (batch, cells, symbols).
        target: Classes, shape (batch, cells).
        kind: "softmax", or "stablemax": s(x) = x + 1 for x >= 0 and 1 / (1 - x) below replaces
            exp(x), in float64, so that a right answer cannot be made surer for ever.
        reduction: "mean" over all cells, a scalar; with "none" shape (batch * cells,).

    References:
        L. Prieto et al., Grokking at the Edge of Numerical Stability, arXiv:2501.04697, sec. 4
        (StableMax), as used by HRM and TRM.
    """
    flat, classes = _precise(logits.flatten(0, 1)), target.flatten()
    if kind == "softmax":
        return F.cross_entropy(flat, classes, reduction=reduction)
    x = flat.double()
    weight = torch.where(x >= 0, x.clamp(min=0) + 1, 1 / (1 - x.clamp(max=0)))
    log_shares = (weight / weight.sum(-1, keepdim=True)).log()
    return F.nll_loss(log_shares, classes, reduction=reduction).to(flat)


def halt_loss(halt: Tensor, right: Tensor) -> Tensor:
    """Weighted binary cross-entropy of "every cell is right"; shapes (batch,).

    References:
        A. Jolicoeur-Martineau, arXiv:2510.04871, sec. 4.6.
    """
    precise = _precise(halt)
    return HALT_WEIGHT * F.binary_cross_entropy_with_logits(precise, right.to(precise.dtype))


def continue_loss(q_continue: Tensor, q_next: tuple[Tensor, ...], last: Tensor | None) -> Tensor:
    """Weighted binary cross-entropy of the value of going on with `continue_target`.

    References:
        G. Wang et al., Hierarchical Reasoning Model, arXiv:2506.21734, sec. 2 (adaptive
        computation time).
    """
    precise, target = _precise(q_continue), continue_target(q_next, last)
    return HALT_WEIGHT * F.binary_cross_entropy_with_logits(precise, target)


def continue_target(q_next: tuple[Tensor, ...], last: Tensor | None) -> Tensor:
    """What going on is worth by the values after one more segment: stopping or going on there.

    As in HRM's public code, a sample in its last segment may only stop there.

    Args:
        q_next: Logits of the values of stopping and of going on, each of shape (rows,).
        last: Rows whose last segment this is, of the same shape; None: no row.
    """
    stop, go_on = map(_precise, q_next)
    best = torch.maximum(stop, go_on)
    return (best if last is None else torch.where(last, stop, best)).sigmoid()


def _precise(logits: Tensor) -> Tensor:
    """The logits in float32, or in their own type if that is more precise."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What is kept of a forward pass after its backward pass: no tensor has a gradient.

    Attributes:
        loss: The share of the mean over the whole batch, a scalar.
        right: Which classes are right, of the shape of the targets.
        halted: Which rows the halting head would end, shape (rows,); None without one.
        solve: How the solve went; None without one.
        row_loss: Mean cross-entropy of each row, shape (rows,); None with one segment a sample.
    """

    loss: Tensor
    right: Tensor
    halted: Tensor | None
    solve: Evidence | None
    row_loss: Tensor | None = None

    @classmethod
    def cat(cls, parts: Sequence["Outcome"]) -> "Outcome":
        """The outcome of the whole batch, from those of its micro-batches."""

        def rows(found: list[Any]) -> Any:
            return None if found[0] is None else torch.cat(found)

        solves = [part.solve for part in parts if part.solve is not None]
        return cls(
            loss=torch.stack([part.loss for part in parts]).sum(),
            right=rows([part.right for part in parts]),
            halted=rows([part.halted for part in parts]),
            solve=Evidence(*map(torch.cat, zip(*solves, strict=True))) if solves else None,
            row_loss=rows([part.row_loss for part in parts]),
        )

    @property
    def solved(self) -> Tensor:
        """Whether all classes of a row are right, shape (rows,)."""
        return self.right.flatten(1).all(1)


def forward(
    network: Callable[..., Any],
    x: Tensor,
    target: Tensor,
    config: Any,
    *,
    max_steps: int,
    parts: int = 1,
    start: State | None = None,
    fresh: Tensor | None = None,
    last: Tensor | None = None,
) -> tuple[Tensor, Outcome, State]:
    """The forward pass of one micro-batch: its share of the loss, and what is left after that.

    Args:
        network: See `Trainer`, as for `max_steps`.
        x: Inputs, shape (rows, ...).
        target: Classes, shape (rows, ...).
        config: Says how to compute: `autocast`, `loss`, `segments`.
        max_steps: Solver updates.
        parts: N.
        start: Where the solve starts.
        fresh: Rows that start at the model's start all the same.
        last: Rows whose last segment this is.

    Returns:
        The loss, what the loop needs of the output, and the state that it was read from.
    """
    with torch.autocast(x.device.type, torch.bfloat16, enabled=config.autocast):
        out = network(x, start=start, fresh=fresh, max_steps=max_steps)
    loss, outcome = loss_of(out, target, config.loss, parts, last)
    if config.segments > 1 and outcome.solve is not None:
        cells = answer_loss(out.logits.detach(), target, config.loss, reduction="none")
        outcome = dataclasses.replace(outcome, row_loss=cells.view(len(x), -1).mean(1))
    # The logits are large, and no longer needed: they end here.
    return loss, outcome, pytree.tree_map(torch.detach, out.state)


def loss_of(
    out: Any, target: Tensor, kind: str, parts: int, last: Tensor | None = None
) -> tuple[Tensor, Outcome]:
    """The share of a micro-batch in the loss, and the outcome of its forward pass.

    Args:
        out: A model's output.
        target: Classes, shape (rows, ...).
        kind: See `answer_loss`.
        parts: N.
        last: See `forward`.
    """
    right = out.logits.detach().argmax(-1) == target
    loss = answer_loss(out.logits, target, kind)
    halted = None
    if out.halt is not None:
        loss = loss + halt_loss(out.halt, right.flatten(1).all(1))
        if out.q_next is not None:
            loss = loss + continue_loss(out.q_continue, out.q_next, last)
        halted = out.halt > (0 if out.q_continue is None else out.q_continue)
    loss = loss / parts
    found = out.solution
    return loss, Outcome(
        loss=loss.detach(),
        right=right,
        halted=halted,
        solve=None if found is None else Evidence(found.converged, found.residual, found.num_steps),
    )


def add_gradients(model: nn.Module, parts: Sequence[Sequence[Tensor | None]]) -> None:
    """Add gradients of several parts to those of a model's parameters, in the order of the parts.

    Args:
        model: Its parameters may have gradients.
        parts: Of each part, one gradient for each parameter; None where it has none.
    """
    for gradients in parts:
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            if gradient is not None:
                known = parameter.grad
                parameter.grad = gradient if known is None else known + gradient


def micro_batch(batch_size: int, processes: int, parts: int) -> int:
    """The number of rows that a process computes at a time.

    Raises:
        ValueError: The batch cannot be split in this way.
    """
    if batch_size % processes:
        raise ValueError(
            f"`batch_size` = {batch_size} cannot be split among {processes} processes. Use a "
            "multiple of their number."
        )
    rows = batch_size // processes
    if rows % parts:
        each = f" of each of {processes} processes" if processes > 1 else ""
        allowed = [n for n in range(1, rows + 1) if rows % n == 0]
        raise ValueError(
            f"`accumulate` = {parts} does not divide the {rows} rows{each}. It may be "
            f"{', '.join(map(str, allowed))}."
        )
    return rows // parts
