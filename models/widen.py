"""Weights for a wider network that computes what a narrower one does.

The new channels of the state are zero: nothing writes to them yet. What reads them, and the new
hidden units, have the random weights of the wider network, so that the gradient reaches the zeros
in front of which they stand, and training can use the new width. A norm over D channels instead of
d, of which D - d are zero, divides by a root mean square that is smaller by sqrt(d / D), and its
gains are multiplied by that.

Legend: d, D width before and after.

References:
    T. Chen, I. Goodfellow, J. Shlens, Net2Net: Accelerating Learning via Knowledge Transfer, ICLR
    2016, arXiv:1511.05641 (networks that are grown without a change of their function; there,
    units are copied).
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from models.blocks import RMSNorm, SwiGLU, UnitAttention
from models.grid import CandidateEncoder, GridAttractor

# Parameters that write to the state, or hold it: what is new of them begins at zero.
WRITING = {"embedding.weight": CandidateEncoder, "out": UnitAttention, "out.weight": SwiGLU}
# Parameters of two maps, one below the other, each of which grows.
STACKED = {"into.weight": (UnitAttention, SwiGLU)}


def widened(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a narrower model of the same kind, for a wider one.

    Args:
        model: The wider one, a `GridAttractor` with the layout "candidates"; its weights stay.
        weights: Of the narrower one, by their names.

    Returns:
        A state dict of `model`. It is a copy of `weights` where these are not narrower, or belong
        to a network of another kind.
    """
    own = model.state_dict()
    fits = own.keys() == weights.keys() and all(
        own[name].dim() == weights[name].dim()
        and all(n <= m for n, m in zip(weights[name].shape, own[name].shape, strict=True))
        for name in own
    )
    encodes = any(isinstance(module, CandidateEncoder) for module in model.modules())
    same = fits and all(own[name].shape == weights[name].shape for name in own)
    if not (isinstance(model, GridAttractor) and encodes and fits) or same:
        return dict(weights)
    return {name: _grown(model, name, weights[name], own[name]) for name in own}


@torch.no_grad()
def _grown(model: nn.Module, name: str, old: Tensor, new: Tensor) -> Tensor:
    """One parameter: the old one in a corner of the new one."""
    new, old = new.clone(), old.to(new)
    owner, _, last = name.rpartition(".")
    if isinstance(model.get_submodule(owner), RMSNorm):
        scale = math.sqrt(len(old) / len(new))
        new.fill_(old.mean() * scale)
        new[: len(old)] = old * scale
        return new
    part = model.get_submodule(owner)
    if not isinstance(part, UnitAttention):  # a linear map or an embedding within a block
        owner, _, middle = owner.rpartition(".")
        part, last = model.get_submodule(owner), f"{middle}.{last}"
    if last in WRITING and isinstance(part, WRITING[last]):
        new.zero_()
    halves = last in STACKED and isinstance(part, STACKED[last])
    pairs = zip(old.chunk(2), new.chunk(2), strict=True) if halves else [(old, new)]
    for before, after in pairs:
        after[tuple(slice(size) for size in before.shape)] = before
    return new
