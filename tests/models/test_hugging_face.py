"""What the blocks of `transformers` promise beyond what every backbone does."""

import sys
from typing import Any

import pytest
import torch

from models import LanguageSpec
from models.hugging_face import HuggingFaceStack


def build(architecture: Any, **options: Any) -> HuggingFaceStack:
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    return HuggingFaceStack(architecture, 2, 16, 2, **options).double().eval()


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_embedded_tokens_give_what_the_model_gives_for_tokens(architecture: str) -> None:
    stack = build(architecture, context=8)
    transformers: Any = pytest.importorskip("transformers")
    config = type(stack.model.config)(**{**stack.model.config.to_dict(), "vocab_size": 11})
    original = transformers.AutoModel.from_config(config).double().eval()
    missing, unexpected = original.load_state_dict(stack.model.state_dict(), strict=False)
    assert not unexpected
    embedding = original.get_input_embeddings()
    assert [original.get_parameter(name) for name in missing] == [embedding.weight]
    ids = torch.arange(8)[None]
    with torch.no_grad():
        assert torch.allclose(
            stack(embedding(ids)), original(input_ids=ids).last_hidden_state, atol=1e-6
        )


def test_gpt2_has_so_many_positions() -> None:
    stack = build("gpt2", context=5)
    assert stack(torch.zeros(1, 5, 16).double()).shape == (1, 5, 16)
    with pytest.raises(ValueError, match=r"positions for 5 tokens, got a sequence of 6.*`context`"):
        stack(torch.zeros(1, 6, 16).double())
    _, past = stack.extend(torch.zeros(2, 5, 16).double(), stack.empty_caches(torch.ones(2, 5) > 0))
    with pytest.raises(ValueError, match="got a sequence of 6"):
        stack.extend(torch.zeros(2, 1, 16).double(), past)


def test_padding_takes_no_position() -> None:
    stack = build("gpt2", context=3)
    h, valid = torch.randn(1, 5, 16).double(), torch.tensor([[False, False, True, True, True]])
    with torch.no_grad():
        out, _ = stack.extend(h, stack.empty_caches(valid))
        assert torch.allclose(out[:, 2:], stack(h[:, 2:]), atol=1e-12)


def test_llama_has_no_last_position() -> None:
    stack = build("llama", context=3)
    assert stack(torch.randn(1, 40, 16).double()).isfinite().all()


@pytest.mark.parametrize(("architecture", "width"), [("gpt2", 15), ("llama", 15), ("llama", 18)])
def test_heads_that_do_not_fit(architecture: Any, width: int) -> None:
    with pytest.raises(ValueError, match=f"6 heads for width {width}"):
        HuggingFaceStack(architecture, 1, width, 6)


@pytest.mark.parametrize("mixer", ["gpt2", "llama"])
def test_without_the_package_the_extra_is_named(
    mixer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    spec = LanguageSpec(vocabulary=11, width=16, num_heads=2, mixer=mixer)
    with pytest.raises(ValueError, match=rf"'{mixer}' needs.*attractor-models\[lm\].*`mixer`"):
        spec.stack(1)
    assert len(spec.stack(0)) == 0
