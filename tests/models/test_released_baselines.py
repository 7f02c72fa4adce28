"""The published baselines, Parcae and a Transformer, and what they have that ours do not need."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from released_weights import fill, fill_block
from torch import Tensor
from torch.nn import functional as F

from models import AttractorLM, LanguageSpec, ParcaeLM, TransformerLM

# Two blocks before the loop, two in it and two after it, as in the released "140M".
SPEC = LanguageSpec(
    vocabulary=24, width=48, num_heads=2, backbone_blocks=4, refiner_blocks=2, initial="released",
    norm_embedding=False, rope_base=50_000.0, norm_eps=1e-5, value_embeddings=True,
)  # fmt: skip


def build(**changes: Any) -> ParcaeLM:
    torch.manual_seed(0)
    return ParcaeLM(dataclasses.replace(SPEC, **changes), coda=2, recurrence="released")


def tokens(*shape: int) -> Tensor:
    return torch.randint(24, shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def in_float64() -> Iterator[None]:
    """Also what is computed in the default dtype, such as the angles of rotary positions."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def fill_blocks(model: Any, blocks: list[Any]) -> None:
    """Fill the weights that both baselines have."""
    fill(model.vocabulary.embedding.weight, 0, 0.5)
    fill(model.vocabulary.norm.weight, 60, 0.1, 1.0)
    for i, block in enumerate(blocks):
        fill_block(block, 6 * i + 1)
        fill(block.mixer_norm.weight, 40 + 2 * i, 0.1, 1.0)
        fill(block.mlp_norm.weight, 41 + 2 * i, 0.1, 1.0)
        assert (block.mixer.value_gate is not None) == (str(i) in model.values.tables)
        if block.mixer.value_gate is not None:
            fill(block.mixer.value_gate.weight, 70 + i, 0.2)
            fill(model.values.tables[str(i)].weight, 80 + i, 0.5)


def filled() -> Any:
    """Parcae with the weights that the published one had."""
    model: Any = build().eval()
    released = model.released
    fill_blocks(model, [*model.prelude, *model.blocks, *model.coda])
    assert list(model.values.tables) == ["1", "3", "5"]
    fill(released.norm.weight, 61, 0.1, 1.0)
    parts = (released.log_rate, 0.3), (released.raw_step, 0.5), (released.into, 0.2)
    for seed, (part, scale) in enumerate((*parts, (released.out, 0.2)), start=62):
        fill(part, seed, scale)
    return model


IDS = (torch.arange(20).view(2, 10) * 7 + 3) % 24
# Of the released `Parcae` in float64, with these weights and tokens, its own float32 parts lifted
# to float64, and `state_init="zero"`: `core_block_forward` of given states; logits after a number
# of loops; and, with two loops that are not recorded and four that are, loss and gradients.
RECORDED_LOOP = 12.801054286213217, [
    -0.27734416486765767, -0.6406711498967447, -0.20057762878173396, -0.1681425798668769,
]  # fmt: skip
RECORDED_LOGITS = {
    1: (16.04122054785709, [
        -0.5796464977091782, -0.23347073429503007, 0.8785564356905408, -0.8913351241280412,
    ]),
    3: (14.697799927963402, [
        -0.003706923497427121, 0.09997043678404166, -0.1242840949457084, 0.059149082947053615,
    ]),
    8: (12.105218026209103, [
        -0.009757924027718494, 0.34871700876451334, -0.43670051444675034, 0.210385715968236,
    ]),
}  # fmt: skip
RECORDED_LOSS = 3.271722537266931
RECORDED_GRADIENTS = {
    "embedding": [2.3255448080069656],
    "recurrence": [
        0.6978032296004736, 0.3973787331861788, 0.28356238551981483, 8.524010599250495,
        15.080380430209251,
    ],
    "into": [
        1.3903424783433105, 0.2293596913574334, 1.4042120196601997, 4.114797367108599,
        1.6346065474901508, 0.5998417595058404,
    ],
    "value": [
        1.3932499476795364, 0.6770459232673981, 3.8098191704906363, 18.687961079630128,
        4.733669288281652, 2.460840233357042,
    ],
    "value gates": [0.008309543966977511, 0.5177166015465167, 0.9591438887315997],
    "value embeddings": [0.0871720944963267, 3.6388480882327277, 0.336185362907807],
}  # fmt: skip


@pytest.mark.usefixtures("in_float64")
@torch.no_grad()
def test_one_loop_is_that_of_the_released_module() -> None:
    model = filled()
    h, e = torch.empty(2, 2, 10, 48)
    fill(h, 90, 0.3)
    fill(e, 91, 1.0)
    _, inner, _ = model.values(IDS)
    found = model.loop(h, e, *inner)
    assert found.norm().item() == pytest.approx(RECORDED_LOOP[0], rel=1e-12)
    assert found[1, -1, :4].tolist() == pytest.approx(RECORDED_LOOP[1], rel=1e-12)


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("loops", RECORDED_LOGITS)
@torch.no_grad()
def test_logits_are_those_of_the_released_module(loops: int) -> None:
    found, (norm, some) = filled()(IDS, max_steps=loops).logits, RECORDED_LOGITS[loops]
    assert found.norm().item() == pytest.approx(norm, rel=1e-12)
    assert found[1, -1, :4].tolist() == pytest.approx(some, rel=1e-12, abs=1e-13)


@pytest.mark.usefixtures("in_float64")
def test_gradients_are_those_of_the_released_module() -> None:
    model = filled()
    logits = model(IDS, max_steps=6).logits
    loss = F.cross_entropy(logits.flatten(0, 1), ((IDS * 5 + 1) % 24).flatten())
    loss.backward()
    assert loss.item() == pytest.approx(RECORDED_LOSS, rel=1e-12)
    blocks: list[Any] = [*model.prelude, *model.blocks, *model.coda]
    released: Any = model.released
    gradients = {
        "embedding": [model.vocabulary.embedding.weight],
        "recurrence": [
            released.norm.weight, released.log_rate, released.raw_step, released.into, released.out
        ],
        "into": [block.mlp.into.weight for block in blocks],
        "value gates": [block.mixer.value_gate.weight for block in blocks[1::2]],
        "value embeddings": [table.weight for table in model.values.tables.values()],
    }  # fmt: skip
    norms = {name: [p.grad.norm().item() for p in parts] for name, parts in gradients.items()}
    norms["value"] = [block.mixer.qkv.weight.grad[96:].norm().item() for block in blocks]
    for name, recorded in RECORDED_GRADIENTS.items():
        assert norms[name] == pytest.approx(recorded, rel=1e-12), name


# Of the released `GPT` with three blocks, as above: loss, norm of the logits, gradients.
RECORDED_TRANSFORMER = 16.97799848347556, 262.00261306181636, {
    "embedding": [3.32359911072106],
    "into": [2.4250802346837395, 0.16248262222068147, 2.0931166354736064],
    "value gates": [0.27427262208794645, 0.013533290649350722],
    "value embeddings": [0.5222524764006989, 0.5353661143685114],
}  # fmt: skip


@pytest.mark.usefixtures("in_float64")
def test_the_transformer_is_the_released_one() -> None:
    model = TransformerLM(dataclasses.replace(SPEC, backbone_blocks=2, refiner_blocks=1))
    blocks: list[Any] = list(model.blocks)  # type: ignore[arg-type]
    fill_blocks(model, blocks)
    logits = model(IDS).logits
    loss = F.cross_entropy(logits.flatten(0, 1), ((IDS * 5 + 1) % 24).flatten())
    loss.backward()
    gradients = {
        "embedding": [model.vocabulary.embedding],
        "into": [block.mlp.into for block in blocks],
        "value gates": [block.mixer.value_gate for block in blocks[::2]],
        "value embeddings": list(model.values.tables.values()),
    }
    recorded_loss, recorded_norm, recorded = RECORDED_TRANSFORMER
    assert loss.item() == pytest.approx(recorded_loss, rel=1e-12)
    assert logits.norm().item() == pytest.approx(recorded_norm, rel=1e-12)
    for name, parts in gradients.items():
        norms = [part.weight.grad.norm().item() for part in parts]
        assert norms == pytest.approx(recorded[name], rel=1e-12), name


@pytest.mark.parametrize("kind", ["parcae", "transformer"])
@torch.no_grad()
def test_cached_logits_are_those_of_the_whole_with_padding_too(kind: str) -> None:
    torch.manual_seed(0)
    spec = dataclasses.replace(SPEC, initial="plain")
    model: Any = TransformerLM(spec)
    if kind == "parcae":
        model = ParcaeLM(spec, loops=4, coda=2, recurrence="released")
    model = model.double().eval()
    ids, padding = tokens(3, 12), [0, 2, 4]
    cache = model.empty_cache(torch.arange(5) >= torch.tensor(padding)[:, None])
    parts = []
    for new in ids.split([5, 3, 1, 3], 1):
        out, cache = model.extend(new, cache)
        parts.append(out.logits)
    together = torch.cat(parts, 1)
    for row, count in enumerate(padding):
        alone = model(ids[row : row + 1, count:]).logits[0]
        torch.testing.assert_close(together[row, count:], alone, rtol=0, atol=1e-11)


@torch.no_grad()
def test_no_token_sees_the_future() -> None:
    model = ParcaeLM(dataclasses.replace(SPEC, initial="plain"), coda=2, recurrence="released")
    model = model.double().eval()
    ids, changed = tokens(2, 9), tokens(2, 9)
    changed[:, 6:] = (changed[:, 6:] + 1) % 24
    difference = (model(changed).logits - model(ids).logits).abs()
    assert difference[:, :6].max() <= 1e-12
    assert difference[:, 6:].max() > 1e-3


def test_first_weights_of_the_recurrence_are_those_released() -> None:
    model = build()
    released: Any = model.released
    step = F.softplus(released.raw_step)
    kept = torch.exp(-step * released.log_rate.exp())
    assert torch.allclose(kept, torch.full((48,), 0.2**0.5))
    assert torch.equal(released.into, torch.eye(48))
    gram = released.out @ released.out.T
    assert torch.allclose(gram, 0.4 * torch.eye(48), atol=1e-6)
    tables = [model.values.tables[name].weight for name in ("1", "3", "5")]
    assert len(model.values.tables) == 3
    assert torch.cat(tables).std().item() == pytest.approx(1.0, rel=0.05)


def test_loops_start_at_random_in_training_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model, starts = build(), []
    loop = model.loop
    monkeypatch.setattr(model, "loop", lambda h, *args: starts.append(h) or loop(h, *args))
    with torch.no_grad():
        model(tokens(40, 30))
        std, first = math.sqrt(2 / (5 * 48)), starts[0]
        # Cut off at three standard deviations, which leaves 0.987 of one.
        assert first.std().item() == pytest.approx(0.987 * std, rel=0.01)
        assert 2.5 * std < first.abs().max().item() <= 3 * std
        starts.clear()
        model.eval()(tokens(2, 6))
    assert not starts[0].any()
    assert len(starts) == 8


def test_lengths_are_drawn_as_released() -> None:
    """`poisson-truncated-full`: a Poisson number of mean 8, at least 1, without an upper end."""
    model = build()
    torch.manual_seed(0)
    drawn = torch.cat([model._draw(1000) for _ in range(50)]).flatten()
    assert drawn.min() == 1
    assert drawn.max() > 16
    # Four standard errors of a Poisson number of mean (and variance) 8.
    assert drawn.mean().item() == pytest.approx(8.0, abs=4 * math.sqrt(8 / 50_000))
    assert drawn.var().item() == pytest.approx(8.0, rel=0.05)


def test_only_the_last_loops_are_recorded_but_all_parameters_learn() -> None:
    torch.manual_seed(0)
    model = ParcaeLM(
        dataclasses.replace(SPEC, initial="plain"), loops=3, coda=2, recurrence="released"
    )
    model(tokens(4, 8)).logits.square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_plain_models_have_the_weights_that_they_had() -> None:
    """Checkpoints of before keep loading: the names and shapes of the default have not changed."""
    spec = LanguageSpec(vocabulary=11, width=16, num_heads=2, backbone_blocks=2)
    block = ["mixer.qkv.weight", "mixer.out.weight", "mlp.into.weight", "mlp.out.weight",
             "mixer_norm.weight", "mlp_norm.weight"]  # fmt: skip
    stacks = ("prelude", "blocks", "coda")
    names = {f"{stack}.blocks.0.{part}" for stack in stacks for part in block}
    names |= {"rate", "into", "vocabulary.embedding.weight", "vocabulary.norm.weight"}
    assert set(ParcaeLM(spec).state_dict()) == names


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(ValueError, match="must be one of 'plain', 'released', got 'own'"):
        ParcaeLM(SPEC, recurrence="own")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="for the mixer 'attention', got 'gru'"):
        dataclasses.replace(SPEC, mixer="gru")
    with pytest.raises(ValueError, match="for models that are not solved"):
        AttractorLM(SPEC)
    with pytest.raises(ValueError, match="`norm_eps` must be 0 or more, got -1"):
        dataclasses.replace(SPEC, norm_eps=-1.0)
