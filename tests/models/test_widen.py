"""A wider network that begins as the function of a narrower one."""

from typing import Any

import pytest
import torch

from models import GridAttractor, GridSpec
from models.widen import widened
from tasks.sudoku.board import Board

BOARD = Board.of(4)
UNITS = (BOARD.row_of, BOARD.column_of, BOARD.box_of)


def network(width: int, **options: Any) -> GridAttractor:
    spec = GridSpec(num_symbols=4, side=4, units=UNITS, width=width, **options)
    return GridAttractor(spec).double().eval()


@pytest.mark.parametrize(("width", "expansion"), [(12, None), (8, 3.0), (13, 3.0)])
def test_it_computes_what_the_narrower_one_does_and_learns(
    width: int, expansion: float | None
) -> None:
    torch.manual_seed(0)
    narrow, wide = network(8), network(width, expansion=expansion)
    wide.load_state_dict(widened(wide, narrow.state_dict()))
    x = torch.randint(0, 5, (6, 16))
    for steps in (0, 1, 20):
        # Not exactly, since a norm adds its epsilon to another mean.
        wanted, found = narrow(x, max_steps=steps).logits, wide(x, max_steps=steps).logits
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    # What writes to the new channels begins at zero, and gets a gradient.
    wide.train()(x, max_steps=3).logits.square().sum().backward()
    out = wide.get_parameter("attractor.backbone.1.0.mlp.out.weight")
    assert out.grad is not None
    new = torch.ones_like(out, dtype=torch.bool)
    new[:8, :16] = False
    assert not out[new].any()
    assert (out.grad[new] != 0).any()


@pytest.mark.parametrize("layout", ["cells", "image"])
def test_other_networks_get_the_weights_as_they_are(layout: Any) -> None:
    narrow, wide = network(8, layout=layout), network(12, layout=layout)
    found = widened(wide, narrow.state_dict())
    assert found.keys() == narrow.state_dict().keys()
    assert all(torch.equal(found[name], value) for name, value in narrow.state_dict().items())


def test_weights_of_equal_or_larger_size_stay_as_they_are() -> None:
    for width in (8, 6):
        wide = network(8)
        found = widened(network(width), wide.state_dict())
        assert all(torch.equal(found[name], value) for name, value in wide.state_dict().items())
