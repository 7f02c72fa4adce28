"""What a run of a language model does beyond the loop."""

from pathlib import Path

import pytest

from implicit import FixedPointLayer
from tasks.experiments.run import train
from tasks.lm.config import PRESETS
from tasks.lm.experiment import TextExperiment


@pytest.mark.parametrize(
    ("autocast", "train_rtol", "used"),
    [
        (True, None, 2**-7),
        pytest.param(True, 3e-2, 3e-2, marks=pytest.mark.slow),
        pytest.param(False, 1e-3, 1e-3, marks=pytest.mark.slow),
        pytest.param(False, None, 1e-5, marks=pytest.mark.slow),
    ],
)
def test_training_solves_no_further_than_its_precision_and_its_tolerance(
    tmp_path: Path, autocast: bool, train_rtol: float | None, used: float
) -> None:
    config = PRESETS["tiny"].changed(
        width=32, num_heads=2, max_bytes=200_000, eval_tokens=1024, steps=10,
        rtol=1e-5, train_rtol=train_rtol, train_max_steps=48, autocast=autocast,
    )  # fmt: skip
    trainer, _, _ = train(TextExperiment(), "tiny", config, tmp_path)
    rtols = [
        {m.solver.rtol for m in model.modules() if isinstance(m, FixedPointLayer)}
        for model in (trainer.model, trainer.average)
    ]
    assert rtols == [{used}, {1e-5}]
    assert all(row["solver_steps"] < 24 for row in trainer.history.rows)
    assert trainer.history.rows[-1]["converged"] > 0.99


@pytest.mark.parametrize("train_rtol", [1e-4, 1.0])
def test_a_tolerance_of_training_below_that_of_evaluation_is_refused(train_rtol: float) -> None:
    with pytest.raises(ValueError, match=r"`train_rtol` must be at least `rtol`, 0\.0003"):
        PRESETS["tiny"].changed(train_rtol=train_rtol)
