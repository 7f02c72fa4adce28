"""What the released code of the Attractor does at the start, and ours with `initial="released"`."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models import AttractorLM, LanguageSpec, ParcaeLM, TransformerLM
from models.attention import rotate
from models.blocks import PreNormBlock

SPEC = LanguageSpec(
    vocabulary=300, width=32, num_heads=2, backbone_blocks=2, initial="released",
    norm_embedding=False, rope_base=50_000.0, gate=0.75, gate_start=0.75,
)  # fmt: skip
STD = math.sqrt(2 / (5 * 32))


def build(kind: Any = AttractorLM, **changes: Any) -> Any:
    torch.manual_seed(0)
    return kind(dataclasses.replace(SPEC, **changes))


def is_orthogonal(weight: Tensor) -> bool:
    """Up to a factor, of its rows or of its columns."""
    short = weight if len(weight) <= weight.shape[1] else weight.T
    gram = short @ short.T
    return torch.allclose(gram, gram[0, 0] * torch.eye(len(gram)), atol=1e-5)


@pytest.mark.parametrize("kind", [AttractorLM, TransformerLM, ParcaeLM])
def test_first_weights_are_orthogonal_of_one_variance_and_outputs_zero(kind: Any) -> None:
    model = build(kind)
    maps = [model.vocabulary.embedding.weight]
    for block in filter(lambda part: isinstance(part, PreNormBlock), model.modules()):
        maps += [block.mlp.into.weight, *block.mixer.qkv.weight.chunk(3)]
        for out in (block.mixer.out.weight, block.mlp.out.weight):
            if block.gate is None:
                assert not out.any()
            else:  # normal, cut off at three standard deviations
                assert out.std().item() == pytest.approx(STD, rel=0.05)
                assert out.abs().max() <= 3 * STD
    for weight in maps:
        assert is_orthogonal(weight)
        assert weight.square().mean().sqrt().item() == pytest.approx(STD, rel=1e-5)


def test_other_matrices_are_drawn_likewise() -> None:
    model = build(injection="concat", tied=False)
    for weight in (model.vocabulary.head.weight, model.solving.module.mix.weight):
        assert is_orthogonal(weight)
        assert weight.square().mean().sqrt().item() == pytest.approx(STD, rel=1e-5)


def test_a_backbone_begins_as_the_identity_and_the_map_does_not() -> None:
    model, ids = build(), torch.arange(12).view(2, 6)
    out = model(ids)
    assert torch.equal(out.proposal, model.vocabulary.embedding(ids))
    assert (out.state - out.proposal).square().mean() > 0.1 * out.proposal.square().mean()


def test_gates_get_a_gradient_at_the_start() -> None:
    model = build(gate=0.9, gate_start=0.73)
    model(torch.arange(12).view(2, 6)).logits.square().sum().backward()
    gates = model.solving.module.blocks.blocks[0].raw_gates
    assert gates.grad.abs().min() > 0


@pytest.mark.parametrize(("most", "start"), [(0.75, 0.75), (1.0, 0.75), (0.9, 0.73), (1.0, 0.5)])
def test_gates_start_where_they_did(most: float, start: float) -> None:
    """`layer_scale_init` and `gamma_max` of the four sizes."""
    block = build(gate=most, gate_start=start).solving.module.blocks.blocks[0]
    gates = most * block.raw_gates.sigmoid()
    assert torch.allclose(gates, torch.full_like(gates, start), atol=2e-6)


def test_gates_start_at_half_by_default() -> None:
    block = build(gate=0.6, gate_start=None).solving.module.blocks.blocks[0]
    assert torch.equal(block.raw_gates, torch.zeros(2, 32))


def test_rotary_positions_are_those_released() -> None:
    """`precompute_freqs_cis` and `apply_rotary_emb_complex_like`, which pair neighbouring dims."""
    x = torch.randn(1, 1, 7, 8, dtype=torch.float64)
    rates = 50_000.0 ** (-torch.arange(0, 8, 2, dtype=torch.float64) / 8)
    angle = torch.outer(torch.arange(7.0, dtype=torch.float64), rates)
    turned = torch.view_as_complex(x.unflatten(-1, (-1, 2))) * torch.polar(
        torch.ones_like(angle), angle
    )
    halves = torch.cat((x[..., ::2], x[..., 1::2]), -1)
    expected = torch.cat((turned.real, turned.imag), -1)
    # The rates are computed in float32.
    assert torch.allclose(rotate(halves, base=50_000.0), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gate_start": 0.8}, "at most `gate`, got 0.75 and 0.8"),
        ({"gate_start": 0.0}, "`gate_start` above 0"),
        ({"gate": -1.0, "gate_start": None}, "`gate` must be above 0"),
        ({"rope_base": 0.5}, "`rope_base` must be at least 1, got 0.5"),
        ({"initial": "own"}, "`initial` must be one of 'plain', 'released', got 'own'"),
    ],
)
def test_what_is_no_start_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SPEC, **changes)


def test_the_embedding_is_normalised_by_default() -> None:
    ids = torch.arange(6)[None]
    embedded = build(norm_embedding=True).vocabulary(ids)
    assert torch.allclose(embedded.square().mean(-1), torch.ones(1, 6), atol=1e-3)
    assert isinstance(build().vocabulary.norm, nn.RMSNorm)
