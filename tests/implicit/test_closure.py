"""The tensors that a map closes over become explicit arguments."""

import pytest
import torch
from torch import Tensor
from torch.func import grad, vjp

from implicit import fixed_point
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


def test_a_tensor_read_only_in_the_backward_pass_is_refused() -> None:
    """A transform around the pullback would lose the derivative by it."""
    x = torch.ones(2, 3, dtype=torch.float64)

    def pulled_back(w: Tensor) -> Tensor:
        backward = []

        def f(y: Tensor, x: Tensor) -> Tensor:
            return (0.5 * w if backward else 0.5) * y + x

        _, pull = vjp(lambda x: fixed_point(f, torch.zeros_like(x), x).value, x)
        backward.append(True)
        return pull(x)[0].sum()

    with pytest.raises(RuntimeError, match="it did not read when it was first called"):
        grad(pulled_back)(torch.ones((), dtype=torch.float64))
