"""Models of equal size."""

from typing import Any, get_args

import pytest
import torch

from models.language import Mixer
from tasks.lm.compare import matched
from tasks.lm.config import PRESETS, LanguageConfig, ModelName


def size(config: LanguageConfig) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in config.build().parameters())


@pytest.mark.parametrize("model", get_args(ModelName))
@pytest.mark.parametrize("mixer", get_args(Mixer))
def test_every_model_and_backbone_is_matched(model: Any, mixer: Any) -> None:
    if mixer in ("gpt2", "llama"):
        pytest.importorskip("transformers")
    base = PRESETS["small"]
    found = matched(base, model, mixer)
    assert found.width % (2 * base.num_heads) == 0
    assert size(found) == pytest.approx(size(base), rel=0.06)
