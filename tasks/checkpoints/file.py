"""Checkpoints: one safetensors file, written atomically, read without running any code.

The file holds a checksum of all that is in it, so that damage is found when it is read. The other
form, a folder that many processes write at once, is in `sharded`.
"""

import contextlib
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

# Files of the first format have no checksum.
FORMAT, FIRST_FORMAT = "attractor-models-2", "attractor-models-1"


class CheckpointError(ValueError):
    """A file is not a checkpoint that this version can use."""


@dataclass(frozen=True)
class Checkpoint:
    """Everything needed to use a model, or to go on training it.

    Attributes:
        tensors: Named groups of tensors, as `model`, `average`, `optimizer`, `random`.
        meta: JSON values: task, config, step, seconds, history.
    """

    tensors: dict[str, dict[str, Tensor]]
    meta: dict[str, Any] = field(default_factory=dict)

    def save(self, path: Path, older: Sequence[Path] = ()) -> None:
        """Write to a temporary file beside `path`, then replace it in one step.

        Args:
            path: The file.
            older: Names of the files that it replaces, from the last one back; others go.

        Raises:
            OSError: It could not be written, and what was there is untouched.
        """
        flat = {n: tensor.cpu().contiguous() for n, tensor in flattened(self.tensors).items()}
        meta = json.dumps(self.meta)
        header = {"format": FORMAT, "meta": meta, "sha256": _checksum(flat, meta)}
        temporary = path.with_name(path.name + ".tmp")
        try:
            save_file(flat, temporary, header)
            to_disk(temporary)
            if older and path.exists():
                rotate(older)
                hardlink(path, older[0])
            os.replace(temporary, path)
        except (SafetensorError, OSError) as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise OSError(f"{path} could not be written ({error})") from error

    @classmethod
    def load(cls, path: Path) -> "Checkpoint":
        """Read a file written by `save`, or a folder of `tasks.checkpoints.sharded`.

        Raises:
            CheckpointError: It is missing, truncated, damaged, or something else.
        """
        if path.is_dir():
            from tasks.checkpoints import sharded  # it builds on this module

            return sharded.read(path)
        if not path.is_file():
            raise CheckpointError(f"No checkpoint at {path}. Train one first, or name another.")
        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                flat = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{path} is not a readable checkpoint ({error}). It may be truncated: use an "
                "earlier one, or train again."
            ) from error
        if header.get("format") not in (FORMAT, FIRST_FORMAT):
            raise CheckpointError(
                f"{path} is a safetensors file, but not a checkpoint of this project: its format "
                f"is {header.get('format')!r}, expected {FORMAT!r}."
            )
        meta = header.get("meta", "")
        if header["format"] == FORMAT and header.get("sha256") != _checksum(flat, meta):
            raise CheckpointError(
                f"{path} is damaged: its content does not have the checksum that it was written "
                "with. Use an earlier one, or train again."
            )
        try:
            read = json.loads(meta)
        except ValueError as error:
            raise CheckpointError(f"{path} is damaged: its meta data are no JSON.") from error
        if not isinstance(read, dict):
            raise CheckpointError(f"{path} is damaged: its meta data are no JSON object.")
        return cls(grouped(flat), read)


def flattened(tensors: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors of all groups as `group/name`, without gradients."""
    return {
        f"{group}/{name}": tensor.detach()
        for group, named in tensors.items()
        for name, tensor in named.items()
    }


def grouped(flat: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Undo `flattened`."""
    tensors: dict[str, dict[str, Tensor]] = {}
    for name, tensor in flat.items():
        group, _, rest = name.partition("/")
        tensors.setdefault(group, {})[rest] = tensor
    return tensors


def hardlink(path: Path, name: Path) -> None:
    """Give a file a second name, in one step; `save` replaces the first and leaves the second."""
    temporary = name.with_name(name.name + ".tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
    except OSError:  # a file system without links
        shutil.copyfile(path, temporary)
        to_disk(temporary)
    os.replace(temporary, name)


def rotate(older: Sequence[Path]) -> None:
    """Every checkpoint takes the next name, as far as there are some; the last one goes."""
    for newer, name in reversed(list(itertools.pairwise(older))):
        if newer.exists():
            if name.is_dir():
                shutil.rmtree(name)
            newer.rename(name)


def _checksum(flat: dict[str, Tensor], meta: str) -> str:
    """SHA-256 of names, types, shapes and bytes of all tensors, and of the meta data."""
    digest = hashlib.sha256(meta.encode())
    for name, tensor in sorted(flat.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def to_disk(path: Path) -> None:
    """Let a file survive a power cut: its content must be there before its name is."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def load_weights(module: torch.nn.Module, weights: dict[str, Tensor], source: Path) -> None:
    """Load a state dict, with an error that names the file.

    Raises:
        CheckpointError: Names or shapes do not fit the module.
    """
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"The weights in {source} do not fit this model: {error}") from error


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as named tensors."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{key}": value for i, entry in state.items() for key, value in entry.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Undo `optimizer_tensors`."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
