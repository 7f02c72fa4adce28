"""Checkpoints that the public code of TRM, HRM and EqR has written: pickles, read without code.

TRM and HRM write a state dict as `step_N`, and beside it `all_config.yaml`. EqR writes a dictionary
as `step_N_RUN.pth`, with the weights, their averages and the configuration among the rest.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from tasks.checkpoints.file import CheckpointError
from tasks.checkpoints.foreign import read_pickle

CONFIG = "all_config.yaml"
# Names of such files in a folder, whatever else lies there. A number of steps may be in them.
FILE = re.compile(r"checkpoint|step_([0-9]+)|(step_)?[\w.-]+\.(pth|pt)")
STEP = re.compile(r"step_([0-9]{1,12})")
# What a checkpoint of EqR has besides weights, none of which is looked at: states of samples, and
# of NumPy's random numbers.
ASIDE = (
    *(f"models.{module}.{kind}Carry" for module in ("eqr", "trm") for kind in ("Model", "Latent")),
    *(f"numpy.{core}.multiarray._reconstruct" for core in ("core", "_core")),
    "numpy.ndarray", "numpy.dtype", "numpy.dtypes.UInt32DType",
)  # fmt: skip

REWRITE = (
    "With the code that wrote it, load it and write its weights alone: `torch.save(weights, "
    "'step_0')`, where `weights` maps names to tensors."
)


class _Aside:
    """In place of what is not looked at: it takes everything and does nothing."""

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...


@dataclass(frozen=True)
class PublishedCheckpoint:
    """What such a file holds.

    Attributes:
        path: The file.
        weights: By their names in the network, such as `L_level.layers.0.mlp.down_proj.weight`.
        arch: The options of the network as far as they are known.
        arch_path: Where those come from.
        step: Of the training; 0 if it is not known.
    """

    path: Path
    weights: dict[str, Tensor]
    arch: Mapping[str, Any]
    arch_path: Path | None
    step: int


def read(source: Path) -> PublishedCheckpoint:
    """Read a file, or the newest one of a folder.

    Raises:
        CheckpointError: There is none, or it holds something else.
    """
    path = _file_in(source)
    content = read_pickle(path, REWRITE, [(_Aside, name) for name in ASIDE])
    state, arch, arch_path = content, {}, None
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        averages = content.get("ema") or {}
        averages = averages.get("shadow", averages) if isinstance(averages, Mapping) else {}
        state = {**_named(content["model"], path), **_named(averages, path)}
        config = content.get("config")
        if isinstance(config, Mapping) and isinstance(config.get("arch"), Mapping):
            arch, arch_path = config["arch"], path
    if not arch and (beside := path.with_name(CONFIG)).is_file():
        arch, arch_path = arch_in(beside.read_text(encoding="utf-8", errors="replace")), beside
    step = STEP.search(path.name)
    return PublishedCheckpoint(
        path, _named(state, path), arch, arch_path, int(step[1]) if step else 0
    )


def _file_in(source: Path) -> Path:
    """The file that is meant, which has been found to exist."""
    if source.is_file():
        return source
    if not source.is_dir():
        raise CheckpointError(
            f"There is no file or folder {source}. Download the released weights first, and name "
            "the file, or the folder that it is in."
        )
    found = [each for each in source.iterdir() if each.is_file() and FILE.fullmatch(each.name)]

    def step(path: Path) -> int:
        number = STEP.match(path.name)
        return int(number[1]) if number else -1

    found = [each for each in found if step(each) == max(map(step, found))]
    if len(found) != 1:
        names = ", ".join(sorted(each.name for each in found)[:5]) or "none"
        raise CheckpointError(
            f"{source} must hold one file `checkpoint`, `step_N`, or one that ends in `.pth` or "
            f"`.pt`; the newest there: {names}. Name the file itself."
        )
    return found[0]


def _named(state: Any, path: Path) -> dict[str, Tensor]:
    """Weights by their names in the network, without those of what it was wrapped in."""
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        what = type(state).__name__
        if isinstance(state, Mapping):
            odd = [str(name) for name, value in state.items() if not isinstance(value, Tensor)]
            what = f"a dictionary in which {', '.join(odd[:3])[:200]!r} is no tensor"
        raise CheckpointError(
            f"{path} holds {what}, expected names and tensors (a state dict), or a dictionary that "
            "has them as `model`. Name the file of weights that the published code has written."
        )
    named: dict[str, Tensor] = {}
    for name, value in state.items():
        parts = [part for part in name.split(".") if part != "_orig_mod"]
        while parts[:1] in (["model"], ["inner"], ["module"]):
            parts = parts[1:]
        short = ".".join(parts)
        if short in named:
            raise CheckpointError(f"{path} has two tensors {short!r:.200}. Use another file.")
        named[short] = value
    return named


def arch_in(text: str) -> dict[str, Any]:
    """The options of the section `arch` of a configuration as the published code writes it.

    Only options with one value on their line are read, so that no YAML parser is needed.
    """
    section = re.search(r"^arch:\n((?:[ ].*\n?)*)", text, re.MULTILINE)
    found = re.findall(r"^ {2}(\w+): (\S+)$", section[1] if section else "", re.MULTILINE)
    return {name: _value(word) for name, word in found}


def _value(word: str) -> Any:
    """A number, a truth or a text."""
    if word in ("true", "false", "null"):
        return {"true": True, "false": False, "null": None}[word]
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return word
