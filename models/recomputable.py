"""Blocks that can drop their activations in the forward pass and recompute them in the backward.

Such a block keeps only its input for the backward pass. It costs about one more forward pass of
the block, and the gradient is the same.

References:
    T. Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016, arXiv:1604.06174.
"""

from abc import abstractmethod

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class RecomputableBlock(nn.Module):
    """A network whose activations are kept for the backward pass, or recomputed in it.

    The choice is made within `forward`, so that it is part of what `compile` fuses, and hooks,
    such as FSDP's, run once.

    Attributes:
        recompute: Recompute them; see `models.recompute_activations`.
    """

    recompute = False

    @abstractmethod
    def apply_once(self, h: Tensor) -> Tensor:
        """Apply the block; input and output have the same shape."""

    def forward(self, h: Tensor) -> Tensor:
        """Shape (..., D) in and out."""
        if self.recompute and torch.is_grad_enabled():
            out = checkpoint(self.apply_once, h, use_reentrant=False)
            assert isinstance(out, Tensor)
            return out
        return self.apply_once(h)
