"""A checkpoint as many files: each process writes its own share, while training goes on.

A checkpoint is a folder: safetensors files, written by torch.distributed.checkpoint, and a manifest
with their checksums and the run's meta data. It is complete before it gets its name, and any
number of processes can read it. Nothing in it is ever unpickled: torch's own format keeps its index
in a pickle, and is therefore not used; a file of that kind in the folder is left unread.
"""

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from tasks.checkpoints.file import (
    FAULTS,
    WANTED,
    CheckpointError,
    brief,
    grouped,
    parse_object,
    refuse_newer,
    to_disk,
)

MANIFEST, FORMAT = "manifest.json", "attractor-models-sharded-1"


def read(folder: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Read the tensors, in one piece, and the meta data that any number of processes wrote.

    Raises:
        CheckpointError: A file is missing, unknown, damaged, or something else.
    """
    meta, sums = _manifest(folder)
    found = {path.name for path in folder.glob("*.safetensors")}
    if found != set(sums):
        odd = brief(", ".join(sorted(found ^ set(sums))[:5]))
        raise CheckpointError(
            f"{folder} is damaged. These files are missing, or are not part of it: {odd}. Use an "
            "earlier checkpoint, or train again."
        )
    for name, expected in sums.items():
        if checksum(folder / name) != expected:
            raise CheckpointError(
                f"{folder / name} is damaged: its content does not have the checksum that it was "
                "written with. Use an earlier checkpoint, or train again."
            )
    return grouped(_assembled(folder)), meta


def _assembled(folder: Path) -> dict[str, Tensor]:
    # Loaded here, since they take a second, and most runs have no such checkpoint.
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    ignore_warning_of_one_process()
    reader = HuggingFaceStorageReader(str(folder))
    try:
        entries = cast(Any, reader.read_metadata().state_dict_metadata)
        for name, entry in entries.items():
            _require_all_rows(name, entry)
        flat = {
            name: torch.empty(entry.size, dtype=entry.properties.dtype)
            for name, entry in entries.items()
        }
        load(flat, storage_reader=reader, no_dist=True)
    except (*FAULTS, AssertionError, CheckpointException) as error:
        reason = brief(error)
        raise CheckpointError(
            f"{folder} is not a readable checkpoint ({reason}). Use an earlier one, or train again."
        ) from error
    return flat


def _require_all_rows(name: str, entry: Any) -> None:
    """Check that the shards of a tensor are its rows, all of them and each of them once.

    So a tensor is no larger than the files that hold it, and no number of it stays unset.
    """
    count = 0
    for chunk in sorted(entry.chunks, key=lambda chunk: (*chunk.offsets, *chunk.sizes)):
        first, rest = chunk.offsets[:1], chunk.offsets[1:]
        if any(rest) or chunk.sizes[1:] != entry.size[1:] or first not in ((count,), ()):
            raise ValueError(f"the shards of {name[:200]} do not make up one tensor")
        count += chunk.sizes[0] if first else 1
    if count != (entry.size[0] if entry.size else 1):
        raise ValueError(f"the shards of {name[:200]} do not make up one tensor")


def ignore_warning_of_one_process() -> None:
    """Silence torch's warning that only one process writes, which `no_dist` asks for.

    The warning comes from a thread, where `warnings.catch_warnings` would not reach it.
    """
    warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninit")


def write_manifest(folder: Path, meta: dict[str, Any], sums: dict[str, str]) -> None:
    """Write the file that makes a folder of shards a checkpoint; `sums` has a checksum of each."""
    content = {"format": FORMAT, "meta": json.dumps(meta), "files": sums}
    path = folder / MANIFEST
    path.write_text(json.dumps({**content, "sha256": _checksum_of(content)}))
    to_disk(path)


def is_complete(folder: Path) -> bool:
    """Whether a folder has its manifest, which is written last."""
    try:
        _manifest(folder)
    except CheckpointError:
        return False
    return True


def _manifest(folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Read the manifest: meta data, and the checksum of each file."""
    path = folder / MANIFEST
    parts = [*folder.glob("*.safetensors"), *folder.glob("*.distcp")]
    if not path.exists():
        names = brief(", ".join(sorted(part.name for part in parts)[:5]))
        found = f", as it has {names} without a {MANIFEST}" if parts else ""
        raise CheckpointError(
            f"The folder {folder} holds no checkpoint{found}. Name the folder of a run, the file "
            "of its checkpoint, or a model by its name."
        )
    try:
        content = json.loads(path.read_text())
        expected = content.pop("sha256")
        form, meta, sums = content["format"], content["meta"], dict(content["files"])
    except (*FAULTS, OSError) as error:
        raise CheckpointError(
            f"{folder} is not a readable checkpoint: its {MANIFEST} is missing or damaged "
            f"({brief(error)}). Use an earlier one, or train again."
        ) from error
    refuse_newer(path, form, FORMAT)
    if form != FORMAT:
        raise CheckpointError(
            f"{path} has the format {form!r:.100}, expected {FORMAT!r}: {folder} is no checkpoint "
            f"of this project. {WANTED}"
        )
    if _checksum_of(content) != expected:
        raise CheckpointError(
            f"{path} is damaged: its content does not have the checksum that it was written with. "
            "Use an earlier checkpoint, or train again."
        )
    return parse_object(meta, path, "meta data"), sums


def _checksum_of(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def checksum(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
