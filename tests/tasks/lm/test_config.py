"""The presets: sizes as their names say."""

from typing import get_args

import pytest
import torch

from tasks.experiments.compare import matched
from tasks.lm.config import PRESETS, ModelName

PUBLISHED = {"140m": 140e6, "370m": 370e6, "770m": 770e6, "1.3b": 1.3e9}


def parameters(name: str, model: ModelName) -> int:
    config = matched(PRESETS[name], model=model, mixer="attention")
    with torch.device("meta"):
        return sum(p.numel() for p in config.build().parameters())


@pytest.mark.parametrize("model", get_args(ModelName))
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_within_5_percent(name: str, model: ModelName) -> None:
    assert parameters(name, model) == pytest.approx(PUBLISHED[name], rel=0.05)


def test_the_smallest_published_size_is_the_paper_s() -> None:
    config = PRESETS["140m"]
    spec = config.spec()
    assert (spec.width, spec.num_heads, spec.backbone_blocks, spec.refiner_blocks) == (
        1024,
        8,
        7,
        1,
    )
    assert config.train.steps is not None
    assert config.train.steps * config.train.batch_size * config.data.context == pytest.approx(
        11.2e9, rel=1e-4
    )
    # Embedding, a norm at the end, and eight blocks of attention, MLP and two norms; two gates.
    block = (4 + 8) * 1024**2 + 2 * 1024
    assert parameters("140m", "attractor") == 32_768 * 1024 + 1024 + 8 * block + 2 * 1024


@pytest.mark.slow
@pytest.mark.long  # four minutes each
@pytest.mark.parametrize("autocast", [False, True])
def test_three_steps_of_the_smallest_published_size(tmp_path, autocast: bool) -> None:
    from tasks.experiments.run import train
    from tasks.lm.experiment import TextExperiment

    config = PRESETS["140m"].changed(
        steps=3, batch_size=2, context=64, max_bytes=3_000_000, compile=False,
        autocast=autocast, vocabulary=8192, device="cpu", dataset=None,
    )  # fmt: skip
    trainer, _, result = train(TextExperiment(), "140m", config, tmp_path)
    assert result["train_steps"] == 3
    assert all(row["loss"] < 30 for row in trainer.history.rows)
