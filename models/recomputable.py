"""Blocks that can forget their activations in the forward pass, and compute them once more.

Backpropagation through such a block keeps its input alone. It costs about one more forward pass
of the block, and gives the same gradient.

References:
    T. Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016, arXiv:1604.06174.
"""

from abc import abstractmethod

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class RecomputableBlock(nn.Module):
    """A network whose activations are kept for the backward pass, or computed anew in it.

    The choice is made within `forward`, so that it is part of what `compile` fuses, and hooks,
    such as FSDP's, run once.

    Attributes:
        recomputed: Compute them anew; see `models.checkpoint_activations`.
    """

    recomputed = False

    @abstractmethod
    def apply_once(self, h: Tensor) -> Tensor:
        """The block, from its input to an output of the same shape."""

    def forward(self, h: Tensor) -> Tensor:
        """Shape (..., D) in and out."""
        if self.recomputed and torch.is_grad_enabled():
            out = checkpoint(self.apply_once, h, use_reentrant=False)
            assert isinstance(out, Tensor)
            return out
        return self.apply_once(h)
