"""A checkpoint as one safetensors file, written atomically, read without running any code.

The file holds a checksum of all that is in it, so that damage is found when it is read. The other
form, a folder that many processes write at once, is in `sharded`.
"""

import contextlib
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

# Files of the first format have no checksum.
FORMAT, FIRST_FORMAT = "attractor-models-2", "attractor-models-1"
# How code answers values that it was not written for.
FAULTS = (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError,
          ValueError, SafetensorError)  # fmt: skip


class CheckpointError(ValueError):
    """A file is not a checkpoint that this version can use."""


@contextlib.contextmanager
def refusing(source: Any, problem: str) -> Iterator[None]:
    """Refuse a file whose content makes the code in the context fail, however it fails.

    Args:
        source: The file.
        problem: What is wrong with it, to go on after its name.

    Raises:
        CheckpointError: The code failed.
    """
    try:
        yield
    except CheckpointError:
        raise
    except FAULTS as error:
        raise CheckpointError(
            f"{source} {problem} ({brief(error)}). Use another one, or train again."
        ) from error


def brief(error: BaseException | str) -> str:
    """What an error says, in one line that is not too long, whatever it quotes."""
    text = " ".join(str(error)[:1000].split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."


def write(
    path: Path,
    tensors: Mapping[str, Mapping[str, Tensor]],
    meta: Mapping[str, Any],
    older: Sequence[Path] = (),
) -> None:
    """Write to a temporary file in the folder of `path`, then replace `path` in one step.

    Args:
        path: The file.
        tensors: Named groups of tensors.
        meta: JSON values.
        older: Names for the files that `path` replaces, the most recent one first. A file for
            which there is no name left is deleted.

    Raises:
        OSError: It could not be written, and what was there is untouched.
    """
    flat = {n: tensor.cpu().contiguous() for n, tensor in flattened(tensors).items()}
    text = json.dumps(meta)
    header = {"format": FORMAT, "meta": text, "sha256": _checksum(flat, text)}
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


def read(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Read the tensors and meta data of a file that `write` wrote.

    Raises:
        CheckpointError: It is missing, truncated, damaged, or something else.
    """
    flat, header = read_tensors(path)
    if header.get("format") not in (FORMAT, FIRST_FORMAT):
        raise CheckpointError(
            f"{path} is a safetensors file, but not a checkpoint of this project: its format "
            f"is {header.get('format')!r:.100}, expected {FORMAT!r}."
        )
    meta = header.get("meta", "")
    with refusing(path, "has tensors of a type that no checkpoint has"):
        checksum = _checksum(flat, meta)
    if header["format"] == FORMAT and header.get("sha256") != checksum:
        raise CheckpointError(
            f"{path} is damaged: its content does not have the checksum that it was written "
            "with. Use an earlier one, or train again."
        )
    return grouped(flat), parse_object(meta, path, "meta data")


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read all tensors of a safetensors file, and the texts in its header.

    Raises:
        CheckpointError: It is missing, truncated, or something else.
    """
    if not path.is_file():
        raise CheckpointError(f"No checkpoint at {path}. Train one first, or name another.")
    try:
        with safe_open(path, framework="pt") as file:
            flat = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return flat, file.metadata() or {}
    except (*FAULTS, OSError) as error:
        raise CheckpointError(
            f"{path} is not a readable checkpoint ({brief(error)}). It may "
            "be truncated: use an earlier one, or train again."
        ) from error


def parse_object(text: Any, path: Path, what: str) -> dict[str, Any]:
    """Parse a JSON object in a file.

    Args:
        text: The JSON.
        path: The file, for messages.
        what: What the object is there, for messages.

    Raises:
        CheckpointError: It is something else, or nested too deeply.
    """
    try:
        content = json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: its {what} are not JSON ({error}).") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is damaged: its {what} are not a JSON object.")
    return content


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
    """Give a file a second name in one step, which stays when the first one is replaced."""
    temporary = name.with_name(name.name + ".tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
    except OSError:  # a file system without links
        shutil.copyfile(path, temporary)
        to_disk(temporary)
    os.replace(temporary, name)


def rotate(older: Sequence[Path]) -> None:
    """Rename each checkpoint that exists to the next name in the list; delete the last one."""
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
    """Flush a file to disk, so that its content survives a power cut before it gets its name."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
