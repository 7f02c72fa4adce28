"""What the modes refuse, and how they say so; failures that carry their evidence."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import implicit
import solvers
from implicit import Exact, FixedPointLayer, Neumann, Phantom, SolveError, fixed_point

MODES = pytest.mark.parametrize("mode", implicit.backward_modes())


def start(size: int = 3) -> Tensor:
    return torch.zeros(2, size, dtype=torch.float64)


def weight() -> Tensor:
    return torch.ones(3, dtype=torch.float64, requires_grad=True)


def test_unknown_mode_lists_what_exists_and_guesses() -> None:
    with pytest.raises(ValueError, match="Unknown backward mode 'exakt'") as caught:
        fixed_point(torch.cos, start(), backward="exakt")
    assert ", ".join(implicit.backward_modes()) in str(caught.value)
    assert "Did you mean 'exact'?" in str(caught.value)


@pytest.mark.parametrize("given", [3, None, Exact, torch.cos, ["exact"]])
def test_mode_of_a_wrong_type(given: Any) -> None:
    with pytest.raises(TypeError, match=r"Expected a backward mode name or a BackwardMode inst"):
        fixed_point(torch.cos, start(), backward=given)


def test_solver_is_no_mode_and_mode_is_no_solver() -> None:
    with pytest.raises(TypeError, match="Expected a backward mode"):
        fixed_point(torch.cos, start(), backward=solvers.Picard())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="Expected a solver"):
        fixed_point(torch.cos, start(), solver=Exact())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("mode", "option", "guess"),
    [
        ("phantom", "step", "steps"),
        ("exact", "solvr", "solver"),
        ("exact", "max_step", "max_steps"),
    ],
)
def test_unknown_option_lists_the_options_and_guesses(mode: str, option: str, guess: str) -> None:
    with pytest.raises(ValueError, match=f"Options: .*Did you mean '{guess}'"):
        implicit.get_backward(mode, **{option: 1})


def test_mode_without_options_takes_none() -> None:
    with pytest.raises(ValueError, match=r"option of 'jacobian_free', 'steps'"):
        implicit.get_backward("jacobian_free", steps=2)


@pytest.mark.parametrize("steps", [0, -1, 1.5, True, "3", None])
def test_phantom_steps_out_of_range(steps: Any) -> None:
    with pytest.raises(ValueError, match="`steps` must be an integer of at least 1") as caught:
        Phantom(steps=steps)
    assert repr(steps) in str(caught.value)


@pytest.mark.parametrize("damping", [1.0, -0.1, float("nan"), float("inf")])
def test_phantom_damping_out_of_range(damping: float) -> None:
    with pytest.raises(ValueError, match=r"`damping` must lie in \[0, 1\), got .* weighs the old"):
        Phantom(damping=damping)


@pytest.mark.parametrize("clip", [0, -1.0, float("nan"), "2"])
def test_neumann_clip_out_of_range(clip: Any) -> None:
    with pytest.raises(ValueError, match=r"`clip` must be above 0, or None for no bound: got"):
        Neumann(clip=clip)


@pytest.mark.parametrize("given", ["ignore", "", None, 1])
def test_exact_on_failure_is_one_of_three(given: Any) -> None:
    wanted = "`on_failure` must be 'warn', 'raise' or 'jacobian_free', got"
    with pytest.raises(ValueError, match=wanted) as caught:
        Exact(on_failure=given)
    assert repr(given) in str(caught.value)


def test_exact_checks_its_solver_at_once() -> None:
    with pytest.raises(ValueError, match=r"Unknown solver 'picardy'.*Did you mean 'picard'"):
        Exact(solver="picardy")
    with pytest.raises(TypeError, match="Expected a solver name or a FixedPointSolver instance"):
        Exact(solver=Exact())  # type: ignore[arg-type]


def test_options_are_frozen_and_by_keyword() -> None:
    with pytest.raises(AttributeError):
        Phantom().steps = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        Phantom(3)  # type: ignore[misc]


@MODES
@pytest.mark.parametrize("max_steps", [-1, 1.5, True, None])
def test_bad_budget(mode: str, max_steps: Any) -> None:
    with pytest.raises(ValueError, match="`max_steps` must be an integer of at least 0, got"):
        fixed_point(torch.cos, start(), backward=mode, max_steps=max_steps)


@MODES
def test_map_that_changes_shape_dtype_or_structure(mode: str) -> None:
    w = weight()
    with pytest.raises(ValueError, match=r"input's shape: got \(2, 2\) from y of shape \(2, 3\)"):
        fixed_point(lambda y: (w * y)[:, :2], start(), backward=mode)
    with pytest.raises(TypeError, match=r"input's dtype: got torch.float32 .* Cast inside `f`"):
        fixed_point(lambda y: (w * y).float(), start(), backward=mode)
    with pytest.raises(TypeError, match="must return the structure of its input"):
        fixed_point(lambda y: (w * y, y), start(), backward=mode)
    with pytest.raises(TypeError, match="must return tensors: got None"):
        fixed_point(lambda y: [None], [start()], backward=mode)


@MODES
def test_map_whose_shape_differs_under_grad_mode(mode: str) -> None:
    """The solve succeeds, but the recorded call is checked, too."""
    w = weight()

    def f(y: Tensor) -> Tensor:
        fy = 0.5 * y + w
        return fy[:, :2] if torch.is_grad_enabled() else fy

    with pytest.raises(ValueError, match="`f` must return its input's shape"):
        fixed_point(f, start(), backward=mode)


@MODES
def test_start_must_be_floating_point(mode: str) -> None:
    with pytest.raises(TypeError, match=r"`y0` must be floating point or complex: got torch.int64"):
        fixed_point(lambda y: y, start().long(), backward=mode)


@MODES
def test_map_must_be_a_function(mode: str) -> None:
    with pytest.raises(TypeError, match="`f` must be a function of the state and the args: got "):
        fixed_point(None, start(), backward=mode)  # type: ignore[arg-type]


@MODES
def test_solve_error_carries_the_solution(mode: str) -> None:
    w = weight()
    with pytest.raises(SolveError, match="2 of 2 samples did not converge in 3 steps") as caught:
        fixed_point(lambda y: 0.9 * y + w, start(), solver="picard", backward=mode, max_steps=3)
    found = caught.value.solution
    expected = torch.full_like(start(), 1 + 0.9 + 0.81)
    assert torch.allclose(found.value, expected)
    assert torch.allclose(found.residual, torch.full((2,), 0.729, dtype=torch.float64))
    assert not found.converged.any()
    assert "Raise `max_steps`" in str(caught.value)


def test_advice_for_coupled_samples_is_left_out_where_args_say_that_they_are_not() -> None:
    for args, coupled in (((), True), ((start(),), False)):
        with pytest.raises(SolveError) as caught:
            fixed_point(lambda y, *args: 0.9 * y + 1, start(), *args, max_steps=0)
        assert ("batch_dims=0" in "".join(getattr(caught.value, "__notes__", ()))) == coupled


def test_a_graph_whose_nodes_are_taken_for_samples_is_told_of_one_state() -> None:
    """A ring of 40 nodes, as docs/getting_started.md says of it."""
    generator = torch.Generator().manual_seed(0)
    given, x = (torch.randn(size, 8, generator=generator) for size in (8, 40))
    inner = 1.4 * given / torch.linalg.matrix_norm(given, 2)

    def f(y: Tensor, x: Tensor) -> Tensor:
        return torch.tanh((y.roll(1, 0) + y.roll(-1, 0)) / 2 @ inner + x)

    with pytest.raises(SolveError) as caught:
        fixed_point(f, torch.zeros(40, 8), x, independent=False)
    assert "as the nodes of a graph do, pass `batch_dims=0`" in caught.value.__notes__[0]
    assert int(fixed_point(f, torch.zeros(40, 8), x, batch_dims=0).num_steps) < 20


@MODES
@pytest.mark.parametrize("max_steps", [0, 1, 2])
def test_budget_of_a_few_steps_gives_the_iterate_of_that_many(mode: str, max_steps: int) -> None:
    w = weight()

    def solve() -> solvers.Solution:
        return fixed_point(
            lambda y: 0.5 * y + w, start(), solver="picard", backward=mode, max_steps=max_steps,
            throw=False,
        )  # fmt: skip

    if mode == "shine":
        with pytest.raises(ValueError, match=r"got Picard, which has none.*anderson.*broyden"):
            solve()
        return
    s = solve()
    moved = max_steps + (4 if mode == "phantom" else 0)
    assert torch.allclose(s.value, torch.full_like(start(), 2 - 2 * 0.5**moved))
    assert s.num_steps.tolist() == [max_steps] * 2
    assert (s.result == solvers.Result.max_steps).all()
    assert s.value.requires_grad


@pytest.mark.parametrize("max_steps", [0, 1, 2])
def test_short_adjoint_budget_is_a_truncated_series_and_says_so(max_steps: int) -> None:
    w = weight()
    mode = Exact(solver="picard", max_steps=max_steps)
    s = fixed_point(lambda y: 0.5 * y + w, start(), backward=mode)
    with pytest.warns(UserWarning, match=r"gradient is approximate: .* u = v \+ J\^T u failed"):
        s.value.sum().backward()
    assert torch.allclose(w.grad, torch.full_like(w, 2 * (2 - 0.5**max_steps)))
    assert not s.adjoints[0].converged.any()
    assert s.adjoints[0].num_steps.tolist() == [max_steps] * 2


def test_raised_adjoint_failure_carries_its_solution() -> None:
    w = weight()
    mode = Exact(solver="picard", max_steps=1, on_failure="raise")
    s = fixed_point(lambda y: 0.5 * y + w, start(), backward=mode)
    with pytest.raises(SolveError) as caught:
        s.value.sum().backward()
    assert caught.value.solution is s.adjoints[0]
    assert w.grad is None


def test_error_inside_the_map_reaches_the_caller() -> None:
    def f(y: Tensor) -> Tensor:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fixed_point(f, start())


def test_layer_checks_types_at_construction() -> None:
    with pytest.raises(TypeError, match="Expected a backward mode"):
        FixedPointLayer(nn.Identity(), backward=Phantom)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="Expected a solver"):
        FixedPointLayer(nn.Identity(), solver=None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({"rtol": 1e-3}, r"solver: solver=get_solver\('anderson', rtol=0.001\)"),
        ({"rtol": 1e-3, "solver": "broyden"}, r"get_solver\('broyden', rtol=0.001\)"),
        ({"ridge": 0.1, "solver": solvers.Anderson()}, r"get_solver\('anderson', ridge=0.1\)"),
        ({"steps": 3}, r"mode: backward=get_backward\('phantom', steps=3\)"),
        ({"max_step": 3}, "Did you mean 'max_steps'"),
        ({"wholly": 3}, "no option here"),
    ],
)
@pytest.mark.parametrize("call", [fixed_point, FixedPointLayer, solvers.solve])
def test_the_error_for_an_unknown_option_names_its_owner(
    call: Any, options: Any, advice: str
) -> None:
    first = (nn.Identity(),) if call is FixedPointLayer else (torch.cos, start())
    if call is solvers.solve and "steps" in options:
        advice = "Did you mean 'max_steps'"
    with pytest.raises(TypeError, match=advice) as caught:
        call(*first, **options)
    assert f"unexpected keyword argument '{next(iter(options))}'" in str(caught.value)


def test_type_errors_of_the_map_are_left_alone() -> None:
    def f(y: Tensor, x: Tensor) -> Tensor:
        raise TypeError("mine")

    with pytest.raises(TypeError) as caught:
        fixed_point(f, start(), start())
    assert str(caught.value) == "mine"


@pytest.mark.parametrize("given", [None, nn.Identity])
def test_a_layer_needs_a_module(given: Any) -> None:
    with pytest.raises(TypeError, match="`module` must be a function of the state and the args"):
        FixedPointLayer(given)


def test_a_layer_takes_the_arguments_of_its_module_by_position() -> None:
    layer = FixedPointLayer(nn.Bilinear(3, 3, 3))
    with pytest.raises(TypeError, match=r"argument 'x'.*besides y follows `y0` without a keyword"):
        layer(start(), x=start())
    with pytest.raises(TypeError, match="Did you mean 'max_steps'"):
        layer(start(), max_step=3)


@MODES
def test_a_map_that_cannot_be_recorded_is_told_so(mode: str) -> None:
    w = weight()

    def f(y: Tensor) -> Tensor:
        out = 0.5 * y + w
        return torch.as_tensor(out.numpy()) if torch.is_grad_enabled() else out

    with pytest.raises(RuntimeError, match="numpy") as caught:
        fixed_point(f, start(), backward=mode)
    (note,) = caught.value.__notes__
    assert "float64[2, 3]" in note
    if mode != "unrolled":  # which records the first call
        assert "called with gradients on" in note
        assert "it leaves torch, as by `.numpy()`" in note


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.jacfwd])
def test_a_missing_argument_under_a_transform_is_named(transform: Any) -> None:
    with pytest.raises(TypeError, match="NoneType") as caught:
        transform(lambda x: fixed_point(lambda y, x: y / 2 + x, x, None).value.sum())(start())
    assert "args = (None,)" in "".join(caught.value.__notes__)
