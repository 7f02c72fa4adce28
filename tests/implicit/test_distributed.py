"""Data parallelism: two processes with half of the batch each, against one with all of it."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

import solvers
from implicit import FixedPointLayer, get_backward
from models import Attractor

BATCH, SIZE = 6, 4
pytestmark = pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()), reason="no gloo"
)


class Refiner(nn.Module):
    """A per-sample rate and a shared weight: rows of a large rate need many steps."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(SIZE, SIZE)

    def forward(self, y: Tensor, proposal: Tensor) -> Tensor:
        rate = proposal[:, :1].sigmoid()
        return rate * torch.tanh(0.5 * self.inner(y)) + 0.3 * y * rate + proposal


class Classifier(nn.Module):
    """A layer, used twice, between two maps."""

    def __init__(self, backward: Any):
        super().__init__()
        self.before, self.after = nn.Linear(SIZE, SIZE), nn.Linear(SIZE, 2)
        self.layer = FixedPointLayer(Refiner(), solver(backward), backward, max_steps=200)

    def forward(self, x: Tensor) -> Tensor:
        proposal = self.before(x)
        first = self.layer(torch.zeros_like(proposal), proposal)
        second = self.layer(torch.zeros_like(proposal), first.value)
        return self.after(second.value)


class Decoder(nn.Module):
    def __init__(self, backward: Any):
        super().__init__()
        self.model = Attractor(
            nn.Linear(SIZE, SIZE), Refiner(), solver(backward), backward, max_steps=200
        )
        self.decode = nn.Linear(SIZE, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.model(x).value)


def solver(backward: Any) -> solvers.FixedPointSolver:
    """The derivative of Anderson's own steps amplifies rounding, that of Picard's does not."""
    kind = solvers.Picard if backward == "unrolled" else solvers.Anderson
    return kind(rtol=1e-13, atol=1e-14)


MODELS = {
    f"{build.__name__}-{name}": (build, mode)
    for build in (Classifier, Decoder)
    for name, mode in {
        "exact": "exact", "jacobian_free": "jacobian_free", "neumann": "neumann",
        "phantom": get_backward("phantom", steps=3), "unrolled": "unrolled",
    }.items()
}  # fmt: skip


def make(name: str) -> nn.Module:
    torch.manual_seed(0)
    build, mode = MODELS[name]
    return build(mode).double()


def batch() -> Tensor:
    """Rows of the second half are 100 times larger, so that the halves need unequal steps."""
    x = torch.randn(BATCH, SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x[BATCH // 2 :] *= 100
    return x


def train(model: nn.Module, x: Tensor) -> tuple[list[Tensor], list[int]]:
    """Two steps of gradient descent; the gradients of the second, and calls of the refiner."""
    calls = [0]
    counted = [m for m in model.modules() if isinstance(m, Refiner)]
    hooks = [m.register_forward_pre_hook(lambda *_: calls.append(1)) for m in counted]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    for hook in hooks:
        hook.remove()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None], [sum(calls)]


def work(rank: int, folder: str) -> None:
    """One process; runs every model, so that torch is loaded once."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(seconds=15)
    )
    found = {}
    half = batch()[BATCH // 2 * rank : BATCH // 2 * (rank + 1)]
    for name in MODELS:
        found[name] = train(DistributedDataParallel(make(name), find_unused_parameters=False), half)
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each process found; a dead-lock would end in a time-out of the process group."""
    folder = tmp_path_factory.mktemp("distributed")
    spawn(work, (str(folder),), nprocs=2)
    return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_those_of_one_process(name: str, found: list[dict[str, Any]]) -> None:
    """After one update, so that the parameters agreed as well."""
    true, _ = train(make(name), batch())
    for gradients, _ in (process[name] for process in found):
        assert len(gradients) == len(true) > 0
        for a, b in zip(gradients, true, strict=True):
            assert float((a - b).abs().max()) <= 1e-10 * max(1.0, float(b.abs().max()))


def test_processes_needed_unequal_numbers_of_calls(found: list[dict[str, Any]]) -> None:
    """Otherwise the tests above say nothing of dead-locks."""
    for name in MODELS:
        (first,), (second,) = (process[name][1] for process in found)
        assert first != second
