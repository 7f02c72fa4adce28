"""Models of equal size."""

from typing import Any, get_args

import pytest
import torch

from models.language import Mixer
from tasks.experiments.compare import matched
from tasks.lm.config import PRESETS, LanguageConfig
from tasks.lm.experiment import ablated
from tasks.lm.networks import ModelName


def size(config: LanguageConfig) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in config.build().parameters())


@pytest.mark.parametrize("model", get_args(ModelName))
@pytest.mark.parametrize("mixer", get_args(Mixer))
def test_every_model_and_backbone_is_matched(model: Any, mixer: Any) -> None:
    if mixer in ("gpt2", "llama"):
        pytest.importorskip("transformers")
    base = PRESETS["small"]
    found = matched(base, model=model, mixer=mixer)
    assert found.model.width % (2 * base.model.num_heads) == 0
    assert size(found) == pytest.approx(size(base), rel=0.06)


def test_an_ablation_may_change_several_options() -> None:
    found = ablated(PRESETS["tiny"], "solver=picard,train_max_steps=4,rtol=1e-5")
    assert (
        found.model.name,
        found.solve.solver,
        found.solve.train_max_steps,
        found.solve.rtol,
    ) == (
        "attractor",
        "picard",
        4,
        1e-5,
    )
    found = ablated(PRESETS["tiny"], "model=deq,tied=false")
    assert (found.model.name, found.model.tied) == ("deq", False)
    found = ablated(PRESETS["tiny"], "model=parcae,coda_blocks=0")
    assert (found.model.name, found.model.coda_blocks) == ("parcae", 0)
    assert len(found.build().coda) == 0
