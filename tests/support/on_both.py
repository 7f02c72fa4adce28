"""Cases that run on the CPU and on the stand-in device, or a real one, with the same values.

Each is a function of a device, and gives tensors in any structure. Random numbers are drawn on the
CPU and moved, or from the seed that the devices share.
"""

from collections.abc import Callable
from typing import Any

import standin
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

Case = Callable[[torch.device], Any]
# The CPU computes both; sums may be split otherwise where one device uses a fused operation.
ROUNDING = {torch.float64: 1e-10, torch.float32: 2e-4}
# The device of `same`, in place of the stand-in. One that adds in another order may take a step
# more.
REAL: list[torch.device] = []


def same(case: Case, slack: float = 1.0) -> None:
    """Check that all results have the CPU's values, and that those of the device are on it."""
    here, cpu = REAL[0] if REAL else standin.register(), torch.device("cpu")
    found, expected = (_results(case, device) for device in (here, cpu))
    assert found.keys() == expected.keys()
    assert found, "nothing is compared"
    for place, value in expected.items():
        other = found[place]
        if not isinstance(value, Tensor):
            assert other == value, f"{place}: {other!r} on the device, {value!r} on the CPU"
            continue
        assert other.device.type == here.type, f"{place} is on {other.device}"
        assert other.dtype == value.dtype, f"{place} is {other.dtype}"
        bound = slack * ROUNDING.get(value.dtype, 1.0 if REAL and value.dtype == torch.int64 else 0)
        torch.testing.assert_close(
            other.detach().cpu(), value.detach(), rtol=bound, atol=bound, equal_nan=True,
            msg=lambda text, place=place: f"{place}: {text}",
        )  # fmt: skip


def _results(case: Case, device: torch.device) -> dict[str, Any]:
    torch.manual_seed(0)
    pairs, _ = pytree.tree_flatten_with_path(case(device))
    return {pytree.keystr(path): leaf for path, leaf in pairs}


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal numbers on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
