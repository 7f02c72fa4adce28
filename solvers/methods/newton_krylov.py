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

# The share of the predicted reduction of |g| at which a point is accepted, below which the
# radius shrinks, to what share of the step, and above which it may grow.
ACCEPT, POOR, SHRINK, GOOD = 1e-4, 0.25, 0.25, 0.75
# The predicted reduction is one of the largest of so many last |g|: a narrow valley is left sooner.
MEMORY = 5
# |g| sets a record where it falls by this share. So many trials without one end a search.
RECORD, IDLE = 0.01, 20
# The phases of a sample: Newton's own steps, accepted whatever |g|; the trust region from the best
# of their points; from a standstill some plain steps y <- f(y), unless |g| grows by more than
# STRAY; and the trust region from there, once more.
OPENING, SEARCH, AGAIN, STRAY = 0, 1, 9, 10.0
# Eisenstat and Walker's choice 2, and the share of the tolerance that linear solves aim at.
GAMMA, ENOUGH = 0.9, 0.5


class Search(NamedTuple):
    """Where the search stands, and what it tries.

    Attributes:
        y: The point that it goes from.
        norm: Its |g|, the unit of the model; infinite before there is one.
        past: The |g| of the points before.
        forcing: What was asked of its linear solve.
        model: Of g around it.
        radius: How far the model is trusted.
        length: How far the trial point is.
        removed: The share of |g|^2 that the trial is to remove.
        best: The point of the last record.
        record: Its |g|.
        idle: Trials since.
        phase: From OPENING to AGAIN, and one more for those who have given up.
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

    with J = df/dy applied as a product, never formed. The step within the radius is Levenberg and
    Marquardt's, so that a singular I - J does no harm; the radius shrinks to a quarter of a step
    that fails, NaN included, and grows again by doubling. A search begins with Newton's own steps,
    whatever they do to |g|, and goes back to the best of their points when no record comes. At a
    standstill, as in a local minimum of |g|, a few plain steps y <- f(y) are tried and the search
    is repeated once; then the sample is `stalled`. Linear systems are solved the more accurately
    the faster |g| falls, and never beyond what the tolerance needs.

    For maps that are stiff or far from contractive, such as implicit time steps, and for
    g(y) = 0 in general: the number of steps hardly depends on the conditioning, only the number
    of products does. Cost per accepted step: two calls of `f`, one of them recorded, and up to
    `inner_steps` + 1 products, each about as dear as two calls; 3 * `inner_steps` states of
    memory. A rejected step costs one call. Where `f` has an operation without a second
    derivative, products are in forward mode and call `f`.

    Args:
        rtol: Stop a sample once rms(f(y) - y) <= atol + rtol * rms(f(y)).
        atol: See `rtol`. In the units of `y`, per entry, whatever the state's size.
        forcing: Largest relative residual of the linear systems, in (0, 1).
        inner_steps: Most GMRES steps per Newton step, at least 1.
        opening: Trials in a row without a record of |g| that end the opening, at least 0. Many
            leave Newton's steps alone: less safe, and not held by local minima of |g|.

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

    def init(self, y: Flat) -> Search:
        """Anything is better than nothing: the first point is accepted."""
        one = y.new_ones(len(y), requires_grad=False)
        far, zero, past = one * math.inf, 0 * one, y.new_zeros(len(y), MEMORY, requires_grad=False)
        return Search(
            y, far, past, one * self.forcing, Model.empty(y), far, zero, zero, y, far, zero, zero
        )

    def on_trial(self, carry: Search) -> Mask:
        """Every point but those that the search begins with."""
        return carry.norm < math.inf

    def given_up(self, carry: Search) -> Mask:
        """Those at a local minimum of |g|, or at its noise floor."""
        return carry.phase > AGAIN

    def step(self, y: Flat, fy: Flat, carry: Search) -> tuple[Flat, Search]:
        """Not enough for Newton: see `move`."""
        raise NotImplementedError("newton_krylov needs `f`'s derivative: call `move`.")

    def move(self, y: Flat, fy: Flat, carry: Search, f: CountedMap) -> tuple[Flat, Search]:
        """Judge the trial, model g anew where it was accepted, and try the next step."""
        unit, norm = _unit(fy - y)
        first = carry.norm == math.inf
        plain = (carry.phase > SEARCH) & (carry.phase < AGAIN)
        # Who has stopped stays; only its neighbours, if it has any, can have changed its residual.
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
        """The share of the predicted reduction that came true, from one of the last points."""
        share = (norm / carry.norm).square()
        from_here = (1 - share) / carry.removed
        before = (carry.past.amax(1) / carry.norm).square().clamp(min=1.0)
        from_before = (before - share) / (before - 1 + carry.removed)
        return torch.maximum(from_here, from_before).nan_to_num(-1.0, -1.0, -1.0)

    def _radius(self, gain: PerSample, carry: Search) -> PerSample:
        """A quarter of a step that was poor, twice one that was good."""
        radius = torch.where(gain < POOR, SHRINK * carry.length, carry.radius)
        return torch.where(gain > GOOD, torch.maximum(radius, 2 * carry.length), radius)

    def _try(self, search: Search, fy: Flat, plain: Mask, strayed: Mask) -> tuple[Flat, Search]:
        """The best step within the radius, or what the next phase begins with."""
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
        """The more of |g| the last step left, the less is asked of the next linear solve."""
        forcing = GAMMA * share.square()
        # Not much less at once, and no more than the tolerance needs.
        memory = GAMMA * old.square()
        forcing = torch.where(memory > 0.1, torch.maximum(forcing, memory), forcing)
        tolerance = self.atol * math.sqrt(fy.shape[1]) + self.rtol * _unit(fy)[1]
        forcing = torch.maximum(forcing, ENOUGH * tolerance / norm).clamp(max=self.forcing)
        return forcing.nan_to_num(self.forcing).clamp(min=torch.finfo(fy.dtype).eps)


def _unit(g: Flat) -> tuple[Flat, Tensor]:
    """Rows of norm 1, and their norms: scaled before they are squared, so that none overflows."""
    largest = torch.linalg.vector_norm(g, math.inf, dim=1) if g.shape[1] else g.new_zeros(len(g))
    scale = torch.where((largest > 0) & largest.isfinite(), largest, 1.0)
    scaled = g / scale[:, None]
    norm = torch.linalg.vector_norm(scaled, dim=1)
    return scaled / torch.where(norm > 0, norm, 1.0)[:, None], norm * scale
