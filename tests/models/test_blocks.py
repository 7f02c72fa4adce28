"""Blocks: what they compute, against a plain computation of the same."""

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, jvp, vmap
from torch.nn import functional as F

from models.attention import ROTARY_BASE, SelfAttention, from_start, rotated
from models.blocks import Block, Convolution, SquaredReLU, SwiGLU, UnitAttention
from solvers.torch_internals import FakeTensorMode

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
    qk = torch.randn(1, 1, 2, 1, 8, dtype=torch.float64).expand(1, 6, 2, 1, 8)
    turned = rotated(qk, *from_start(6, qk, ROTARY_BASE))
    q, k = turned[0, :, :, 0].unbind(1)
    scores = q @ k.mT
    torch.testing.assert_close(scores.diagonal(1), scores[0, 1].expand(5))
    torch.testing.assert_close(turned.norm(dim=-1), qk.norm(dim=-1))


def test_rotary_attention_knows_order() -> None:
    torch.manual_seed(0)
    h = torch.randn(1, 5, 8)
    plain, rotary = SelfAttention(8, 2), SelfAttention(8, 2, rotary=True)
    torch.testing.assert_close(plain(h.flip(1)).flip(1), plain(h))
    assert not torch.allclose(rotary(h.flip(1)).flip(1), rotary(h))


def test_factors_are_kept_but_for_the_setting_they_were_made_in() -> None:
    like = torch.empty(4)
    with torch.inference_mode():
        kept = from_start(6, like, 50.0)
    assert from_start(6, like, 50.0)[0].data_ptr() == kept[0].data_ptr()
    assert not kept[0].is_inference()
    assert not torch.equal(from_start(6, like, 60.0)[0], kept[0])
    with FakeTensorMode():
        fake = from_start(5, torch.empty(4), 50.0)[0]
    assert type(fake) is not Tensor
    assert type(from_start(5, like, 50.0)[0]) is Tensor


def test_sequences_of_many_lengths_keep_few_factors() -> None:
    like = torch.empty(4)
    whole = from_start(64, like, 70.0)
    for length in range(65):
        for part, all_of_it in zip(from_start(length, like, 70.0), whole, strict=True):
            torch.testing.assert_close(part, all_of_it[:, :length])
    memory = {from_start(length, like, 70.0)[0].data_ptr() for length in range(1, 65)}
    assert len(memory) == 7  # of 1, 2, 4, ... positions


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_squared_relu_has_the_gradients_of_its_operations() -> None:
    mlp = SquaredReLU(3, 6).double()
    x, tangent = torch.randn(2, 4, 3, dtype=torch.float64).unbind()

    def operations(x: Tensor) -> Tensor:
        return mlp.out(F.relu(mlp.into(x)).square())

    torch.testing.assert_close(mlp(x), operations(x))
    torch.testing.assert_close(jvp(mlp, (x,), (tangent,)), jvp(operations, (x,), (tangent,)))
    found, wanted = (vmap(grad(lambda x, f=f: f(x).sum()))(x) for f in (mlp, operations))
    torch.testing.assert_close(found, wanted)
    x.requires_grad_()
    assert gradcheck(mlp, x, check_batched_grad=True)
    assert gradgradcheck(mlp, x)


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
