"""What a run has left in its folder: the newest checkpoint, its configuration and its weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from solvers.registry import UnknownName
from tasks.checkpoints.checkpoint import FOLDER, NAME, Checkpoint, bounded_by, load_weights
from tasks.checkpoints.file import CheckpointError
from tasks.device import choose_device

RUNS = Path("runs")


def program(task: Any) -> str:
    """The command that users type, without its arguments: the package of the task's class."""
    return f"python -m {type(task).__module__.rpartition('.')[0]}"


def newest_checkpoint(task: Any, fits: Callable[[Any], bool], what: str) -> Path:
    """The most recent checkpoint in `runs/` whose configuration `fits`.

    Checkpoints of other versions must be named to be used.

    Raises:
        CheckpointError: There is none.
    """
    folder = RUNS / task.name
    found = [path for name in (NAME, FOLDER) for path in folder.glob(f"*/{name}")]
    found.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for path in found:
        try:
            config = read_config(task, Checkpoint.load(path))
        except CheckpointError:
            continue
        if fits(config):
            return path
    raise CheckpointError(
        f"No checkpoint {what} under {folder}. Train one with `{program(task)}`, or name "
        "one with `--checkpoint`."
    )


def read_config(task: Any, checkpoint: Checkpoint) -> Any:
    """The configuration that a checkpoint was trained with.

    Raises:
        CheckpointError: It belongs to another task, or to another version, or names a solver or
            mode that no module has registered.
    """
    path, trained = checkpoint.path, checkpoint.meta.get("task")
    if trained != task.name:
        raise CheckpointError(
            f"{path} was trained on {trained!r:.100}, not on {task.name!r}. Name a checkpoint of "
            "this task with `--checkpoint`."
        )
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
    checkpoint = Checkpoint.load(source) if isinstance(source, Path) else source
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
