"""The reasoners' updates against hand-computed cases, and the models built from them."""

from typing import Any

import pytest
import torch
from torch import nn

from implicit import Phantom
from models import Cycle, GridSpec, PathNoise, Reasoner, TwoModuleCycle
from models.reasoners import UPDATES
from solvers import Picard


class Times(nn.Module):
    """h -> weight * h, simple enough to follow by hand."""

    def __init__(self, weight: float):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight, dtype=torch.float64))

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return self.weight * h


def numbers(*values: float) -> list[torch.Tensor]:
    return [torch.tensor([[[value]]], dtype=torch.float64) for value in values]


def test_trm_cycle_by_hand() -> None:
    y, z, x = numbers(1, 2, 3)
    # z: 0.5 (3 + 1 + 2) = 3, then 0.5 (3 + 1 + 3) = 3.5; y: 0.5 (1 + 3.5) = 2.25.
    new_y, new_z = Cycle(Times(0.5), inner=2)((y, z), x)
    assert (new_y.item(), new_z.item()) == (2.25, 3.5)


def test_joint_update_of_the_attractor_by_hand() -> None:
    y, z, x = numbers(1, 2, 3)
    # z: 0.5 (3 + 1 + 2) = 3; y: 0.5 (1 + 3) = 2.
    new_y, new_z = Cycle(Times(0.5), inner=1)((y, z), x)
    assert (new_y.item(), new_z.item()) == (2.0, 3.0)


def test_hrm_cycle_and_its_one_step_gradient_by_hand() -> None:
    y, z, x = numbers(1, 2, 3)
    low, high = Times(0.5), Times(0.25)
    # z: 0.5 (2 + 1 + 3) = 3, then 0.5 (3 + 1 + 3) = 3.5; y: 0.25 (1 + 3.5) = 1.125.
    new_y, new_z = TwoModuleCycle(low, high, inner=2)((y, z), x)
    assert (new_y.item(), new_z.item()) == (1.125, 3.5)
    new_y.sum().backward()
    # The last low call saw 3 + 1 + 3 = 7; through the earlier one nothing flows.
    assert low.weight.grad is not None
    assert low.weight.grad.item() == 0.25 * 7
    assert high.weight.grad is not None
    assert high.weight.grad.item() == 4.5


def test_path_noise_damps_always_and_disturbs_in_training_alone() -> None:
    old, new, _ = numbers(1, 2, 3)
    path = PathNoise(damping=0.25, noise=0.5)
    # 0.25 * 1 + 0.75 * 2 = 1.75.
    assert path.eval()(old, new).item() == 1.75
    path.in_evaluation = True
    assert path(old, new).item() != 1.75
    path.in_evaluation = False
    torch.manual_seed(0)
    draws = torch.stack([path.train()(old, new).squeeze() for _ in range(2000)])
    expected = torch.tensor(1.75, dtype=torch.float64)
    torch.testing.assert_close(draws.mean(), expected, atol=0.05, rtol=0)
    torch.testing.assert_close(draws.std(), torch.full_like(expected, 0.5), atol=0.03, rtol=0)


def test_eqr_damps_every_call_by_hand() -> None:
    y, z, x = numbers(1, 2, 3)
    f = Cycle(Times(0.5), inner=2, path=PathNoise(damping=0.5, noise=0.5)).eval()
    # z: (2 + 0.5 (3 + 1 + 2)) / 2 = 2.5, then (2.5 + 0.5 (3 + 1 + 2.5)) / 2 = 2.875;
    # y: (1 + 0.5 (1 + 2.875)) / 2 = 1.46875.
    new_y, new_z = f((y, z), x)
    assert (new_y.item(), new_z.item()) == (1.46875, 2.875)


SPEC = GridSpec(num_symbols=5, num_inputs=4, side=4, layout="image", width=8)


def reasoner(**options: object) -> Reasoner:
    torch.manual_seed(0)
    update = Cycle(SPEC.blocks(2), inner=1)
    solver, mode = Picard(rtol=1e-5), Phantom(steps=2)
    return Reasoner(SPEC, update, solver, mode, **options).double()  # type: ignore[arg-type]


def test_converges_and_continues_from_its_state() -> None:
    model = reasoner(max_steps=200).eval()
    with torch.no_grad():  # a strong question makes the map contract
        model.encoder.symbol.weight *= 20  # type: ignore[union-attr,operator]
    x = torch.randint(4, (3, 16), generator=torch.Generator().manual_seed(1))
    out = model(x)
    assert out.solution is not None
    assert out.solution.converged.all()
    assert out.logits.shape == (3, 16, 5)
    again = model(x, start=out.state)
    assert again.solution is not None
    assert (again.solution.num_steps <= 1).all()


def test_fresh_rows_start_anew_and_the_others_go_on() -> None:
    model = reasoner(max_steps=3).eval()
    x = torch.randint(4, (2, 16), generator=torch.Generator().manual_seed(1))
    first = model(x)
    mixed = model(x, start=first.state, fresh=torch.tensor([True, False]))
    torch.testing.assert_close(mixed.logits[0], first.logits[0])
    torch.testing.assert_close(mixed.logits[1], model(x, start=first.state).logits[1])
    assert not torch.allclose(mixed.logits[1], first.logits[1])


def test_random_start_differs_between_calls_and_learned_does_not() -> None:
    x = torch.zeros(2, 16, dtype=torch.long)
    assert torch.equal(reasoner().problem(x)[0][0], reasoner().problem(x)[0][0])
    model = reasoner(start="random")
    assert not torch.equal(model.problem(x)[0][0], model.problem(x)[0][0])


def test_halting_head_starts_by_betting_against() -> None:
    out = reasoner(max_steps=2, halting="right")(torch.zeros(2, 16, dtype=torch.long))
    assert out.halt is not None
    assert out.halt.shape == (2,)
    assert (out.halt < 0).all()
    assert (out.q_continue, out.q_next) == (None, None)


def test_q_learning_looks_a_segment_ahead_in_training_alone() -> None:
    model, x = reasoner(max_steps=3, halting="q-learning"), torch.arange(32).view(2, 16) % 4
    assert model.halt is not None
    nn.init.normal_(model.halt.weight)
    out = model(x)
    assert out.halt is not None
    assert out.q_continue is not None
    assert out.q_next is not None
    after = model(x, start=out.state)  # three updates and two recorded ones, as a segment makes
    for found, expected in zip(out.q_next, (after.halt, after.q_continue), strict=True):
        assert found.shape == (2,)
        assert not found.requires_grad
        torch.testing.assert_close(found, expected.detach())
        assert not torch.equal(found, out.halt)
    assert model.eval()(x).q_next is None
    with torch.no_grad():
        assert model.train()(x).q_next is None


def test_an_unknown_way_to_halt_is_refused() -> None:
    with pytest.raises(ValueError, match="`halting` must be one of 'none', 'right', 'q-learning'"):
        reasoner(halting=True)


@pytest.mark.parametrize("layout", ["image", "attention", "mixer"])
def test_every_layout_keeps_its_shape_and_mixes_cells(layout: str) -> None:
    spec = GridSpec(num_symbols=5, num_inputs=4, side=4, layout=layout, width=8)  # type: ignore[arg-type]
    torch.manual_seed(0)
    block = spec.block()
    h = torch.randn(2, 16, 8)
    moved = h.clone()
    moved[0, 5] += 1
    change = (block(moved) - block(h)).abs().sum(-1)
    assert change.shape == (2, 16)
    assert (change[0] > 0).sum() == (9 if layout == "image" else 16)
    assert (change[1] == 0).all()


@pytest.mark.parametrize("layout", ["attention", "mixer"])
def test_published_blocks_normalise_without_gains(layout: str) -> None:
    """TRM's formula, post-norm: over the tokens after its mixer, over channels after the rest."""
    spec = GridSpec(num_symbols=5, num_inputs=4, side=4, layout=layout, width=8)  # type: ignore[arg-type]
    torch.manual_seed(0)
    block = spec.block().double()
    assert {name for name, _ in block.named_parameters() if "norm" in name} == set()
    h = torch.randn(2, 16, 8, dtype=torch.float64)

    def normalised(x: torch.Tensor, dim: int) -> torch.Tensor:
        return x * (x.square().mean(dim, keepdim=True) + 1e-5).rsqrt()

    expected = normalised(h + block.mixer(h), 1 if layout == "mixer" else 2)
    expected = normalised(expected + block.mlp(expected), 2)
    torch.testing.assert_close(block(h), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("layout", ["attention", "mixer"])
def test_published_initial_scale(layout: str) -> None:
    """Linear maps keep the variance of their input, and symbols have unit variance."""
    spec = GridSpec(num_symbols=9, side=9, layout=layout, width=256, num_heads=4)  # type: ignore[arg-type]
    torch.manual_seed(0)
    parts = nn.ModuleList([spec.block(), spec.head()])
    linear = [part for part in parts.modules() if isinstance(part, nn.Linear)]
    assert len(linear) == 5
    for part in linear:
        assert part.weight.std().item() * part.in_features**0.5 == pytest.approx(1, abs=0.05)
        assert part.weight.abs().max() <= 2.28 * part.in_features**-0.5
    assert spec.encoder()(torch.arange(10)[None]).std().item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("layout", ["attention", "mixer"])
def test_first_of_the_puzzle_tokens_is_learned_and_the_others_are_zero(layout: str) -> None:
    spec = GridSpec(num_symbols=5, num_inputs=4, side=4, layout=layout, width=8, puzzle_tokens=3)  # type: ignore[arg-type]
    encoder, x = spec.encoder(), torch.randint(4, (2, 16))
    assert not encoder(x)[:, :3].any()
    with torch.no_grad():
        encoder.puzzle.copy_(torch.arange(8.0))  # type: ignore[operator,union-attr]
    tokens = encoder(x)
    assert tokens.shape == (2, 19, 8)
    torch.testing.assert_close(tokens[1, 0], 8**0.5 * torch.arange(8.0))
    assert not tokens[:, 1:3].any()
    assert spec.head()(tokens).shape == (2, 16, 5)
    torch.testing.assert_close(spec.head()(tokens * 0), torch.zeros(2, 16, 5))  # no biases


@pytest.mark.parametrize("layout", ["attention", "mixer", "image"])
def test_published_layouts_halt_by_the_first_token(layout: Any) -> None:
    tokens = 0 if layout == "image" else 2
    spec = GridSpec(
        num_symbols=5, num_inputs=4, side=4, layout=layout, width=8, puzzle_tokens=tokens
    )
    torch.manual_seed(0)
    model = Reasoner(spec, UPDATES["trm"](spec), Picard(rtol=1e-5), max_steps=1, halting="right")
    assert model.halt is not None
    nn.init.normal_(model.halt.weight)
    out = model(torch.zeros(2, 16, dtype=torch.long))
    y = out.state[0]
    assert y.shape == (2, 16 + tokens, 8)
    expected = model.halt(y.mean(1) if layout == "image" else y[:, 0])[:, 0]
    torch.testing.assert_close(out.halt, expected)


def test_layouts_of_our_own_have_no_puzzle_tokens() -> None:
    with pytest.raises(ValueError, match="layout 'image' has no `puzzle_tokens`, got 1"):
        GridSpec(num_symbols=5, num_inputs=4, side=4, layout="image", puzzle_tokens=1)


@pytest.mark.parametrize("layout", ["attention", "image"])
def test_published_random_starts_are_cut_off(layout: str) -> None:
    spec = GridSpec(num_symbols=5, num_inputs=4, side=4, layout=layout, width=8)  # type: ignore[arg-type]
    torch.manual_seed(0)
    model = Reasoner(spec, UPDATES["eqr"](spec), start="random")
    (y, z), _ = model.problem(torch.zeros(200, 16, dtype=torch.long))
    assert not torch.equal(y, z)
    assert y.std().item() == pytest.approx(1, abs=0.02)
    assert (y.abs().max() <= 2.28) == (layout == "attention")


@pytest.mark.parametrize(("name", "calls"), [("trm", 5), ("eqr", 5), ("reasoner", 2), ("hrm", 3)])
def test_cycles_of_a_task_reach_the_updates_that_have_them(name: str, calls: int) -> None:
    spec = GridSpec(num_symbols=5, num_inputs=4, side=4, layout="image", width=8, cycles=4)
    update, count = UPDATES[name](spec), [0]

    def counted(*_: object) -> None:
        count[0] += 1

    for net in update.children():
        if not isinstance(net, PathNoise):
            net.register_forward_hook(counted)
    x = torch.zeros(1, 16, 8)
    update((x, x), x)
    assert count[0] == calls
