"""What a run has left in its folder: the newest checkpoint, its configuration and its weights."""

import difflib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from solvers.registry import UnknownName
from tasks import shipped
from tasks.checkpoints.checkpoint import FOLDER, NAME, Checkpoint, bounded_by, load_weights
from tasks.checkpoints.file import WANTED, CheckpointError, require_safetensors
from tasks.device import choose_device

RUNS = Path("runs")
# The averaged weights alone, in the folder of a run.
WEIGHTS = "model.safetensors"
# What its evaluation measured.
RESULT = "result.json"


def program(task: Any) -> str:
    """The command that users type, without its arguments: the package of the task's class."""
    return f"python -m {type(task).__module__.rpartition('.')[0]}"


def locate(task: str, named: str | Path) -> Path:
    """The checkpoint that a user names: a file, the folder of a run, or a model of the package.

    Raises:
        CheckpointError: There is none.
        TypeError: The name is neither text nor a path.
    """
    if not isinstance(named, str | Path):
        raise TypeError(
            "`name` must be the name of a model, the folder of a run, or a checkpoint: got a "
            f"{type(named).__name__}."
        )
    name, known = str(named), shipped.names(task)
    close = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    those = f" These come with the package: {', '.join(known)}.{hint}" if known else ""
    if not name:
        raise CheckpointError(f"The name of a checkpoint is empty. {WANTED}{those}")
    if (path := Path(named)).exists():
        path = in_run_folder(path)
        if not path.is_dir():
            require_safetensors(path, those)
        return path
    if name in known:
        return shipped.path_of(task, name)
    raise CheckpointError(f"No checkpoint at {named}. {WANTED}{those}")


def in_run_folder(path: Path) -> Path:
    """The newest checkpoint in the folder of a run; other paths stay as they are."""
    if not path.is_dir():
        return path
    found = [path / name for name in (NAME, FOLDER) if (path / name).exists()]
    weights = path / WEIGHTS
    found = found or ([weights] if weights.is_file() and not _is_hub_folder(path) else [])
    return max(found, key=lambda each: each.stat().st_mtime) if found else path


def _is_hub_folder(path: Path) -> bool:
    """Whether `lm export` wrote a folder, whose weights are in the Hub's form."""
    return (path / "config.json").is_file()


def choose_checkpoint(
    task: Any,
    fits: Callable[[Any], bool],
    what: str,
    otherwise: Callable[[Any], bool] = lambda config: False,
) -> Path:
    """The checkpoint of a command that names none: the newest run's, or else the package's.

    Checkpoints of other versions must be named to be used.

    Args:
        task: What it was trained on.
        fits: Whether a configuration is one to use.
        what: What kind of checkpoint it is, for messages.
        otherwise: Whether a configuration may be used where none fits.

    Raises:
        CheckpointError: There is none.
    """
    folder = RUNS / task.name
    found = [path for name in (NAME, FOLDER) for path in folder.glob(f"*/{name}")]
    found.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    others: list[str] = []
    second: Path | None = None
    for path in (*found, *shipped.paths(task.name)):
        try:
            config = read_config(task, read_checkpoint(path))
        except CheckpointError as error:
            if shipped.holds(path):
                raise
            warnings.warn(f"A newer run is left out: {error}", stacklevel=2)
            continue
        if fits(config):
            return path
        if second is None and otherwise(config):
            second = path
        others.append(path.stem if shipped.holds(path) else str(path))
    if second is not None:
        return second
    presets = [name for name, config in task.presets.items() if fits(config)]
    preset = f" train --preset {presets[0]}" if presets else ""
    there = f" Others that are there: {', '.join(others[:5])}." if others else ""
    raise CheckpointError(
        f"No checkpoint {what} under {folder}, and none comes with the package.{there} Train one "
        f"with `{program(task)}{preset}`, or name one with `--checkpoint`."
    )


def read_checkpoint(path: Path) -> Checkpoint:
    """Load a checkpoint; see `Checkpoint.load`.

    Raises:
        CheckpointError: It is missing or damaged; of one of the package, with how to get it back.
    """
    with shipped.repairing(path):
        return Checkpoint.load(path)


def read_config(task: Any, checkpoint: Checkpoint) -> Any:
    """The configuration that a checkpoint was trained with.

    Raises:
        CheckpointError: It belongs to another task, or to another version, or names a solver or
            mode that no module has registered.
    """
    path = checkpoint.path
    require_task(task.name, checkpoint)
    values = checkpoint.value("config")
    try:
        return task.config_type.from_json(values)
    except UnknownName as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (ImportError, TypeError, ValueError) as error:
        reason = str(error).rstrip(".")
        raise CheckpointError(
            f"{path} comes from another version, or is damaged: {reason}. Train again."
        ) from error


def require_task(task: str, checkpoint: Checkpoint) -> None:
    """Check that a checkpoint is one of this task.

    Raises:
        CheckpointError: It belongs to another one.
    """
    if (trained := checkpoint.meta.get("task")) != task:
        raise CheckpointError(
            f"{checkpoint.path} was trained on {trained!r:.100}, not on {task!r}. Name one of this "
            "task."
        )


def last_score(path: Path) -> float | None:
    """The share of held-out puzzles that a run got right when it last looked; None if unknown."""
    history = read_checkpoint(path).meta.get("history", [])
    scores = [row["test_exact"] for row in history if "test_exact" in row]
    return scores[-1] if scores else None


def load_model(
    task: Any, source: Path | Checkpoint, *, device: str = "auto", solver: str | None = None
) -> tuple[Any, Any]:
    """The averaged model of a checkpoint, ready for evaluation, and its configuration.

    Args:
        task: What it was trained on.
        source: The checkpoint, or its file.
        device: "auto", "cpu", "cuda" or "cuda:N".
        solver: Another solver than that of the configuration.

    Raises:
        CheckpointError: The file is not a checkpoint of this task and version.
        ValueError: Unknown device or solver.
    """
    checkpoint = read_checkpoint(source) if isinstance(source, Path) else source
    config, weights = read_config(task, checkpoint), averaged_weights(checkpoint)
    with bounded_by(weights, config, checkpoint.path):
        model = config.build()
    load_weights(model, weights, checkpoint.path)
    if model.solving is not None:
        model.solving.solver = config.solve.evaluation_solver(solver)
    return model.to(choose_device(device)).eval(), config


def averaged_weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The averaged weights of a checkpoint, by their names in the model."""
    average, prefix = checkpoint.group("average"), "module."
    return {k.removeprefix(prefix): v for k, v in average.items() if k.startswith(prefix)}


def export(checkpoint: Path, path: Path) -> Path:
    """Write the averaged weights alone: a tenth of the size, and enough for `eval` and `solve`."""
    whole = Checkpoint.load(checkpoint)
    average = {k: v for k, v in whole.group("average").items() if k.startswith("module.")}
    Checkpoint({"average": average}, whole.meta | {"history": []}).save(path)
    return path
