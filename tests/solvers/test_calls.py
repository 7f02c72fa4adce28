"""A map that is called or answers otherwise than it should: the error says what was expected."""

import copy
import functools
import re
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import implicit
import solvers
from implicit import fixed_point

Y0 = torch.zeros(10, 3)


def half(y: Tensor) -> Tensor:
    return 0.5 * y + 1


@pytest.mark.parametrize(
    ("g", "y0", "message"),
    [
        (
            lambda y: y[:, :1],
            Y0,
            "an equation for each unknown: got (10, 1) for y of shape (10, 3)",
        ),
        (lambda y: None, Y0, "got a NoneType, expected tensor."),
        (lambda y: (y, y), Y0, "got (tensor, tensor), expected tensor."),
        (lambda y: {"b": y["a"]}, {"a": Y0}, "got {'b': tensor}, expected {'a': tensor}."),
    ],
)
def test_an_equation_of_another_shape_is_not_broadcast(g: Any, y0: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        solvers.root(g, y0)


class Shift(torch.nn.Module):
    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        return 0.5 * y + x


@pytest.mark.parametrize("call", [solvers.solve, fixed_point])
@pytest.mark.parametrize(
    ("f", "args", "count"), [(half, (Y0,), 1), (lambda y, x: x, (), 0), (Shift(), (), 0)]
)
def test_args_that_the_map_does_not_take_are_counted(
    call: Any, f: Any, args: tuple[Tensor, ...], count: int
) -> None:
    with pytest.raises(TypeError, match="argument") as caught:
        call(f, Y0, *args)
    (note,) = caught.value.__notes__
    shapes = ": float32[10, 3]" if count else ""
    assert f"all that follows `y0` without a keyword. Here that is {count} of them{shapes}." in note


@pytest.mark.parametrize("call", [solvers.solve, fixed_point])
@pytest.mark.parametrize(
    ("weight", "args", "words"),
    [
        (torch.eye(3, dtype=torch.float64), (), "`f` got y = float32[10, 3]. "),
        (torch.eye(5), (), "`f` got y = float32[10, 3]. "),
        (torch.eye(5), (Y0,), "`f` got y = float32[10, 3] and args = float32[10, 3]. "),
    ],
)
def test_a_state_that_the_map_cannot_take_is_described(
    call: Any, weight: Tensor, args: tuple[Tensor, ...], words: str
) -> None:
    with pytest.raises(RuntimeError, match=r"mat1|m1") as caught:
        call(lambda y, *x: y @ weight, Y0, *args)
    (note,) = caught.value.__notes__
    assert note.startswith(words)
    assert "the shape and the dtype of the first argument" in note


X = torch.ones(10, 3)
STATES = {"fine": Y0, "coarse": Y0[:, :2]}


@pytest.mark.parametrize("call", [solvers.solve, fixed_point])
@pytest.mark.parametrize(
    ("f", "y0", "args", "words"),
    [
        (lambda y, x: y / 2 + x, Y0, (None,), "args = None. `args[0]` is None: pass a tensor"),
        (lambda y, x: y / 2 + x, Y0, ((X, X),), "`args[0]` is a tuple: does `f` expect its tensor"),
        (lambda y, x: y / 2 + x, Y0, ("x",), "args = 'x'. `args[0]` is a str: does `f` expect"),
        (lambda y, x: y / 2 + x, Y0, ([1.0, 2.0],), "args = [1.0, 2.0]. `args[0]` is a list: does"),
        (lambda y: y / "2", Y0, (), "y = float32[10, 3]. The same call without a solver, f(y0, *a"),
        (lambda y: {**y, "fine": y["Fine"]}, STATES, (), "y = {'fine': float32[10, 3], 'coarse': "),
        (lambda y: y.fine, STATES, (), "y = {'fine': float32[10, 3], 'coarse': float32[10, 2]}. "),
        (
            lambda y, i: y[i],
            Y0,
            (torch.full((10,), 10),),
            "args = int64[10]. The same call without",
        ),
        (torch.nn.LSTMCell(3, 3), Y0, (X,), "y = float32[10, 3] and args = float32[10, 3]. The"),
        (torch.nn.Linear(3, 3, device="meta"), Y0, (), "are on cpu and meta: move all to one dev"),
    ],
)
def test_an_error_within_the_first_call_says_what_the_map_got(
    call: Any, f: Any, y0: Any, args: tuple[Any, ...], words: str
) -> None:
    with pytest.raises((TypeError, LookupError, AttributeError, RuntimeError)) as caught:
        call(f, y0, *args)
    (note,) = caught.value.__notes__
    assert note.startswith("`f` got y = ")
    assert words in note


def test_what_the_map_got_is_cut_where_it_is_long() -> None:
    with pytest.raises(TypeError) as caught:
        solvers.solve(lambda y, x: y + x, Y0, [[0.1] * 3] * 100)
    (note,) = caught.value.__notes__
    assert len(note) < 500
    assert " ... `args[0]` is a list" in note.replace("....", "...")


def test_a_pair_that_is_no_state_names_has_aux() -> None:
    with pytest.raises(TypeError, match=r"got a int, expected tensor\. .* pass `has_aux=True`"):
        solvers.solve(lambda y: (y / 2, 3), Y0)  # type: ignore[arg-type, return-value]


def test_autotune_says_what_the_map_got() -> None:
    with pytest.raises(TypeError) as caught:
        solvers.autotune(lambda y, x: y / 2 + x, Y0, None)
    assert "`args[0]` is None" in caught.value.__notes__[0]


def test_an_error_of_a_later_call_has_no_note() -> None:
    calls = []

    def f(y: Tensor) -> Tensor:
        calls.append(y)
        return y / 2 + 1 if len(calls) < 3 else y / "2"  # type: ignore[operator]

    with pytest.raises(TypeError, match="unsupported operand") as caught:
        solvers.solve(f, Y0)
    assert len(calls) == 3
    assert not hasattr(caught.value, "__notes__")


def test_what_the_package_itself_raises_has_no_note() -> None:
    with pytest.raises(TypeError, match="must return tensors, in the structure") as caught:
        solvers.root(lambda y: None, Y0)  # type: ignore[arg-type, return-value]
    assert not hasattr(caught.value, "__notes__")


@pytest.mark.parametrize("call", [solvers.solve, fixed_point])
def test_an_array_of_numpy_is_no_argument_per_sample(call: Any) -> None:
    with pytest.raises(TypeError, match=r"got a NumPy array of shape \(10, 3\). Convert it by"):
        call(lambda y, x: y / 2 + x, Y0, X.numpy())
    # A number of NumPy is a constant like any other.
    number = X.numpy().mean()
    assert bool(call(lambda y, x: y / 2 + float(x), Y0, number).converged.all())


@pytest.mark.parametrize("call", [solvers.solve, fixed_point])
def test_the_map_stays_on_the_device_of_the_state(call: Any) -> None:
    with pytest.raises(ValueError, match=r"on the device of `y0`, cpu: got one on meta\. Move"):
        call(lambda y: y.to("meta"), Y0)


@pytest.mark.parametrize("call", [solvers.solve, fixed_point])
@pytest.mark.parametrize("name", ["x", "args"])
def test_what_the_map_takes_is_no_keyword(call: Any, name: str) -> None:
    with pytest.raises(TypeError, match="besides y follows `y0` without a keyword"):
        call(lambda y, x: y / 2 + x, Y0, **{name: X})


@pytest.mark.parametrize("call", [solvers.solve, fixed_point])
def test_a_class_is_no_map_and_a_string_no_flag(call: Any) -> None:
    with pytest.raises(TypeError, match=r"got the class Linear. Create an object of it: `Linear\("):
        call(torch.nn.Linear, Y0)
    with pytest.raises(ValueError, match="`throw` must be True or False, got 'no'"):
        call(half, Y0, throw="no")


@pytest.mark.parametrize(
    ("slip", "words"),
    [
        (
            lambda s: s.mean(),
            "`Solution` is no tensor and has no 'mean': the tensor is its `value`",
        ),
        (lambda s: s.shape, "as in `s.value.shape`"),
        (lambda s: torch.tanh(s), "`tanh` takes tensors: got `Solution`. Pass its `value`"),
        (lambda s: torch.nn.Linear(3, 1)(s), "`linear` takes tensors: got `Solution`. Pass its"),
        (lambda s: X.add(s), "takes tensors: got `Solution`. Pass its `value`"),
        (lambda s: X + s, "`Solution` is no tensor to compute with: take its `value`"),
        (lambda s: s + 1, "`Solution` is no tensor to compute with: take its `value`"),
        (lambda s: s[0], "`Solution` is no tensor to compute with: take its `value`"),
        (lambda s: [*s], "cannot be unpacked or iterated over: take its fields by name"),
        (lambda s: s.converge, "'Solution' object has no attribute 'converge'"),
    ],
)
def test_a_solution_taken_for_a_tensor_names_its_value(slip: Any, words: str) -> None:
    solution = solvers.solve(half, Y0)
    with pytest.raises((AttributeError, TypeError), match=re.escape(words)):
        slip(solution)
    assert copy.deepcopy(solution).residual.equal(solution.residual)


@pytest.mark.filterwarnings("ignore:Sparse CSR:UserWarning")
def test_a_sparse_matrix_whose_rows_cannot_be_taken_out_is_explained() -> None:
    matrix = torch.diag(torch.tensor([0.1, 0.5, 0.9])).to_sparse_csr()
    options: dict[str, Any] = {"solver": "picard", "max_steps": 500}

    def f(y: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
        return matrix @ y + 1

    with pytest.raises(NotImplementedError) as caught:
        solvers.solve(f, torch.zeros(3, 2), matrix, **options)
    assert "`independent=False`, or `batch_dims=0` for one state" in caught.value.__notes__[-1]
    assert solvers.solve(f, torch.zeros(3, 2), matrix, batch_dims=0, **options).converged


def test_failure_of_some_samples_names_what_coupled_ones_need() -> None:
    """Each goes towards the mean of all, and those that have converged leave the others alone."""
    y0, x = torch.zeros(6, 3), torch.linspace(-1.0, 2.0, 18).view(6, 3)

    def f(y: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(0.9 * y.mean(0, keepdim=True) + x)

    with pytest.raises(solvers.SolveError) as caught:
        solvers.solve(f, y0, x, solver="picard")
    assert 0 < int(caught.value.solution.converged.sum()) < 6
    (note,) = caught.value.__notes__
    assert note.endswith("pass `independent=False`, or `batch_dims=0` if they are one state.")
    assert bool(solvers.solve(f, y0, x, solver="picard", independent=False).converged.all())


@pytest.mark.parametrize("part", [False, True])
@pytest.mark.parametrize("shares", [False, True])
@pytest.mark.parametrize("call", [solvers.solve, *implicit.backward_modes()])
def test_a_map_that_writes_into_its_args_is_refused(call: Any, shares: bool, part: bool) -> None:
    def writes(y: Tensor, x: Tensor, factor: Tensor) -> Tensor:
        x.mul_(factor[:, None])
        return 0.5 * y + x

    if isinstance(call, str):
        call = functools.partial(fixed_point, backward=call)
    x = torch.ones(20, 3, requires_grad=shares) * 1.0
    with pytest.raises(ValueError, match=r"wrote into one of its args.*Write into a copy"):
        call(writes, Y0, x[:10] if part else x[::2].contiguous(), torch.full((10,), 0.5))


@pytest.mark.parametrize("name", ["scipy.anderson", "newton_krylov", "robust"])
def test_other_ways_to_call_a_map_refuse_that_it_writes_into_its_args(name: str) -> None:
    if name.startswith("scipy"):
        pytest.importorskip("scipy", reason="needs scipy")
    with pytest.raises(ValueError, match="wrote into one of its args"):
        solvers.solve(lambda y, x: 0.5 * y + x.mul_(0.5), Y0, torch.ones(10, 3), solver=name)


def test_a_map_that_writes_into_the_args_of_a_run_is_refused() -> None:
    run = solvers.Run(None, Y0, torch.ones(10, 3))
    (x,) = run.args
    assert run.point is not None
    with pytest.raises(ValueError, match="wrote into one of its args"):
        run.tell(0.5 * run.point + x.mul_(0.5))


class Kept(NamedTuple):
    last: Tensor
    scratch = True


@pytest.mark.parametrize("within", [lambda kept: kept, lambda kept: SimpleNamespace(kept=kept)])
@pytest.mark.parametrize("kind", [Kept, functools.partial(SimpleNamespace, scratch=True)])
def test_a_map_may_write_into_what_is_scratch(kind: Any, within: Any) -> None:
    def keeps(y: Tensor, x: Tensor, given: Any) -> Tensor:
        kept = getattr(given, "kept", given)
        kept.last.copy_(y)
        return 0.5 * kept.last + x

    x = torch.ones(10, 3)
    solution = solvers.solve(keeps, Y0, x, within(kind(last=torch.zeros(10, 3))))
    assert solution.converged.all()
    torch.testing.assert_close(solution.value, 2 * x, rtol=1e-3, atol=0)


@pytest.mark.parametrize("writes", [False, True])
def test_a_map_may_add_what_it_computes_once_to_a_container(writes: bool) -> None:
    def keeps(y: Tensor, x: Tensor, kept: dict[str, Tensor]) -> Tensor:
        if "drive" not in kept:
            kept["drive"] = torch.tanh(x)
        return 0.5 * y + kept["drive"] + (x.mul_(0.5) if writes else 0)

    x = torch.linspace(-1, 1, 10)[:, None].expand(10, 3).clone()
    if writes:
        with pytest.raises(ValueError, match="wrote into one of its args"):
            solvers.solve(keeps, Y0, x, {})
        return
    solution = solvers.solve(keeps, Y0, x, {})
    torch.testing.assert_close(solution.value, 2 * torch.tanh(x), rtol=1e-3, atol=1e-3)
