"""Backbones that compute their activations anew: the same gradients, in less memory."""

import shutil
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from torch import nn

from models import (
    AttractorLM,
    GridAttractor,
    GridSpec,
    GridTransformer,
    LanguageSpec,
    ParcaeLM,
    Reasoner,
    TokenLayout,
    TransformerLM,
    modules_used_once,
    recompute_activations,
)
from models.blocks import Block, TokenMixer
from models.language import Mixer
from models.reasoners import UPDATES
from tasks.planning.peak_memory import PeakMemory

SIDE = 4
UNITS = tuple(tuple(i // SIDE if kind else i % SIDE for i in range(SIDE**2)) for kind in (0, 1))


def language(kind: Any, mixer: str = "attention", backbone_blocks: int = 4) -> nn.Module:
    if mixer in ("gpt2", "llama"):
        pytest.importorskip("transformers")
    spec = LanguageSpec(
        vocabulary=17, width=32, num_heads=2, backbone_blocks=backbone_blocks, mixer=mixer,
        context=16,
    )  # fmt: skip
    return kind(spec)


def grid(kind: Any, layout: str = "cells") -> nn.Module:
    spec = GridSpec(
        num_symbols=SIDE, side=SIDE, units=UNITS, layout=layout, width=16, backbone_blocks=4
    )
    return kind(spec)


MODELS: dict[str, Callable[[], nn.Module]] = {
    **{f"lm with {mixer}": lambda mixer=mixer: language(AttractorLM, mixer)
       for mixer in get_args(Mixer)},
    **{f"grid of {layout}": lambda layout=layout: grid(GridAttractor, layout)
       for layout in get_args(TokenLayout)},
    "Transformer": lambda: language(TransformerLM),
    "Parcae": lambda: language(ParcaeLM),
    "Transformer on grids": lambda: grid(GridTransformer),
}  # fmt: skip


def step(model: nn.Module, autocast: bool = False) -> tuple[list[torch.Tensor], int]:
    """Gradients, and bytes that are alive between the forward pass and the backward pass."""
    model.train().zero_grad()
    torch.manual_seed(1)
    x = torch.randint(SIDE, (8, SIDE**2))
    with PeakMemory([*model.parameters(), *model.buffers()]) as live:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model(x, max_steps=6).logits.float().square().mean()
        between = live.now
        loss.backward()
    return [p.grad for p in model.parameters() if p.grad is not None], between


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_identical_and_memory_falls(name: str) -> None:
    torch.manual_seed(0)
    model = MODELS[name]()
    expected, before = step(model)
    recompute_activations(model)
    found, after = step(model)
    assert len(found) == len(expected)
    assert all(map(torch.equal, found, expected))
    # Without the backbone's four blocks; the refiner, the loop and the head keep what they did.
    assert after < 0.75 * before


def test_gradients_are_identical_in_bfloat16() -> None:
    torch.manual_seed(0)
    model = MODELS["lm with attention"]()
    expected, before = step(model, autocast=True)
    recompute_activations(model)
    found, after = step(model, autocast=True)
    assert all(map(torch.equal, found, expected))
    assert after < 0.75 * before


def test_nothing_is_computed_anew_without_a_gradient() -> None:
    model = grid(GridAttractor)
    recompute_activations(model)
    calls: list[Any] = []
    block = next(module for module in modules_used_once(model) if isinstance(module, Block))
    block.mixer.register_forward_hook(lambda *_: calls.append(None))
    with torch.no_grad():
        model(torch.zeros(1, SIDE**2, dtype=torch.long))
    assert len(calls) == 1
    model(torch.zeros(1, SIDE**2, dtype=torch.long)).logits.sum().backward()
    assert len(calls) == 3


def test_what_is_solved_or_looped_over_is_left_alone() -> None:
    for model, repeated in (
        (grid(GridAttractor), "attractor.refiner."),
        (language(AttractorLM), "attractor.refiner."),
        (language(ParcaeLM), "blocks."),
    ):
        recompute_activations(model)
        for name, module in model.named_modules():
            if hasattr(module, "recompute"):
                assert module.recompute != name.startswith(repeated), name


def test_a_model_without_a_backbone_is_refused() -> None:
    spec = GridSpec(num_symbols=SIDE, side=SIDE, layout="mixer", width=8)
    reasoner = Reasoner(spec, UPDATES["reasoner"](spec))
    for model in (reasoner, language(AttractorLM, backbone_blocks=0)):
        with pytest.raises(ValueError, match=r"this \w+ has none: leave it off"):
            recompute_activations(model)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++ here")
def test_a_compiled_block_has_the_same_gradients() -> None:
    torch.manual_seed(0)
    block, h = Block(TokenMixer(9), 16), torch.randn(4, 9, 16)

    def gradients() -> list[torch.Tensor]:
        block.zero_grad()
        block(h).square().sum().backward()
        return [p.grad.clone() for p in block.parameters() if p.grad is not None]

    expected = gradients()
    block.compile()
    block.recompute = True
    for found, plain in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-4)
