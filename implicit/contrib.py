"""Iterations of other libraries as maps for the solvers and gradients of this one."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

__all__ = ["DeepinvStep"]

# What the next step reads of the iterates that deepinv returns, where it is not the first alone.
ITERATES: Mapping[str, int] = {"ADMMIteration": 2, "DRSIteration": 2, "CPIteration": 3}


class DeepinvStep(nn.Module):
    """One iteration of an optimiser of deepinv, as a map whose fixed point is the reconstruction.

        state = step(state, measurement)

    The state is the tuple of those iterates that the next step reads: (x,) for GD, HQS, MD, PGD and
    PMD, (x, z) for ADMM and DRS, and (x, z, u) for PDCP. Pass the measurement as an argument of the
    solve, so that every sample has a verdict of its own. Data fidelity, prior, denoiser and physics
    are reached by the gradient; deepinv's loop, its stop rule and its own backward pass are not
    used. Cost per call: one iteration of deepinv.

    Parameters that hold one value per sample, such as a mask for each image, cannot follow when
    samples leave the batch: then pass `compact=False` to the solve.

    Args:
        model: A `deepinv.optim.BaseOptim`, such as `PGD(data_fidelity, prior, stepsize=1.0)`.
            With `unfold=True` its stepsize and other numbers are trainable.
        physics: The `deepinv.physics.Physics` that has made the measurements.

    Raises:
        ValueError: The optimiser is no fixed map: it changes with the iteration, or accelerates.

    References:
        J. Tachella et al., DeepInverse: A Python package for solving imaging inverse problems with
        deep learning, 2025, arXiv:2505.20160.

    Example:
        `step = DeepinvStep(model, physics)`, then
        `fixed_point(step, step.start(measurement), measurement).value[0]`.
    """

    def __init__(self, model: Any, physics: Any):
        super().__init__()
        self.model, self.physics = model, physics
        iterator = model.fixed_point.iterator
        kinds = [kind.__name__ for kind in type(iterator).__mro__]
        self.num_iterates = next((ITERATES[name] for name in kinds if name in ITERATES), 1)
        terms = {"data_fidelity": model.data_fidelity, "prior": model.prior}
        terms |= model.init_params_algo
        varying = [name for name, values in terms.items() if len(values) > 1]
        wrong = [f"`{name}` changes with the iteration" for name in varying]
        if "FISTAIteration" in kinds:
            wrong.append("FISTA's momentum changes with the iteration: use PGD")
        if model.backtracking:
            wrong.append("backtracking changes `stepsize`: choose a `stepsize`")
        if model.anderson_acceleration_config is not None:
            wrong.append('the acceleration would be applied twice: choose `solver="anderson"` here')
        if wrong:
            raise ValueError(f"{type(model).__name__} is no fixed map: {'; '.join(wrong)}.")

    def start(self, measurement: Tensor, init: Any = None) -> tuple[Tensor, ...]:
        """Where deepinv would start, by `init` or its own rule."""
        first = self.model.init_iterate_fn(measurement, self.physics, init)
        return tuple(first["est"][: self.num_iterates])

    def forward(self, state: tuple[Tensor, ...], measurement: Tensor) -> tuple[Tensor, ...]:
        """The next state."""
        numbers = {name: values[0] for name, values in self.model.init_params_algo.items()}
        iterate = {"est": state, "cost": None}
        following = self.model.fixed_point.iterator(
            iterate, self.model.data_fidelity[0], self.model.prior[0], numbers, measurement,
            self.physics,
        )  # fmt: skip
        return tuple(following["est"][: self.num_iterates])
