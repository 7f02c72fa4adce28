"""Modules under transforms: parameters that are swapped, mapped over and differentiated."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jvp, stack_module_state, vjp, vmap
from transformations import XS, V, X, agree, cell, contraction, draw, right_or_refused

import solvers
from implicit import FixedPointLayer, fixed_point
from models import Attractor

# torch's own forward-mode formulas warn when they are first loaded.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
TIGHT = solvers.Anderson(rtol=1e-13, atol=1e-14)


def iterate(f: Any, y: Tensor, *args: Any) -> Tensor:
    for _ in range(60):
        y = f(y, *args)
    return y


def run_tight(f: Any, y0: Tensor, *args: Any) -> Tensor:
    return fixed_point(f, y0, *args, solver=TIGHT, max_steps=200).value


class Cell(nn.Module):
    """A parameter, a buffer, and a tensor that is neither."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(contraction())
        self.shift = nn.Buffer(0.1 * draw(3, seed=8))
        self.plain = 0.2 * draw(3, seed=9)

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        return cell(y, x + self.shift + self.plain, self.weight)


class Outer(nn.Module):
    """A linear map, then the fixed point of the cell, reached as `way` says."""

    def __init__(self, way: Callable[[Any, Tensor], Tensor]):
        super().__init__()
        self.way = way
        self.before = nn.Linear(3, 3, dtype=torch.float64)
        with torch.no_grad():
            self.before.weight.copy_(contraction())
            self.before.bias.copy_(draw(3, seed=4))
        self.cell: nn.Module = Cell()

    def step(self, y: Tensor, x: Tensor) -> Tensor:
        return self.cell(y, x)

    def forward(self, x: Tensor) -> Tensor:
        return self.way(self, self.before(x))


class Held:
    """A callable that holds a module but is none."""

    def __init__(self, module: nn.Module):
        self.module = module

    def __call__(self, y: Tensor, x: Tensor) -> Tensor:
        return self.module(y, x)


REGISTRY: dict[str, nn.Module] = {}


def from_global(y: Tensor, x: Tensor) -> Tensor:
    return REGISTRY["cell"](y, x)


def by_global(outer: Any, x: Tensor) -> Tensor:
    REGISTRY["cell"] = outer.cell
    return run_tight(from_global, torch.zeros_like(x), x)


def by(wrap: Callable[[Any], Any]) -> Callable[[Any, Tensor], Tensor]:
    return lambda outer, x: run_tight(wrap(outer), torch.zeros_like(x), x)


WAYS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "lambda": by(lambda outer: lambda y, x: outer.cell(y, x)),
    "module": by(lambda outer: outer.cell),
    "method": by(lambda outer: outer.step),
    "partial": by(lambda outer: functools.partial(Outer.step, outer)),
    "attributes": by(
        lambda outer: (
            lambda y, x: cell(y, x + outer.cell.shift + outer.cell.plain, outer.cell.weight)
        )
    ),
    "table": by(lambda outer: lambda y, x, table={"c": [outer.cell]}: table["c"][0](y, x)),
    "callable object": by(lambda outer: Held(outer.cell)),
    "object": by(lambda outer: (lambda held: lambda y, x: held.module(y, x))(Held(outer.cell))),
    "global": by_global,
    "layer": lambda outer, x: FixedPointLayer(outer.cell, TIGHT, max_steps=200)(0 * x, x).value,
}
HIDDEN = ["table", "callable object", "object", "global"]
Parameters = dict[str, Tensor]


def called(model: nn.Module) -> Callable[..., Tensor]:
    return lambda p, x=X: functional_call(model, p, (x,))


def cost(model: nn.Module) -> Callable[..., Tensor]:
    return lambda p, x=X: called(model)(p, x).pow(3).sum()


def stacked(p: Parameters) -> Parameters:
    return {name: torch.stack([0.5 * value, 0.8 * value, value]) for name, value in p.items()}


def ordinary(model: nn.Module, p: Parameters) -> tuple[Tensor, ...]:
    leaves = {name: value.clone().requires_grad_() for name, value in stacked(p).items()}
    return torch.autograd.grad(vmap(cost(model))(leaves).sum(), list(leaves.values()))


CALLS: dict[str, Callable[[nn.Module, Parameters], Any]] = {
    "grad": lambda m, p: grad(cost(m))(p),
    "later pullback": lambda m, p: vjp(called(m), p)[1](V),
    "jvp": lambda m, p: jvp(called(m), (p,), (p,)),
    "hessian": lambda m, p: hessian(cost(m))(p),
    "vmap over parameters": lambda m, p: vmap(called(m))(stacked(p)),
    "per-sample gradients": lambda m, p: vmap(grad(cost(m)), (None, 0))(p, XS),
    "gradients of an ensemble": lambda m, p: vmap(grad(cost(m)))(stacked(p)),
    "ordinary backward through an ensemble": ordinary,
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("way", [way for way in WAYS if way not in HIDDEN])
def test_functional_call_of_an_outer_model(way: str, call: str) -> None:
    """`functional_call` has restored the parameters when a backward pass runs `f` again."""
    model, plain = Outer(WAYS[way]), Outer(lambda o, x: iterate(o.cell, torch.zeros_like(x), x))
    p = {name: value.detach() for name, value in model.named_parameters()}
    agree(CALLS[call](model, p), CALLS[call](plain, p), 1e-7)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("way", HIDDEN)
def test_functional_call_of_a_model_that_hides_its_cell(way: str, call: str) -> None:
    model, plain = Outer(WAYS[way]), Outer(lambda o, x: iterate(o.cell, torch.zeros_like(x), x))
    p = {name: value.detach() for name, value in model.named_parameters()}
    true = CALLS[call](plain, p)
    right_or_refused(lambda: CALLS[call](model, p), true, "`f` read")


def test_all_hidden_modules_that_the_map_calls_are_found() -> None:
    """Two that are reached by a global name only, when a pullback runs `f` again."""

    def both(y: Tensor, x: Tensor) -> Tensor:
        return from_global(y, x) + 0.1 * REGISTRY["before"](y)

    def hidden(outer: Any, x: Tensor) -> Tensor:
        REGISTRY.update(cell=outer.cell, before=outer.before)
        return run_tight(both, torch.zeros_like(x), x)

    def shown(outer: Any, x: Tensor) -> Tensor:
        return iterate(lambda y: outer.cell(y, x) + 0.1 * outer.before(y), torch.zeros_like(x))

    model, plain = Outer(hidden), Outer(shown)
    p = {name: value.detach() for name, value in model.named_parameters()}
    agree(CALLS["later pullback"](model, p), CALLS["later pullback"](plain, p), 1e-7)


@pytest.mark.parametrize("call", CALLS)
def test_functional_call_inside_the_map(call: str) -> None:
    """An ensemble of cells, with no outer model at all."""
    module = Cell()

    def model(run: Any) -> nn.Module:
        class Inside(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.w = nn.Parameter(contraction())

            def forward(self, x: Tensor) -> Tensor:
                def f(y: Tensor, x: Tensor) -> Tensor:
                    return functional_call(module, {"weight": self.w}, (y, x))

                return run(f, torch.zeros_like(x), x)

        return Inside()

    p = {"w": contraction()}
    agree(CALLS[call](model(run_tight), p), CALLS[call](model(iterate), p), 1e-7)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("mode", ["exact", "jacobian_free"])
def test_functional_call_of_an_attractor(mode: str, call: str) -> None:
    class Value(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = Attractor(
                nn.Linear(3, 3, dtype=torch.float64), Cell(), TIGHT, mode, max_steps=200
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x).value

    class Plain(Value):
        def forward(self, x: Tensor) -> Tensor:
            proposal, refiner = self.model.backbone(x), self.model.refiner.module
            y = iterate(refiner, proposal, proposal)
            return y if mode == "exact" else refiner(y.detach(), proposal)

    model, plain = Value(), Plain()
    p = {name: value.detach() for name, value in model.named_parameters()}
    agree(CALLS[call](model, p), CALLS[call](plain, p), 1e-7)


def test_stacked_layers_as_an_ensemble() -> None:
    """As in torch's own recipe: state of several models stacked, one skeleton."""
    layers = [FixedPointLayer(Cell(), TIGHT, max_steps=200) for _ in "abc"]
    for i, layer in enumerate(layers):
        with torch.no_grad():
            next(layer.parameters()).mul_(0.3 * i)
    parameters, buffers = stack_module_state(layers)

    def value(p: Parameters, b: Parameters) -> Tensor:
        return functional_call(layers[0], (p, b), (torch.zeros_like(X), X)).value

    agree(
        vmap(value)(parameters, buffers), torch.stack([layer(0 * X, X).value for layer in layers])
    )
