"""Recompute the activations of a backbone: less memory in training, for one more forward pass.

A block that does so keeps only its input for the backward pass. The map of a solve does not need
it, since an implicit gradient does not keep the steps of the solve. A loop that is not solved
records its last passes without it.

References:
    T. Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016, arXiv:1604.06174.
"""

from abc import abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from implicit import FixedPointLayer


class Recomputable(nn.Module):
    """A network that can drop its activations in the forward pass and recompute them."""

    @property
    @abstractmethod
    def recomputes(self) -> bool:
        """Whether it recomputes its activations."""

    @abstractmethod
    def recompute_activations(self) -> None:
        """Recompute activations from now on."""


class RecomputableBlock(Recomputable):
    """A block with a flag for recomputation.

    The flag is read within `forward`, so that `compile` can fuse the block, and hooks, such as
    FSDP's, run once.

    Attributes:
        recompute: Recompute the activations; see `models.recompute_activations`.
    """

    recompute = False

    @property
    def recomputes(self) -> bool:
        """See `Recomputable`."""
        return self.recompute

    def recompute_activations(self) -> None:
        """See `Recomputable`."""
        self.recompute = True

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


class LoopedModel(nn.Module):
    """A model that applies a part of it several times in a pass, without a solver."""

    @property
    @abstractmethod
    def looped(self) -> nn.Module:
        """The part that is applied several times."""


def modules_used_once(model: nn.Module) -> Iterator[nn.Module]:
    """The model and the modules in it, without those that are solved or looped over."""
    repeated: set[nn.Module] = set()
    for module in model.modules():
        if isinstance(module, FixedPointLayer):
            repeated.update(module.modules())
        elif isinstance(module, LoopedModel):
            repeated.update(module.looped.modules())
    return (module for module in model.modules() if module not in repeated)


def recompute_activations(model: nn.Module) -> None:
    """Let every block of the backbone keep only its input for the backward pass.

    This is activation checkpointing. The gradient stays the same. Cost: about one more forward
    pass of the backbone. Worth it where memory is short, or allows a batch that is too small.

    Args:
        model: Changed in place. Blocks of `transformers` recompute in training mode only.

    Raises:
        ValueError: The model has no block that is used once in a pass.
    """
    found = False
    for module in modules_used_once(model):
        if isinstance(module, Recomputable):
            module.recompute_activations()
            found = True
    if not found:
        raise ValueError(
            f"Activation checkpointing is for the blocks of a backbone, and this "
            f"{type(model).__name__} has none: leave it off. A solve keeps no activations of its "
            "steps anyway."
        )


def recomputes(network: object) -> bool:
    """Whether this block, or stack of blocks, recomputes its activations."""
    return isinstance(network, Recomputable) and network.recomputes
