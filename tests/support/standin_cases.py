"""What the stand-in device must refuse, take, compute and count; see `standin`."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import standin
import torch
from on_both import drawn, same
from torch import Tensor, nn
from waits import Waits, count_waits
from waits_per_step import tanh_contraction, waits_per_step

Two = Callable[[Tensor, Tensor], Any]

# A tensor `x` of the device and the same of the CPU, both of shape (3, 3).
REFUSED: dict[str, Two] = {
    "sum": lambda x, cpu: x + cpu,
    "sum from the left": lambda x, cpu: cpu + x,
    "product of matrices": lambda x, cpu: x @ cpu,
    "cat": lambda x, cpu: torch.cat([x, cpu]),
    "where": lambda x, cpu: torch.where(x > 0, x, cpu),
    "in place": lambda x, cpu: cpu.add_(x),
    "result": lambda x, cpu: torch.add(x, x, out=cpu),
    "scalar result": lambda x, cpu: cpu[0, 0].add_(x[0, 0]),
    "index_select": lambda x, cpu: x.index_select(0, torch.tensor([0])),
    "gather": lambda x, cpu: x.gather(0, torch.zeros(1, 3, dtype=torch.long)),
    "an index of the device": lambda x, cpu: cpu[torch.zeros(1, dtype=torch.long, device=x.device)],
    "values": lambda x, cpu: x.index_put((torch.tensor([0]),), cpu[:1]),
    "mask": lambda x, cpu: x.masked_fill(cpu > 0, 0.0),
    "loss": lambda x, cpu: nn.functional.cross_entropy(x, torch.zeros(3, dtype=torch.long)),
    "layer": lambda x, cpu: nn.Linear(3, 3).double()(x),
    "solve": lambda x, cpu: torch.linalg.solve(x, cpu),
    "NumPy": lambda x, cpu: x.numpy(),
    "generator": lambda x, cpu: torch.rand(3, device=x.device, generator=torch.Generator()),
    "backward": lambda x, cpu: x.clone().requires_grad_().sin().backward(cpu),
    "vmap": lambda x, cpu: torch.vmap(torch.add)(x, cpu),
}
TAKEN: dict[str, Two] = {
    "scalar": lambda x, cpu: x + torch.tensor(2.0),
    "number": lambda x, cpu: x.remainder(2) + True,
    "scalar where": lambda x, cpu: torch.where(x > 0, x, torch.tensor(0.0)),
    "index": lambda x, cpu: x[torch.tensor([2, 0])],
    "mask": lambda x, cpu: x[cpu > 0],
    "assignment": lambda x, cpu: x.clone().index_put_((torch.tensor([1]),), x[:1]),
    "copy": lambda x, cpu: torch.empty_like(x).copy_(cpu),
    "copy to the CPU": lambda x, cpu: torch.empty_like(cpu).copy_(x),
}


def refused(name: str) -> None:
    """The operation raises an error that names the device."""
    cpu = drawn(3, 3)
    x = cpu.to(standin.register())
    words = "device|standin|CPU|cpu"
    with pytest.raises((RuntimeError, TypeError, ValueError), match=words):
        REFUSED[name](x, cpu.clone())


def taken(name: str) -> None:
    """The operation works, as on a GPU."""
    cpu = drawn(3, 3)
    x = cpu.to(standin.register())
    found = TAKEN[name](x, cpu)
    assert torch.equal(found.cpu(), TAKEN[name](cpu, cpu))


def _views(x: Tensor) -> Any:
    y = x.clone()
    y[:, 1] = 5.0
    y.T[0] += 1
    y.view(-1)[3:5].mul_(2)
    y[y > 4] = -1.0
    assert y.T.untyped_storage()._cdata == y.untyped_storage()._cdata
    return y, y.unfold(1, 2, 1), y.expand(2, 3, 3), y.unbind(0)


def _random(x: Tensor) -> Any:
    own = torch.Generator(x.device).manual_seed(3)
    drawn = torch.randn(4, device=x.device), torch.rand_like(x), torch.randperm(5, device=x.device)
    state = torch.rand(2, device=x.device, generator=own)
    return drawn, state, nn.functional.dropout(x), torch.multinomial(x.abs(), 2)


def _complex(x: Tensor) -> Any:
    z = torch.complex(x, x.T)
    return (
        z.conj() + 1,
        z.conj().imag,
        torch.view_as_real(z),
        torch.linalg.eigvals(x).abs().sort()[0],
    )


def _linear_algebra(x: Tensor) -> Any:
    spd = x @ x.T + torch.eye(3, dtype=x.dtype, device=x.device)
    return torch.linalg.solve(spd, x), torch.linalg.qr(x).R, torch.linalg.cholesky(spd)


def _autograd(x: Tensor) -> Any:
    x = x.clone().requires_grad_()
    (first,) = torch.autograd.grad((x.sin() @ x).sum(), x, create_graph=True)
    return first, torch.autograd.grad(first.square().sum(), x)


def _functional(x: Tensor) -> Any:
    f = lambda row: (row.sin() * row.sum()).cumsum(0)  # noqa: E731
    return torch.vmap(torch.func.jacfwd(f))(x), torch.func.hessian(lambda x: f(x).sum())(x[0])


def _modules(x: Tensor) -> Any:
    torch.manual_seed(0)
    inner = nn.Linear(3, 3)
    net = nn.Sequential(inner, nn.LayerNorm(3), nn.GELU(), inner).double().to(x.device)
    assert net[0].weight is net[3].weight
    twin = copy.deepcopy(net)
    optimizer = torch.optim.AdamW(net.parameters())
    net(x).square().sum().backward()
    nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    optimizer.step()
    return net(x), twin(x)


def _sizes(x: Tensor) -> Any:
    return (x > 0).nonzero(), x[x > 0], torch.arange(4, device=x.device), x.sort(1), x.topk(2)


OPERATIONS: dict[str, Callable[[Tensor], Any]] = {
    case.__name__.strip("_"): case
    for case in (
        _views, _random, _complex, _linear_algebra, _autograd, _functional, _modules, _sizes
    )
}  # fmt: skip


def operation(name: str) -> None:
    """The values are the CPU's."""
    same(lambda device: OPERATIONS[name](drawn(3, 3).to(device)))


# What waits, how often, and for what.
WAITS: dict[str, tuple[Callable[[Tensor], Any], dict[str, int]]] = {
    "item": (lambda x: x[0, 0].item(), {"value": 1}),
    "bool": (lambda x: bool((x > 0).any()), {"value": 1}),
    "float": (lambda x: float(x.sum()), {"value": 1}),
    "index": (lambda x: x[x.argmax() // 3], {"value": 1}),
    "allclose": (lambda x: torch.allclose(x, x), {"value": 1}),
    "tolist": (lambda x: x.tolist(), {"to cpu": 1}),
    "cpu": (lambda x: x.cpu(), {"to cpu": 1}),
    "nonzero": (lambda x: x.nonzero(), {"nonzero": 1}),
    "masked_select": (lambda x: x.masked_select(x > 0), {"masked_select": 1}),
    "mask": (lambda x: x[x > 0], {"nonzero": 1}),
    "values at a mask": (lambda x: x.index_put_((x > 0,), x[x > 0]), {"nonzero": 2}),
    "index of the CPU": (lambda x: x[torch.tensor([1])], {"to device": 1}),
    "one value at a mask": (lambda x: x.masked_fill_(x > 0, 1.0), {}),
    "assignment at a mask": (lambda x: x.__setitem__(x > 0, 1.0), {}),
    "constant": (lambda x: torch.tensor([1.0], device=x.device), {"to device": 1}),
    "arithmetic": (lambda x: torch.where(x > 0, x, 0.0) @ x.new_ones(3) + 1, {}),
    "factory": (lambda x: torch.arange(3, device=x.device), {}),
    "copy": (lambda x: x.clone().copy_(x), {}),
    "synchronize": (lambda x: torch.accelerator.synchronize(x.device), {"synchronize": 1}),
}  # fmt: skip


def waits(name: str) -> None:
    """The operation waits so often, for that."""
    act, expected = WAITS[name]
    x = drawn(3, 3).to(standin.register())
    with count_waits() as outer, count_waits() as found:
        act(x)
    act(x)
    kinds: dict[str, int] = {}
    for (kind, _), count in found.items():
        kinds[kind] = kinds.get(kind, 0) + count
    assert kinds == expected
    assert outer == found


def comparisons_can_fail() -> None:
    """A result of other values, or one that was left on the CPU, is noticed."""
    wrong: list[tuple[str, Callable[[torch.device], Any]]] = [
        ("not close", lambda device: torch.ones(2, device=device) * (1 + (device.type == "cpu"))),
        ("is on cpu", lambda device: torch.ones(2)),
        ("nothing is compared", lambda device: []),
    ]
    for words, case in wrong:
        with pytest.raises(AssertionError, match=words):
            same(case)


def counted(solver: str, spread: bool, **options: Any) -> list[Waits]:
    """What each step of a solve waits for."""
    f, y0, *args = tanh_contraction(standin.register(), rows=8, size=16, spread=spread)
    return waits_per_step(f, y0, *args, solver=solver, **options)
