"""Parts of a batch side by side."""

import threading

import pytest
import torch
from torch import Tensor, nn

from tasks.puzzles.evaluate import solve_batch
from tasks.sudoku.config import PRESETS
from tasks.threads import count_parts, side_by_side


class Map(nn.Module):
    """Adds noise of this size."""

    def __init__(self, noise: float = 0.0) -> None:
        super().__init__()
        self.noise = noise

    def forward(self, x: Tensor, max_steps: int) -> Tensor:
        return x + self.noise * torch.randn_like(x) if self.noise else x


def test_parts_run_at_the_same_time_each_with_its_share_of_the_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    both, threads = threading.Barrier(2, timeout=30), torch.get_num_threads
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)

    def call(part: int) -> tuple[int, int, bool]:
        both.wait()  # of two parts: neither goes on alone
        return part, threads(), torch.is_grad_enabled()

    with torch.no_grad():
        assert side_by_side(call, range(4), 2) == [(part, 1, False) for part in range(4)]
    assert side_by_side(call, range(2), 2) == [(part, 1, True) for part in range(2)]


@pytest.mark.usefixtures("two_threads")
def test_an_error_of_any_part_is_raised() -> None:
    def call(part: int) -> float:
        return 1 / (3 - part)

    with pytest.raises(ZeroDivisionError):
        side_by_side(call, range(4), 2)


@pytest.mark.usefixtures("two_threads")
def test_a_batch_is_split_where_its_rows_need_nothing_from_one_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert count_parts(Map(), torch.zeros(8, 3)) == 2
    assert count_parts(Map(), torch.zeros(7, 3)) == 1
    assert count_parts(Map(), torch.zeros(0, 3)) == 1
    before = torch.get_rng_state()
    assert count_parts(Map(noise=0.1), torch.zeros(8, 3)) == 1
    assert torch.equal(before, torch.get_rng_state())
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert count_parts(Map(), torch.zeros(8, 3)) == 1


@pytest.mark.usefixtures("two_threads")
def test_compiled_blocks_are_left_whole() -> None:
    model = PRESETS["tiny"].build()
    x = torch.randint(0, 5, (8, 16))
    assert count_parts(model, x) == 2
    next(model.children())._compiled_call_impl = lambda *given: given  # as `compile` does, slowly
    assert count_parts(model, x) == 1


@pytest.mark.usefixtures("two_threads")
def test_a_model_that_is_watched_is_left_whole() -> None:
    model, x, seen = PRESETS["tiny"].build(), torch.randint(0, 5, (8, 16)), []
    watch = next(model.children()).register_forward_hook(lambda *given: seen.append(given))
    assert count_parts(model, x) == 1
    assert not seen  # nor does it see a trial
    watch.remove()
    assert count_parts(model, x) == 2


@pytest.mark.parametrize("rows", [1, 9])
def test_a_batch_solved_side_by_side_has_the_same_answers(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = PRESETS["tiny"].changed(rtol=1e-3).build().double().eval()
    x = torch.randint(0, 5, (rows, 16))
    expected, other = solve_batch(model, x, max_steps=64)
    again, _ = solve_batch(model, x, max_steps=64, start=other)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    found, state = solve_batch(model, x, max_steps=64)
    assert torch.equal(found.classes, expected.classes)
    assert torch.equal(found.num_steps, expected.num_steps)
    assert torch.allclose(state, other)
    assert torch.equal(solve_batch(model, x, max_steps=64, start=state)[0].classes, again.classes)
