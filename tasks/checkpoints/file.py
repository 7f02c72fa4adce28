"""A checkpoint as one safetensors file, written atomically, read without running any code.

The file holds a checksum of all that is in it, so that damage is found when it is read. The other
form, a folder that many processes write at once, is in `sharded`.
"""

import contextlib
import hashlib
import itertools
import json
import os
import re
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
# Of a safetensors file, in bytes; safetensors reads none that is larger.
LARGEST_HEADER = 100_000_000
WANTED = "Name the folder of a run, or its checkpoint.safetensors or model.safetensors."
# How code answers values that it was not written for.
FAULTS = (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError,
          ValueError, SafetensorError)  # fmt: skip

# The end of the name of a folder that is being deleted.
OLD = "-old.tmp"


class CheckpointError(ValueError):
    """A file is not a checkpoint that this version can use.

    Args:
        message: What is wrong. It may quote the file, but reaches no terminal as a command to it.
    """

    def __init__(self, message: str):
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in message))


class NewerFormat(CheckpointError):
    """A file is sound, but only a newer version of this project reads it."""


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
    # Of the system's, not the number and the path, which the message has anyway.
    said = getattr(error, "strerror", None) or str(error)
    text = " ".join(said[:1000].split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."


def write(
    path: Path,
    tensors: Mapping[str, Mapping[str, Tensor]],
    meta: Mapping[str, Any],
    older: Sequence[Path] = (),
    best: Path | None = None,
) -> None:
    """Write to a temporary file in the folder of `path`, then replace `path` in one step.

    Args:
        path: The file.
        tensors: Named groups of tensors.
        meta: JSON values.
        older: Names for the files that `path` replaces, the most recent one first. A file for
            which there is no name left is deleted.
        best: A second name for what is written. It is given before the first one, so that a
            process that is killed in between does not leave a run without its best state.

    Raises:
        OSError: It could not be written, and what was at `path` is untouched.
    """
    from tasks.folders import draft  # what only reads does without it

    flat = {n: tensor.cpu().contiguous() for n, tensor in flattened(tensors).items()}
    text = json.dumps(meta)
    header = {"format": FORMAT, "meta": text, "sha256": _checksum(flat, text)}
    try:
        with draft(path) as temporary:
            save_file(flat, temporary, header)
            to_disk(temporary)
            if best is not None:
                hardlink(temporary, best)
            if older and path.exists():
                rotate(older)
                hardlink(path, older[0])
    except (SafetensorError, OSError) as error:
        raise OSError(f"{path} could not be written ({error})") from error


def read(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Read the tensors and meta data of a file that `write` wrote.

    Raises:
        CheckpointError: It is missing, truncated, damaged, or something else.
    """
    flat, header = read_tensors(path)
    form = header.get("format")
    refuse_newer(path, form, FORMAT)
    if form not in (FORMAT, FIRST_FORMAT):
        found = "names no format" if form is None else f"names the format {form!r:.100}"
        raise CheckpointError(
            f"{path} is a safetensors file, but not a checkpoint of this project: its header "
            f"{found} where that of a checkpoint names {FORMAT!r}. {WANTED} A folder that `lm "
            "export` wrote for the Hugging Face Hub is for "
            "`tasks.lm.hub.PretrainedLM.from_pretrained`."
        )
    meta = header.get("meta", "")
    with refusing(path, "has tensors of a type that no checkpoint has"):
        checksum = _checksum(flat, meta)
    if form == FORMAT and header.get("sha256") != checksum:
        raise CheckpointError(
            f"{path} is damaged: its content does not have the checksum that it was written "
            "with. Use an earlier one, or train again."
        )
    return grouped(flat), parse_object(meta, path, "meta data")


def refuse_newer(path: Path, form: Any, newest: str) -> None:
    """Refuse a format of ours that comes after the newest one that this version knows.

    Args:
        path: The file, for the message.
        form: What it says of its format: a name and a number, or the number alone.
        newest: The newest format of its kind.

    Raises:
        NewerFormat: It is a later one.
    """
    stem, _, number = str(form).rpartition("-")
    ours, _, known = newest.rpartition("-")
    if stem not in (ours, "") or not re.fullmatch("[0-9]{1,6}", number):
        return
    if int(number) > int(known):
        raise NewerFormat(
            f"{path} was written by a newer version of attractor-models: its format is "
            f"{form!r:.100}, and this version reads up to {newest!r}. Get the newer "
            "version with `pip install --upgrade attractor-models`."
        )


def require_safetensors(path: Path, others: str = "") -> None:
    """Check that a file is there and begins as safetensors files do, though it may be cut off.

    Args:
        path: The file.
        others: What else could be named, as further sentences of a message.

    Raises:
        CheckpointError: It is missing, or something else.
    """
    if not path.is_file():
        raise CheckpointError(f"No checkpoint at {path}. {WANTED}{others}")
    try:
        with path.open("rb") as file:
            length, bracket = file.read(8), file.read(1)
    except PermissionError as error:  # of which safetensors says that the file is missing
        raise CheckpointError(
            f"{path} may not be read ({error.strerror}). Make it readable, or name another."
        ) from error
    # The size of a header and then JSON.
    if bracket and (bracket != b"{" or int.from_bytes(length, "little") > LARGEST_HEADER):
        raise CheckpointError(f"{path} is no checkpoint: not a safetensors file. {WANTED}{others}")


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read all tensors of a safetensors file, and the texts in its header.

    Raises:
        CheckpointError: It is missing, truncated, or something else.
    """
    require_safetensors(path)
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
    from tasks.folders import draft

    with draft(name) as temporary:
        link(path, temporary)


def link(path: Path, name: Path) -> None:
    """Give a file a second name, which must be free; without links in the file system, a copy."""
    try:
        os.link(path, name)
    except OSError:
        shutil.copyfile(path, name)
        to_disk(name)


def rotate(older: Sequence[Path]) -> None:
    """Rename each checkpoint that exists to the next name in the list; delete the last one."""
    for newer, name in reversed(list(itertools.pairwise(older))):
        if newer.exists():
            discard(name)
            newer.rename(name)


def discard(folder: Path) -> None:
    """Delete a folder, if there is one, so that a kill leaves all of it or nothing by its name."""
    if folder.is_dir():
        gone = folder.with_name(folder.name + OLD)
        shutil.rmtree(gone, ignore_errors=True)
        folder.rename(gone)
        shutil.rmtree(gone)


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
