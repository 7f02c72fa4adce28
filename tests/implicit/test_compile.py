"""torch.compile of the map, of a layer, and of a model's training step: results and breaks."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from parameters import slow
from torch import Tensor, nn
from torch._dynamo.exc import Unsupported
from torch._dynamo.utils import counters

import implicit
import solvers
from implicit import FixedPointLayer, fixed_point
from models import Attractor

# A break before the solve, one after it, and some for what is not traced around them.
MOST_BREAKS = 6
TIGHT = solvers.Anderson(rtol=1e-12, atol=1e-14)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*Function.*should not be instantiated:DeprecationWarning"),
    # Dynamo looks at `.grad` of every tensor that it meets.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]


class Pull(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4, dtype=torch.float64)

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(0.5 * self.inner(y) + x)


class Graphs:
    """A backend that counts: graphs compiled, and graphs run."""

    def __init__(self) -> None:
        self.compiled = self.run = 0

    def __call__(self, module: torch.fx.GraphModule, example: Any) -> Callable[..., Any]:
        self.compiled += 1

        def run(*args: Any) -> Any:
            self.run += 1
            return module.forward(*args)

        return run


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def make(seed: int = 0) -> tuple[Pull, Tensor, Tensor]:
    torch.manual_seed(seed)
    x = torch.randn(5, 4, dtype=torch.float64)
    return Pull(), torch.zeros_like(x), x.requires_grad_()


def same(a: Any, b: Any, tolerance: float = 1e-10) -> None:
    pairs = zip(a, b, strict=True)
    assert all(float((x - y).detach().abs().max()) <= tolerance for x, y in pairs)


def gradients(value: Tensor, *wanted: Any) -> tuple[Tensor, ...]:
    return torch.autograd.grad(value.pow(3).sum(), wanted)


MODES = [mode for mode in implicit.backward_modes() if mode != "shine"]


@pytest.mark.parametrize(
    ("backend", "modes"),
    [
        # One map, compiled once, under all modes; and anew for each.
        pytest.param("aot_eager", MODES, id="aot_eager"),
        *(slow(backend, [mode]) for backend in ("eager", "aot_eager") for mode in MODES),
    ],
)
@pytest.mark.parametrize("solver", ["picard", "anderson", "broyden"])
def test_compiled_map(solver: str, backend: str, modes: list[str]) -> None:
    model, y0, x = make()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    tight = solvers.get_solver(solver, rtol=1e-12, atol=1e-14)
    for mode in modes:
        found, true = (
            fixed_point(f, y0, x, solver=tight, backward=mode, max_steps=200)
            for f in (compiled, model)
        )
        assert torch.equal(found.num_steps, true.num_steps), mode
        same([found.value], [true.value])
        wanted = [x, *model.parameters()]
        same(gradients(found.value, *wanted), gradients(true.value, *wanted))


def test_compiled_map_is_compiled_a_bounded_number_of_times() -> None:
    """Once per grad mode and for sizes that vary: not once per step, batch size or solve."""
    model, _, x = make()
    graphs = Graphs()
    compiled = torch.compile(model, backend=graphs, fullgraph=True)

    def solve(rows: int, max_steps: int) -> None:
        chosen = x[:rows].detach().requires_grad_()
        s = fixed_point(
            compiled, torch.zeros_like(chosen), chosen, solver=solvers.Picard(rtol=0.0, atol=0.0),
            backward="jacobian_free", max_steps=max_steps, throw=False,
        )  # fmt: skip
        s.value.sum().backward()

    for rows in (5, 4, 3, 1):  # one row is a size of its own for the compiler
        solve(rows, 3)
    settled, run = graphs.compiled, graphs.run
    assert settled <= 6
    solve(2, 12)  # fewer than it takes to come to rest
    assert graphs.compiled == settled
    assert graphs.run - run > 12


def test_compiled_map_survives_compaction() -> None:
    """`f` is called on fewer and fewer rows, but not compiled for every size."""
    graphs = Graphs()

    def f(y: Tensor, rate: Tensor) -> Tensor:
        return rate * y + 1

    rate = 0.97 * torch.linspace(0, 1, 40, dtype=torch.float64)[:, None] ** 4
    compiled = torch.compile(f, backend=graphs, fullgraph=True)
    s = solvers.solve(compiled, torch.zeros(40, 3).double(), rate, solver="picard", max_steps=500)
    true = solvers.solve(f, torch.zeros(40, 3).double(), rate, solver="picard", max_steps=500)
    assert s.rows_evaluated == true.rows_evaluated < 0.5 * 40 * s.num_evals
    same([s.value], [true.value])
    assert graphs.compiled <= 4


def test_compiled_map_twice_differentiated() -> None:
    model, y0, x = make()
    compiled = torch.compile(model, backend="eager")

    def second(f: Any) -> Tensor:
        value = fixed_point(f, y0, x, solver=TIGHT, max_steps=200).value
        (first,) = torch.autograd.grad(value.pow(3).sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x)[0]

    same([second(compiled)], [second(model)])


@pytest.mark.parametrize(
    "transform",
    [
        torch.func.jacrev,
        torch.func.jacfwd,
        torch.func.vmap,
        lambda f: lambda x: torch.func.jvp(f, (x,), (x,))[1],
    ],
)
def test_compiled_map_under_transforms(transform: Any) -> None:
    model, y0, x = make()
    compiled = torch.compile(model, backend="eager")

    def value(f: Any, x: Tensor) -> Tensor:
        return fixed_point(f, y0[0], x, solver=TIGHT, max_steps=200, batch_dims=0).value

    given = x.detach() if transform is torch.func.vmap else x[0].detach()
    found, true = (transform(lambda x, f=f: value(f, x))(given) for f in (compiled, model))
    same([found], [true])


def test_compiled_map_in_newton_krylov() -> None:
    """A solver that takes derivatives of the map."""
    model, y0, x = make()
    compiled = torch.compile(model, backend="eager")
    options = {"solver": solvers.NewtonKrylov(rtol=1e-12), "max_steps": 200}
    found, true = (solvers.solve(f, y0, x, **options) for f in (compiled, model))  # type: ignore[arg-type]
    same([found.value], [true.value])


@pytest.mark.parametrize(
    ("mode", "backend"),
    [
        ("exact", "aot_eager"),
        ("jacobian_free", "eager"),
        ("phantom", "eager"),
        ("unrolled", "eager"),
        ("neumann", "eager"),
    ],
)
def test_compiled_layer(mode: str, backend: str) -> None:
    """All of its evidence, and its gradients."""
    model, y0, x = make()
    layer = FixedPointLayer(model, TIGHT, mode, max_steps=200)
    compiled = torch.compile(layer, backend=backend)
    found, true = compiled(y0, x), layer(y0, x)
    assert torch.equal(found.num_steps, true.num_steps)
    assert torch.equal(found.converged, true.converged)
    assert found.num_evals == true.num_evals
    same([found.value, found.residual], [true.value, true.residual])
    wanted = [x, *model.parameters()]
    same(gradients(found.value, *wanted), gradients(true.value, *wanted))
    if mode == "exact":
        assert found.adjoints[0].converged.all()


def pieces(mode: str, max_steps: int, solver: str = "anderson") -> tuple[int, int]:
    """Graphs and breaks of a layer between two maps."""
    model, _, x = make()
    endless = solvers.get_solver(solver, rtol=0.0, atol=0.0)
    layer = FixedPointLayer(model, endless, mode, max_steps=max_steps, compact=False)

    def step(x: Tensor) -> Tensor:
        return layer(torch.zeros_like(x), torch.sin(x)).value.cos().sum()

    torch._dynamo.reset()
    seen = torch._dynamo.explain(step)(x)
    return seen.graph_count, seen.graph_break_count


@pytest.mark.parametrize(
    ("solver", "mode"),
    [
        ("anderson", "exact"),
        ("picard", "jacobian_free"),
        ("anderson", "phantom"),
        ("picard", "unrolled"),
        ("broyden", "shine"),
    ],
)
def test_breaks_are_few_whatever_the_number_of_steps(solver: str, mode: str) -> None:
    """torchdeq has 15, and compiles anew until the limit."""
    few, many = pieces(mode, 2, solver), pieces(mode, 12, solver)
    assert few == many
    assert few[1] <= MOST_BREAKS


def test_layer_is_not_compiled_anew_per_step_or_solve() -> None:
    model, y0, x = make()
    graphs = Graphs()
    endless = solvers.Picard(rtol=0.0, atol=0.0)
    layer = FixedPointLayer(model, endless, "jacobian_free", compact=False)
    compiled = torch.compile(layer, backend=graphs)
    for max_steps in (3, 4):
        compiled(y0, x, max_steps=max_steps).value.sum().backward()
    settled = graphs.compiled
    assert settled <= MOST_BREAKS
    for max_steps in (5, 17, 40):
        compiled(y0, x, max_steps=max_steps).value.sum().backward()
    assert graphs.compiled == settled


def attractor(mode: str) -> Attractor:
    torch.manual_seed(1)
    backbone = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)).double()
    return Attractor(backbone, Pull(), TIGHT, mode, max_steps=200)


def train(model: Any, parameters: list[nn.Parameter], steps: int = 3) -> list[float]:
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    losses = []
    for seed in range(steps):
        optimizer.zero_grad()
        loss = (model(make(seed)[2].detach()).value - 0.2).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    ("mode", "backend"), [("exact", "aot_eager"), ("jacobian_free", "eager"), ("phantom", "eager")]
)
def test_training_steps_of_a_compiled_attractor(mode: str, backend: str) -> None:
    model = attractor(mode)
    twin = copy.deepcopy(model)
    compiled = torch.compile(twin, backend=backend)
    losses = train(model, list(model.parameters()))
    assert train(compiled, list(twin.parameters())) == pytest.approx(losses, rel=1e-10)
    same(twin.parameters(), model.parameters())
    assert losses[-1] < losses[0]


def test_breaks_of_an_attractor_are_few() -> None:
    seen = torch._dynamo.explain(attractor("exact"))(make()[2].detach())
    assert seen.graph_break_count <= MOST_BREAKS


def test_backbone_and_decoder_are_compiled() -> None:
    """What surrounds the solve runs as graphs, in every call."""
    graphs = Graphs()
    model = attractor("jacobian_free")

    def step(x: Tensor) -> Tensor:
        return model(x).value.cos().sum()

    compiled = torch.compile(step, backend=graphs)
    for seed in range(3):
        compiled(make(seed)[2].detach()).backward()
    assert graphs.run >= 3 * 2
    assert graphs.compiled <= MOST_BREAKS


def test_a_solve_breaks_the_graph_once() -> None:
    """And the layer around it once more, since it is called from a graph that is broken there."""
    model, y0, x = make()
    layer = FixedPointLayer(model, backward="phantom")
    calls = {
        1: lambda x: solvers.solve(model, y0, x, throw=False).value.sum(),
        2: lambda x: layer(y0, x).value.sum(),
    }
    for breaks, call in calls.items():
        torch._dynamo.reset()
        counters.clear()
        torch.compile(call, backend="eager")(x.detach())
        assert sum(counters["graph_break"].values()) == breaks


@pytest.mark.parametrize("option", [{"solver": "newton_krylov"}, {"backward": "shine"}])
def test_a_full_graph_is_refused_where_none_can_be(option: dict[str, str]) -> None:
    """The message says why, and where to read what a graph can hold."""
    model, y0, x = make()
    compiled = torch.compile(FixedPointLayer(model, **option), backend="eager", fullgraph=True)
    with pytest.raises(Unsupported, match=r"needs the eager loop.*docs/transforms\.md"):
        compiled(y0, x)


@pytest.mark.slow
def test_inductor() -> None:
    model, y0, x = make()
    layer = FixedPointLayer(model, TIGHT, max_steps=200)
    inner: Any = torch.compile(model)
    whole, inside = torch.compile(layer), FixedPointLayer(inner, TIGHT)
    wanted = [x, *model.parameters()]
    true = layer(y0, x).value
    for compiled in (whole, inside):
        found = compiled(y0, x).value
        same([found], [true])
        same(gradients(found, *wanted), gradients(layer(y0, x).value, *wanted))


@pytest.mark.parametrize("mode", ["exact", "neumann"])
@pytest.mark.parametrize("name", ["picard", "anderson", "broyden", "newton_krylov"])
def test_backward_inside_a_compiled_step(name: str, mode: str) -> None:
    """The adjoint solve runs uncompiled, wherever its backward pass is called."""
    model, _, x = make()
    tight = solvers.get_solver(name, rtol=1e-10, atol=1e-12)
    layer = FixedPointLayer(model, solver=tight, backward=mode, max_steps=200)

    def step(x: Tensor) -> Tensor:
        loss = layer(torch.zeros_like(x), x).value.square().mean()
        loss.backward()
        return loss

    found, true = [], []
    for run, kept in ((torch.compile(step, backend="eager"), found), (step, true)):
        layer.zero_grad()
        kept.extend([run(x.detach()), *(p.grad.clone() for p in layer.parameters())])
    same(found, true)


@pytest.mark.parametrize("transform", ["grad", "jacrev", "jvp", "jacfwd", "hessian", "vmap grad"])
def test_compiled_transforms_of_a_solve(transform: str) -> None:
    """They run uncompiled, and code after them is compiled."""
    model, y0, x = make()
    weight = model.inner.weight.detach()

    def loss(weight: Tensor) -> Tensor:
        return fixed_point(
            lambda y, x: torch.tanh(0.2 * y @ weight + x), y0, x.detach(), solver=TIGHT
        ).value.pow(3).sum()  # fmt: skip

    apply: dict[str, Callable[[Tensor], Any]] = {
        "jvp": lambda w: torch.func.jvp(loss, (w,), (w,))[1],
        "vmap grad": lambda w: torch.func.vmap(torch.func.grad(loss))(w[None]),
    }
    chosen = apply.get(transform) or getattr(torch.func, transform)(loss)
    same([torch.compile(chosen, backend="eager")(weight)], [chosen(weight)])
    graphs = Graphs()
    torch.compile(torch.sin, backend=graphs)(weight)
    assert graphs.run == 1
