"""What language models promise: no look ahead, and cached generation that agrees."""

import dataclasses
import importlib.util
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import solvers
from models import AttractorLM, LanguageSpec, ParcaeLM, TransformerLM
from models.language import Injection
from models.recurrent import scan

SPEC = LanguageSpec(
    vocabulary=11, width=16, num_heads=2, backbone_blocks=2, refiner_blocks=1, gate=1.0
)
NATIVE = [
    name for name in solvers.names() if "." not in name and solvers.get_solver(name).promises.tokens
]
ABSENT = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="needs the package `transformers`"
)
MIXERS = [
    "attention", "scan", "gru", *(pytest.param(name, marks=ABSENT) for name in ("gpt2", "llama")),
]  # fmt: skip
EXACT = solvers.Anderson(rtol=1e-13, atol=0.0)


def build(solver: Any = "anderson", kind: Any = AttractorLM, **changes: Any) -> Any:
    torch.manual_seed(0)
    options = (solver,) if kind is AttractorLM else ()
    return kind(dataclasses.replace(SPEC, **changes), *options).double().eval()


@pytest.mark.parametrize("injection", get_args(Injection))
def test_autocast_leaves_the_states_in_their_precision(injection: str) -> None:
    model, seen = build(injection=injection).float(), []
    refiner = model.attractor.refiner.module
    refiner.blocks.register_forward_pre_hook(lambda _, given: seen.append(given[0].dtype))
    y = torch.randn(1, 3, SPEC.width)
    with torch.autocast("cpu", torch.bfloat16):
        refiner(y, torch.randn_like(y))
    assert seen == [torch.float32]


def slack(mixer: str, least: float) -> float:
    """How far equal logits may differ by rounding: Llama's norms round to float32."""
    return 1e-5 if mixer == "llama" else least


def tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(11, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("max_steps", [0, 1, 3, 64, 200])
@pytest.mark.parametrize("rtol", [1e-14, 1e-6, 1e-2, 0.3])
@pytest.mark.parametrize("name", NATIVE)
def test_no_token_sees_the_future(name: str, rtol: float, max_steps: int) -> None:
    """The published code mixes over whole sequences: a leak whenever it stops early."""
    model = build(solvers.get_solver(name, rtol=rtol, atol=0.0))
    a, b = tokens(3, 12), tokens(3, 12)
    b[:, 7:] = (b[:, 7:] + 3) % 11
    with torch.no_grad():
        first, second = (model(ids, max_steps=max_steps).logits for ids in (a, b))
    assert (first - second)[:, :7].abs().max() <= 1e-12
    assert (first - second)[:, 7:].abs().max() > 1e-3


@pytest.mark.parametrize("scale", [2.0, 4.0, 8.0])
@pytest.mark.parametrize("max_steps", [1, 2, 5])
@pytest.mark.parametrize("name", NATIVE)
def test_no_token_sees_others_where_the_refiner_expands(
    name: str, max_steps: int, scale: float
) -> None:
    """Weights beyond contraction, solves that are stopped short: here the best points part."""
    model = build(solvers.get_solver(name, rtol=1e-3, atol=0.0))
    with torch.no_grad():
        for weight in model.solving.module.parameters():
            weight.mul_(scale)
        for seed in range(3):
            a, b = tokens(3, 8, seed=seed), tokens(3, 8, seed=seed)
            b[:, 5:] = (b[:, 5:] + 3) % 11
            whole, other, row = (model(ids, max_steps=max_steps).logits for ids in (a, b, a[:1]))
            slack = 1e-8 * whole.abs().max()
            assert (whole - other)[:, :5].abs().max() <= slack
            assert (whole[:1] - row).abs().max() <= slack


@pytest.mark.parametrize("name", NATIVE)
def test_other_sequences_change_nothing(name: str) -> None:
    model = build(solvers.get_solver(name, rtol=1e-3))
    ids = tokens(5, 10)
    with torch.no_grad():
        alone, together = model(ids[:1]).logits, model(ids).logits[:1]
    assert (alone - together).abs().max() <= 1e-12


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("kind", [AttractorLM, TransformerLM, ParcaeLM])
def test_no_backbone_sees_the_future(kind: Any, mixer: str) -> None:
    model = build(kind=kind, mixer=mixer)
    ids, changed = tokens(2, 9), tokens(2, 9)
    changed[:, 6:] = (changed[:, 6:] + 1) % 11
    with torch.no_grad():
        difference = (model(changed).logits - model(ids).logits).abs()
    assert difference[:, :6].max() <= 1e-12
    assert difference[:, 6:].max() > 1e-3


@pytest.mark.parametrize("changes", [
    {}, {"injection": "concat"}, {"start": "zeros"}, {"tied": False}, {"refiner_blocks": 2},
    {"backbone_blocks": 0, "start": "zeros"}, {"mixer": "scan"}, {"mixer": "gru"},
    {"rope_base": 3.0, "gate": 0.5, "gate_start": 0.4, "norm_embedding": False},
    *(pytest.param({"mixer": name}, marks=ABSENT) for name in ("gpt2", "llama")),
    pytest.param({"mixer": "gpt2", "backbone_blocks": 0, "start": "zeros"}, marks=ABSENT),
])  # fmt: skip
def test_cached_and_whole_logits_agree(changes: dict[str, Any]) -> None:
    model = build(EXACT, **changes)
    atol = slack(changes.get("mixer", ""), 1e-9)
    ids = tokens(2, 12)
    with torch.no_grad():
        whole = model(ids, max_steps=200)
        assert whole.solution is not None
        assert whole.solution.converged.all()
        cache = model.empty_cache(torch.ones(2, 5, dtype=torch.bool))
        out, cache = model.extend(ids[:, :5], cache, max_steps=200)
        assert torch.allclose(out.logits, whole.logits[:, :5], atol=atol)
        for t in range(5, 12):
            out, cache = model.extend(ids[:, t : t + 1], cache, max_steps=200)
            assert torch.allclose(out.logits[:, 0], whole.logits[:, t], atol=atol), t


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("kind", [TransformerLM, ParcaeLM])
def test_baselines_cache_exactly(kind: Any, mixer: str) -> None:
    model = build(kind=kind, mixer=mixer)
    ids = tokens(2, 9)
    with torch.no_grad():
        whole = model(ids).logits
        cache = model.empty_cache(torch.ones(2, 4, dtype=torch.bool))
        out, cache = model.extend(ids[:, :4], cache)
        parts = [out.logits]
        for t in range(4, 9):
            out, cache = model.extend(ids[:, t : t + 1], cache)
            parts.append(out.logits)
    assert torch.allclose(torch.cat(parts, 1), whole, atol=slack(mixer, 1e-12))


@pytest.mark.parametrize("mixer", MIXERS)
def test_a_cache_serves_more_than_one_continuation(mixer: str) -> None:
    model = build(mixer=mixer)
    with torch.no_grad():
        _, cache = model.extend(tokens(2, 4), model.empty_cache(torch.ones(2, 4).bool()))
        first, _ = model.extend(torch.tensor([[5], [6]]), cache)
        model.extend(torch.tensor([[7], [8]]), cache)
        again, _ = model.extend(torch.tensor([[5], [6]]), cache)
    assert torch.equal(first.logits, again.logits)


@pytest.mark.parametrize("max_steps", [0, 2, 64])
@pytest.mark.parametrize("name", NATIVE)
def test_cache_keeps_what_the_refiner_has_of_the_solution(name: str, max_steps: int) -> None:
    """Even where the last call of the refiner was elsewhere, or its tokens stopped apart."""
    model = build(solvers.get_solver(name, rtol=1e-3, atol=0.0))
    refiner = model.solving.module
    with torch.no_grad():
        valid = torch.arange(6) >= torch.tensor([[0], [2]])
        _, cache = model.extend(tokens(2, 6), model.empty_cache(valid), max_steps=max_steps)
        for rows in (2, 1):
            cache = pytree.tree_map_only(Tensor, lambda part, rows=rows: part[:rows], cache)
            out, longer = model.extend(tokens(rows, 1), cache, max_steps=max_steps)
            expected = refiner.remember(out.state, out.proposal, cache.refiner)
            for kept, wanted in zip(longer.refiner, expected, strict=True):
                torch.testing.assert_close(kept.keys, wanted.keys, rtol=0, atol=1e-12)
                torch.testing.assert_close(kept.values, wanted.values, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [AttractorLM, TransformerLM, ParcaeLM])
def test_continuations_of_one_cache_grow_side_by_side(kind: Any) -> None:
    """They share memory until they part, whichever is ahead, and grow beyond its end."""
    model = build(EXACT, kind)
    prompt, texts = tokens(1, 4), [tokens(1, 20, seed=1), tokens(1, 20, seed=2)]
    with torch.no_grad():
        _, cache = model.extend(prompt, model.empty_cache(torch.ones(1, 4).bool()))
        caches = [cache, cache]
        for t in range(20):
            for i in (0, 1):
                out, caches[i] = model.extend(texts[i][:, t : t + 1], caches[i])
                whole = model(torch.cat((prompt, texts[i][:, : t + 1]), 1)).logits
                assert torch.allclose(out.logits[:, 0], whole[:, -1], atol=1e-9), (t, i)


@pytest.mark.parametrize("rows", [[2, 0, 1], [1, 1, 0], [0], [2], [0, 0, 1, 2]])
@pytest.mark.parametrize("kind", [AttractorLM, TransformerLM, ParcaeLM])
def test_rows_of_a_cache_can_be_chosen(kind: Any, rows: list[int]) -> None:
    """As a beam search does."""
    model = build(EXACT, kind)
    prompt, texts = tokens(3, 4), tokens(len(rows), 3, seed=1)
    with torch.no_grad():
        _, cache = model.extend(prompt, model.empty_cache(torch.ones(3, 4).bool()))
        cache = cache.select(torch.tensor(rows))
        for t in range(3):
            out, cache = model.extend(texts[:, t : t + 1], cache)
            whole = model(torch.cat((prompt[rows], texts[:, : t + 1]), 1)).logits
            assert torch.allclose(out.logits[:, 0], whole[:, -1], atol=1e-9), t


@pytest.mark.parametrize("kind", [AttractorLM, TransformerLM, ParcaeLM])
def test_a_cache_goes_on_in_any_grad_mode(kind: Any) -> None:
    model, ids = build(EXACT, kind), tokens(2, 9)
    modes = (torch.inference_mode, torch.no_grad, torch.enable_grad)
    with torch.no_grad():
        whole = model(ids).logits
    for first in modes:
        for second in modes:
            with first():
                _, cache = model.extend(ids[:, :5], model.empty_cache(torch.ones(2, 5).bool()))
                _, cache = model.extend(ids[:, 5:6], cache)
            with second():
                out, cache = model.extend(ids[:, 6:7], cache)
            with torch.no_grad():
                after, _ = model.extend(ids[:, 7:8], cache)
            assert torch.allclose(out.logits[:, 0], whole[:, 6], atol=1e-9), (first, second)
            assert torch.allclose(after.logits[:, 0], whole[:, 7], atol=1e-9), (first, second)


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("kind", [AttractorLM, TransformerLM, ParcaeLM])
def test_padding_on_the_left_changes_nothing(kind: Any, mixer: str) -> None:
    model, atol = build(EXACT, kind, mixer=mixer), slack(mixer, 1e-9)
    long, short = tokens(1, 7), tokens(1, 4, seed=1)
    padded = torch.cat((long, torch.cat((torch.zeros(1, 3, dtype=torch.long), short), 1)))
    valid = torch.ones(2, 7, dtype=torch.bool)
    valid[1, :3] = False
    with torch.no_grad():
        out, cache = model.extend(padded, model.empty_cache(valid))
        assert torch.allclose(out.logits[1, 3:], model(short).logits[0], atol=atol)
        after, _ = model.extend(torch.tensor([[5], [6]]), cache)
        one = torch.cat((short, torch.tensor([[6]])), 1)
        assert torch.allclose(after.logits[1, 0], model(one).logits[0, -1], atol=atol)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad])
@pytest.mark.parametrize("kind", [AttractorLM, TransformerLM, ParcaeLM])
def test_prompts_of_different_lengths_are_read_in_parts(kind: Any, mode: Any) -> None:
    model = build(EXACT, kind, refiner_blocks=2)
    ids, padding = tokens(3, 12), [0, 2, 4]
    with mode():
        cache = model.empty_cache(torch.arange(5) >= torch.tensor(padding)[:, None])
        parts = []
        for new in ids.split([5, 3, 1, 3], 1):
            out, cache = model.extend(new, cache)
            parts.append(out.logits)
        together = torch.cat(parts, 1)
        for row, count in enumerate(padding):
            alone = model(ids[row : row + 1, count:]).logits[0]
            assert torch.allclose(together[row, count:], alone, rtol=0, atol=1e-11)


def test_the_scan_is_the_recurrence() -> None:
    torch.manual_seed(0)
    a, b = torch.rand(2, 13, 3).double(), torch.randn(2, 13, 3).double()
    state, rows = torch.zeros(2, 3).double(), []
    for t in range(13):
        state = a[:, t] * state + b[:, t]
        rows.append(state)
    assert torch.allclose(scan(a, b), torch.stack(rows, 1), atol=1e-12)


def test_without_the_solver_the_proposal_is_decoded() -> None:
    model = build()
    ids = tokens(2, 6)
    out = model(ids, max_steps=0)
    proposal = model.attractor.backbone(model.vocabulary(ids))
    assert torch.equal(out.logits, model.vocabulary.decode(proposal))


@pytest.mark.parametrize(("mode", "mixer"), [
    ("jacobian_free", "attention"), ("phantom", "attention"), ("exact", "attention"),
    *(pytest.param("jacobian_free", name, marks=ABSENT) for name in ("gpt2", "llama")),
])  # fmt: skip
def test_every_parameter_learns(mode: str, mixer: Any) -> None:
    torch.manual_seed(0)
    model = AttractorLM(dataclasses.replace(SPEC, mixer=mixer), "anderson", mode)
    out = model(tokens(2, 8), max_steps=8)
    out.logits.square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_parcae_draws_its_depth_in_training_alone() -> None:
    torch.manual_seed(0)
    model = ParcaeLM(SPEC, loops=4)
    ids = tokens(4, 6)
    with torch.no_grad():
        assert not torch.equal(model(ids).logits, model(ids).logits)
        model.eval()
        assert torch.equal(model(ids).logits, model(ids).logits)
        assert torch.equal(model(ids, max_steps=4).logits, model(ids).logits)


@pytest.mark.parametrize(("backbone_blocks", "coda", "before"), [(3, 1, 2), (3, 0, 3), (1, 2, 0)])
def test_parcae_splits_its_backbone(backbone_blocks: int, coda: int, before: int) -> None:
    spec = dataclasses.replace(SPEC, backbone_blocks=backbone_blocks)
    model = ParcaeLM(spec, coda=coda).eval()
    assert (len(model.prelude), len(model.coda)) == (before, backbone_blocks - before)
    assert model(tokens(2, 6)).logits.shape == (2, 6, SPEC.vocabulary)


@pytest.mark.parametrize(
    "changes",
    [{"injection": "other"}, {"mixer": "none"}, {"start": "there"}, {"width": 0}, {"context": 0}],
)
def test_bad_shapes_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        dataclasses.replace(SPEC, **changes)


@pytest.mark.parametrize("base", [10_000.0, 20.0])
@torch.no_grad()
def test_selected_sequences_of_a_cache_go_on_as_they_would_have(base: float) -> None:
    """Rows of a cache, as a beam search takes them: one twice, and another base of positions."""
    torch.manual_seed(0)
    spec = LanguageSpec(vocabulary=32, width=32, num_heads=2, backbone_blocks=2, rope_base=base)
    model = AttractorLM(spec, solvers.get_solver("anderson", rtol=1e-6)).double().eval()
    ids, rows = torch.randint(32, (3, 9)), torch.tensor([2, 0, 2])
    valid = torch.arange(9) >= torch.tensor([[3], [0], [1]])  # padded on the left
    _, cache = model.extend(ids[:, :8], model.empty_cache(valid[:, :8]))
    whole, _ = model.extend(ids[rows], model.empty_cache(valid[rows]))
    out, _ = model.extend(ids[rows, 8:], cache.select(rows))
    torch.testing.assert_close(out.logits, whole.logits[:, 8:], rtol=0, atol=1e-5)
