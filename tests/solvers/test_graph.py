"""The loop of a graph gives the values, verdicts and counts of the eager loop."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from parameters import long, slow, some
from torch import Tensor
from torch._dynamo.utils import counters

import solvers
from solvers import FixedPointSolver, Solution
from solvers.compiler import _compiled
from solvers.graph import solve_in_graph
from solvers.registry import LINEAR, SOLVERS
from solvers.torch_internals import pytree

NONLINEAR = [
    "aitken",
    "anderson",
    "anderson_safe",
    "anderson_type1",
    "broyden",
    "picard",
    "squarem",
]
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*torch._prims_common.check.*:FutureWarning"),
]
REFUSED = ["newton_krylov", "robust"]
ALL = [*NONLINEAR, *LINEAR.names()]


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    """No test sees what another has compiled, or hits the limit of compilations."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def named(name: str, **options: Any) -> FixedPointSolver:
    return (LINEAR if name in LINEAR else SOLVERS).get(name, **options)


def compiled(solver: FixedPointSolver, f: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """The solve as one graph, without a compiler behind it: to trace it is the test."""

    def solve(y0: Any, *args: Tensor) -> Solution:
        return solve_in_graph(f, y0, args, solver=solver, **options)

    return torch.compile(solve, fullgraph=True, backend="eager", dynamic=False)


def same(graph: Solution, eager: Solution, rtol: float = 1e-3) -> None:
    """Equal verdicts, counts within one step, and values equal to within the tolerance."""
    assert torch.equal(graph.result, eager.result)
    assert bool(((graph.num_steps - eager.num_steps).abs() <= 1).all())
    assert abs(int(graph.num_evals) - eager.num_evals) <= 1
    ok = eager.converged
    for a, b in zip(*map(pytree.tree_leaves, (graph.value, eager.value)), strict=True):
        assert a.dtype == b.dtype
        assert torch.allclose(a[ok], b[ok], rtol=rtol, atol=rtol)
    # A failed sample reports the residual of the same point, too.
    failed = ~ok & (eager.num_steps == graph.num_steps) & eager.residual.isfinite()
    assert torch.allclose(graph.residual[failed], eager.residual[failed], rtol=0.1)


def matrices(count: int, entries: int, seed: int, largest: float = 0.95) -> Tensor:
    """Random matrices whose norms lie between 0.2 and `largest`."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(count, entries, entries, generator=generator).double()
    norms = torch.linspace(0.2, largest, count)
    return drawn * (norms / torch.linalg.matrix_norm(drawn, 2))[:, None, None]


def tanh_map(y: Tensor, matrix: Tensor, shift: Tensor) -> Tensor:
    return torch.tanh((matrix @ y[..., None])[..., 0]) + shift


def affine_map(y: Tensor, matrix: Tensor, shift: Tensor) -> Tensor:
    return (matrix @ y[..., None])[..., 0] + shift


@pytest.mark.parametrize("independent", [True, long(False)])
@pytest.mark.parametrize("name", some(ALL, "broyden"))
def test_agrees_with_the_eager_loop(name: str, independent: bool):
    """On random batches, with samples that are NaN and, where growth is judged, run away."""
    solver = named(name)
    f = affine_map if solver.linear else tanh_map
    graph = compiled(solver, f, max_steps=60, independent=independent)
    for seed in range(4):
        matrix = matrices(12, 6, seed)
        shift = torch.randn(12, 6, generator=torch.Generator().manual_seed(seed)).double()
        if independent:
            shift[3, 2] = torch.nan
        if seed > 1 and not solver.linear and independent:
            matrix[5] = 0.0
            shift[5] = torch.inf
        y0 = torch.zeros_like(shift)
        eager = solver.iterate(f, y0, (matrix, shift), max_steps=60, independent=independent)
        same(graph(y0, matrix, shift), eager)


@pytest.mark.parametrize("name", [long(name, unless=name == "anderson") for name in NONLINEAR])
def test_runaways_have_the_same_verdicts(name: str):
    """A map without a fixed point, one that grows, and one whose residual is larger on the way."""

    def f(y: Tensor, kind: Tensor) -> Tensor:
        shifted, grown, kinked = y + 1, 3 * y + 1, y + y.abs() + 1
        return torch.where(kind == 0, shifted, torch.where(kind == 1, grown, kinked))

    kind = torch.tensor([[0.0], [1.0], [2.0], [0.0]], dtype=torch.float64)
    y0 = torch.tensor([[0.0], [1.0], [-4.0], [1e9]], dtype=torch.float64)
    solver = named(name)
    for max_steps in (0, 9, 70):
        graph = compiled(solver, f, max_steps=max_steps, independent=True)
        same(graph(y0, kind), solver.iterate(f, y0, (kind,), max_steps=max_steps, independent=True))


@pytest.mark.parametrize(
    "name",
    [
        "anderson",
        *(long(name, unless=name == "picard") for name in NONLINEAR if name != "anderson"),
    ],
)
def test_tokens_keep_their_verdicts_and_causality(name: str):
    """Every token as in the eager loop; and a changed token changes none before it."""
    generator = torch.Generator().manual_seed(0)
    weight = 0.5 * torch.randn(8, 8, generator=generator).double() / 8**0.5
    x = torch.randn(3, 5, 8, generator=generator).double()

    def f(y: Tensor, x: Tensor) -> Tensor:
        mean = y.cumsum(1) / torch.arange(1, 6)[:, None]
        return torch.tanh(mean @ weight) + x

    solver = named(name)
    graph = compiled(solver, f, max_steps=40, batch_dims=2, independent=True)
    first = graph(torch.zeros_like(x), x)
    eager = solver.iterate(
        f, torch.zeros_like(x), (x,), max_steps=40, batch_dims=2, independent=True
    )
    same(first, eager)
    changed = x.clone()
    changed[:, 3] += 1
    later = graph(torch.zeros_like(x), changed)
    # The last joint point is reported, so that values agree to within the tolerance only.
    assert torch.allclose(first.value[:, :3], later.value[:, :3], atol=1e-4)


@pytest.mark.parametrize(
    "state",
    [
        {"a": torch.zeros(4, 3), "b": torch.zeros(4, 2, 2, dtype=torch.float64)},
        torch.zeros(4, 3, dtype=torch.complex64),
        torch.zeros(4, 3, dtype=torch.bfloat16),
        torch.zeros(0, 3),
    ],
    ids=["pytree", "complex", "bfloat16", "empty"],
)
@pytest.mark.parametrize("name", ["anderson", slow("picard")])
def test_states_of_any_structure(name: str, state: Any):
    def f(y: Any) -> Any:
        return pytree.tree_map(lambda leaf: 0.5 * leaf + 1, y)

    solver = named(name, rtol=1e-2)
    eager = solver.iterate(f, state, independent=False)
    same(compiled(solver, f, independent=False)(state), eager, rtol=3e-2)


def test_one_unbatched_state():
    solver = named("anderson")
    y0 = torch.zeros(5)
    eager = solver.iterate(torch.cos, y0, batch_dims=0)
    same(compiled(solver, torch.cos, batch_dims=0)(y0), eager)


def test_a_full_graph_uses_it_and_a_broken_one_does_not():
    """`loop="auto"`: only a compiler that was asked for one graph gets one."""
    x = torch.randn(4, 3)

    def solve(x: Tensor) -> Solution:
        return solvers.solve(lambda y, x: torch.cos(y) * x / 2, torch.zeros_like(x), x)

    assert isinstance(torch.compile(solve, fullgraph=True, backend="eager")(x).num_evals, Tensor)
    torch._dynamo.reset()  # code that has been compiled is not compiled anew
    assert isinstance(torch.compile(solve, backend="eager")(x).num_evals, int)


@pytest.mark.parametrize("name", REFUSED)
def test_a_solver_that_no_graph_holds_is_refused(name: str):
    with pytest.raises(ValueError, match=r"which a graph cannot hold\. Use another"):
        solvers.solve(torch.cos, torch.zeros(2, 1), solver=name, loop="graph")


def test_under_a_transform_it_is_refused():
    with pytest.raises(ValueError, match=r"`loop='graph'` does not work under torch\.func"):
        torch.func.vmap(lambda y: solvers.solve(torch.cos, y, loop="graph").value)(torch.ones(2, 3))


def test_what_cannot_be_traced_says_what_to_use_instead():
    def f(y: Tensor) -> Tensor:
        return y / 2 if y.sum() > 0 else y / 3

    with pytest.raises(torch._dynamo.exc.TorchDynamoException) as found:
        solvers.solve(f, torch.ones(2, 3), loop="graph")
    assert any("`loop='eager'` has no such limits" in note for note in found.value.__notes__)


@pytest.mark.parametrize("scale", [2.0, torch.tensor([1.0, 2.0, 4.0])], ids=["number", "tensor"])
def test_a_scale(scale: Any):
    y0, x = torch.zeros(4, 3), torch.randn(4, 3)
    solver, f = named("anderson"), lambda y, x: torch.cos(y) * 0.5 + x
    eager = solver.iterate(f, y0, (x,), scale=scale, independent=True)
    same(compiled(solver, f, scale=scale, independent=True)(y0, x), eager)


def test_a_map_that_fails_without_a_compiler_has_its_plain_error():
    y0, x = torch.zeros(2, 3), torch.ones(2, 3)
    with pytest.raises(TypeError, match=r"^`f` must return its input's dtype: got torch.float64"):
        solvers.solve(lambda y, x: y / 2 + x.double(), y0, x, loop="graph")
    with pytest.raises(TypeError, match="NoneType") as found:
        solvers.solve(lambda y, x: y / 2 + x, y0, None, loop="graph")
    assert "`args[0]` is None" in found.value.__notes__[0]


def test_an_unknown_loop_is_refused():
    with pytest.raises(ValueError, match="`loop` must be one of 'auto', 'eager', 'graph': got 'x'"):
        solvers.solve(torch.cos, torch.zeros(2, 1), loop="x")  # type: ignore[arg-type]


def test_a_failure_raises_at_run_time():
    def solve(y: Tensor) -> Tensor:
        return solvers.solve(lambda y: y + 1, y, max_steps=3).value

    with pytest.raises(RuntimeError, match=r"did not converge.*pass `throw=False`"):
        torch.compile(solve, fullgraph=True, backend="eager")(torch.zeros(2, 2))
    assert torch.is_grad_enabled()


def test_a_map_that_writes_into_its_argument_does_no_harm():
    graph = compiled(named("picard"), lambda y: y.mul_(0.5).add_(1))
    same(graph(torch.ones(2, 3)), named("picard").iterate(lambda y: 0.5 * y + 1, torch.ones(2, 3)))


@pytest.mark.parametrize("name", [long(name, unless=name == "anderson") for name in NONLINEAR])
def test_compiled_by_hand(name: str):
    """By inductor, with counts that are numbers, and without a compilation for every batch size."""
    matrix, shift = matrices(9, 6, 0), torch.randn(9, 6).double()
    counters.clear()
    for size in (9, 8, 5, 3):
        args = matrix[:size], shift[:size]
        graph = solvers.solve(tanh_map, torch.zeros_like(args[1]), *args, solver=name, loop="graph")
        assert isinstance(graph.num_evals, int)
        same(graph, solvers.solve(tanh_map, torch.zeros_like(args[1]), *args, solver=name))
    assert counters["stats"]["unique_graphs"] == 2  # the first size, and all others


@pytest.mark.slow
@pytest.mark.long
def test_any_number_of_maps_and_solvers_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each once; torch by itself refuses the ninth graph of one function, and here the fourth."""
    made: list[object] = []

    def backend(graph: torch.fx.GraphModule, inputs: object) -> object:
        made.append(graph)
        return graph.forward

    compile_ = functools.partial(torch.compile, backend=backend)
    monkeypatch.setattr(
        torch, "compile", lambda f, **options: compile_(f, **(options | {"options": None}))
    )
    monkeypatch.setattr("solvers.compiler.GRAPHS_EACH", 3)
    _compiled.cache_clear()
    y0 = torch.zeros(3, 2)

    def scaled(number: float) -> Callable[[Tensor], Tensor]:
        return lambda y: number * torch.cos(y) + number

    def solve(scale: float, rtol: float) -> None:
        code = f"def f(y): return {scale} * torch.cos(y)"
        exec(code, space := {"torch": torch})
        maps.append(space["f"])
        solvers.solve(
            maps[-1], y0, solver=solvers.Picard(rtol=rtol), loop="graph", max_steps=5, throw=False
        )

    maps: list[Callable[..., Tensor]] = []
    for number in range(4):
        solve(0.01 * number, 1e-5)
        solve(0.5, 1e-5 * (1 + number))
    count = len(made)
    assert count >= 8
    for number in (0.1, 0.2, 0.3):  # closed over by the same code
        s = solvers.solve(scaled(number), y0, solver="picard", loop="graph")
        assert torch.allclose(s.value, scaled(number)(s.value), atol=1e-4)
    count = len(made)
    solver = solvers.Picard(rtol=1e-5)
    for f in maps[::2]:
        solvers.solve(f, y0, solver=solver, loop="graph", max_steps=5, throw=False)
    assert len(made) == count
    _compiled.cache_clear()
