"""Blocks: what they compute, against a plain computation of the same."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models.attention import SelfAttention, rotate
from models.blocks import Block, Convolution, SwiGLU, UnitAttention

UNITS = torch.tensor([[0, 0, 1, 1], [0, 1, 0, 1]])


def test_unit_attention_equals_a_loop_over_units() -> None:
    torch.manual_seed(0)
    mixer = UnitAttention(6, UNITS).double()
    h = torch.randn(2, 4, 3, 6, dtype=torch.float64)
    score, value = mixer.into(h).chunk(2, -1)
    weight = torch.exp(5 * torch.tanh(score / 5))
    expected = torch.zeros_like(h)
    for b, cell, symbol in torch.cartesian_prod(*map(torch.arange, (2, 4, 3))).tolist():
        for kind in range(2):
            mates = (UNITS[kind] == UNITS[kind, cell]).nonzero().flatten()
            w, v = weight[b, mates, symbol], value[b, mates, symbol]
            expected[b, cell, symbol] += (w * v).sum(0) / w.sum(0) @ mixer.out[kind]
        w, v = weight[b, cell], value[b, cell]
        expected[b, cell, symbol] += (w * v).sum(0) / w.sum(0) @ mixer.out[2]
    torch.testing.assert_close(mixer(h), expected)


def test_unit_attention_stays_finite_for_huge_inputs() -> None:
    mixer = UnitAttention(6, UNITS)
    assert mixer(1e6 * torch.randn(2, 4, 3, 6)).isfinite().all()


def test_unit_attention_in_bfloat16_is_as_exact_as_its_numbers() -> None:
    torch.manual_seed(0)
    mixer, h = UnitAttention(32, torch.arange(16)[None] // 4), torch.randn(4, 16, 8, 32)
    expected = mixer.double()(h.double())
    with torch.autocast("cpu", torch.bfloat16):
        error = mixer.float()(h) - expected
    assert error.norm() < 2 * 2**-8 * expected.norm()  # two roundings; 3 with scores in bfloat16


def test_masked_head_sees_only_its_keys() -> None:
    torch.manual_seed(0)
    mask = torch.eye(4, dtype=torch.bool).expand(2, 4, 4)
    mixer = SelfAttention(8, 2, mask)
    h = torch.randn(1, 4, 8)
    moved = h.clone()
    moved[0, 3] += 1
    torch.testing.assert_close(mixer(h)[0, :3], mixer(moved)[0, :3])


def test_attention_equals_the_formula() -> None:
    torch.manual_seed(0)
    mixer = SelfAttention(8, 2).double()
    h = torch.randn(3, 5, 8, dtype=torch.float64)
    q, k, v = (part.view(3, 5, 2, 4).transpose(1, 2) for part in mixer.qkv(h).chunk(3, -1))
    attention = F.softmax(q @ k.mT / 2, -1)
    torch.testing.assert_close(mixer(h), mixer.out((attention @ v).transpose(1, 2).flatten(2)))


def test_rotary_scores_depend_on_distance_only() -> None:
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64).expand(2, 1, 1, 6, 8)
    scores = (rotate(q) @ rotate(k).mT)[0, 0]
    torch.testing.assert_close(scores.diagonal(1), scores[0, 1].expand(5))
    torch.testing.assert_close(rotate(q).norm(dim=-1), q.norm(dim=-1))


def test_rotary_attention_knows_order() -> None:
    torch.manual_seed(0)
    h = torch.randn(1, 5, 8)
    plain, rotary = SelfAttention(8, 2), SelfAttention(8, 2, rotary=True)
    torch.testing.assert_close(plain(h.flip(1)).flip(1), plain(h))
    assert not torch.allclose(rotary(h.flip(1)).flip(1), rotary(h))


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="got 3 heads for width 8"):
        SelfAttention(8, 3)


def test_block_keeps_the_state_bounded() -> None:
    torch.manual_seed(0)
    block, h = Block(SwiGLU(8, 16), 8), torch.randn(2, 8)
    for _ in range(50):
        h = block(h)
    assert h.square().mean(-1).sqrt().max() < 1.01


def test_a_convolution_is_that_of_torch() -> None:
    ours, theirs = Convolution(6, 5).double(), nn.Conv2d(6, 6, 3, padding=1, bias=False).double()
    ours.weight.data.copy_(theirs.weight.flatten(1))
    h = torch.randn(2, 25, 6, dtype=torch.float64)
    image = h.view(2, 5, 5, 6).permute(0, 3, 1, 2)
    expected = theirs(image).permute(0, 2, 3, 1).reshape(2, 25, 6)
    assert torch.allclose(ours(h), expected, atol=1e-14)
