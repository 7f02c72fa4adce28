"""Where a sparse tensor cannot be held, the error says what came and what to do."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import solvers

pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR:UserWarning")
LAYOUTS = pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
START = torch.ones(2, 3)


def half(y: Tensor, *_: Tensor) -> Tensor:
    return y / 2


@LAYOUTS
@pytest.mark.parametrize(("name", "options", "after"), [
    ("y0", {"loop": "graph"}, "."),
    ("args", {"loop": "graph"}, ", or pass `loop='eager'`, which takes it."),
    ("scale", {"loop": "graph"}, "."),
    ("scale", {}, "."),
])  # fmt: skip
def test_what_the_caller_passed(
    name: str, options: dict[str, Any], after: str, layout: torch.layout
) -> None:
    given = START.to_sparse(layout=layout)
    y0, args = (given if name == "y0" else START), ([given] if name == "args" else [])
    if name == "scale":
        options = {**options, "scale": torch.ones(1, 3).to_sparse(layout=layout)}
    with pytest.raises(TypeError) as caught:
        solvers.solve(half, y0, *args, **options)
    graph = " with `loop='graph'`" if options.get("loop") else ""
    says = f"`{name}` must be dense{graph}: got {layout}. Call `.to_dense()` on it{after}"
    assert str(caught.value) == says


@LAYOUTS
@pytest.mark.parametrize("uses", [True, False])
def test_what_f_uses_or_returns_in_a_graph(uses: bool, layout: torch.layout) -> None:
    matrix = (torch.eye(2) / 2).to_sparse(layout=layout)
    f: Callable[[Tensor], Tensor] = lambda y: (  # noqa: E731
        matrix @ y if uses else (y / 2).to_sparse(layout=layout)
    )
    with pytest.raises(TypeError, match="dense tensors only, but `f` uses or returns a sparse"):
        solvers.solve(f, START, loop="graph")
