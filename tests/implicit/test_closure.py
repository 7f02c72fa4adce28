"""The tensors that a map closes over become explicit arguments."""

import torch
from torch import Tensor

from implicit.closure import closure_convert


def test_only_tensors_from_outside_become_constants() -> None:
    """Neither what operations return nor the state, whatever reads them."""
    weight, shift = torch.randn(2, 3, 3, dtype=torch.float64)
    y = torch.zeros(3, 3, dtype=torch.float64)

    def f(y: Tensor, args: tuple[Tensor]) -> Tensor:
        once = y @ weight
        return (once + once.sin()) @ weight + args[0]

    converted = closure_convert(f, y, (shift,))
    assert [id(const) for const in converted.consts] == [id(shift), id(weight)]
    found = converted(y + 1, [shift, 2 * weight])
    once = 2 * (y + 1) @ weight
    assert torch.allclose(found, 2 * (once + once.sin()) @ weight + shift)
