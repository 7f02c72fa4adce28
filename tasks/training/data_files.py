"""Checks that the data files of a run have not changed since it began."""

import hashlib
import reprlib
from pathlib import Path
from typing import Any

from tasks.checkpoints.file import CheckpointError
from tasks.training.options import Config


def fingerprints(config: Config) -> dict[str, dict[str, Any]]:
    """Size in bytes and SHA-256 of each file or folder that a configuration names, by option.

    Of a folder that has a list with the digests of its files, only the list is read.
    """
    data = config.data
    named = {name: path for name in data.paths if (path := getattr(data, name))}
    return {name: _fingerprint(path / data.listed.get(name, "")) for name, path in named.items()}


def refuse_changed(before: dict[str, Any], config: Config) -> None:
    """Compare the data files with the fingerprints in a checkpoint.

    Raises:
        CheckpointError: Those in the checkpoint are no fingerprints.
        ValueError: A file changed since the run began.
    """
    now = fingerprints(config)
    for name, old in before.items():
        if name not in config.data.paths or not _is_fingerprint(old):
            raise CheckpointError(
                f"The checkpoint has no fingerprint of a data file, but {name[:100]!r}: "
                f"{reprlib.repr(old)}. Use an earlier one, or begin a new run."
            )
        new = now.get(name)
        if new != old:
            raise ValueError(
                f"`{name}` = {getattr(config.data, name)} changed since this run began: it had "
                f"{old['bytes']:,} bytes with SHA-256 {old['sha256'][:12]}..., now "
                f"{new['bytes'] if new else 0:,} with "
                f"{new['sha256'][:12] if new else 'nothing'}.... Put the old content back, or "
                "begin a new run."
            )


def _is_fingerprint(value: Any) -> bool:
    if not isinstance(value, dict) or set(value) != {"bytes", "sha256"}:
        return False
    return isinstance(value["bytes"], int) and isinstance(value["sha256"], str)


def _fingerprint(path: Path) -> dict[str, Any]:
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    whole, size = hashlib.sha256(), 0
    for file in files:
        with file.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256")
            size += content.tell()
        if file == path:
            whole = digest
        else:
            whole.update(f"{file.relative_to(path)} {digest.hexdigest()}\n".encode())
    return {"bytes": size, "sha256": whole.hexdigest()}
