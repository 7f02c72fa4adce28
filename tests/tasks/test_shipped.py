"""The models that come with the package: found, named, used, and told apart from runs."""

import inspect
import json
import re
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import tasks.lm
import tasks.maze
import tasks.sudoku
from tasks import shipped
from tasks.checkpoints.checkpoint import NAME, Checkpoint
from tasks.checkpoints.file import CheckpointError
from tasks.lm import writing
from tasks.lm.config import LanguageTask
from tasks.maze.__main__ import main as maze
from tasks.maze.task import MazeTask
from tasks.puzzles import solving
from tasks.runs import RUNS, choose_checkpoint, load_model, locate, read_checkpoint
from tasks.serving.about import describe
from tasks.sudoku.__main__ import main as sudoku
from tasks.sudoku.task import SudokuTask

TASKS = {"sudoku": SudokuTask, "maze": MazeTask, "lm": LanguageTask}
MODELS = [(task, path) for task in TASKS for path in shipped.paths(task)]
PUZZLE = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"
ANSWER = "534678912672195348198342567859761423426853791713924856961537284287419635345286179"
# What each model card says, in the first column of its table.
CARD = ["Data", "Command", "Cost", "Scores", "Calibration", "Licence"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The model `extreme` of a package that a test may damage."""
    package = tmp_path / "installed" / "tasks"
    shutil.copytree(shipped.folder("sudoku"), package / "sudoku" / "weights")
    monkeypatch.setattr(shipped, "__file__", str(package / "shipped.py"))
    return shipped.path_of("sudoku", "extreme")


def test_all_models_together_are_small() -> None:
    assert {"sudoku", "maze"} <= {task for task, _ in MODELS}
    files = [file for task in TASKS for file in shipped.folder(task).glob("*")]
    assert sum(file.stat().st_size for file in files) <= 10 * 2**20


def test_a_model_is_known_by_a_relative_path(monkeypatch: pytest.MonkeyPatch) -> None:
    (path, *_) = shipped.paths("sudoku")
    monkeypatch.chdir(path.parent.parent)
    assert shipped.holds(Path("weights", path.name))
    assert not shipped.holds(Path(path.name))


@pytest.mark.parametrize(("task", "path"), MODELS, ids=lambda each: getattr(each, "stem", each))
def test_every_model_has_a_card_and_loads(task: str, path: Path) -> None:
    text = path.with_suffix(".md").read_text()
    rows = re.findall(r"^\| \*\*([^*]+)\*\* \|", text, re.MULTILINE)
    assert [row for row in rows if row in CARD] == CARD
    assert "## Limits" in text
    model, _ = load_model(TASKS[task](), path, device="cpu")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert f"{parameters:,} parameters" in text


def test_solve_needs_no_run_and_says_what_it_uses(capsys: pytest.CaptureFixture[str]) -> None:
    assert sudoku(["solve", PUZZLE]) == 0
    out = capsys.readouterr().out
    assert "Solving with the model 'extreme' that comes with the package" in out
    assert ANSWER in out


@pytest.mark.parametrize("to_file", [False, True])
def test_answers_for_a_program(
    to_file: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "answers.json"
    assert sudoku(["solve", PUZZLE, "--json", str(file) if to_file else "-"]) == 0
    out, err = capsys.readouterr()
    (answer,) = json.loads(out)["answers"]
    assert (answer["question"], answer["answer"], answer["valid"]) == (PUZZLE, ANSWER, True)
    assert answer["converged"]
    assert answer["residual"] < 1e-5
    assert answer["trained_size"]
    assert answer["held_out"]["right"] == answer["held_out"]["puzzles"] > 0
    assert "a valid solution" in err
    assert not to_file or file.read_text() == out


def test_a_run_of_the_users_comes_first(capsys: pytest.CaptureFixture[str]) -> None:
    mine = RUNS / "sudoku" / "mine"
    mine.mkdir(parents=True)
    shutil.copy(shipped.path_of("sudoku", "extreme"), mine / NAME)
    assert sudoku(["solve", PUZZLE]) == 0
    assert f"Solving with {mine / NAME}" in capsys.readouterr().out


def test_a_model_is_named_and_a_wrong_name_is_guessed(capsys: pytest.CaptureFixture[str]) -> None:
    assert locate("sudoku", Path("extreme")) == shipped.path_of("sudoku", "extreme")
    assert sudoku(["solve", PUZZLE, "--checkpoint", "extrem"]) == 2
    assert (
        "These come with the package: extreme, sixteen. Did you mean 'extreme'?"
        in capsys.readouterr().err
    )
    with pytest.raises(CheckpointError, match=r"Unknown maze model 'hart'.*Did you mean 'hard'\?"):
        shipped.path_of("maze", "hart")


def test_a_size_that_no_weights_fit_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert maze(["solve", "S  G"]) == 2
    error = capsys.readouterr().err
    assert "No checkpoint for boards of 4 cells under runs/" in error
    assert "none comes with the package. Others that are there: " in error
    assert "--preset" not in error


@pytest.mark.parametrize(
    ("task", "side", "preset"), [(SudokuTask(), 4, "tiny"), (MazeTask(), 9, "tiny")]
)
def test_a_size_that_no_model_has_says_which_preset_trains_one(
    task: Any, side: int, preset: str
) -> None:
    with pytest.raises(CheckpointError, match=f"train --preset {preset}`"):
        choose_checkpoint(task, lambda config: config.spec().side == side, "of this size")


@pytest.mark.parametrize(
    ("main", "puzzle", "sides"),
    [(sudoku, "1234341221.343.1", (9, 4)), (maze, "S" + " " * 79 + "G", (30, 9))],
)
def test_a_size_that_no_model_has_is_solved_by_one_of_another_size(
    main: Any, puzzle: str, sides: tuple[int, int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["solve", puzzle]) in (0, 1)
    out = capsys.readouterr().out
    trained, side = sides
    assert f"trained on {trained}x{trained} boards. That a converged answer is right was" in out
    assert f"not on {side}x{side}" in out
    assert "held-out" not in out


def test_a_folder_of_a_run_stands_for_its_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with pytest.raises(CheckpointError):
        Checkpoint.load(locate("sudoku", folder))
    shutil.copy(shipped.path_of("sudoku", "extreme"), folder / "mine.safetensors")
    with pytest.raises(
        CheckpointError, match=r"no checkpoint, as it has mine\.safetensors without"
    ):
        Checkpoint.load(locate("sudoku", folder))
    shutil.copy(shipped.path_of("sudoku", "extreme"), folder / "model.safetensors")
    assert locate("sudoku", folder) == folder / "model.safetensors"
    shutil.copy(shipped.path_of("sudoku", "extreme"), folder / NAME)
    assert locate("sudoku", folder) == folder / NAME


def test_damaged_weights_of_the_package_say_how_to_get_them_back(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = bytearray(copied.read_bytes())
    content[-5] ^= 255
    copied.write_bytes(bytes(content))
    assert sudoku(["solve", PUZZLE]) == 2
    error = capsys.readouterr().err
    assert "is damaged" in error
    assert "`pip install --force-reinstall --no-deps attractor-models` brings it back" in error
    copied.write_bytes(b"")
    copied.parents[3].joinpath(".git").mkdir()
    with pytest.raises(CheckpointError, match=r"truncated.*`git checkout -- .*` brings it back"):
        read_checkpoint(copied)


def test_a_model_without_its_card_works_and_says_that_nothing_is_known_of_it(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copied.with_suffix(".md").unlink()
    missing = r"There is no .*extreme\.md: .*'extreme' is not known.*force-reinstall"
    with pytest.warns(UserWarning, match=missing):
        assert sudoku(["solve", PUZZLE]) == 0
    out = capsys.readouterr().out
    assert ANSWER in out
    assert "held-out puzzles with such a residual" not in out
    with pytest.warns(UserWarning, match=missing):
        assert describe(copied, "puzzle") == {"name": "extreme", "card": {}, "reliability": []}
    with pytest.warns(UserWarning, match=missing):
        assert sudoku(["eval", "--quick", "--limit", "2"]) == 0


def test_load_has_the_options_of_what_it_calls() -> None:
    def options(call: Any) -> list[inspect.Parameter]:
        parameters = inspect.signature(call).parameters.values()
        return [each for each in parameters if each.kind is each.KEYWORD_ONLY]

    assert options(tasks.sudoku.load) == options(tasks.maze.load) == options(solving.load)
    assert options(tasks.lm.load) == options(writing.load)


def test_weights_of_a_newer_format_say_what_to_upgrade(copied: Path, tmp_path: Path) -> None:
    path = tmp_path / "new.safetensors"
    content = shipped.path_of("sudoku", "extreme").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"]["format"] = "attractor-models-31"
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    with pytest.raises(CheckpointError, match=r"newer version of attractor-models.*--upgrade"):
        Checkpoint.load(path)
    shutil.copy(path, copied)
    with pytest.raises(CheckpointError, match=r"--upgrade attractor-models`\.$"):
        read_checkpoint(copied)  # not damaged: nothing has to be brought back


def test_eval_takes_the_puzzles_beside_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert sudoku(["eval", "--quick", "--limit", "10"]) == 0
    out, said = capsys.readouterr()
    result = json.loads(out.splitlines()[-1])
    assert result["eval"]["exact_accuracy"] >= 0.8
    assert result["generated"] is True
    said = " ".join(said.split())
    assert "The model 'extreme' on 10 of the puzzles of" in said
    assert "extreme.csv, which this project's generator made" in said
    assert "are of other puzzles, those of sudoku_extreme_like_dev_1k.csv: 82.1 %" in said


def test_eval_says_of_a_file_only_what_it_knows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.csv").write_text(f"source,question,answer,rating\nme,{PUZZLE},{ANSWER},0\n")
    assert sudoku(["eval", "--quick", "--data", "mine.csv", "--checkpoint", "extreme"]) == 0
    out, said = capsys.readouterr()
    result = json.loads(out.splitlines()[-1])
    assert (result["data"], result["generated"]) == ("mine.csv", False)
    assert "on 1 of the puzzles of mine.csv\n" in said
    assert "generator" not in said
    assert "are of other puzzles, those of sudoku_extreme_like_dev_1k.csv" in said


def test_eval_of_a_run_whose_puzzles_are_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file of another disk is said to be one."""
    shutil.copy(shipped.path_of("sudoku", "extreme"), tmp_path / "mine.safetensors")
    assert sudoku(["eval", "--checkpoint", "mine.safetensors"]) == 2
    error = capsys.readouterr().err
    assert "data/sudoku_extreme_like_dev_1k.csv, which is not on this machine" in error
    assert "`--data FILE`" in error


@pytest.mark.parametrize("name", ["train-data", "test-data"])
def test_training_on_a_file_that_is_not_there(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--preset", "tiny", "--train-puzzles", "32", "--steps", "1"]
    assert sudoku(["train", *small, f"--{name}", "nowhere.csv"]) == 2
    error = capsys.readouterr().err
    assert f"There is no file of puzzles at nowhere.csv, which `--{name}` names" in error


def test_nothing_fits_where_nothing_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped, "paths", lambda task: [])
    with pytest.raises(CheckpointError, match="No checkpoint of any kind under runs/sudoku"):
        choose_checkpoint(SudokuTask(), lambda config: True, "of any kind")


def test_streams_are_read_a_batch_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solving, "BATCH", 8)
    model = tasks.sudoku.load("extreme", device="cpu")
    read = 0

    def puzzles() -> Iterator[str]:
        nonlocal read
        while True:
            read += 1
            yield PUZZLE if read % 2 else ANSWER

    answers = model.solve(puzzles(), max_steps=2)
    first = next(answers)
    assert first.question == PUZZLE
    assert read == 8
    assert not first.converged
    assert first.num_steps == 2


def test_a_slow_stream_is_answered_as_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a fast one after it in whole batches again."""
    now, read, delay = 0.0, 0, 1.0
    monkeypatch.setattr(solving, "BATCH", 8)
    monkeypatch.setattr(solving, "monotonic", lambda: now)

    def puzzles() -> Iterator[str]:
        nonlocal now, read
        while True:
            now += delay
            read += 1
            yield PUZZLE

    answers = tasks.sudoku.load(device="cpu").solve(puzzles(), max_steps=1)
    for number in (1, 2):
        assert next(answers).question == PUZZLE
        assert read == number
    delay = 0.6 * solving.PATIENCE
    next(answers)
    assert read == 2 + 2  # the second came when time was up
    delay = 0.0
    for _ in range(2):
        next(answers)
    assert read == 4 + 8


def test_equal_texts_of_a_batch_are_solved_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """And answered each in its place; the text decides, so that none is parsed to be compared."""
    real, solved = solving.solve_batch, []

    def counting(model: Any, x: torch.Tensor, **options: Any) -> Any:
        solved.append(len(x))
        return real(model, x, **options)

    monkeypatch.setattr(solving, "solve_batch", counting)
    monkeypatch.setattr(solving, "BATCH", 4)
    texts = [PUZZLE, ANSWER, PUZZLE, PUZZLE, PUZZLE, ANSWER + "\n"]
    answers = list(tasks.sudoku.load(device="cpu").solve(texts, max_steps=2))
    assert [answer.question for answer in answers] == [text.strip() for text in texts]
    assert solved == [2, 2]


def test_answers_have_verdicts() -> None:
    model = tasks.sudoku.load()
    assert "extreme" in repr(model)
    answer = model.solve(PUZZLE)
    assert (answer.answer, answer.valid, answer.converged) == (ANSWER, True, True)
    assert answer.residual < 2e-5
    one, two = model.solve([PUZZLE, PUZZLE])
    assert one == two
    assert one.answer == ANSWER
    answers = model.solve([PUZZLE, "12"])
    assert next(answers) == one  # what came before a bad one is not lost
    with pytest.raises(ValueError, match=r"^Puzzle 2 of the iterable: .*81"):
        next(answers)
    with pytest.raises(ValueError, match=r"^Puzzle 1 of the iterable: "):
        next(model.solve(["12", PUZZLE]))
    with pytest.raises(
        ValueError, match=r"For puzzles of 16x16: `load\('sixteen'\)`.*`for_side\(16\)`"
    ):
        model.solve("." * 256)
    with pytest.raises(TypeError, match=r"^Puzzle 2 of the iterable must be text: got int\.$"):
        list(model.solve([PUZZLE, 12]))  # type: ignore[list-item]
    with pytest.raises(TypeError, match=r"^`puzzles` must be text, or an iterable of texts: got i"):
        model.solve(12)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match=r"^`puzzles` must be text, .* got bytes"):
        model.solve(PUZZLE.encode())  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="`side` must be a whole number: got a str"):
        model.for_side("9")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"`name` must be the name of a model, .* got a int"):
        tasks.sudoku.load(5)  # type: ignore[arg-type]
    for budget in (0, 1.5, "3", True):
        with pytest.raises(ValueError, match=f"`max_steps` must be an int.* 1, got {budget!r}"):
            model.solve(PUZZLE, max_steps=budget)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match=r"^The folder \. holds no checkpoint\. Name the folder"):
        tasks.sudoku.load(".")
    with pytest.raises(ValueError, match=r"No checkpoint at extreem.*Did you mean 'extreme'"):
        tasks.sudoku.load("extreem")


def test_a_maze_is_answered_with_a_path() -> None:
    (row,) = shipped.folder("maze").joinpath("hard.csv").read_text().splitlines()[1:2]
    _, question, answer, _ = row.split(",")
    found = tasks.maze.load(device="cpu").solve(question)
    assert found.question == question
    assert found.valid
    assert found.converged
    assert torch.tensor([a == b for a, b in zip(found.answer, answer, strict=True)]).all()
