"""Bound the spectral norms of a network's weights, and so the Lipschitz constants of layers."""

import contextlib
import math
from collections.abc import Iterator
from typing import TypeVar, final

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

Module = TypeVar("Module", bound=nn.Module)

_LINEAR = (nn.Linear,)
_CONVOLUTION = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


def spectral_normalise(module: Module, bound: float = 0.95) -> Module:
    """Keep the spectral norm of every linear and convolution weight at most `bound`, in place.

        W <- W * min(1, bound / sigma(W)),    sigma: the largest singular value

    Unlike `torch.nn.utils.parametrizations.spectral_norm`, smaller weights stay as they are,
    sigma is exact up to rounding, and the weight is a pure function of the parameter:
    power iteration with a memory would change `f` between the calls of one solve. Gradients
    pass through sigma; second ones where it is a simple singular value. Optimisers go on as
    before, since the parameters stay the same objects; names in the `state_dict` change from
    `weight` to `parametrizations.weight.original`.
    `torch.nn.utils.parametrize.remove_parametrizations` undoes it.

    Guaranteed: each linear map multiplies Euclidean distances by at most `bound`. A
    composition of such layers and 1-Lipschitz activations (ReLU, tanh, sigmoid) contracts
    by the product of the bounds, so its spectral radius is below 1 for a bound below 1. Not
    covered: a residual branch adds 1 to the Lipschitz constant; those of inputs that are
    concatenated, or used twice, add up; GELU and SiLU have slopes up to 1.13 and 1.10;
    LayerNorm and RMSNorm divide by the scale of their input, and dot-product attention is not
    Lipschitz at all. A convolution's weight is taken as a matrix of shape (out / groups,
    rest) per group: the convolution itself, with zero padding, may have a norm up to
    sqrt(kernel entries) times as large.
    Embeddings, normalisation gains, bilinear and recurrent layers and the input projection of
    `nn.MultiheadAttention` are left alone. Measure the composed map with `spectral_radius`.

    Cost: the eigenvalues of a Gram matrix of the smaller side per layer, on every access of a
    weight. A solve accesses it in every evaluation: see `cached_weights`.

    Args:
        module: Searched with all its children; each layer must be a whole tensor.
        bound: Above 0; below 1 for layers that contract.

    Returns:
        `module` itself.

    Raises:
        ValueError: A bad bound, a layer normalised before or not yet initialised, or no layer
            to normalise.

    References:
        T. Miyato et al., Spectral Normalization for Generative Adversarial Networks, ICLR
        2018, arXiv:1802.05957, sec. 2.1; as an upper bound only: H. Gouk et al.,
        Regularisation of Neural Networks by Enforcing Lipschitz Continuity, Machine Learning
        110, 2021, arXiv:1804.04368. Attention: H. Kim, G. Papamakarios, A. Mnih, The
        Lipschitz Constant of Self-Attention, ICML 2021, arXiv:2006.04710.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> _ = nn.init.constant_(layer.weight, 3.0)
        >>> weight = spectral_normalise(layer, bound=0.5).weight
        >>> round(torch.linalg.matrix_norm(weight, 2).item(), 4)
        0.5
    """
    number = isinstance(bound, int | float) and not isinstance(bound, bool)
    if not (number and 0 < bound < math.inf):
        raise ValueError(f"`bound` must be finite and above 0, got {bound!r}.")
    layers = {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, _LINEAR + _CONVOLUTION)
    }
    if not layers:
        raise ValueError(
            f"{type(module).__name__} has no linear or convolution layer to normalise."
        )
    for name, layer in layers.items():
        _check_layer(name, layer)
    for layer in layers.values():
        groups = layer.groups if isinstance(layer, _CONVOLUTION) else 1
        parametrize.register_parametrization(layer, "weight", SpectralBound(bound, groups))
    return module


@contextlib.contextmanager
def cached_weights(module: nn.Module) -> Iterator[None]:
    """Compute each parametrized weight of `module` once for all that runs inside.

    `torch.nn.utils.parametrize.cached` alone is wrong around a fixed point: the solve runs
    without gradients and accesses the weights first, so that the cached tensors have no graph,
    and the parameters silently receive no gradient. Here each tensor is computed
    beforehand, in the grad mode of the `with` statement. Do not change parameters inside;
    the backward pass may run inside or after, once unless it retains the graph.

    Args:
        module: Its parametrizations, of any kind, are cached.

    Example:
        >>> module = spectral_normalise(nn.Linear(2, 2))
        >>> with cached_weights(module):
        ...     module.weight is module.weight
        True
    """
    with parametrize.cached():
        for layer in module.modules():
            if parametrize.is_parametrized(layer):
                for name in layer.parametrizations:  # type: ignore[union-attr]
                    getattr(layer, name)
        yield


@final
class SpectralBound(nn.Module):
    """The parametrization behind `spectral_normalise`: scale a weight down to a spectral norm.

    Args:
        bound: Largest spectral norm allowed.
        groups: Blocks along the first dim, each bounded by itself.
    """

    def __init__(self, bound: float, groups: int = 1):
        super().__init__()
        self.bound = bound
        self.groups = groups

    def forward(self, weight: Tensor) -> Tensor:
        """The weight, scaled down where it is too large."""
        limit = self.bound**2
        with torch.autocast(weight.device.type, enabled=False):
            wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
            blocks = wide.reshape(self.groups, weight.shape[0] // self.groups, -1)
            tall = blocks.shape[1] > blocks.shape[2]
            gram = blocks.mT @ blocks if tall else blocks @ blocks.mT
            square = torch.linalg.eigvalsh(gram)[:, -1]
            # The clamp keeps the gradient finite at a weight of zero.
            scale = self.bound * square.clamp(min=limit).rsqrt()
            scale = torch.where(square > limit, scale, 1.0)
            return (blocks * scale[:, None, None]).reshape(weight.shape).to(weight.dtype)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Return the parameter for a weight that is assigned to the layer: the weight itself."""
        return weight

    def extra_repr(self) -> str:
        """Bound and groups, for `print`."""
        return f"bound={self.bound}, groups={self.groups}"


def _check_layer(name: str, layer: nn.Module) -> None:
    where = f"Layer {name!r}" if name else "This layer"
    kept = getattr(layer, "parametrizations", {})
    if "weight" in kept and any(isinstance(part, SpectralBound) for part in kept["weight"]):
        raise ValueError(
            f"{where} is normalised already. To change the bound, first call "
            "`torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight')`."
        )
    if any(map(is_lazy, layer.parameters(recurse=False))):
        raise ValueError(f"{where} is not initialised yet. Call the network once, on real shapes.")
