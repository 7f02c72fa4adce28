"""Norms of the rows of a matrix, accurate at every scale that the dtype can represent."""

import math

import torch

from solvers.types import Flat, PerSample

# Outside this range of norms, squares may overflow or underflow.
SAFE_NORMS = {torch.float32: (1e-15, 1e15), torch.float64: (1e-150, 1e150)}


def row_norms(rows: Flat) -> PerSample:
    """Euclidean norm of every row; NaN or inf if an entry is."""
    norm = torch.linalg.vector_norm(rows, dim=1)
    smallest, largest = SAFE_NORMS[rows.dtype]
    odd = ~((norm > smallest) & (norm < largest))
    if bool(odd.any()):
        index = odd.nonzero().flatten()
        norm[index] = scaled_norms(rows[index])
    return norm


def scaled_norms(rows: Flat) -> PerSample:
    """As `row_norms`, but every row is divided by its largest entry before squaring."""
    largest = torch.linalg.vector_norm(rows, math.inf, dim=1)
    unit = torch.where((largest > 0) & largest.isfinite(), largest, 1.0)
    return torch.linalg.vector_norm(rows / unit[:, None], dim=1) * unit
