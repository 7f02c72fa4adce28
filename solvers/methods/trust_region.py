"""A linear model of g(y) = f(y) - y around a point, and its best steps of limited length.

With A = I - J, so that g(y + p) = g - A p to first order, the model knows A on a small space:

    A S = Q,    Q^T Q = I,    p = S z,    |g - A p|^2 = |g - Q c|^2 + |c - z|^2,    c = Q^T g

The best step is z = c. The best one that is no longer than a radius is Levenberg and Marquardt's,
z = (I + lam S^T S)^-1 c, for which S^T S, a small matrix, is diagonalised once. A singular A does
no harm: a direction that A maps to almost zero is a long column of S, which the radius removes.

The space is that of GMRES, started from g, with the steepest descent of |g|^2, A^T g, where the
best step is too long or leaves much of g: so a trust region in it converges to a stationary point
of |g|^2 from anywhere.

References:
    P. N. Brown, Y. Saad, Hybrid Krylov Methods for Nonlinear Systems of Equations, SIAM J. Sci.
    Stat. Comput. 1990, sec. 3 (the step within a Krylov space). P. Jiranek, M. Rozloznik, Adaptive
    Version of Simpler GMRES, Numer. Algorithms 2010 (which direction comes next). J. J. More, The
    Levenberg-Marquardt Algorithm, 1978, sec. 5 (the equation for lam). Adding A^T g is ours.
"""

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from solvers.methods.linear.gmres import Krylov, subtract
from solvers.methods.window import products
from solvers.trend import Trend, read, way_left
from solvers.types import Flat, Mask, PerSample, Window

if TYPE_CHECKING:
    from solvers.derivatives import Affine, Linearisation

# Usually the next direction is the rest of the residual. After a direction that reduced it by less
# than this share, it is the image of that direction: the rest would be nearly parallel to it.
LEAST_GAIN = 0.1
# Relative accuracy with which a limited step meets the radius, and the most Newton steps for that.
NEAR, MOST_ROUNDS = 0.1, 30


class Model(NamedTuple):
    """Orthogonal steps, the squares of their lengths, and how much of g each takes away."""

    steps: Window
    squares: Tensor
    weights: Tensor

    @classmethod
    def empty(cls, y: Flat) -> "Model":
        """A model without steps."""
        none = y.new_zeros(len(y), 0, requires_grad=False)
        return cls(y.new_zeros(len(y), 0, y.shape[1], requires_grad=False), none, none)

    def choose(self, own: Mask, other: "Model") -> "Model":
        """Take this model for the samples in `own`, and the other for the rest."""
        width = max(self.steps.shape[1], other.steps.shape[1])

        def pad(part: Tensor) -> Tensor:
            missing = part.new_zeros(len(part), width - part.shape[1], *part.shape[2:])
            return torch.cat((part, missing), 1)

        return Model(*(
            torch.where(own.view(-1, *[1] * (a.ndim - 1)), pad(a), pad(b))
            for a, b in zip(self, other, strict=True)
        ))  # fmt: skip

    def step(self, radius: PerSample) -> tuple[Flat, PerSample, PerSample]:
        """The best step within the radius, its length, and the predicted reduction of |g|^2."""
        lam = torch.zeros_like(radius)
        for _ in range(MOST_ROUNDS):
            bend = 1 + lam[:, None] * self.squares
            bent = (self.weights / bend).square() * self.squares
            length = bent.sum(1).sqrt()
            far = length > (1 + NEAR) * radius
            if not bool(far.any()):
                break
            slope = (bent * self.squares / bend).sum(1)
            more = (length / radius - 1) * length.square() / slope
            lam = torch.where(far, lam + more, lam)
        shrunk = self.weights / (1 + lam[:, None] * self.squares)
        length = (shrunk.square() * self.squares).sum(1).sqrt()
        shrunk = shrunk * (radius / length).clamp(max=1).nan_to_num(1.0)[:, None]
        removed = (shrunk * (2 * self.weights - shrunk)).sum(1)
        length = (shrunk.square() * self.squares).sum(1).sqrt()
        return torch.bmm(shrunk[:, None].to(self.steps.dtype), self.steps)[:, 0], length, removed


def build(
    jacobian: "Linearisation | Affine",
    g: Flat,
    *,
    wanted: Mask,
    forcing: PerSample,
    radius: PerSample,
    inner_steps: int,
) -> Model:
    """Build the linear model of g for some samples.

    Args:
        jacobian: J at the point.
        g: f(y) - y there, scaled to a norm of 1.
        wanted: The samples that need a model; others get zeros.
        forcing: Relative residual at which the Krylov space is large enough.
        radius: Radius within which a step will be needed.
        inner_steps: Most directions of the Krylov space.
    """
    g = torch.where(wanted[:, None], g, 0.0)
    space, left = Krylov.empty(g), g
    live, direction, norm = wanted, g, torch.ones_like(forcing)
    trend = Trend()
    for count in range(1, inner_steps + 1):
        space, new, left = _extend(space, jacobian, direction, live, left)
        before, norm = norm, torch.linalg.vector_norm(left, dim=1)
        live = live & (norm > forcing)
        slow = norm > (1 - LEAST_GAIN) * before
        direction = torch.where(slow[:, None], space.images[:, -1], left / norm[:, None])
        if count < trend.due:
            continue
        spent = live & ~new
        # On the CPU, where reading is free, every direction is looked at.
        ways = () if g.is_cpu else (way_left(norm, forcing, live), way_left(1.0, forcing, live))
        running, exhausted, *found = read(live.any(), spent.any(), *ways)
        if found:
            trend.follow(count, *found)
        if not running:
            break
        if exhausted:  # the Krylov space
            descent = _descent(jacobian, left)
            if descent is None:
                live = live & new
            else:
                direction = torch.where(spent[:, None], descent, direction)
    (weights,) = products(space.images, space.filled, g)
    length = torch.linalg.vector_norm(subtract(torch.zeros_like(g), weights, space.steps), dim=1)
    short = wanted & ((length > radius) | (norm > forcing))
    if bool(short.any()):
        descent = _descent(jacobian, g)
        if descent is not None:
            space, _, left = _extend(space, jacobian, descent, short, left)
            (weights,) = products(space.images, space.filled, g)
    return _diagonal(space.steps, weights)


def _extend(
    space: Krylov, jacobian: "Linearisation | Affine", direction: Flat, live: Mask, left: Flat
) -> tuple[Krylov, Mask, Flat]:
    """Add a direction for samples in `live`; also return for which it is new, and the rest of g."""
    direction = torch.where(live[:, None], direction, 0.0)
    product = jacobian.jvp(direction)
    # Where the derivative is not finite, treat f as constant, which gives Picard's step.
    product = torch.where(product.isfinite().all(1, keepdim=True), product, 0.0)
    sizes = [torch.linalg.vector_norm(part, dim=1) for part in (direction, product)]
    noise = 10 * torch.finfo(left.dtype).eps * torch.maximum(*sizes)
    space, new = space.push(direction, direction - product, noise)
    newest = space.images[:, -1]
    return space, new, left - torch.linalg.vecdot(newest, left)[:, None] * newest


def _descent(jacobian: "Linearisation | Affine", left: Flat) -> Flat | None:
    """A^T r for r = `left`, scaled to norm 1; None if products with J^T are not available."""
    vjp = jacobian.vjp(left)
    if vjp is None:
        return None
    descent = (left - vjp).nan_to_num(0.0, 0.0, 0.0)
    norm = torch.linalg.vector_norm(descent, dim=1, keepdim=True)
    return descent / torch.where(norm > 0, norm, 1.0)


def _diagonal(steps: Window, weights: Tensor) -> Model:
    """Rotate the basis of the space so that its steps are orthogonal."""
    wide = steps.double()
    squares, turn = torch.linalg.eigh(torch.bmm(wide, wide.mT))
    turned = torch.bmm(turn.mT.to(steps.dtype), steps)
    weights = torch.bmm(turn.mT, weights.double()[:, :, None])[:, :, 0]
    return Model(turned, squares.clamp(min=0.0), weights)
