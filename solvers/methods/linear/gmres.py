"""GMRES for affine maps, one evaluation a step: a linear solver for the adjoint equation."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, final

import torch
from torch import Tensor

from solvers.base import FixedPointSolver
from solvers.checks import check_history
from solvers.methods.static import dots, put
from solvers.methods.window import enlarge, products, write
from solvers.types import Flat, Mask, PerSample, Window

# Slots at first; they are doubled whenever they are in use.
FEW = 4


class Krylov(NamedTuple):
    """Orthonormal changes of the residual, the steps that cause them, and the last point.

    The first `filled` slots of the windows are in use; these grow on demand.
    """

    image_slots: Window
    step_slots: Window
    filled: int
    y: Flat | None = None
    g: Flat | None = None

    @classmethod
    def empty(cls, y: Flat) -> "Krylov":
        """A space without directions."""
        window = y.new_empty(y.shape[0], FEW, y.shape[1], requires_grad=False)
        return cls(window, torch.empty_like(window), 0)

    @property
    def images(self) -> Window:
        """The changes of the residual."""
        return self.image_slots[:, : self.filled]

    @property
    def steps(self) -> Window:
        """The steps that cause them."""
        return self.step_slots[:, : self.filled]

    def overlap(self, image: Flat) -> PerSample:
        """Inner products with all directions."""
        (found,) = products(self.images, self.filled, image)
        return found

    def moved(self, y: Flat, g: Flat) -> "Krylov":
        """Store the point and its residual for the next call."""
        return self._replace(y=y, g=g)

    def extended(self, y: Flat, g: Flat, limit: int) -> "Krylov":
        """Add the last step, or begin anew once there are `limit` directions."""
        if self.filled >= limit:
            return self.empty(y)
        if self.y is None or self.g is None:
            return self
        return self.push(y - self.y, g - self.g, noise_of(g - self.g))[0]

    def push(self, step: Flat, image: Flat, noise: PerSample) -> tuple["Krylov", Mask]:
        """Add a direction; also say for which samples it is new.

        For others, orthogonalisation leaves at most `noise` of its image, which is rounding. They
        give the direction no weight.
        """
        step, image, new = orthogonal(self, step, image, noise)
        slots = self.image_slots, self.step_slots
        if self.filled == self.image_slots.shape[1]:
            slots = [enlarge(window, self.filled) for window in slots]
        images = write(slots[0], {self.filled: (image, None)})
        steps = write(slots[1], {self.filled: (step, None)})
        more = self._replace(image_slots=images, step_slots=steps, filled=self.filled + 1)
        return more, new


class StaticKrylov(NamedTuple):
    """As `Krylov`, of fixed size for a loop within a graph; unused directions are zero."""

    images: Window
    steps: Window
    filled: Tensor
    y: Flat
    g: Flat
    seen: Tensor

    @classmethod
    def empty(cls, y: Flat, capacity: int) -> "StaticKrylov":
        """A space without directions."""
        window, state = y.new_zeros(y.shape[0], capacity, y.shape[1]), torch.zeros_like(y)
        filled = torch.zeros((), dtype=torch.int64, device=y.device)
        return cls(window, window.clone(), filled, state, state.clone(), filled > 0)

    def overlap(self, image: Flat) -> PerSample:
        """See `Krylov.overlap`."""
        return dots(self.images, image)

    def moved(self, y: Flat, g: Flat) -> "StaticKrylov":
        """See `Krylov.moved`."""
        return self._replace(y=y, g=g, seen=self.seen | True)

    def extended(self, y: Flat, g: Flat, limit: int) -> "StaticKrylov":
        """See `Krylov.extended`."""
        full = self.filled >= limit
        step, image, _ = orthogonal(self, y - self.y, g - self.g, noise_of(g - self.g))
        slots = torch.arange(limit, device=y.device) == self.filled
        slots = slots & self.seen
        return self._replace(
            images=torch.where(full, 0.0, put(self.images, slots, image)),
            steps=torch.where(full, 0.0, put(self.steps, slots, step)),
            filled=torch.where(full, 0, self.filled + self.seen),
        )


@final
@dataclass(frozen=True, kw_only=True)
class Gmres(FixedPointSolver):
    """Restarted GMRES on y = f(y) with an affine f, for every sample on its own.

    With f(y) = b + K y and g(y) = f(y) - y, every step moves to the point that minimises |g|
    over the span of the earlier steps, and further by the value of g there:

        dG = Q R (orthonormal columns),    y <- y - dY R^-1 Q^T g + (g - Q Q^T g)

    so after k steps |g| is minimal over the Krylov space of dimension k, as in GMRES, and
    the residual is measured at every point, not updated. For linear maps only: on nonlinear
    ones earlier changes of g become outdated (use `anderson`). Cost per step: one call of
    `f`, O(history * n) arithmetic, 2 * history states of memory.

    Args:
        rtol: Stop a sample once rms(f(y) - y) <= atol + rtol * rms(f(y)).
        atol: See `rtol`. In the units of `y`, per entry, whatever the state's size.
        history: Steps between restarts, at least 1.

    Raises:
        ValueError: An option is out of its range.

    References:
        Y. Saad, M. H. Schultz, GMRES, SIAM J. Sci. Stat. Comput. 1986. S. C. Eisenstat,
        H. C. Elman, M. H. Schultz, Variational Iterative Methods for Nonsymmetric Systems,
        SIAM J. Numer. Anal. 1983, sec. 2 (GCR, the form used here, with the change of g in
        place of a product with the matrix).

    Example:
        >>> K = torch.tensor([[0.0, 0.9], [-0.9, 0.0]])
        >>> s = Gmres().iterate(lambda y: 1 + y @ K, torch.zeros(1, 2), max_steps=4)
        >>> s.converged.item(), s.num_steps.item()
        (True, 3)
    """

    linear: ClassVar[bool] = True

    history: int = 30

    def __post_init__(self) -> None:
        super().__post_init__()
        check_history(self.history)

    def init(self, y: Flat) -> Krylov:
        """Begin with an empty Krylov space."""
        return Krylov.empty(y)

    def init_static(self, y: Flat) -> StaticKrylov:
        """An empty space of fixed size."""
        return StaticKrylov.empty(y, self.history)

    def step(self, y: Flat, fy: Flat, carry: Krylov) -> tuple[Flat, Krylov]:
        """Extend the space by the last step, minimise over it, and step on."""
        g = fy - y
        space = carry.extended(y, g, self.history)
        weights = space.overlap(g)
        left_over = subtract(g, weights, space.images)
        y_next = subtract(y, weights, space.steps) + left_over
        return y_next, space.moved(y, g)


def subtract(onto: Flat, weights: PerSample, window: Window) -> Flat:
    """Take sum_i weights_i * window_i from `onto`, per sample."""
    return torch.baddbmm(onto[:, None], weights[:, None], window, alpha=-1)[:, 0]


def orthogonal(
    space: Krylov | StaticKrylov, step: Flat, image: Flat, noise: PerSample
) -> tuple[Flat, Flat, Mask]:
    """A step and its image, made orthogonal to the images of a space and scaled to norm 1.

    Both are zero, and the mask is false, where at most `noise` of the image is left.
    """
    for _ in range(2):  # twice is enough to be orthogonal to rounding
        overlap = space.overlap(image)
        image = subtract(image, overlap, space.images)
        step = subtract(step, overlap, space.steps)
    norm = torch.linalg.vector_norm(image, dim=1)
    new = norm > noise
    scale = torch.where(new, 1 / torch.where(new, norm, 1.0), 0.0)[:, None]
    return scale * step, scale * image, new


def noise_of(image: Flat) -> PerSample:
    """What rounding may leave of an image."""
    return 10 * torch.finfo(image.dtype).eps * torch.linalg.vector_norm(image, dim=1)
