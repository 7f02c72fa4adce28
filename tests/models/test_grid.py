"""Grid models: shapes, symmetry, and baselines of equal size."""

import pytest
import torch

from models import GridAttractor, GridSpec, GridTransformer, Reasoner, grid
from models.blocks import Block
from models.reasoners import UPDATES
from tasks.sudoku.board import Board

BOARD = Board.of(4)
UNITS = (BOARD.row_of, BOARD.column_of, BOARD.box_of)


def spec(layout: str = "candidates", **options: int) -> GridSpec:
    return GridSpec(units=UNITS, num_symbols=4, side=4, layout=layout, width=16, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", ["candidates", "cells"])
@pytest.mark.parametrize("kind", [GridAttractor, GridTransformer])
def test_logits_per_cell_and_symbol(layout: str, kind: type) -> None:
    out = kind(spec(layout))(torch.randint(0, 5, (3, 16)), max_steps=2)
    assert out.logits.shape == (3, 16, 4)
    out.logits.sum().backward()


@pytest.mark.parametrize("layout", ["candidates", "cells"])
def test_transformer_has_the_attractors_size(layout: str) -> None:
    sizes = [
        sum(p.numel() for p in model.parameters())
        for model in (GridAttractor(spec(layout)), GridTransformer(spec(layout)))
    ]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("kind", [GridAttractor, GridTransformer])
def test_candidates_layout_commutes_with_line_swaps_and_renaming(kind: type) -> None:
    torch.manual_seed(0)
    model = kind(spec()).double()
    x = torch.randint(0, 5, (8, 16))
    renamed = torch.tensor([0, 3, 1, 4, 2])
    # Swap the rows of the first band, and the stacks.
    cells = torch.arange(16).view(4, 4)[[1, 0, 2, 3]][:, [2, 3, 0, 1]].flatten()
    with torch.no_grad():
        before = model(x, max_steps=3).logits
        after = model(renamed[x][:, cells], max_steps=3).logits
    torch.testing.assert_close(after[:, :, renamed[1:] - 1], before[:, cells])


def test_training_step_leaves_a_gradient_everywhere() -> None:
    model = GridAttractor(spec(), max_steps=3)
    model(torch.randint(0, 5, (3, 16))).logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize("kind", sorted(UPDATES))
def test_a_batch_that_no_cache_holds_is_solved_in_parts(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same answers; where gradients are recorded, and elsewhere, in one piece."""
    torch.manual_seed(0)
    model = Reasoner(spec(), UPDATES[kind](spec()), max_steps=3, start="learned").double().eval()
    x = torch.randint(0, 5, (7, 16))
    sizes: list[int] = []
    for module in model.modules():
        if isinstance(module, Block):
            module.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    with torch.no_grad():
        whole = model(x).logits
        assert set(sizes) == {7}
        sizes.clear()
        monkeypatch.setattr(grid, "CPU_NUMBERS", 3 * 16 * 4 * 16 + 5)
        parts = model(x).logits
    assert set(sizes) == {3, 1}
    torch.testing.assert_close(parts, whole)
    sizes.clear()
    model(x, max_steps=0)
    assert 7 in sizes  # the recorded call


def test_unknown_layout_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'candidates', .* got 'cell'"):
        spec("cell")
