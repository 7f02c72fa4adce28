"""What the released code of the Attractor does at the start, and ours with `initial="released"`."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from released_weights import fill, fill_block
from torch import Tensor, nn
from torch.nn import functional as F

import implicit
import solvers
from models import AttractorLM, LanguageSpec, ParcaeLM, TransformerLM
from models.attention import from_start, rotated
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
        for out, std in ((block.mixer.out.weight, STD), (block.mlp.out.weight, STD / 2)):
            if block.gate is None:
                assert not out.any()
            else:  # normal, cut off at three standard deviations
                assert out.std().item() == pytest.approx(std, rel=0.05)
                assert out.abs().max() <= 3 * std
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
    x = torch.randn(7, 8, dtype=torch.float64)
    rates = 50_000.0 ** (-torch.arange(0, 8, 2, dtype=torch.float64) / 8)
    angle = torch.outer(torch.arange(7.0, dtype=torch.float64), rates)
    turned = torch.view_as_complex(x.unflatten(-1, (-1, 2))) * torch.polar(
        torch.ones_like(angle), angle
    )
    halves = torch.cat((x[..., ::2], x[..., 1::2]), -1)
    expected = torch.cat((turned.real, turned.imag), -1)
    # The rates are computed in float32.
    found = rotated(halves[None, :, None, None], *from_start(7, halves, 50_000.0))
    assert torch.allclose(found[0, :, 0, 0], expected, atol=1e-6)


# Of the released `Attractor` in float64, with the weights and tokens of the next test, its own
# float32 parts lifted to float64, and fixed-point iteration to 1e-15: the loss, some logits, and
# norms of gradients by its "onestep".
RECORDED_LOSS = 6.630981532215282
RECORDED_LOGITS = [-0.07129724872294997, 1.7090374527288144, -3.202054588944006, 4.423918414501636]
RECORDED = {
    "embedding": [1.2661661567404052],
    "query": [0.002557681070965648, 0.20883745181290084, 0.012790235682555313],
    "out": [0.1750999134142894, 0.1205602471402194, 0.05660262085233462],
    "into": [0.09584849488889614, 0.007034152432906729, 0.017965284926556916],
    "gates": [0.000824498696695124, 5.7889303513084045e-05],
}


@pytest.fixture
def in_float64() -> Iterator[None]:
    """Also what is computed in the default dtype, such as the angles of rotary positions."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("in_float64")
def test_logits_and_gradients_are_those_of_the_released_module() -> None:
    spec = dataclasses.replace(SPEC, vocabulary=24, width=16, gate_start=0.4, norm_eps=1e-5)
    solver = solvers.Picard(rtol=1e-15, atol=0.0)
    model = AttractorLM(spec, solver, implicit.Neumann(terms=1), max_steps=2000)
    stacks = (model.attractor.backbone, model.solving.module.blocks)
    blocks: list[Any] = [block for stack in stacks for block in stack]
    fill(model.vocabulary.embedding.weight, 0, 0.5)
    for i, block in enumerate(blocks):
        fill_block(block, 6 * i + 1)
    ids = (torch.arange(20).view(2, 10) * 7 + 3) % 24
    found = model(ids)
    loss = F.cross_entropy(found.logits.flatten(0, 1), ((ids * 5 + 1) % 24).flatten())
    loss.backward()
    assert loss.item() == pytest.approx(RECORDED_LOSS, rel=1e-12)
    assert found.logits[1, -1, :4].tolist() == pytest.approx(RECORDED_LOGITS, rel=1e-12)
    gradients = {
        "embedding": [model.vocabulary.embedding.weight.grad],
        "query": [block.mixer.qkv.weight.grad[:16] for block in blocks],
        "out": [block.mixer.out.weight.grad for block in blocks],
        "into": [block.mlp.into.weight.grad for block in blocks],
        "gates": list(blocks[-1].raw_gates.grad),
    }
    for name, values in gradients.items():
        norms = [value.norm().item() for value in values]
        assert norms == pytest.approx(RECORDED[name], rel=1e-12), name


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
