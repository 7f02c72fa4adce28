"""Inexact Newton in a trust region: few steps, many products with the Jacobian."""

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, final

import torch
from torch import Tensor

from solvers.base import FixedPointSolver
from solvers.checks import check_integer
from solvers.counted_map import CountedMap
from solvers.methods.trust_region import Model, build
from solvers.promises import Promises
from solvers.types import Flat, Mask, PerSample

# The gain is the achieved share of the predicted reduction of |g|^2. Above ACCEPT a point is
# accepted; below POOR the radius shrinks to SHRINK times the step; above GOOD it may grow.
ACCEPT, POOR, SHRINK, GOOD = 1e-4, 0.25, 0.25, 0.75
# The reduction is also measured from the largest of the last MEMORY values of |g|: methods that are
# not monotone leave a narrow valley sooner.
MEMORY = 5
# |g| sets a record where it falls by the share RECORD. IDLE trials without a record end a search.
RECORD, IDLE = 0.01, 20
# The phases of a sample: OPENING, full Newton steps, accepted whatever |g|; SEARCH, the trust
# region, from the best point of the opening; then, from a standstill, plain steps y <- f(y), up to
# a |g| of STRAY times the record; and AGAIN, the trust region, from there.
OPENING, SEARCH, AGAIN, STRAY = 0, 1, 9, 10.0
# Eisenstat and Walker's choice 2, and the share of the tolerance that linear solves aim at.
GAMMA, ENOUGH = 0.9, 0.5


class Search(NamedTuple):
    """The state of the search, per sample.

    Attributes:
        y: The last accepted point, around which g is modelled.
        norm: |g| at `y`, the unit of the model; infinite before the first point.
        past: |g| at the last accepted points.
        forcing: Relative residual that was requested of the linear solve at `y`.
        model: The linear model of g around `y`.
        radius: Radius of the trust region.
        length: Length of the trial step.
        removed: Share of |g|^2 that the trial step is predicted to remove.
        best: The point of the last record.
        record: |g| at `best`.
        idle: Trials since the last record.
        phase: From OPENING to AGAIN; one more once the sample has given up.
    """

    y: Flat
    norm: PerSample
    past: Tensor
    forcing: PerSample
    model: Model
    radius: PerSample
    length: PerSample
    removed: PerSample
    best: Flat
    record: PerSample
    idle: PerSample
    phase: PerSample


@final
@dataclass(frozen=True, kw_only=True)
class NewtonKrylov(FixedPointSolver):
    """Inexact Newton on g(y) = f(y) - y in a trust region, its linear systems solved by GMRES.

        (I - J(y)) p = g(y),    |p| <= radius,    y <- y + p   if |g| falls as predicted

    with J = df/dy applied in products, never formed. The step within the radius is that of
    Levenberg and Marquardt, so that a singular I - J does no harm. The radius shrinks to a quarter
    of a failed step, also at NaN, and grows again by doubling. An opening of full Newton steps,
    accepted whatever |g|, ends when |g| sets no more records, and the search continues from the
    best of its points. At a standstill, as in a local minimum of |g|, a few plain steps y <- f(y)
    are tried and the search is repeated once; then the sample is `stalled`. Linear systems are
    solved the more accurately the faster |g| falls, but not beyond what the tolerance needs.

    For maps that are stiff or far from contractive, such as implicit time steps, and for
    g(y) = 0 in general: the number of steps hardly depends on the conditioning, only the number
    of products does. Cost per accepted step: two calls of `f`, one of them recorded, and up to
    `inner_steps` + 1 products, each about as expensive as two calls; 3 * `inner_steps` states of
    memory. A rejected step costs one call. Where `f` has an operation without a second
    derivative, products are in forward mode and call `f`.

    Args:
        rtol: Stop a sample once rms(f(y) - y) <= atol + rtol * rms(f(y)).
        atol: See `rtol`. In the units of `y`, per entry, whatever the state's size.
        forcing: Largest relative residual of the linear systems, in (0, 1).
        inner_steps: Most GMRES steps per Newton step, at least 1.
        opening: Trials in a row without a record of |g| that end the opening, at least 0. A large
            number amounts to Newton's method without a trust region: less safe, but not trapped by
            local minima of |g|.

    Raises:
        ValueError: An option is out of its range.

    References:
        D. A. Knoll, D. E. Keyes, Jacobian-free Newton-Krylov Methods, J. Comput. Phys. 2004,
        sec. 2. S. C. Eisenstat, H. F. Walker, Choosing the Forcing Terms in an Inexact Newton
        Method, SIAM J. Sci. Comput. 1996, sec. 2. The trust region: see `trust_region.py`.

    Example:
        >>> import solvers
        >>> s = solvers.solve(lambda y: y - (y**3 - 8), torch.ones(1, 1), solver=NewtonKrylov())
        >>> round(s.value.item(), 4)
        2.0
    """

    promises: ClassVar[Promises] = Promises(radius=math.inf, one_call=False)
    recordable: ClassVar[bool] = False

    forcing: float = 0.1
    inner_steps: int = 40
    opening: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (isinstance(self.forcing, float) and 0 < self.forcing < 1):
            raise ValueError(f"`forcing` must lie in (0, 1), got {self.forcing!r}.")
        for name, least in (("inner_steps", 1), ("opening", 0)):
            check_integer(name, getattr(self, name), least)

    def for_affine(self, max_steps: int) -> tuple[FixedPointSolver, int]:
        """Newton's method on an affine map is one linear solve, without products to be derived."""
        from solvers.methods.linear.gmres import Gmres

        linear = Gmres(rtol=self.rtol, atol=self.atol, history=self.inner_steps)
        return linear, max_steps * self.inner_steps

    def init(self, y: Flat) -> Search:
        """An infinite norm and record, so that the first point is accepted."""
        one = y.new_ones(len(y), requires_grad=False)
        far, zero, past = one * math.inf, 0 * one, y.new_zeros(len(y), MEMORY, requires_grad=False)
        return Search(
            y, far, past, one * self.forcing, Model.empty(y), far, zero, zero, y, far, zero, zero
        )

    def on_trial(self, carry: Search) -> Mask:
        """Every point is a trial, except the first one of a search."""
        return carry.norm < math.inf

    def given_up(self, carry: Search) -> Mask:
        """Samples at a local minimum of |g|, or at its noise floor."""
        return carry.phase > AGAIN

    def step(self, y: Flat, fy: Flat, carry: Search) -> tuple[Flat, Search]:
        """Raise an error, since Newton's method needs the derivative of `f`: see `move`."""
        raise NotImplementedError("newton_krylov needs `f`'s derivative: call `move`.")

    def move(self, y: Flat, fy: Flat, carry: Search, f: CountedMap) -> tuple[Flat, Search]:
        """Judge the trial, model g anew where it was accepted, and try the next step."""
        unit, norm = _unit(fy - y)
        first = carry.norm == math.inf
        plain = (carry.phase > SEARCH) & (carry.phase < AGAIN)
        # A stopped sample does not move; coupled samples may still have changed its residual.
        held = (y == carry.y).all(1) & ~first
        anew = first | (held & (norm != carry.norm))
        gain = self._gain(norm, carry)
        newton = carry.phase == OPENING
        accepted = (anew | (~held & (newton | (gain > ACCEPT)))) & ~plain & norm.isfinite()
        recorded = norm < (1 - RECORD) * carry.record
        past = torch.cat((carry.past[:, 1:], norm[:, None]), 1)
        forcing = self._forcing(norm / carry.norm, fy, norm, carry.forcing)
        search = carry._replace(
            y=torch.where(accepted[:, None], y, carry.y),
            norm=torch.where(accepted, norm, carry.norm),
            past=torch.where(anew[:, None], 0.0, torch.where(accepted[:, None], past, carry.past)),
            forcing=torch.where(anew, self.forcing, torch.where(accepted, forcing, carry.forcing)),
            radius=self._radius(gain, carry).masked_fill(anew | (newton & accepted), math.inf),
            best=torch.where(recorded[:, None], y, carry.best),
            record=torch.where(recorded, norm, carry.record),
            idle=torch.where(recorded | anew, 0.0, carry.idle + 1),
        )
        if bool(accepted.any()):
            model = build(
                f.linearise(y), unit, wanted=accepted, forcing=search.forcing,
                radius=search.radius / norm, inner_steps=self.inner_steps,
            )  # fmt: skip
            search = search._replace(model=model.choose(accepted, carry.model))
        strayed = (carry.phase > SEARCH) & first | plain
        strayed = strayed & ~(norm <= STRAY * carry.record)
        return self._try(search, fy, plain, strayed)

    def _gain(self, norm: PerSample, carry: Search) -> PerSample:
        """The achieved share of the predicted reduction, from `y` or from an earlier point."""
        share = (norm / carry.norm).square()
        from_here = (1 - share) / carry.removed
        before = (carry.past.amax(1) / carry.norm).square().clamp(min=1.0)
        from_before = (before - share) / (before - 1 + carry.removed)
        return torch.maximum(from_here, from_before).nan_to_num(-1.0, -1.0, -1.0)

    def _radius(self, gain: PerSample, carry: Search) -> PerSample:
        """Shrink the radius to a quarter of a poor step, or grow it to twice a good one."""
        radius = torch.where(gain < POOR, SHRINK * carry.length, carry.radius)
        return torch.where(gain > GOOD, torch.maximum(radius, 2 * carry.length), radius)

    def _try(self, search: Search, fy: Flat, plain: Mask, strayed: Mask) -> tuple[Flat, Search]:
        """Return the best point within the radius, or the first point of the next phase."""
        step, length, removed = search.model.step((search.radius / search.norm).double())
        y_next = torch.addcmul(search.y, step, search.norm[:, None])
        still = (y_next == search.y).all(1) | ~(removed > torch.finfo(step.dtype).eps)
        patience = torch.where(search.phase == OPENING, self.opening, IDLE)
        over = plain | still | (search.idle > patience)
        phase = torch.where(strayed, AGAIN + 1.0, search.phase + over)
        back = over & (phase == SEARCH)
        y_next = torch.where((over & (phase > SEARCH))[:, None], fy, y_next)
        y_next = torch.where(back[:, None], search.best, y_next)
        begins = back | (over & (phase == AGAIN))
        return y_next, search._replace(
            y=torch.where(back[:, None], search.best, search.y),
            norm=torch.where(begins, math.inf, search.norm),
            length=length.to(step.dtype) * search.norm,
            removed=removed.to(step.dtype),
            phase=phase,
        )

    def _forcing(self, share: PerSample, fy: Flat, norm: PerSample, old: PerSample) -> PerSample:
        """Relative residual for the next linear solve: the larger, the less |g| has fallen."""
        forcing = GAMMA * share.square()
        # It does not fall abruptly, nor below what the tolerance needs.
        memory = GAMMA * old.square()
        forcing = torch.where(memory > 0.1, torch.maximum(forcing, memory), forcing)
        tolerance = self.atol * math.sqrt(fy.shape[1]) + self.rtol * _unit(fy)[1]
        forcing = torch.maximum(forcing, ENOUGH * tolerance / norm).clamp(max=self.forcing)
        return forcing.nan_to_num(self.forcing).clamp(min=torch.finfo(fy.dtype).eps)


def _unit(g: Flat) -> tuple[Flat, Tensor]:
    """Scale rows to norm 1, and return their norms. Scaling before squaring avoids overflow."""
    largest = torch.linalg.vector_norm(g, math.inf, dim=1) if g.shape[1] else g.new_zeros(len(g))
    scale = torch.where((largest > 0) & largest.isfinite(), largest, 1.0)
    scaled = g / scale[:, None]
    norm = torch.linalg.vector_norm(scaled, dim=1)
    return scaled / torch.where(norm > 0, norm, 1.0)[:, None], norm * scale
