"""Windows of fixed size, for a loop that is one operator of a graph: see `solvers.graph`.

Such a loop cannot grow a window, slice it by a number that changes, or branch on one. So all slots
take part in every step. A slot that is not in use holds zeros, and its equation has a diagonal of
NO_WEIGHT; both give it the weight 0. `seen` is false at the first step, when there is no earlier
point: then nothing is written. The rest is as in `solvers.methods.window` and in the module of each
solver.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from solvers.methods.window import NO_WEIGHT
from solvers.types import Flat, Mask, PerSample, Small, Window

# Systems of more unknowns are left to LAPACK: one kernel for each unknown takes longer.
FEW_UNKNOWNS = 16


class StaticHistory(NamedTuple):
    """As `History`; `filled` is the number of slots, all of which are read."""

    left: Window
    image: Window
    gram: Small
    point: Flat
    fy: Flat
    slot: Tensor
    seen: Tensor

    @classmethod
    def empty(cls, y: Flat, capacity: int) -> "StaticHistory":
        """A window of `capacity` slots, none of them in use."""
        window = y.new_zeros(y.shape[0], capacity, y.shape[1])
        return cls(
            window,
            window.clone(),
            no_equations(y, capacity),
            torch.zeros_like(y),
            torch.zeros_like(y),
            torch.zeros((), dtype=torch.int64, device=y.device),
            torch.zeros((), dtype=torch.bool, device=y.device),
        )

    @property
    def filled(self) -> int:
        """The slots that are read."""
        return self.left.shape[1]

    @property
    def newest(self) -> Mask:
        """The slot that this step writes, as a mask of shape (slots,); none at the first step."""
        return (torch.arange(self.filled, device=self.slot.device) == self.slot) & self.seen

    def push(self, point: Flat, fy: Flat) -> tuple["StaticHistory", Flat]:
        """See `History.push`."""
        newest = point - self.point
        return self._replace(
            left=put(self.left, self.newest, newest),
            image=put(self.image, self.newest, fy - self.fy),
        ), newest

    def moved(self, point: Flat, fy: Flat) -> "StaticHistory":
        """See `History.moved`."""
        return self._replace(
            point=point, fy=fy, slot=(self.slot + self.seen) % self.filled, seen=self.seen | True
        )

    def products(self, window: Window, *vectors: Flat) -> tuple[PerSample, ...]:
        """See `History.products`."""
        return tuple(dots(window, vector) for vector in vectors)

    def latest_products(self, newest: Flat, point: Flat) -> tuple[PerSample, ...]:
        """See `History.latest_products`."""
        return self.products(self.left, newest, point)

    def with_gram(
        self, row: Tensor, column: Tensor, ridge: float = 0.0, noise: Tensor | None = None
    ) -> "StaticHistory":
        """See `History.with_gram`."""
        newest = self.newest
        diagonal = column * (1 + ridge)
        none = diagonal == 0 if noise is None else diagonal.abs() <= noise[:, None]
        diagonal = torch.where(none, NO_WEIGHT, diagonal.double())
        both = newest[:, None] & newest
        gram = torch.where(newest[:, None], row[:, None, :].double(), self.gram)
        gram = torch.where(newest, column[:, :, None].double(), gram)
        return self._replace(gram=torch.where(both, diagonal[:, :, None], gram))

    def coefficients(self, rhs: Tensor, symmetric: bool = True) -> Tensor:
        """See `History.coefficients`."""
        if symmetric and self.filled <= FEW_UNKNOWNS:
            solved = solve_definite(self.gram, rhs.double())
        else:
            solved = torch.linalg.solve_ex(self.gram, rhs.double()[:, :, None])[0][:, :, 0]
        finite = solved.isfinite().all(1, keepdim=True)
        return torch.where(finite, solved, 0.0).to(self.left.dtype)

    def combine(self, weights: Tensor, window: Window, onto: Flat) -> Flat:
        """See `History.combine`."""
        return onto - (weights[:, :, None] * window).sum(1)


def solve_definite(matrix: Small, rhs: Tensor) -> Tensor:
    """Solve positive definite systems by elimination, one unknown at a time for all samples."""
    count = rhs.shape[1]
    rows = torch.arange(count, device=rhs.device)
    joined = torch.cat((matrix, rhs[:, :, None]), 2)
    for k in range(count):
        pivot = joined[:, k : k + 1] / joined[:, k : k + 1, k : k + 1]
        rest = joined - joined[:, :, k : k + 1] * pivot
        joined = torch.where((rows == k)[:, None], pivot, rest)
    return joined[:, :, count]


def solve_lower(matrix: Small, rhs: Tensor) -> Tensor:
    """Solve lower triangular systems, one unknown at a time; 0 where numbers overflow."""
    rows, left = torch.arange(rhs.shape[1], device=rhs.device), rhs
    for k in range(rhs.shape[1]):
        solved = left[:, k : k + 1] / matrix[:, k, k][:, None]
        later = torch.where(rows > k, left - matrix[:, :, k] * solved, left)
        left = torch.where(rows == k, solved, later)
    return left.nan_to_num(0.0, 0.0, 0.0)


def no_equations(y: Flat, capacity: int) -> Small:
    """The matrices of systems in which every unknown is 0, whatever the right-hand side."""
    eye = torch.eye(capacity, dtype=torch.float64, device=y.device)
    return (NO_WEIGHT * eye).expand(y.shape[0], -1, -1).clone()


def put(window: Window, slots: Mask, new: Flat) -> Window:
    """Write a vector per sample to the slots of the mask."""
    return torch.where(slots[:, None], new[:, None], window)


def dots(window: Window, vector: Flat) -> PerSample:
    """Inner products of all slots with a vector per sample."""
    return (window * vector[:, None]).sum(2)
