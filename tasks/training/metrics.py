"""Metrics of solves for the log, in training steps and in validations.

Training steps log what the solver returned anyway. Validations cost more: they also measure the
spectral radius of df/dy at a few solutions, which says whether the map contracts there. Nothing
here draws from the global random generators. `monitor` judges these metrics.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from implicit import FixedPointLayer, Solution, SpectralRadius, spectral_radius
from solvers.norms import rms
from solvers.torch_internals import has_compiled_part, pytree
from solvers.types import State
from tasks.device import kept_random_state
from tasks.distributed import Group

# Samples whose spectral radius a validation measures, and products with the Jacobian for each.
SAMPLES, PRODUCTS = 4, 24


class Evidence(NamedTuple):
    """The parts of a `Solution` that are logged: tensors of one shape, (samples,) or more dims."""

    converged: Tensor
    residual: Tensor
    num_steps: Tensor


def step_metrics(solve: Evidence | Solution | None) -> dict[str, float]:
    """Metrics of the solve of a training step; none for a model that does not solve.

    Returns:
        `converged` (share of samples), `residual` and `residual_90` (median and 90th percentile
        of rms(f(y) - y), in the state's units), and `solver_steps` (mean).
    """
    if solve is None:
        return {}
    return _solve_summary(solve.converged, solve.residual, solve.num_steps)


def loss_metrics(
    loss: Tensor, row_loss: Tensor | None, first: Tensor, last: Tensor, group: Group
) -> dict[str, float]:
    """The loss of a training step, and of the samples in their first and in their last segment.

    Args:
        loss: Of the whole batch, a scalar.
        row_loss: Mean cross-entropy of each row, shape (rows,); None with one segment a sample.
        first: Rows whose first segment this is, shape (rows,).
        last: Rows whose last segment this is, of the same shape.
        group: The processes, whose rows count alike.

    Returns:
        `loss`; with `row_loss` also `first_segment_loss` and `last_segment_loss`, each if any row
        of any process is in such a segment.
    """
    if row_loss is None:
        return {"loss": loss.item()}
    rows = torch.stack((first, last))
    sums = [loss[None], torch.where(rows, row_loss, 0).sum(1), rows.sum(1)]
    # One read: on an accelerator, each waits for the device.
    mine, *parts = torch.cat(sums).tolist()
    names = ("first", "last", "num_first", "num_last")
    total = group.all_reduce(dict(zip(names, parts, strict=True)))
    found = {"loss": mine}
    for name in names[:2]:
        if number := total[f"num_{name}"]:
            found[f"{name}_segment_loss"] = total[name] / number
    return found


@contextlib.contextmanager
def solve_metrics(model: nn.Module) -> Iterator[dict[str, float]]:
    """Measure the solves of a validation that runs within the context.

    The spectral radius is measured inside the first solve: there FSDP has the weights in one
    piece, and no process waits for another. The map is in evaluation mode meanwhile.

    Yields:
        Metrics, filled in at the end and empty if nothing was solved: `test_converged`,
        `test_residual` and `test_residual_90`, here relative to rms(y), `test_steps`; and of the
        few samples `test_radius` (median), `test_radius_max`, `test_radius_real` (median real
        part of the eigenvalue that the radius is the modulus of), `test_expanding` (the share
        whose radius exceeds 1 by more than its own uncertainty).
    """
    metrics: dict[str, float] = {}
    solved: list[tuple[Tensor, Tensor, Tensor]] = []
    found: list[SpectralRadius] = []

    def note(layer: nn.Module, given: tuple[Any, ...], solution: Solution) -> None:
        assert isinstance(layer, FixedPointLayer)
        if solution.num_evals == 0:
            return
        if not found:
            found.append(_radius_at(layer, solution.value, given[1:]))
        relative = solution.residual / rms(solution.value, layer.batch_dims)
        kept = (solution.converged, relative, solution.num_steps)
        solved.append(tuple(part.flatten() for part in kept))  # type: ignore[arg-type]

    layers = [module for module in model.modules() if isinstance(module, FixedPointLayer)]
    watches = [layer.register_forward_hook(note) for layer in layers]
    try:
        yield metrics
    finally:
        for watch in watches:
            watch.remove()
    if solved:
        converged, residual, steps = map(torch.cat, zip(*solved, strict=True))
        measured = _solve_summary(converged, residual, steps)
        measured["steps"] = measured.pop("solver_steps")
        radius, real = found[0].radius, found[0].eigenvalue.real
        measured |= {
            "radius": radius.median().item(),
            "radius_max": radius.max().item(),
            "radius_real": real.median().item(),
            "expanding": (radius - found[0].residual > 1).double().mean().item(),
        }
        metrics |= {f"test_{name}": value for name, value in measured.items()}


def _solve_summary(converged: Tensor, residual: Tensor, num_steps: Tensor) -> dict[str, float]:
    # A share in float32 would be no short number: 0.995 is 0.9950000047683716 there.
    residual = residual.detach().flatten().double()
    # Sort once and read all numbers at once: on an accelerator, each read waits for the device.
    low, high = (int(share * (len(residual) - 1)) for share in (0.5, 0.9))
    ordered = residual.sort().values
    values = [converged.double().mean(), ordered[low], ordered[high], num_steps.double().mean()]
    names = ("converged", "residual", "residual_90", "solver_steps")
    return dict(zip(names, torch.stack(values).tolist(), strict=True))


def _radius_at(layer: FixedPointLayer, value: State, args: tuple[Any, ...]) -> SpectralRadius:
    f, point = _few(layer, value, args)
    device = pytree.tree_leaves(value)[0].device
    was_training = layer.module.training
    layer.module.eval()
    try:
        with kept_random_state(device), _eager(layer.module):
            # Always the same random vectors, so that metrics of one map do not vary.
            torch.manual_seed(0)
            return spectral_radius(f, point, num_steps=PRODUCTS)
    finally:
        layer.module.train(was_training)


def _eager(module: nn.Module) -> contextlib.AbstractContextManager[Any]:
    """Run compiled blocks eagerly: these few rows and their derivative would be compiled anew."""
    # Without a compiled part, `torch.compiler.set_stance` would load the compiler for nothing.
    if has_compiled_part(module):
        return torch.compiler.set_stance("force_eager")
    return contextlib.nullcontext()


def _few(
    layer: FixedPointLayer, value: State, args: tuple[Any, ...]
) -> tuple[Callable[[State], State], State]:
    """The map of a few samples alone, and the solution of these.

    Under `batch_dims` = 2 a sample is a token. One is picked in each row, at growing distances
    from its start, and the others stay where they are: in a causal model the eigenvalues of the
    whole are those of its tokens, which a Krylov space of the whole finds late.
    """
    count = len(pytree.tree_leaves(value)[0])
    if layer.batch_dims == 1:
        here = slice(min(SAMPLES, count))
        some = pytree.tree_map(lambda leaf: leaf[here].detach(), (value, args))
        return (lambda y: layer.module(y, *some[1])), some[0]
    rows = torch.arange(SAMPLES) % count
    length = pytree.tree_leaves(value)[0].shape[1]
    place = (torch.arange(SAMPLES), (torch.arange(SAMPLES) + 1) * length // SAMPLES - 1)
    whole, others = pytree.tree_map(lambda leaf: leaf[rows].detach(), (value, args))

    def alone(y: State) -> State:
        full = pytree.tree_map(lambda leaf, part: leaf.index_put(place, part), whole, y)
        return pytree.tree_map(lambda leaf: leaf[place], layer.module(full, *others))

    return alone, pytree.tree_map(lambda leaf: leaf[place], whole)
