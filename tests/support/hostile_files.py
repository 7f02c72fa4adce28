"""Files whose content was chosen to hurt whoever reads it, made from good ones.

    PYTHONPATH=. python -m tests.support.hostile_files FOLDER

reads all that `write` left in a folder and prints, as JSON, which of them were answered in another
way than by a model or by a `CheckpointError`, and by how many MB the process grew.
"""

import copy
import itertools
import json
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tasks.checkpoints.checkpoint import Checkpoint
from tasks.checkpoints.file import CheckpointError
from tasks.lm.commands import LanguageCommands
from tasks.lm.config import LanguageConfig
from tasks.maze.config import MazeConfig
from tasks.maze.task import MazeTask
from tasks.runs import load_model
from tasks.sudoku.config import SudokuConfig
from tasks.sudoku.task import SudokuTask

Load = Callable[[Path], object]
VALUES = (
    10**9, 2**62, 10**30, -1, 0, 1, 7, 0.5, -1.5, 1e300, float("nan"), float("inf"), True, None,
    "evil", "", "x" * 5000, "\0", "\ud800", [], [1], {}, {"name": "evil"}, [[[[[]]]]],
)  # fmt: skip
CONFIGS: dict[str, Any] = {
    "sudoku": SudokuConfig.of(side=4, min_clues=4, max_clues=6, width=8),
    "cells": SudokuConfig.of(
        side=4, min_clues=4, max_clues=6, width=8, num_heads=2, layout="cells", model="eqr"
    ),
    "maze": MazeConfig.of(side=5, min_path=4, width=8),
    "lm": LanguageConfig.of(vocabulary=257, width=8, num_heads=2, backbone_blocks=1, context=8),
    "parcae": LanguageConfig.of(
        model="parcae", vocabulary=257, width=8, num_heads=2, backbone_blocks=1, context=8
    ),
}


def loader(name: str) -> Load:
    """What reads a checkpoint of this configuration."""
    if name in ("lm", "parcae"):
        return lambda path: LanguageCommands()._load(path, "cpu")
    task: Any = MazeTask() if name == "maze" else SudokuTask()
    return lambda path: load_model(task, path, device="cpu")


def good(name: str) -> Checkpoint:
    """A checkpoint with random weights."""
    config = CONFIGS[name]
    weights = {f"module.{key}": value for key, value in config.build().state_dict().items()}
    task = {"lm": "lm", "parcae": "lm", "maze": "maze"}.get(name, "sudoku")
    meta = {"task": task, "preset": "tiny", "tokenizer": "", "step": 3, "seconds": 1.0,
            "history": [], "config": config.to_json()}  # fmt: skip
    return Checkpoint({"average": weights}, meta)


def configurations(every: int = 1) -> Iterator[tuple[str, str, Checkpoint]]:
    """Checkpoints with one value of the configuration changed, or with none of its sections.

    Args:
        every: Leave out all but one in so many.
    """
    count = 0
    for name in CONFIGS:
        checkpoint = good(name)
        places = [(part, key) for part, section in checkpoint.meta["config"].items()
                  for key in (*section, None, "evil")]  # fmt: skip
        for part, key in (*places, ("evil", None)):
            for value in VALUES:
                count += 1
                if count % every:
                    continue
                config = copy.deepcopy(checkpoint.meta["config"])
                if key is None:
                    config[part] = value
                else:
                    config[part][key] = value
                changed = Checkpoint(checkpoint.tensors, {**checkpoint.meta, "config": config})
                yield name, f"{name}: {part}.{key} = {value!r:.40}", changed


def contents() -> Iterator[tuple[str, str, Checkpoint]]:
    """Checkpoints with other tensors, or with meta data of other types or sizes."""
    for name in ("sudoku", "lm"):
        checkpoint = good(name)
        weights, meta = checkpoint.tensors["average"], checkpoint.meta
        for key in meta:
            rest = {k: v for k, v in meta.items() if k != key}
            yield name, f"{name}: no {key}", Checkpoint(checkpoint.tensors, rest)
            for value in (*VALUES, [[]] * 200_000, {str(i): {} for i in range(60_000)}):
                changed = Checkpoint(checkpoint.tensors, {**meta, key: value})
                yield name, f"{name}: {key} = {value!r:.40}", changed
        for key, tensor in weights.items():
            rest = {k: v for k, v in weights.items() if k != key}
            others = {
                "another shape": {key: torch.zeros(3, 1)}, "half": {key: tensor.half()},
                "foreign": {"module.evil": tensor}, "missing": {},
            }  # fmt: skip
            for kind, other in others.items():
                changed = Checkpoint({"average": rest | other}, meta)
                yield name, f"{name}: {kind} {key}", changed
        # Just as many weights, or tensors of them, as a large model would have.
        many = {f"module.{i}": torch.zeros(0) for i in range(10_000)}
        wide = {"module.a": torch.zeros(200_000)}
        for tensors, option in itertools.product((many, wide), (30, 1000, 20_000, 10**6)):
            config = copy.deepcopy(meta["config"])
            sizes = ("width", "num_heads") if tensors is wide else ("refiner_blocks",)
            config["model"] |= dict.fromkeys(sizes, option)
            changed = Checkpoint({"average": tensors}, {**meta, "config": config})
            yield name, f"{name}: {len(tensors)} tensors for {sizes} = {option}", changed


def folders(path: Path) -> Iterator[tuple[str, Load]]:
    """Folders as the Hub has them, which are broken; each is at `path` when it is yielded."""
    from tasks.lm.hub import PretrainedLM

    config = CONFIGS["lm"]
    model = PretrainedLM(config.to_json(), "")
    model.save_pretrained(path)
    options, weights = json.loads((path / "config.json").read_text()), model.state_dict()
    texts: dict[str, Any] = {
        "nested": "[" * 10**6, "no JSON": "{", "a list": "[]", "empty": "", "NaN": "NaN",
        "foreign": {"architectures": ["GPT2LMHeadModel"], "n_layer": 10**9},
        "large": {"settings": {str(i): i for i in range(70_000)}, "tokenizer": ""},
        "no tokenizer": {"settings": options["settings"]},
    }  # fmt: skip
    for key, values in options["settings"].items():
        for option in values:
            for value in (10**9, -1, "evil", None, []):
                settings = {**options["settings"], key: {**values, option: value}}
                texts[f"{key}.{option} = {value!r}"] = {**options, "settings": settings}
    for value in (*VALUES, "{}", "[" * 10**5):
        texts[f"tokenizer = {value!r:.40}"] = {**options, "tokenizer": value}
    for name, text in texts.items():
        (path / "config.json").write_text(text if isinstance(text, str) else json.dumps(text))
        yield f"folder: {name}", PretrainedLM.from_pretrained
    (path / "config.json").write_text(json.dumps(options))
    first = next(iter(weights))
    for name, tensors in {
        "no weights": {},
        "a weight less": {k: v for k, v in weights.items() if k != first},
        "a weight more": {**weights, "evil": torch.zeros(2)},
    }.items():
        save_file(tensors, path / "model.safetensors")
        yield f"folder: {name}", PretrainedLM.from_pretrained
    (path / "model.safetensors").unlink()
    yield "folder: no file of weights", PretrainedLM.from_pretrained


def wrong_answer(load: Load, path: Path) -> str | None:
    """How the reader failed, if it did so in another way than by a `CheckpointError`."""
    try:
        load(path)
    except CheckpointError as error:
        text = str(error)
        return None if str(path) in text and len(text) < 1500 else f"message: {text[:300]}"
    except BaseException as error:
        return repr(error)[:300]
    return None


def write(folder: Path) -> None:
    """Write all checkpoints, with a list of what they are."""
    kinds = []
    files = [(name, name, good(name)) for name in CONFIGS]
    for name, label, checkpoint in itertools.chain(files, configurations(), contents()):
        checkpoint.save(folder / f"{len(kinds)}.safetensors")
        kinds.append((name, label))
    (folder / "kinds.json").write_text(json.dumps(kinds))


def main(folder: Path) -> None:
    """Read all that `write` wrote, and folders of the Hub."""
    kinds = json.loads((folder / "kinds.json").read_text())
    hub = folder / "hub"
    wrong, most, by, before = {}, 0, "", 0
    for count, (name, label) in enumerate(kinds):
        path = folder / f"{count}.safetensors"
        if count < len(CONFIGS):  # the good ones
            loader(name)(path)
            before = most = _peak_mb()
        if (answer := wrong_answer(loader(name), path)) is not None:
            wrong[label] = answer
        if _peak_mb() > most:
            most, by = _peak_mb(), label
    for label, load in folders(hub):
        if (answer := wrong_answer(load, hub)) is not None:
            wrong[label] = answer
        if _peak_mb() > most:
            most, by = _peak_mb(), label
    found = {"files": len(kinds), "wrong": wrong, "grown_mb": most - before, "by": by}
    print(json.dumps(found))


def _peak_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    main(Path(sys.argv[1]))
