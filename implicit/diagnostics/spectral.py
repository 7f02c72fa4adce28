"""The spectral radius of a map at a point, which says whether plain iteration converges there."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from implicit.diagnostics.jacobian import FlatMap, flat_map, jvp_at, vjp_at
from solvers.packing import StatePacking
from solvers.types import Flat, Map, PerSample, Small, State

METHODS = {"arnoldi", "power"}
PRODUCTS = {"jvp": jvp_at, "vjp": vjp_at}
# A direction that shrinks to this many units of rounding has left nothing new to explore.
EXHAUSTED = 10


@dataclass(frozen=True, kw_only=True)
class SpectralRadius:
    """Estimates of spectral radii, with residuals that tell how accurate they are.

    Attributes:
        radius: Shape `(*batch,)`, at least float32. NaN where `f` or its derivative is not
            finite.
        eigenvalue: Shape `(*batch,)`, complex: the lambda that `radius` is the modulus of; of
            a conjugate pair, either one. If its real part is below 1, damping makes plain
            iteration converge in its direction.
        residual: Shape `(*batch,)`. Norm of J w - lambda w for the unit vector w (J^T under
            `product="vjp"`): `eigenvalue` is an eigenvalue of a matrix this near to J. For a
            normal J an eigenvalue lies this near to it; it need not be the largest, and for
            other J it may lie further away.
        num_evals: Calls of `f`.
        num_products: Products with J or its transpose.
    """

    radius: PerSample
    eigenvalue: Tensor
    residual: PerSample
    num_evals: int
    num_products: int


@torch.no_grad()
def spectral_radius(
    f: Map,
    y: State,
    *args: Any,
    num_steps: int = 30,
    batch_dims: int = 1,
    method: Literal["arnoldi", "power"] = "arnoldi",
    product: Literal["jvp", "vjp"] = "vjp",
    generator: torch.Generator | None = None,
) -> SpectralRadius:
    """Modulus of the largest eigenvalue of J = df/dy at `y`, for every sample of a batch.

        rho(J) = max |lambda|,    J w = lambda w,    lambda and w complex

    Below 1 at a fixed point, plain iteration converges to it from nearby, by a factor of rho
    per step in the long run. Complex pairs count with their modulus: 0.9 times a rotation
    has radius 0.9. The state's samples must not influence each other; where they do (tokens
    of one sequence under `batch_dims=2`, BatchNorm in training mode) the answer per sample
    means nothing: measure the coupled samples as one, with a smaller `batch_dims`. Rounding
    in a state of low precision is rounding in the products.

    `arnoldi` projects J onto the Krylov space of a random vector. It is exact once `num_steps`
    reaches the number of entries, and usually good long before; short of that its estimate
    errs to either side, and `residual` says how far it may be off. `power` spends all products
    but the last two on power iteration, and the last two on separating the dominant eigenvalue
    or pair. It needs more products, and fails, with a large `residual`, where three or more
    eigenvalues share the largest modulus. The result carries no gradient: train with
    `jacobian_penalty`.

    Cost: `num_steps` products of about two calls of `f` each. "vjp" calls `f` once, keeps its
    graph and multiplies by J^T, whose spectrum is the same. "jvp" calls `f` for every product
    and keeps no graph; all of `f` must support forward mode (fused attention does not), and
    be the same function in every call (no dropout). Memory: `num_steps + 1` states, or 3 for
    `power`.

    Args:
        f: The map; returns the structure, shapes and dtypes of its first argument.
        y: The point, usually a solution; a tensor or a pytree of tensors.
        *args: Per-sample tensors, passed on to `f`.
        num_steps: Products with J, at least 2; no more than a sample has entries are made
            by `arnoldi`.
        batch_dims: Leading dims of `y` that index samples. 0: one unbatched state.
        method: "arnoldi" or "power".
        product: "vjp" or "jvp".
        generator: Draws the start vector, which all samples share; seeded with 0 by default,
            so that measuring leaves the global random state alone.

    Returns:
        A `SpectralRadius`: per sample the radius and a residual.

    Raises:
        ValueError: An unknown method or product, too few steps, or `f` changed the shape.
        TypeError: `y` is not floating point, or `f` changed dtype or structure.
        NotImplementedError: "jvp", and a part of `f` has no forward mode.

    References:
        Y. Saad, Numerical Methods for Large Eigenvalue Problems, SIAM 2011, sec. 6.1, 6.2.

    Example:
        >>> turn = 0.9 * torch.tensor([[0.0, -1.0], [1.0, 0.0]])
        >>> found = spectral_radius(lambda y: y @ turn.T, torch.ones(1, 2))
        >>> round(found.radius.item(), 4)
        0.9
    """
    _check_options(num_steps, method, product)
    packing = StatePacking(y, batch_dims)
    flat = packing.pack(y)
    closed = flat_map(f, args, packing)
    size = flat.shape[1]
    with torch.autocast(packing.device.type, enabled=False):
        multiply = PRODUCTS[product](closed, flat)
        v = _start(flat, generator)
        lead = num_steps - 2 if method == "power" else 0
        for _ in range(lead):
            v = _unit(multiply(v))
        width = min(2 if method == "power" else num_steps, size)
        hessenberg = _arnoldi(multiply, v, width)
    eigenvalue, residual = _largest(hessenberg)
    num_products = lead + width
    return SpectralRadius(
        radius=eigenvalue.abs().to(flat).view(packing.batch_shape),
        eigenvalue=eigenvalue.to(flat.device, flat.dtype.to_complex()).view(packing.batch_shape),
        residual=residual.to(flat).view(packing.batch_shape),
        num_evals=1 if product == "vjp" else num_products,
        num_products=num_products,
    )


def _start(flat: Flat, generator: torch.Generator | None) -> Flat:
    """Draw one direction for all samples, so that none depends on its place in the batch."""
    generator = generator or torch.Generator().manual_seed(0)
    row = torch.randn(flat.shape[1], generator=generator, device=generator.device)
    return _unit(row.to(flat).expand_as(flat))


def _unit(v: Flat) -> Flat:
    """Scale each row to norm 1, except rows of zeros."""
    norm = torch.linalg.vector_norm(v, dim=1, keepdim=True)
    return torch.where(norm == 0, v, v / norm)


def _arnoldi(multiply: FlatMap, v: Flat, width: int) -> Small:
    """The Hessenberg matrix of every sample, `width + 1` rows high.

    A row whose Krylov space is exhausted goes on with zeros, which add eigenvalues of 0.
    """
    rows, size = v.shape
    basis = v.new_zeros(rows, width + 1, size)
    hessenberg = v.new_zeros(rows, width + 1, width)
    basis[:, 0] = v
    for j in range(width):
        w = multiply(basis[:, j])
        threshold = EXHAUSTED * torch.finfo(w.dtype).eps * torch.linalg.vector_norm(w, dim=1)
        seen = basis[:, : j + 1]
        for _ in range(2):  # once leaves rounding errors that grow; twice is enough
            weights = seen @ w[:, :, None]
            w = w - (seen.mT @ weights)[:, :, 0]
            hessenberg[:, : j + 1, j] += weights[:, :, 0]
        norm = torch.linalg.vector_norm(w, dim=1)
        exhausted = norm <= threshold
        hessenberg[:, j + 1, j] = norm.masked_fill(exhausted, 0)
        basis[:, j + 1] = (w / norm[:, None]).masked_fill(exhausted[:, None], 0)
    return hessenberg


def _largest(hessenberg: Small) -> tuple[Tensor, Tensor]:
    """The Ritz value of largest modulus, and the residual norm of its Ritz vector."""
    wide = hessenberg.double() if hessenberg.device.type != "mps" else hessenberg.cpu().double()
    rows, width = wide.shape[0], wide.shape[2]
    if width == 0:
        return wide.new_zeros(rows).to(torch.complex128), wide.new_zeros(rows)
    bad = ~wide.isfinite().flatten(1).all(1)
    # LAPACK refuses NaN, and would refuse the whole batch.
    square = wide[:, :width].masked_fill(bad[:, None, None], 0)
    values, vectors = torch.linalg.eig(square)
    largest = values.abs().argmax(1)[:, None]
    weight = vectors[:, -1].gather(1, largest)[:, 0].abs()
    residual = wide[:, width, width - 1] * weight
    value = values.gather(1, largest)[:, 0]
    return value.masked_fill(bad, math.nan), residual.masked_fill(bad, math.nan)


def _check_options(num_steps: int, method: str, product: str) -> None:
    if isinstance(num_steps, bool) or not isinstance(num_steps, int) or num_steps < 2:
        raise ValueError(
            f"`num_steps` must be an integer of at least 2, got {num_steps!r}: one product "
            "cannot find a complex pair of eigenvalues."
        )
    for name, value, known in (("method", method, METHODS), ("product", product, PRODUCTS)):
        if value not in known:
            allowed = " or ".join(map(repr, sorted(known)))
            raise ValueError(f"`{name}` must be {allowed}, got {value!r}.")
