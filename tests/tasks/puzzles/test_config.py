"""Which solver a run trains with, and which one it is evaluated with."""

import dataclasses

import pytest

from solvers import Broyden, Picard
from tasks.puzzles.config import ModelName
from tasks.sudoku.config import PRESETS


def test_trains_with_one_solver_and_evaluates_with_another() -> None:
    config = PRESETS["standard"]
    assert isinstance(config.build_solver(), Picard)
    assert isinstance(config.evaluation_solver(), Broyden)
    assert isinstance(config.evaluation_solver("picard"), Picard)
    assert config.evaluation_solver().rtol == config.rtol


@pytest.mark.parametrize("model", ["unrolled", "trm", "hrm", "eqr"])
def test_baselines_keep_to_plain_steps(model: ModelName) -> None:
    config = dataclasses.replace(PRESETS["standard"], model=model)
    assert isinstance(config.build_solver(), Picard)
    assert isinstance(config.evaluation_solver(), Picard)


def test_damping_goes_to_the_solver_of_training_alone() -> None:
    config = dataclasses.replace(PRESETS["standard"], damping=0.25)
    assert config.build_solver() == Picard(rtol=config.rtol, damping=0.25)
    assert isinstance(config.evaluation_solver(), Broyden)


@pytest.mark.parametrize("name", ["solver", "eval_solver"])
@pytest.mark.parametrize("model", ["attractor", "trm"])
def test_an_unknown_solver_is_refused_at_once(name: str, model: ModelName) -> None:
    with pytest.raises(ValueError, match="Unknown solver 'newton'"):
        dataclasses.replace(PRESETS["tiny"], model=model, **{name: "newton"})
