"""Configurations: sections, changes by name, and those of earlier versions."""

import json
import math
import pickle
from pathlib import Path
from typing import Any

import pytest

from tasks.lm.config import PRESETS as LM
from tasks.lm.config import LanguageConfig
from tasks.maze.config import PRESETS as MAZE
from tasks.maze.config import MazeConfig
from tasks.sudoku.config import PRESETS as SUDOKU
from tasks.sudoku.config import SudokuConfig
from tasks.training.options import Config

RESULTS = Path(__file__).parents[3] / "results"
TASKS: dict[str, type[Config]] = {"sudoku": SudokuConfig, "maze": MazeConfig, "lm": LanguageConfig}
# As checkpoints have them that were written when all options were on one level.
OLD = {
    "minutes": 8.0, "segments": 8, "halting": False, "train_puzzles": 100, "copies": None,
    "train_data": "train.csv", "model": "attractor", "layout": "candidates", "num_heads": 8,
    "solver": "picard", "backward": "exact", "free_steps": 5, "recorded_steps": 7, "rtol": 1e-4,
    "eval_steps": 9,
}  # fmt: skip


def test_a_configuration_of_an_earlier_version_is_translated() -> None:
    config = SudokuConfig.from_json(OLD)
    assert (config.train.segments, config.data.train_data) == (8, Path("train.csv"))
    assert (config.solve.train_max_steps, config.solve.eval_max_steps) == (5, 9)
    written = config.to_json()
    assert set(written) == {"model", "solve", "train", "data"}
    # Not what nothing reads: heads of a layout without attention, recorded steps of `exact`.
    assert "num_heads" not in written["model"]
    assert "recorded_steps" not in written["solve"]
    assert SudokuConfig.from_json(written).to_json() == written
    assert MazeConfig.from_json({"copies": None, "free_steps": 2}).solve.train_max_steps == 2
    for halting, today in ((False, "none"), (True, "right")):
        old = OLD | {"model": "hrm", "halting": halting}
        assert SudokuConfig.from_json(old).model.halting == today
        old = {"model": {"name": "trm", "halting": halting}}
        assert SudokuConfig.from_json(old).model.halting == today
    old = {"model": "parcae", "segments": 1, "refill": False, "halting": False, "loss": "softmax"}
    assert LanguageConfig.from_json(old).model.name == "parcae"


@pytest.mark.parametrize("task", TASKS)
def test_configurations_of_all_results_are_read(task: str) -> None:
    files = (RESULTS / task).glob("*/result.json")
    found = [json.loads(path.read_text()).get("config") for path in files]
    assert [TASKS[task].from_json(values) for values in found if values]


@pytest.mark.parametrize("config", [*SUDOKU.values(), *MAZE.values(), *LM.values()])
def test_presets_are_kept_by_files_and_processes(config: Config) -> None:
    written = json.loads(json.dumps(config.to_json()))
    assert type(config).from_json(written).to_json() == written
    assert pickle.loads(pickle.dumps(config)) == config


@pytest.mark.parametrize("values", [{"dept": 3}, {"model": {"name": "trm", "loops": 3}}])
def test_options_that_no_version_has_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"it has the options (dept|loops)"):
        SudokuConfig.from_json(values)


def test_changes_go_to_their_sections_and_must_have_an_effect() -> None:
    config = SudokuConfig.of(width=16, side=4, min_clues=4, max_clues=6)
    changed = config.changed(model="reasoner", halting="right", rtol=1e-3, seed=7)
    assert (changed.model.name, changed.model.halting, changed.model.width) == (
        "reasoner",
        "right",
        16,
    )
    assert (changed.solve.rtol, changed.train.seed, changed.data.side) == (1e-3, 7, 4)
    # Another kind of model keeps what it has a use for, and drops the rest.
    assert "halting" not in changed.changed(model="attractor").flat()
    with pytest.raises(ValueError, match="this run trains an attractor"):
        config.changed(halting="right")
    assert config.adapted(halting="right") == config
    with pytest.raises(ValueError, match="Did you mean 'width'"):
        config.changed(widht=3)
    with pytest.raises(ValueError, match="`--free-steps` is called `--train-max-steps` now"):
        config.changed(free_steps=3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": {"name": "evil"}}, "Unknown model 'evil'"),
        ({"model": {"width": 8}}, "Unknown model None"),
        ({"model": ["trm"]}, "Unknown model"),
        ({"model": {"name": "trm"}, "train": [1]}, "`train` must be a section with options"),
        ({"width": "8"}, r"`width` must be a whole number, got '8'"),
        ({"width": True}, r"`width` must be a whole number, got True"),
        ({"width": 10**30}, r"got 10{30} \(most: 9,223"),
        ({"rtol": math.nan}, "`rtol` must be a number, got nan"),
        (
            {"halting": 1, "model": "trm"},
            "`halting` must be one of 'none', 'right', 'q-learning', got 1",
        ),
        ({"loss": "hinge"}, "`loss` must be 'softmax' or 'stablemax', got 'hinge'"),
        ({"layout": []}, "`layout` must be one of 'candidates', 'cells', .*, got"),
        ({"train_data": 7}, "`train_data` must be a path or none, got 7"),
        ({"device": "x" * 5000}, r"`device` must be text, got 'x{80}', of 5,000 characters"),
        ({"expansion": [[[]]]}, "`expansion` must be a number or none"),
        ({str(i): i for i in range(9000)}, r"it has the options 0, 1, .* and 8,995 more"),
    ],
)
def test_values_of_another_type_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        SudokuConfig.from_json(values)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(("preset", "option", "listed"), [
    (SUDOKU["tiny"], "train_data", ""), (MAZE["tiny"], "test_data", ""),
    (LM["tiny"], "text", ""), (LM["tiny"], "shards", "manifest.json"),
])  # fmt: skip
def test_files_of_a_resumed_run_are_where_they_were(
    preset: Config, option: str, listed: str, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    data = preset.changed(**{option: source}).data
    name = option.replace("_", "-")
    with pytest.raises(
        ValueError, match=rf"nothing at {source / listed}, .* its `--{name}`\. Move"
    ):
        data.require_recorded()
    with pytest.raises(ValueError, match=r"make a link to it there, or wait\.$"):
        data.require_recorded(", or wait")
    if listed:
        source.mkdir()
    (source / listed).write_text("")
    data.require_recorded()
    preset.data.require_recorded()
