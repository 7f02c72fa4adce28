"""A map that is called or answers otherwise than it should: the error says what was expected."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor

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
    end = f"all that follows `y0` without a keyword. Here that is {count} of them{shapes}."
    assert note.endswith(end)


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


def test_a_type_error_within_the_map_has_no_note() -> None:
    with pytest.raises(TypeError, match="unsupported operand") as caught:
        solvers.solve(lambda y: y / "2", Y0)
    assert not hasattr(caught.value, "__notes__")


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
