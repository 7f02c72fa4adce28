"""The layer, and memory that does not grow with the number of steps."""

import pytest
import torch
from torch import Tensor, nn

import implicit
from implicit import FixedPointLayer, Phantom, fixed_point
from solvers import Picard


class Pull(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(0.5 * self.inner(y) + x)


def test_unconverged_is_reported_not_raised() -> None:
    layer = FixedPointLayer(Pull(), solver="picard", max_steps=1)
    s = layer(torch.zeros(3, 4), torch.randn(3, 4))
    assert not s.converged.any()
    assert int(layer(torch.zeros(3, 4), torch.randn(3, 4), max_steps=3).num_steps.max()) == 3


def test_state_dict_holds_the_module_only() -> None:
    assert set(FixedPointLayer(Pull()).state_dict()) == {"module.inner.weight", "module.inner.bias"}


def test_print_tells_solver_mode_and_budget() -> None:
    text = repr(FixedPointLayer(Pull(), solver="picard", backward=Phantom(steps=3), max_steps=7))
    assert "Picard(" in text
    assert "Phantom(steps=3" in text
    assert "max_steps=7" in text


def test_unknown_names_raise_at_construction() -> None:
    with pytest.raises(ValueError, match="Did you mean 'broyden'"):
        FixedPointLayer(Pull(), solver="broiden")
    with pytest.raises(ValueError, match="Did you mean 'phantom'"):
        FixedPointLayer(Pull(), backward="fantom")


def test_eval_mode_detaches_nothing() -> None:
    """torchdeq's eval() detaches the output without a word."""
    layer = FixedPointLayer(Pull()).eval()
    assert layer(torch.zeros(3, 4), torch.randn(3, 4)).value.requires_grad


@pytest.mark.parametrize("mode", implicit.backward_modes())
def test_saved_memory_grows_with_steps_in_unrolled_mode_only(mode: str) -> None:
    layer, x = Pull(), torch.randn(3, 4)

    def saved(max_steps: int) -> int:
        sizes: list[int] = []

        def pack(tensor: Tensor) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            solver = Picard(rtol=0.0, atol=0.0)
            fixed_point(
                layer, torch.zeros(3, 4), x, solver=solver, backward=mode, max_steps=max_steps,
                throw=False,
            )  # fmt: skip
        return sum(sizes)

    if mode == "unrolled":
        assert saved(12) > 2 * saved(4)
    else:
        assert saved(64) == saved(4)
