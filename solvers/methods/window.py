"""The window of past steps that the Anderson methods extrapolate from.

Slot i holds two differences between consecutive iterates: `left[:, i]`, on which the method
projects, and `image[:, i]`, the change of f(y). The small matrix

    gram[i, j] = left_i . (difference of f(y) - y)_j   (+ a ridge)

gains one row and one column per step, so a step costs O(window * n). Overwriting a slot replaces
its row and column. Each sample has its own matrix and coefficients.

A large state makes a step as slow as memory is. So differences are computed where they stay, and
the point they lead to lies in one more slot of `left`: products with both need no copy of either.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from solvers.types import Flat, Index, Mask, PerSample, Small, Window

# A diagonal entry so large that the coefficient of its slot becomes zero.
NO_WEIGHT = 1e150
# From so many numbers on, a window is read from memory rather than from a cache.
LARGE = 2**21


class History(NamedTuple):
    """The window; `filled` slots are in use and `slot` is the next to be written.

    `left` has one slot more than `image`, the last: the latest point, once there is one.
    """

    left: Window
    image: Window
    gram: Small
    fy: Flat | None
    filled: int
    slot: int

    @classmethod
    def empty(cls, y: Flat, capacity: int) -> "History":
        """A window of `capacity` slots, none of them filled."""
        left = y.new_empty(y.shape[0], capacity + 1, y.shape[1], requires_grad=False)
        image = y.new_empty(y.shape[0], capacity, y.shape[1], requires_grad=False)
        # The small matrices are cheap, and float64 has the range for squares of small numbers.
        gram = torch.zeros(y.shape[0], capacity, capacity, dtype=torch.float64, device=y.device)
        return cls(left, image, gram, None, 0, 0)

    def keep(self, samples: Index) -> "History":
        """Drop all but these samples, in place: the windows are most of a solver's memory."""
        return self._replace(
            left=keep_rows(self.left, samples),
            image=keep_rows(self.image, samples),
            gram=keep_rows(self.gram, samples),
            fy=None if self.fy is None else self.fy.index_select(0, samples),
        )

    def push(self, point: Flat, fy: Flat) -> tuple["History", Flat]:
        """Write the point and the newest differences; also return the one written to `left`.

        A `point` is y or f(y) - y, depending on what the method projects on. Afterwards the caller
        must call `with_gram`, and store `fy` for the next call.
        """
        assert self.fy is not None
        slot, last = self.slot, self.capacity
        left = write(self.left, {slot: (point, self.left[:, last]), last: (point, None)})
        image = write(self.image, {slot: (fy, self.fy)})
        filled = min(self.filled + 1, self.capacity)
        return self._replace(left=left, image=image, filled=filled), left[:, slot]

    @property
    def capacity(self) -> int:
        """The largest number of differences."""
        return self.image.shape[1]

    @property
    def point(self) -> Flat | None:
        """The latest point."""
        return None if self.fy is None else self.left[:, -1]

    @property
    def newest(self) -> Mask:
        """The slot that is written next, as a mask of shape (slots,)."""
        return torch.arange(self.capacity, device=self.left.device) == self.slot

    def moved(self, point: Flat, fy: Flat) -> "History":
        """Store f(y) for the next call, and the point if it was not pushed."""
        if self.fy is not None:
            return self._replace(fy=fy)
        return self._replace(fy=fy, left=write(self.left, {self.capacity: (point, None)}))

    def products(self, window: Window, *vectors: Flat) -> tuple[PerSample, ...]:
        """Inner products of the slots in use with each vector."""
        return products(window, self.filled, *vectors)

    def latest_products(self, newest: Flat, point: Flat) -> tuple[PerSample, ...]:
        """Inner products of the slots of `left` with what was pushed last."""
        if torch.is_grad_enabled():
            return self.products(self.left, newest, point)
        rows = self.left[:, self.slot :: self.capacity - self.slot]  # both, without a copy
        return inner(self.left[:, : self.filled], rows)

    def with_gram(
        self, row: Tensor, column: Tensor, ridge: float = 0.0, noise: Tensor | None = None
    ) -> "History":
        """Write row and column of the newest pair, each of shape (samples, filled); advance `slot`.

        The diagonal is that of the column, times 1 + ridge, so that a ridge has the same effect
        whatever the units of the state and the size of the differences. A pair whose diagonal is
        at most `noise` (by default 0, where a sample did not move) gets no weight.
        """
        slot, filled = self.slot, self.filled
        gram = self.gram.clone() if torch.is_grad_enabled() else self.gram
        gram[:, slot, :filled] = row
        gram[:, :filled, slot] = column
        diagonal = gram[:, slot, slot]
        if ridge:
            diagonal.mul_(1 + ridge)
        none = diagonal == 0 if noise is None else diagonal.abs() <= noise
        diagonal.masked_fill_(none, NO_WEIGHT)
        return self._replace(gram=gram, slot=(slot + 1) % self.capacity)

    def coefficients(self, rhs: Tensor, symmetric: bool = True) -> Tensor:
        """Solve gram @ w = rhs per sample; shape (samples, filled).

        A sample whose matrix is singular gets w = 0, and so a plain step. That a matrix is
        symmetric is used by `StaticHistory` only.
        """
        if self.filled == 1:  # one equation
            weights = (rhs.double() / self.gram[:, 0, :1]).to(self.left.dtype)
            return weights.nan_to_num(0.0, 0.0, 0.0)
        gram = self.gram[:, : self.filled, : self.filled]
        solved, info = torch.linalg.solve_ex(gram, rhs.double()[:, :, None])
        weights = solved[:, :, 0].to(self.left.dtype).nan_to_num(0.0, 0.0, 0.0)
        regular = info.is_cpu and not bool(info.any())  # on another device, reading would wait
        return weights if regular else weights.masked_fill((info != 0)[:, None], 0.0)

    def combine(self, weights: Tensor, window: Window, onto: Flat) -> Flat:
        """Subtract sum_i weights_i * window_i from `onto`, per sample."""
        weights = weights[:, None, :]
        return torch.baddbmm(onto[:, None, :], weights, window[:, : self.filled], alpha=-1)[:, 0]

    def transposed_inverse(self, v: Flat) -> Flat:
        """Multiply v by I - left gram^-1 image^T, the transposed estimate of (I - J)^-1."""
        if self.filled == 0:
            return v
        (rhs,) = products(self.image, self.filled, v)
        weights = self._replace(gram=self.gram.mT).coefficients(rhs)
        return self.combine(weights, self.left, v)


def products(window: Window, count: int, first: Flat, *more: Flat) -> tuple[PerSample, ...]:
    """Inner products of the first `count` slots with each vector, in one pass over memory."""
    rows = torch.stack((first, *more)).transpose(0, 1) if more else first[:, None]
    return inner(window[:, :count], rows)


def inner(window: Window, rows: Window) -> tuple[PerSample, ...]:
    """Inner products of the slots with each of the rows, of shape (samples, slots) each."""
    # Rows, not columns: both operands are then read along memory, ten times faster. Which of them
    # comes first makes up to half of the time, one way in a cache and the other way in memory.
    # A graph holds for every batch, of which this would be a bound.
    large = not torch.compiler.is_compiling() and window.numel() >= LARGE
    if large and rows.shape[1] > 1:
        return torch.bmm(window, rows.mT).unbind(2)
    return torch.bmm(rows, window.mT).unbind(1)


def keep_rows(window: Tensor, samples: Index, chunk: int = 64) -> Tensor:
    """Move the kept rows, in ascending order, to the front, `chunk` of them at a time."""
    if torch.is_grad_enabled():
        return window.index_select(0, samples)
    for start in range(0, len(samples), chunk):
        rows = samples[start : start + chunk]
        window[start : start + rows.shape[0]] = window[rows]
    return window[: len(samples)]


def write(window: Window, slots: dict[int, tuple[Tensor, Tensor | None]]) -> Window:
    """Set window[:, slot] = new - old for each, one after the other.

    In place, or on a copy where autograd records. An `old` may be a slot that is written later.
    """
    if torch.is_grad_enabled():
        index = torch.tensor(list(slots), device=window.device)
        values = [new if old is None else new - old for new, old in slots.values()]
        return window.index_copy(1, index, torch.stack(values, 1))
    for slot, (new, old) in slots.items():
        if old is None:
            window[:, slot] = new
        else:
            torch.sub(new, old, out=window[:, slot])
    return window


def enlarge(window: Tensor, extra: int) -> Tensor:
    """Room for more slots, left unset: they are written before they are read."""
    samples, capacity, entries = window.shape
    larger = window.new_empty(samples, capacity + extra, entries)
    larger[:, :capacity] = window
    return larger
