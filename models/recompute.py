"""Recompute the activations of a backbone: less memory in training, for one more forward pass.

A block that does so keeps only its input for the backward pass. The map of a solve does not need
it, since an implicit gradient does not keep the steps of the solve. A loop that is not solved
records its last passes without it.

References:
    T. Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016, arXiv:1604.06174.
"""

from collections.abc import Iterator

from torch import nn

from implicit import FixedPointLayer
from models.blocks import LoopedModel, Recomputable


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
