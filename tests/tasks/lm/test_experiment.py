"""What a run of a language model does beyond the loop."""

from pathlib import Path

import pytest

from implicit import FixedPointLayer
from tasks.experiments.run import train
from tasks.lm.config import PRESETS
from tasks.lm.experiment import TextExperiment


@pytest.mark.parametrize("autocast", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_training_solves_no_further_than_its_precision(tmp_path: Path, autocast: bool) -> None:
    config = PRESETS["tiny"].changed(
        width=32, num_heads=2, max_bytes=200_000, eval_tokens=1024, steps=10,
        rtol=1e-5, train_max_steps=48, autocast=autocast,
    )  # fmt: skip
    trainer, _, _ = train(TextExperiment(), "tiny", config, tmp_path)
    rtols = [
        {m.solver.rtol for m in model.modules() if isinstance(m, FixedPointLayer)}
        for model in (trainer.model, trainer.average)
    ]
    assert rtols == [{2**-7 if autocast else 1e-5}, {1e-5}]
    assert all(row["solver_steps"] < 24 for row in trainer.history.rows)
    assert trainer.history.rows[-1]["converged"] > 0.99
