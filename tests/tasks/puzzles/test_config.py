"""Which solver a run trains with, and which one it is evaluated with."""

import re

import pytest

from solvers import Broyden, Picard
from tasks.puzzles.config import ModelName
from tasks.sudoku.config import PRESETS


def test_trains_with_one_solver_and_evaluates_with_another() -> None:
    config = PRESETS["standard"]
    assert isinstance(config.solve.train_solver(), Picard)
    assert isinstance(config.solve.evaluation_solver(), Broyden)
    assert isinstance(config.solve.evaluation_solver("picard"), Picard)
    assert config.solve.evaluation_solver().rtol == config.solve.rtol


@pytest.mark.parametrize("model", ["unrolled", "trm", "hrm", "eqr"])
def test_baselines_keep_to_plain_steps(model: ModelName) -> None:
    config = PRESETS["standard"].changed(model=model)
    assert isinstance(config.solve.train_solver(), Picard)
    assert isinstance(config.solve.evaluation_solver(), Picard)


def test_damping_goes_to_the_solver_of_training_alone() -> None:
    config = PRESETS["standard"].changed(damping=0.25)
    assert config.solve.train_solver() == Picard(rtol=config.solve.rtol, damping=0.25)
    assert isinstance(config.solve.evaluation_solver(), Broyden)


@pytest.mark.parametrize("name", ["solver", "eval_solver"])
def test_an_unknown_solver_is_refused_at_once(name: str) -> None:
    with pytest.raises(ValueError, match="Unknown solver 'newton'"):
        PRESETS["tiny"].changed(**{name: "newton"})
    message = "is an option of `--model attractor|reasoner`; this run trains a trm"
    with pytest.raises(ValueError, match=re.escape(message)):
        PRESETS["tiny"].changed(model="trm", **{name: "picard"})
