"""Norms of the rows of a matrix, accurate at every scale of the dtype, and of states."""

import math

import torch

from solvers.torch_internals import pytree
from solvers.types import Flat, PerSample, State

# Outside this range of norms, squares may overflow or underflow.
SAFE_NORMS = {torch.float32: (1e-15, 1e15), torch.float64: (1e-150, 1e150)}


def row_norms(rows: Flat) -> PerSample:
    """Euclidean norm of every row; NaN or inf if an entry is."""
    norm = torch.linalg.vector_norm(rows, dim=1)
    smallest, largest = SAFE_NORMS[rows.dtype]
    if torch.compiler.is_compiling() or not rows.is_cpu:  # no value is read
        return torch.where((norm > smallest) & (norm < largest), norm, scaled_norms(rows))
    odd = ~((norm > smallest) & (norm < largest))
    if bool(odd.any()):
        index = odd.nonzero().flatten()
        norm[index] = scaled_norms(rows[index])
    return norm


def scaled_norms(rows: Flat) -> PerSample:
    """As `row_norms`, but every row is divided by its largest entry before squaring."""
    if rows.shape[1] == 0:
        return rows.new_zeros(len(rows))
    largest = torch.linalg.vector_norm(rows, math.inf, dim=1)
    unit = torch.where((largest > 0) & largest.isfinite(), largest, 1.0)
    return torch.linalg.vector_norm(rows / unit[:, None], dim=1) * unit


def rms(state: State, batch_dims: int = 1) -> PerSample:
    """Root mean square of the entries of each sample of a real state, in float32 or wider.

    It consists of plain operations, so that it can be exported; unlike `row_norms` it may leave
    the range of the dtype.
    """
    leaves = [
        leaf.to(torch.promote_types(leaf.dtype, torch.float32)).flatten(batch_dims)
        for leaf in pytree.tree_leaves(state)
    ]
    return torch.cat(leaves, -1).square().mean(-1).sqrt()
