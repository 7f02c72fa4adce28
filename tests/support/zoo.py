"""A thousand small problems drawn at random, most of them unkind, and an independent judge.

A specimen is fixed by its kind, seed and dtype. Every sample has a map of its own (its matrix is
one of the `args`), products are summed row by row, and nothing is used but correctly rounded
operations (no `tanh`, whose last bit depends on where in memory an entry lies). So a sample's f is
the same to the last bit whatever shares its batch, and claims can be checked without slack for it.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}
TOLERANCES = {torch.float64: 1e-8, torch.float32: 1e-5, torch.bfloat16: 3e-2}
SEEDS = 20
MAX_STEPS = 200


@dataclasses.dataclass(frozen=True)
class Specimen:
    """Find y = f(y, *args) per sample, from y0, to `rtol` and an `atol` of 0.

    Attributes:
        solvable: There is a fixed point for every sound sample, in exact arithmetic (True), there
            is none (False), or who knows.
        picard: Undamped iteration must converge (True), cannot (False), or may.
        broken: Samples that hold a NaN or an infinity.
    """

    kind: str
    seed: int
    f: Callable[..., Tensor]
    y0: Tensor
    args: tuple[Tensor, ...]
    rtol: float
    solvable: bool | None
    picard: bool | None
    broken: Tensor

    def __str__(self) -> str:
        dtype = str(self.y0.dtype).removeprefix("torch.")
        return f"{self.kind}-{dtype}-{self.seed}-{self.y0.shape[0]}x{self.y0.shape[1]}"


@dataclasses.dataclass(frozen=True)
class Draw:
    """Random numbers of one specimen, all in float64."""

    generator: torch.Generator
    rows: int
    size: int
    dtype: torch.dtype

    def normal(self, *shape: int) -> Tensor:
        shape = shape or (self.rows, self.size)
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        shape = shape or (self.rows, self.size)
        return low + (high - low) * torch.rand(shape, generator=self.generator, dtype=torch.float64)

    def coin(self) -> bool:
        return bool(self.uniform(0, 1, 1) < 0.5)

    def basis(self) -> Tensor:
        """Orthogonal, one per sample."""
        return torch.linalg.qr(self.normal(self.rows, self.size, self.size))[0]

    def contraction(self, low: float, high: float) -> Tensor:
        """Matrices whose 2-norm lies between the bounds."""
        matrix = self.normal(self.rows, self.size, self.size)
        norm = torch.linalg.matrix_norm(matrix, 2)[:, None, None]
        return matrix / norm * self.uniform(low, high, self.rows, 1, 1)

    def symmetric(self, eigenvalues: Tensor) -> Tensor:
        basis = self.basis()
        return basis @ (eigenvalues[:, :, None] * basis.mT)


@dataclasses.dataclass(frozen=True)
class Made:
    """What a kind makes of its random numbers, before the cast to a dtype."""

    f: Callable[..., Tensor]
    args: tuple[Tensor, ...]
    y0: Tensor | None = None
    solvable: bool | None = True
    picard: bool | None = None
    rtol: float | None = None
    broken: Tensor | None = None


def product(matrix: Tensor, y: Tensor) -> Tensor:
    """Matrix times vector, per sample, in an order of summation that no other sample changes."""
    return (matrix * y[:, None, :]).sum(-1)


def affine(y: Tensor, matrix: Tensor, x: Tensor) -> Tensor:
    return product(matrix, y) + x


def squash(y: Tensor) -> Tensor:
    """Onto (-1, 1), with slope 1 at 0 and less elsewhere."""
    return y / (1 + y.abs())


def squashed(y: Tensor, matrix: Tensor, x: Tensor) -> Tensor:
    return squash(product(matrix, y) + x)


def contractive(draw: Draw) -> Made:
    f = affine if draw.coin() else squashed
    return Made(f, (draw.contraction(0.1, 0.9), draw.normal()), picard=True)


def rotating(draw: Draw, low: float = 0.7, high: float = 0.9) -> Made:
    """Complex pairs, turning by 60 to 160 degrees a step."""
    radius, angle = draw.uniform(low, high, draw.rows), draw.uniform(1.05, 2.8, draw.rows)
    inner = torch.zeros(draw.rows, draw.size, draw.size, dtype=torch.float64)
    inner.diagonal(dim1=1, dim2=2).copy_(-radius[:, None])
    for i in range(0, draw.size - 1, 2):
        inner[:, i, i] = inner[:, i + 1, i + 1] = radius * angle.cos()
        inner[:, i, i + 1] = radius * angle.sin()
        inner[:, i + 1, i] = -radius * angle.sin()
    basis = draw.basis()
    return Made(affine, (basis @ inner @ basis.mT, draw.normal()), picard=True)


def rotating_out(draw: Draw) -> Made:
    made = rotating(draw, 1.05, 1.6)
    return dataclasses.replace(made, picard=False)


def non_normal(draw: Draw) -> Made:
    """Spectral radius below 1, a norm far above it."""
    inner = torch.diag_embed(draw.uniform(-0.9, 0.9))
    shape = (draw.rows, draw.size, draw.size)
    inner += torch.triu(draw.normal(*shape), 1) * 2 / math.sqrt(draw.size)
    basis = draw.basis()
    return Made(affine, (basis @ inner @ basis.mT, draw.normal()))


def near_singular(draw: Draw) -> Made:
    """An eigenvalue of I - J of 1e-6 to 1e-3."""
    eigenvalues = draw.uniform(-0.9, 0.9)
    eigenvalues[:, 0] = 1 - 10 ** draw.uniform(-6, -3, draw.rows)
    return Made(affine, (draw.symmetric(eigenvalues), draw.normal()))


def badly_scaled(draw: Draw) -> Made:
    """Entries from 1e-8 to 1e8 in one state."""

    def f(y: Tensor, matrix: Tensor, x: Tensor, scale: Tensor) -> Tensor:
        return scale * squash(product(matrix, y / scale) + x)

    scale = 10 ** draw.uniform(-8, 8)
    args = (draw.contraction(0.1, 0.7), draw.normal(), scale)
    return Made(f, args, y0=scale * draw.normal(), picard=True)


def tiny(draw: Draw, narrow: float = 2.0**-100, wide: float = 2.0**-400) -> Made:
    """Squares of the entries leave the range of float32."""
    size = wide if draw.dtype == torch.float64 else narrow

    def f(y: Tensor, matrix: Tensor, x: Tensor) -> Tensor:
        return squash(product(matrix, y / size) + x) * size

    return Made(f, (draw.contraction(0.1, 0.9), draw.normal()), picard=True)


def huge(draw: Draw) -> Made:
    return tiny(draw, 2.0**100, 2.0**400)


def discontinuous(draw: Draw) -> Made:
    """A relay, which pushes back across its jump: for most samples without a fixed point."""

    def f(y: Tensor, matrix: Tensor, x: Tensor) -> Tensor:
        return product(matrix, y) + x - 0.5 * torch.sign(y - x)

    return Made(f, (draw.contraction(0.1, 0.6), draw.normal()), solvable=None)


def expanding(draw: Draw) -> Made:
    """Real eigenvalues beyond 1, where only an accelerated method can succeed."""
    eigenvalues = draw.uniform(1.2, 3.0)
    return Made(affine, (draw.symmetric(eigenvalues), draw.normal()), picard=False)


def divergent(draw: Draw) -> Made:
    """y^2 + 1 + x^2 > y: no fixed point, and overflow within a few steps."""
    return Made(lambda y, x: y * y + 1 + x * x, (draw.normal(),), solvable=False, picard=False)


def no_fixed_point(draw: Draw) -> Made:
    """y + x: the residual is the same everywhere."""
    x = draw.uniform(0.5, 2.0)
    return Made(lambda y, x: y + x, (x,), solvable=False)


def runaway(draw: Draw) -> Made:
    """Steps that never vanish: no fixed point, but |f(y) - y| is small beside a |y| far off.

    A drift with a wave in it, or the value of a Markov chain whose rewards are not discounted.
    """
    if draw.coin():
        drift, height = draw.uniform(0.5, 2.0, draw.rows, 1), draw.uniform(-0.8, 0.8)

        def f(y: Tensor, drift: Tensor, height: Tensor) -> Tensor:
            wave = 4 * (y - y.round()).abs() - 1
            return y + drift * (1 + height * wave)

        return Made(f, (drift, height), solvable=False, picard=False)
    weights = draw.uniform(0.1, 1.0, draw.rows, draw.size, draw.size)
    chain = weights / weights.sum(2, keepdim=True)
    return Made(affine, (chain, draw.uniform(0.5, 2.0)), solvable=False, picard=False)


def far(draw: Draw) -> Made:
    """The solution is some 1e4 times the start, where an accelerated method jumps to it."""
    rate = 1 - draw.uniform(0.7e-4, 1.5e-4, draw.rows, 1)
    y0 = torch.zeros(draw.rows, draw.size, dtype=torch.float64)
    # The residual cannot be seen to fall in bfloat16, whose rounding is larger.
    solvable = None if draw.dtype == torch.bfloat16 else True
    return Made(lambda y, rate, x: rate * y + x, (rate, draw.normal()), y0=y0, solvable=solvable)


def noisy(draw: Draw) -> Made:
    """A contraction under noise above the tolerance, a fixed function of the state."""
    eps = torch.finfo(draw.dtype).eps

    def f(y: Tensor, matrix: Tensor, x: Tensor) -> Tensor:
        cycles = y * (0.1 / eps)
        return product(matrix, y) + x + 16 * eps * (cycles - cycles.round())

    args = (draw.contraction(0.1, 0.9), draw.normal())
    return Made(f, args, solvable=None, rtol=eps)


def poisoned(draw: Draw) -> Made:
    """One sample is broken: in its start, its input or its matrix."""
    matrix, x, y0 = draw.contraction(0.1, 0.9), draw.normal(), draw.normal()
    victim = int(draw.uniform(0, draw.rows, 1))
    where = [matrix, x, y0][int(draw.uniform(0, 3, 1))]
    where[victim].view(-1)[0] = math.nan if draw.coin() else math.inf
    broken = torch.arange(draw.rows) == victim
    return Made(affine, (matrix, x), y0=y0, picard=True, broken=broken)


def mixed_rates(draw: Draw) -> Made:
    """Easy and hard samples in one batch."""
    rate = 1 - 10 ** draw.uniform(-2.5, -0.05, draw.rows, 1)
    matrix = draw.symmetric(draw.uniform(-1, 1))
    return Made(
        lambda y, matrix, x, rate: rate * product(matrix, y) + x, (matrix, draw.normal(), rate)
    )


def chaotic(draw: Draw) -> Made:
    """The logistic map where Picard never settles; 0 and 1 - 1 / rate are fixed points."""
    rate, y0 = draw.uniform(3.6, 4.0), draw.uniform(0.1, 0.9)
    return Made(lambda y, rate: rate * y * (1 - y), (rate,), y0=y0, picard=False)


def saturated(draw: Draw) -> Made:
    """Steep, with many fixed points and with cycles."""
    gain = draw.uniform(2, 8, draw.rows, 1)

    def f(y: Tensor, matrix: Tensor, x: Tensor, gain: Tensor) -> Tensor:
        return squash(gain * product(matrix, y) + x)

    return Made(f, (draw.basis(), draw.normal(), gain))


def cyclic(draw: Draw) -> Made:
    """x - y: Picard goes to and fro for ever."""
    return Made(lambda y, x: x - y, (draw.uniform(1.0, 2.0),), picard=False)


def origin(draw: Draw) -> Made:
    """The solution is 0, where a relative tolerance is met by 0 alone."""
    args = (draw.contraction(0.1, 0.9),)
    return Made(lambda y, matrix: product(matrix, y), args, y0=draw.normal())


def constant(draw: Draw) -> Made:
    """J = 0: solved in one step, and every difference after it vanishes."""
    return Made(lambda y, x: 0 * y + x, (draw.normal(),), picard=True)


KINDS: dict[str, Callable[[Draw], Made]] = {
    make.__name__: make
    for make in (
        contractive, rotating, rotating_out, non_normal, near_singular, badly_scaled, tiny, huge,
        discontinuous, expanding, divergent, no_fixed_point, noisy, poisoned, mixed_rates, chaotic,
        saturated, cyclic, origin, constant, runaway, far,
    )
}  # fmt: skip


def specimen(kind: str, seed: int, dtype: torch.dtype) -> Specimen:
    """Draw one problem of 1 to 16 samples (a poisoned one has 2 or more) and 1 to 64 entries."""
    generator = torch.Generator().manual_seed(1000 * list(KINDS).index(kind) + seed)
    rows, size = (int(torch.randint(1, most + 1, (1,), generator=generator)) for most in (16, 64))
    draw = Draw(generator, max(rows, 2) if kind == "poisoned" else rows, size, dtype)
    made = KINDS[kind](draw)
    y0 = made.y0
    if y0 is None:
        scale = {"tiny": 0.0, "huge": 0.0}.get(kind, float(draw.coin()))
        y0 = scale * draw.normal()
    broken = torch.zeros(draw.rows, dtype=torch.bool) if made.broken is None else made.broken
    # Contiguous, as parts of a batch will be: sums are taken in another order along other strides.
    return Specimen(
        kind, seed, made.f, y0.to(dtype), tuple(arg.to(dtype).contiguous() for arg in made.args),
        made.rtol or TOLERANCES[dtype], made.solvable, made.picard, broken,
    )  # fmt: skip


def specimens(seeds: int = SEEDS, kinds: list[str] | None = None) -> Iterator[Specimen]:
    """The zoo, or with fewer seeds a part of it, spread over all kinds and dtypes."""
    for kind, seed, dtype in itertools.product(kinds or KINDS, range(seeds), DTYPES.values()):
        yield specimen(kind, seed, dtype)


def evidence(p: Specimen, y: Tensor) -> tuple[Tensor, Tensor]:
    """Norms of f(y) - y and of f(y) per sample: f in the state's dtype, the rest in float64."""
    with torch.no_grad():
        fy = p.f(y, *p.args).double()
    return _norm(fy - y.double()), _norm(fy)


def _norm(rows: Tensor) -> Tensor:
    """Safe at any scale; NaN or inf where an entry is."""
    largest = rows.abs().amax(1, keepdim=True)
    scaled = rows / torch.where((largest > 0) & largest.isfinite(), largest, 1.0)
    return torch.linalg.vector_norm(scaled, dim=1) * torch.where(largest > 0, largest, 1.0)[:, 0]
