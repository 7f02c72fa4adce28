"""Sampling, and text that does not depend on how it is computed."""

import dataclasses
import math
from typing import Any

import pytest
import torch

import solvers
from models import AttractorLM, LanguageSpec
from tasks.lm.generate import Sampling, generate

SPEC = LanguageSpec(vocabulary=300, width=16, num_heads=2, backbone_blocks=1, context=64)


MIXERS = ["attention", "gpt2", "llama"]


def model(mixer: Any = "attention") -> AttractorLM:
    if mixer != "attention":
        pytest.importorskip("transformers")
    torch.manual_seed(0)
    spec = dataclasses.replace(SPEC, mixer=mixer)
    return AttractorLM(spec, solvers.Anderson(rtol=1e-12, atol=0.0)).double().eval()


@pytest.mark.parametrize("mixer", MIXERS)
def test_greedy_text_is_that_of_the_whole_prefix(mixer: str) -> None:
    net, prompt = model(mixer), [3, 1, 4, 1, 5]
    drawn = generate(net, [prompt], tokens=12, context=64, sampling=Sampling(temperature=0))
    found, row = [int(token) for token in drawn], list(prompt)
    with torch.no_grad():
        for _ in range(12):
            row.append(int(net(torch.tensor([row])).logits[0, -1].argmax()))
    assert found == row[5:]


def test_what_is_generated_can_be_trained_on() -> None:
    """The tokens drawn are ordinary tensors, and the model stays one that learns."""
    net = model()
    greedy = Sampling(temperature=0)
    drawn = next(generate(net, [[1, 2]], tokens=4, context=64, sampling=greedy))[:, None]
    net(drawn).logits.logsumexp(-1).sum().backward()
    assert all(weight.grad is not None for weight in net.parameters())


@pytest.mark.parametrize("mixer", MIXERS)
def test_prompts_of_different_lengths_do_not_disturb_each_other(mixer: str) -> None:
    net, prompts = model(mixer), [[3, 1, 4, 1, 5, 9, 2], [6]]
    greedy = Sampling(temperature=0)
    together = torch.stack(list(generate(net, prompts, tokens=8, context=64, sampling=greedy)), 1)
    for prompt, row in zip(prompts, together, strict=True):
        alone = torch.stack(list(generate(net, [prompt], tokens=8, context=64, sampling=greedy)), 1)
        assert torch.equal(alone[0], row)


@pytest.mark.parametrize("mixer", MIXERS)
def test_text_longer_than_the_context_goes_on(mixer: str) -> None:
    drawn = list(generate(model(mixer), [[7] * 30], tokens=20, context=8, sampling=Sampling()))
    assert len(drawn) == 20


def test_seeds() -> None:
    def text(seed: int) -> list[int]:
        sampling = Sampling(temperature=2.0, seed=seed)
        return [int(t) for t in generate(model(), [[1]], tokens=10, context=32, sampling=sampling)]

    assert text(0) == text(0)
    assert text(0) != text(1)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_model_that_diverged_draws_no_token(temperature: float) -> None:
    net = model()
    for weight in net.parameters():
        weight.data.fill_(math.nan)
    sampling = Sampling(temperature=temperature)
    with pytest.raises(ValueError, match=r"not finite.*the weights of another run"):
        next(generate(net, [[5]], tokens=1, context=8, sampling=sampling))


def test_a_temperature_may_be_too_small_to_draw() -> None:
    with pytest.raises(ValueError, match="`temperature` = 1e-300 are not finite"):
        next(generate(model(), [[5]], tokens=1, context=8, sampling=Sampling(temperature=1e-300)))


def test_empty_prompt() -> None:
    with pytest.raises(ValueError, match="A prompt is empty"):
        next(generate(model(), [[]], tokens=1, context=8, sampling=Sampling()))


@pytest.mark.parametrize(("options", "allowed"), [
    ({"temperature": 0.0}, {3}),
    ({"top_k": 2}, {3, 2}),
    ({"top_p": 0.5}, {3}),
    ({"top_p": 0.7}, {3, 2}),
    ({}, {0, 1, 2, 3}),
])  # fmt: skip
def test_what_may_be_drawn(options: dict[str, float], allowed: set[int]) -> None:
    logits = torch.tensor([[0.05, 0.1, 0.25, 0.6]]).log().repeat(400, 1)
    sampling = Sampling(**{"temperature": 1.0, **options})  # type: ignore[arg-type]
    drawn = sampling.draw(logits, torch.Generator().manual_seed(0))
    assert set(drawn.tolist()) == allowed


@pytest.mark.parametrize("options", [
    {"temperature": -1.0}, {"top_k": 0}, {"top_p": 0.0}, {"temperature": float("nan")},
])  # fmt: skip
def test_bad_options(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must"):
        Sampling(**options)  # type: ignore[arg-type]
