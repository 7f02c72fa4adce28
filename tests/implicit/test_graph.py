"""Gradients of a solve within one compiled graph are those of the eager one."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from parameters import long, slow, some
from torch import Tensor, nn

import implicit
import solvers
from implicit import FixedPointLayer, fixed_point
from solvers import Solution

MODES = ["exact", "jacobian_free", "neumann", "phantom"]
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*Function.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Pull(nn.Module):
    """A contraction with weights that all samples share."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(4, 4, dtype=torch.float64)

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(0.8 * self.inner(y) + x)


def gradients(
    layer: nn.Module, call: Callable[..., Solution], y0: Tensor, x: Tensor, good: Tensor
) -> tuple[list[Tensor], Solution]:
    """The gradients of a loss over the good samples, to the weights and to x."""
    layer.zero_grad()
    x = x.detach().requires_grad_()
    solution = call(y0, x)
    solution.value[good].square().sum().backward()
    assert x.grad is not None
    return [x.grad, *(part.grad.clone() for part in layer.parameters() if part.grad is not None)], (
        solution
    )


def compare(layer: nn.Module, x: Tensor, good: Tensor, backend: str = "aot_eager") -> None:
    y0 = torch.zeros_like(x)
    eager, expected = gradients(layer, layer, y0, x, good)
    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    graph, found = gradients(layer, compiled, y0, x, good)
    assert torch.equal(found.result, expected.result)
    assert len(graph) == len(eager) == 3
    for a, b in zip(graph, eager, strict=True):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("mode", some(MODES, "exact"))
@pytest.mark.parametrize("solver", ["anderson", long("picard")])
def test_gradients_agree(solver: str, mode: str) -> None:
    tight = solvers.get_solver(solver, rtol=1e-11, atol=1e-12)
    layer = FixedPointLayer(Pull(), tight, mode, max_steps=80)
    compare(layer, torch.randn(6, 4, dtype=torch.float64), torch.ones(6, dtype=torch.bool))


@pytest.mark.parametrize(
    "adjoint",
    [long(name, unless=name == "gmres") for name in ("bicgstab", "broyden", "gmres", "neumann")],
)
def test_exact_with_a_solver_of_its_own_for_the_adjoint(adjoint: str) -> None:
    tight = solvers.get_solver("anderson", rtol=1e-11, atol=1e-12)
    mode = implicit.get_backward("exact", solver=adjoint)
    layer = FixedPointLayer(Pull(), tight, mode, max_steps=80)
    compare(layer, torch.randn(6, 4, dtype=torch.float64), torch.ones(6, dtype=torch.bool))


@pytest.mark.parametrize("mode", [long(mode, unless=mode == "exact") for mode in MODES])
def test_a_bad_sample_harms_no_gradient(mode: str) -> None:
    """The loss leaves out a sample that became NaN: its gradient is zero, and no other changes."""
    x = torch.randn(6, 4, dtype=torch.float64)
    x[2, 1] = torch.nan
    good = torch.arange(6) != 2
    tight = solvers.get_solver("anderson", rtol=1e-11, atol=1e-12)
    compare(FixedPointLayer(Pull(), tight, mode, max_steps=80), x, good)


def test_one_unbatched_state_that_is_nan() -> None:
    """A loss that does not use it has a gradient of zero, not NaN."""
    weight = torch.ones(3, requires_grad=True)

    def loss(x: Tensor) -> Tensor:
        f = lambda y: torch.tanh(weight * y) + x  # noqa: E731
        solution = fixed_point(f, torch.zeros(3), batch_dims=0, backward="phantom", throw=False)
        return (0 * solution.value).nan_to_num().sum()

    for call in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        weight.grad = None
        call(torch.tensor([1.0, torch.nan, 1.0])).backward()
        assert weight.grad is not None
        assert not weight.grad.any()


@pytest.mark.parametrize("mode", [slow("exact"), "phantom"])
def test_autocast(mode: str) -> None:
    """`f` computes in bfloat16, within a graph as outside; the gradient is in float32."""
    linear, x = nn.Linear(4, 4), torch.randn(6, 4)

    def call() -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return fixed_point(
                lambda y, x: torch.tanh(0.3 * linear(y) + x), torch.zeros_like(x), x,
                solver=solvers.Anderson(rtol=1e-2), backward=mode, throw=False,
            ).value  # fmt: skip

    values, grads = [], []
    for solve in (call, torch.compile(call, fullgraph=True, backend="aot_eager")):
        linear.zero_grad()
        values.append(solve())
        values[-1].sum().backward()
        assert linear.weight.grad is not None
        grads.append(linear.weight.grad.clone())
    assert values[1].dtype == grads[1].dtype == torch.float32
    assert torch.allclose(*values, atol=1e-2)
    assert torch.allclose(*grads, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    "backward",
    [
        "shine",
        "unrolled",
        implicit.get_backward("exact", on_failure="raise"),
        implicit.get_backward("exact", preconditioner=lambda v: v),
    ],
    ids=["shine", "unrolled", "on_failure", "preconditioner"],
)
def test_a_mode_that_no_graph_holds_is_refused(backward: Any) -> None:
    with pytest.raises(ValueError, match="needs more of the solve than a graph can hold"):
        fixed_point(torch.cos, torch.zeros(2, 1), backward=backward, loop="graph")


def test_auxiliary_outputs_and_a_pytree_state() -> None:
    weight = torch.tensor(0.3, requires_grad=True)

    def f(y: dict[str, Tensor], x: Tensor) -> Any:
        return {"a": torch.cos(y["b"]) * weight + x, "b": torch.sin(y["a"])}, y["a"].sum()

    def call(x: Tensor) -> tuple[Tensor, Tensor]:
        y0 = {"a": torch.zeros_like(x), "b": torch.zeros_like(x)}
        s = fixed_point(f, y0, x, has_aux=True, backward="phantom", throw=False)
        return s.value["a"], s.aux

    x = torch.randn(3, 2)
    found = torch.compile(call, fullgraph=True, backend="aot_eager")(x)
    for a, b in zip(found, call(x), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
        (mine,) = torch.autograd.grad(a.sum(), weight, retain_graph=True)
        (theirs,) = torch.autograd.grad(b.sum(), weight, retain_graph=True)
        assert torch.allclose(mine, theirs, rtol=1e-3)


def test_a_program_of_any_solver() -> None:
    """`torch.export` holds the loop, for a batch of any size."""
    layer = FixedPointLayer(Pull(), "anderson").eval()
    x = torch.randn(5, 4, dtype=torch.float64)
    batch = torch.export.Dim("batch", min=1)
    with torch.no_grad():
        program = torch.export.export(OnlyValue(layer), (x,), dynamic_shapes=({0: batch},)).module()
        for size in (5, 3, 1):
            expected = layer(torch.zeros_like(x[:size]), x[:size])
            value, result = program(x[:size])
            assert torch.allclose(value, expected.value, atol=1e-6)
            assert torch.equal(result, expected.result)


class OnlyValue(nn.Module):
    """A program returns tensors."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = copy.deepcopy(layer)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        solution = self.layer(torch.zeros_like(x), x)
        return solution.value, solution.result


@pytest.mark.parametrize("mode", [long(mode, unless=mode == "exact") for mode in MODES])
def test_inductor(mode: str) -> None:
    """A compiler that writes into memory that it takes for its own has given wrong adjoints."""
    tight = solvers.get_solver("anderson", rtol=1e-11, atol=1e-12)
    layer = FixedPointLayer(Pull(), tight, mode, max_steps=80)
    x = torch.randn(6, 4, dtype=torch.float64)
    compare(layer, x, torch.ones(6, dtype=torch.bool), backend="inductor")


@pytest.mark.parametrize("mode", [long(mode, unless=mode == "exact") for mode in MODES])
def test_by_hand(mode: str) -> None:
    """`loop="graph"` outside a compiler: numbers are numbers, and gradients those of the loop."""
    tight = solvers.get_solver("anderson", rtol=1e-11, atol=1e-12)
    model, x = Pull(), torch.randn(6, 4, dtype=torch.float64)
    good = torch.ones(6, dtype=torch.bool)
    found = {}
    for loop in ("eager", "graph"):
        layer = FixedPointLayer(model, tight, mode, max_steps=80, loop=loop)
        found[loop] = gradients(layer, layer, torch.zeros_like(x), x, good)
    assert isinstance(found["graph"][1].num_evals, int)
    for a, b in zip(found["graph"][0], found["eager"][0], strict=True):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-9)


@pytest.mark.slow
def test_what_torch_cannot_hold_says_what_to_write_instead() -> None:
    """`W.T` of a tensor that `f` closes over is an input of torch's graph at the wrong place."""
    weight = (torch.randn(3, 3) / 6).requires_grad_()
    with pytest.raises(Exception, match="FakeTensor") as found:
        fixed_point(lambda y: torch.tanh(y @ weight.T + 1), torch.zeros(2, 3), loop="graph")
    assert any("must write `W.t()`" in note for note in found.value.__notes__)
