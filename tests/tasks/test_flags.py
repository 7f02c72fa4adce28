"""Flags: each has an effect, and a list of all of them that grows by decision alone."""

import contextlib
import dataclasses
import importlib
import math
import re
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from parameters import slow

from solvers.registry import SOLVERS
from tasks.checkpoints.checkpoint import Checkpoint
from tasks.experiments import jobs
from tasks.experiments.run import Experiment, train
from tasks.flags import parse
from tasks.lm.config import PRESETS as LM
from tasks.lm.config import LanguageConfig
from tasks.lm.experiment import TextExperiment
from tasks.lm.tokenizer import ByteTokenizer
from tasks.maze.config import PRESETS as MAZE
from tasks.maze.config import MazeConfig
from tasks.maze.task import MazeTask
from tasks.puzzles.experiment import GridExperiment
from tasks.sudoku.config import PRESETS as SUDOKU
from tasks.sudoku.config import SudokuConfig
from tasks.sudoku.task import SudokuTask
from tasks.training.options import Config, Section

TASKS: dict[str, Any] = {"sudoku": SudokuConfig, "maze": MazeConfig, "lm": LanguageConfig}
KINDS = [(task, kind) for task, config in TASKS.items() for kind in config.kinds]
MAINS = {task: importlib.import_module(f"tasks.{task}.__main__").main for task in TASKS}

# A new option is a decision: it needs an experiment that it moves, and then a place in this list.
TRAIN = [
    "accumulate", "autocast", "averaging", "batch_size", "checkpoint_activations", "checkpoints",
    "clip", "compile", "device", "keep_last", "learning_rate", "minutes", "optimizer", "out",
    "parallel", "save_every", "schedule", "seed", "steps", "threads", "warmup", "weight_decay",
    "weights",
]  # fmt: skip
SHAPE = ["expansion", "layout", "num_heads", "refiner_blocks", "width"]
SOLVE = [
    "backward", "damping", "eval_max_steps", "eval_solver", "recorded_steps", "rtol", "solver",
    "train_max_steps",
]  # fmt: skip
PUZZLE_KINDS = {
    "attractor": (*SHAPE, "backbone_blocks", "start_noise", *SOLVE, "segments", "refill"),
    "reasoner": (*SHAPE, "halting", "puzzle_tokens", *SOLVE, "segments", "refill"),
    **dict.fromkeys(
        ("trm", "hrm", "eqr"),
        (*SHAPE, "halting", "puzzle_tokens", "eval_max_steps", "rtol", "segments", "refill"),
    ),
    "unrolled": (
        *SHAPE, "backbone_blocks", "start_noise", "eval_max_steps", "recorded_steps", "rtol",
        "train_max_steps", "segments", "refill",
    ),
    "transformer": (*SHAPE, "backbone_blocks"),
}  # fmt: skip
BLOCKS = [
    "backbone_blocks", "initial", "norm_embedding", "norm_eps", "num_heads", "refiner_blocks",
    "rope_base", "tied", "width",
]  # fmt: skip
TOKENS = [
    "backward", "eval_max_steps", "history", "min_steps", "recorded_steps", "rtol", "solver",
    "terms", "train_max_steps", "train_rtol",
]  # fmt: skip
RATES = ["adamw_rate", "refiner_rate", "refiner_decay"]
TEXT_KINDS = {
    "attractor": (*BLOCKS, "gate", "gate_start", "injection", "mixer", "start", *TOKENS, *RATES),
    "transformer": (*BLOCKS, "mixer", "value_embeddings", RATES[0]),
    "parcae": (
        *BLOCKS,
        "coda_blocks",
        "loops",
        "mixer",
        "recurrence",
        "value_embeddings",
        RATES[0],
    ),
    "deq": (*BLOCKS, "gate", "gate_start", "injection", *TOKENS, *RATES),
}
FILES = ["test_data", "test_puzzles", "train_data", "train_puzzles", "loss"]
DATA = {
    "sudoku": [
        "copies", "extra_clues", "max_clues", "min_clues", "min_guesses", "minimal", "relatives",
        "side", *FILES,
    ],
    "maze": ["kind", "max_path", "min_path", "side", *FILES],
    "lm": [
        "column", "context", "dataset", "dataset_name", "eval_tokens", "held_out", "max_bytes",
        "shards", "text", "vocabulary",
    ],
}  # fmt: skip


@pytest.mark.parametrize(("task", "kind"), KINDS)
def test_options_are_those_that_were_decided(task: str, kind: str) -> None:
    own = (TEXT_KINDS if task == "lm" else PUZZLE_KINDS)[kind]
    sections = TASKS[task].sections(kind).values()
    names = [name for section in sections for name in section.names()]
    assert sorted(names) == sorted([*TRAIN, *own, *DATA[task]])


class Recorder:
    """Which options are read, but for the bookkeeping of configurations themselves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.read: set[str] = set()
        self.active = True

        def note(section: Section, name: str) -> Any:
            if self.active:
                self.read.add(name)
            return object.__getattribute__(section, name)

        monkeypatch.setattr(Section, "__getattribute__", note, raising=False)
        for name in ("to_json", "flat", "unused"):
            monkeypatch.setattr(Config, name, self._quiet(getattr(Config, name)))
        made = Config.__dict__["_from"].__func__
        monkeypatch.setattr(Config, "_from", classmethod(self._quiet(made)))

    def _quiet(self, method: Any) -> Any:
        def quiet(*arguments: Any) -> Any:
            before, self.active = self.active, False
            try:
                return method(*arguments)
            finally:
                self.active = before

        return quiet


def experiment_of(task: str) -> Experiment:
    if task == "lm":
        return TextExperiment()
    return GridExperiment(SudokuTask() if task == "sudoku" else MazeTask())


@pytest.mark.parametrize(
    ("task", "kind"),
    [slow(*pair, unless=pair[1] in ("attractor", "transformer", "parcae")) for pair in KINDS],
)
@pytest.mark.filterwarnings("ignore")
def test_every_option_is_read_in_training_or_evaluation(
    task: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of those that are not refused; `out` is read by the command."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    small = {
        "steps": 2, "batch_size": 4, "width": 16, "eval_max_steps": 2, "train_puzzles": 16,
        "test_puzzles": 4, "max_bytes": 100_000, "eval_tokens": 128, "context": 32,
    }  # fmt: skip
    presets: Any = {"sudoku": SUDOKU, "maze": MAZE, "lm": LM}[task]
    config = presets["tiny"].adapted(model=kind, **small)
    recorder, experiment = Recorder(monkeypatch), experiment_of(task)
    trainer, held_out, _ = train(experiment, "tiny", config, tmp_path)
    experiment.halves(experiment.model(config, trainer.path), held_out, config)
    with_effect = set(config.flat()) - set(config.unused()) - {"model", "out"}
    assert with_effect <= recorder.read


REFUSED = [
    ("sudoku", "--halting", "`--halting` is an option of `--model reasoner|trm|hrm|eqr`"),
    ("sudoku", "--model reasoner --start-noise 0.1", "option of `--model attractor|unrolled`"),
    ("sudoku", "--num-heads 2", "only with `--layout attention`"),
    ("sudoku", "--num-heads 4", "only with `--layout attention`"),  # also as the default has it
    ("sudoku", "--model trm --puzzle-tokens 1", "with `--layout attention` or `--layout mixer`"),
    ("sudoku", "--backward exact --recorded-steps 1", "only with `--backward phantom`"),
    ("sudoku", "--solver broyden --damping 0.1", "only with solvers that have it"),
    ("sudoku", "--model trm --solver anderson", "this run trains a trm"),
    ("sudoku", "--model transformer --segments 2", "this run trains a transformer"),
    ("sudoku", "--steps 3 --minutes 1", "`--minutes` has an effect only without `--steps`"),
    ("sudoku", "--train-data a --test-data b --min-clues 5", "only without `--train-data`"),
    ("maze", "--layout candidates", "Use 'image', 'attention' or 'mixer'"),
    ("lm", "--model transformer --history 3", "option of `--model attractor|deq`"),
    ("lm", "--model transformer --loops 3", "option of `--model parcae`"),
    ("lm", "--loops 3", "of `--model parcae`; this run trains an attractor."),
    ("lm", "--model transformer --injection concat", "this run trains a transformer"),
    ("lm", "--solver picard --history 3", "only with solvers that have a window"),
    ("lm", "--solver picard --min-steps 3", "only with solvers that have it"),
    ("lm", "--model parcae --mixer gru --num-heads 2", "only with `--mixer attention`"),
    ("lm", "--model parcae --mixer llama --rope-base 5e4", "only with `--mixer attention`"),
    ("lm", "--model parcae --mixer gru --value-embeddings", "only with `--mixer attention`"),
    ("lm", "--value-embeddings", "option of `--model transformer|parcae`"),
    ("lm", "--model transformer --recurrence released", "option of `--model parcae`"),
    ("lm", "--model transformer --gate 0.5", "option of `--model attractor|deq`"),
    ("lm", "--column words", "`--column` has an effect only with `--dataset`"),
    ("lm", "--free-steps 3", "`--free-steps` is called `--train-max-steps` now"),
    ("lm", "--eval-steps=3", "`--eval-steps` is called `--eval-max-steps` now"),
    ("lm", "--model atractor", "Did you mean 'attractor'?"),
    ("lm", "--recorded_steps 2", "only with `--backward phantom`"),
    ("lm", "--terms 2", "only with `--backward neumann`"),
]  # fmt: skip


@pytest.mark.parametrize("command", ["train", "plan"])
@pytest.mark.parametrize(("task", "flags", "message"), REFUSED)
def test_flags_without_effect_are_refused(
    task: str, flags: str, message: str, command: str,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert MAINS[task]([command, "--preset", "tiny", *flags.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not list(tmp_path.iterdir())


def write_checkpoint(task: str, model: str, path: Path) -> Path:
    presets: Any = {"sudoku": SUDOKU, "lm": LM}[task]
    config = presets["tiny"].adapted(model=model, width=16)
    weights = {f"module.{n}": value for n, value in config.build().state_dict().items()}
    tokenizer = ByteTokenizer().to_json()
    meta = {"task": task, "config": config.to_json(), "tokenizer": tokenizer, "step": 0}
    Checkpoint({"average": weights}, meta).save(path)
    return path


@pytest.mark.parametrize(
    ("task", "command", "message"),
    [
        ("sudoku", "train --wdth 3", "Unknown option `--wdth`. Did you mean `--width`?"),
        ("sudoku", "train --presett=x", "Unknown option `--presett`. Did you mean `--preset`?"),
        ("maze", "eval --max-step 3", "Unknown option `--max-step`. Did you mean `--max-steps`?"),
        ("maze", "serve --prt 1", "Unknown option `--prt`. Did you mean `--port`?"),
        ("sudoku", "compare --mdels trm", "Unknown option `--mdels`. Did you mean `--models`?"),
        ("sudoku", "plan --gpu 3", "Unknown option `--gpu`. Did you mean `--gpus`?"),
        ("sudoku", "solve --puzzles 1", "Unknown option `--puzzles`."),  # which has no flag
        ("lm", "eval -x", "Unknown option `-x`."),
        (
            "lm",
            "convert f --tokeniser t",
            "Unknown option `--tokeniser`. Did you mean `--tokenizer`?",
        ),
        ("lm", "eval text", "Unexpected argument 'text'."),
        ("lm", "eval --export f", "`--export` is an option of `python -m tasks.lm internalise`."),
        ("lm", "eval --draw=f", "`--draw` is an option of `python -m tasks.lm internalise`."),
    ],
)
def test_what_is_no_option_of_a_command_is_refused_in_one_line(
    task: str, command: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert MAINS[task](command.split()) == 2
    help_ = f"`python -m tasks.{task} {command.split()[0]} --help` lists what there is."
    assert capsys.readouterr().err == f"error: {message} {help_}\n"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("sudoku train --steps x", "`--steps` must be a whole number, got 'x'."),
        ("sudoku train --layout=gru", "`--layout` must be one of candidates, cells, "),
        ("maze train --width", "`--width` needs a value."),
        ("sudoku eval --breadth 2.5", "`--breadth` must be a whole number, got '2.5'."),
        ("sudoku eval --breadth 0", "`--breadth` must be at least 1, got 0."),
        ("sudoku eval --limit --quick", "`--limit` needs a value."),
        ("maze eval --choose best", "`--choose` must be one of residual, vote, valid, got 'best'."),
        ("sudoku compare --rates 1e-3 x", "`--rates` must be a number, got 'x'."),
        ("sudoku compare --models trm me", "`--models` must be one of attractor, reasoner, "),
        ("sudoku serve --port x", "`--port` must be a whole number, got 'x'."),
        ("sudoku plan --gpus 0", "`--gpus` must be at least 1, got 0."),
        ("lm generate a --temperature hot", "`--temperature` must be a number, got 'hot'."),
        ("lm generate a --temperature -1", "`temperature` must be at least 0, got -1.0."),
    ],
)
def test_a_wrong_value_is_refused_in_one_line_without_names_of_classes(
    command: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    task, *arguments = command.split()
    assert MAINS[task](arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1


def test_numbers_that_are_not_finite_or_negative_are_left_to_the_options() -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Numbers:
        """Some.

        Attributes:
            low: A number.
            many: Numbers.
            count: Perhaps a number.
        """

        low: float = 0.0
        many: tuple[int, ...] = ()
        count: int | None = 3

    arguments = ["--low", "-inf", "--many", "-1", "2", "--count", "None"]
    assert parse(Numbers, arguments, "x") == Numbers(low=-math.inf, many=(-1, 2), count=None)
    with pytest.raises(ValueError, match=r"`--many` must be a whole number, got '2\.5'"):
        parse(Numbers, ["--many", "1", "2.5"], "x")


@pytest.mark.parametrize(
    ("task", "model", "command", "message"),
    [
        ("sudoku", "transformer", "eval --max-steps 4", "on a model that is solved"),
        ("sudoku", "transformer", "eval --draw folder", "on a model that is solved"),
        ("sudoku", "transformer", "export a.pt2 --max-steps 4", "on a model that is solved"),
        ("sudoku", "attractor", "eval --noise 2", "with `--breadth` above 1"),
        ("sudoku", "attractor", "eval --guesses 2", "with `--attempts`"),
        ("sudoku", "attractor", "eval --skip-bad", "with `--data`"),
        ("sudoku", "attractor", "eval --depth 3", "`--depth` is called `--max-steps` now"),
        ("lm", "transformer", "eval --max-steps 4", "on a model that is solved or looped"),
        ("lm", "parcae", "eval --solver picard", "on a model that is solved"),
        ("lm", "parcae", "export a.pt2 --max-steps 4", "on a model that is solved"),
        ("lm", "transformer", "generate a --max-steps 4", "on a model that is solved or looped"),
        ("lm", "attractor", "generate a --temperature 0 --top-k 4", "a `--temperature` above 0"),
    ],
)
def test_commands_refuse_what_a_model_has_no_use_for(
    task: str, model: str, command: str, message: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    path = write_checkpoint(task, model, tmp_path / "model.safetensors")
    try:
        code: Any = MAINS[task]([*command.split(), "--checkpoint", str(path)])
    except SystemExit as stop:  # what the parser refuses
        code = stop.code
    assert code == 2
    assert message in " ".join(re.sub("[\u2500-\u257f]", " ", capsys.readouterr().err).split())


def shown(task: str, *arguments: str) -> str:
    page = StringIO()
    with contextlib.redirect_stdout(page), contextlib.suppress(SystemExit):
        MAINS[task]([*arguments, "--help"])
    return page.getvalue()


@pytest.mark.parametrize("task", TASKS)
def test_help_of_training_fits_two_screens(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = shown(task, "train").splitlines()
    assert len(lines) <= 100
    assert max(map(len, lines)) <= 80
    top = "\n".join(lines[:16])
    assert all(flag in top for flag in ("--preset", "--resume", "--import", "tiny"))
    assert "--loops" not in "\n".join(lines)
    assert "--num-heads" in shown(task, "train", *(["--layout", "attention"] * (task != "lm")))


@pytest.mark.parametrize("task", TASKS)
def test_help_of_every_command_names_the_modules_of_the_user(task: str) -> None:
    own = {"lm": "eval generate internalise loops compare harness plan export"}
    for command in own.get(task, "eval solve compare serve export plan").split():
        assert "--import MODULE" in shown(task, command), command


MODULE = """
from dataclasses import dataclass
import solvers

@solvers.register("zigzag")
@dataclass(frozen=True, kw_only=True)
class Zigzag(solvers.FixedPointSolver):
    def init(self, y): return None
    def step(self, y, fy, carry): return fy, carry
"""


@pytest.fixture
def zigzag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_zigzag_of_jobs.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(SOLVERS, "entries", dict(SOLVERS.entries))
    return "my_zigzag_of_jobs"


def test_processes_of_a_comparison_import_the_modules_of_the_user(zigzag: str) -> None:
    with jobs._pool(1, [zigzag]) as pool:
        # Not `get_solver` itself, which is pickled together with the registry of this process.
        found = pool.submit(eval, "__import__('solvers').get_solver('zigzag')").result()
    assert type(found).__name__ == "Zigzag"


def test_a_comparison_is_given_the_modules(
    zigzag: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[Any] = []
    module = importlib.import_module("tasks.puzzles.experiment")
    monkeypatch.setattr(module, "compare_puzzles", lambda *given: seen.append(given[-1]))
    assert MAINS["sudoku"](["compare", "--preset", "tiny", "--import", zigzag]) == 0
    assert seen[0].modules == (zigzag,)


def test_options_keep_to_the_parser_of_other_types() -> None:
    """Of a few lines of help, that names, numbers and files are called so."""
    page = re.sub(r"\s+", " ", shown("sudoku", "train"))
    for part in ("--width N", "--rtol X", "--solver NAME", "--train-data PATH", "--steps N"):
        assert part in page
