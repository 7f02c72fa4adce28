"""Folders that belong to one process for as long as it lives, and files written in one step."""

import contextlib
import glob
import json
import os
import platform
import shlex
import shutil
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows: no folder is locked there
    fcntl = None  # type: ignore[assignment]

# The file in a folder that is locked, and the most that is read of it.
LOCK, MOST = ".lock", 16384


class FolderInUse(ValueError):
    """A folder is taken; the message says by which process or run."""


class FolderLock:
    """A lock on a folder, which no other process gets until this one releases it or dies.

    The system drops the lock with the process, even after `kill -9`, so that none has to be
    removed by hand. Processes that are forked from this one do not keep it. The file that is
    locked stays in the folder, since to delete it would let two processes lock different files.

    Args:
        folder: It exists.
        made: It was made for this lock: if the context is left by an error before anything was
            written, it is removed.

    Attributes:
        folder: See above.
        held: False where the file system has no locks, so that other processes go unnoticed.

    Raises:
        FolderInUse: Another process has the lock.
        OSError: The folder cannot be written.
    """

    def __init__(self, folder: Path, made: bool = False):
        self.folder, self.made = folder, made
        self.held = False
        self.release: Callable[[], object] = lambda: None
        if fcntl is None:
            return
        # Never through a link, which would let us write to a file elsewhere.
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        file = os.open(folder / LOCK, flags, 0o666)
        self.release = weakref.finalize(self, os.close, file)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.held = True
        except BlockingIOError:
            holder = _holder(file)
            self.release()
            raise FolderInUse(
                f"{folder} is in use by {holder}. Wait until it ends, or stop it by Ctrl-C or "
                "SIGTERM, which lets it save. A new run can take another folder by `--out`."
            ) from None
        except OSError:  # a file system without locks
            pass
        _locks.add(self)
        if self.held:
            with contextlib.suppress(OSError):  # a full disk: then the message names no process
                os.ftruncate(file, 0)
                os.pwrite(file, _this_process(), 0)

    def __enter__(self) -> "FolderLock":
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error and self.made and self.held:
            with contextlib.suppress(OSError):
                if [file.name for file in self.folder.iterdir()] == [LOCK]:
                    _remove(self.folder)
        self.release()


_locks: "weakref.WeakSet[FolderLock]" = weakref.WeakSet()


def _leave_to_parent() -> None:
    """Close the locks in a forked process, which would otherwise hold them beyond its parent."""
    for lock in list(_locks):
        lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)


def _this_process() -> bytes:
    about = {
        "pid": os.getpid(),
        "host": platform.node(),
        "since": datetime.now().astimezone().isoformat(" ", "seconds"),
        "command": shlex.join(sys.orig_argv)[: MOST // 16],
    }
    return json.dumps(about).encode()


def _holder(file: int) -> str:
    """The process that holds a lock, as it described itself in the file."""
    try:
        about: dict[str, Any] = json.loads(os.pread(file, MOST, 0))
        words = (
            f"process {about['pid']} on {about['host']} since {about['since']}, "
            f"`{about['command']}`"
        )
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
    return "".join(letter if letter.isprintable() else "?" for letter in words)


def require_writable(path: Path, is_folder: bool, named: str) -> None:
    """Check, before long work, that its result can be written; nothing is left there.

    Args:
        path: A file or a folder, which need not exist.
        is_folder: Which of them.
        named: How the user has named it, for the message.

    Raises:
        ValueError: It cannot.
    """
    try:
        if path.exists() and not is_folder:
            path.open("r+b", buffering=0).close()
            return
        place = path
        while not place.exists():
            place = place.parent
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        kind = "folder" if is_folder else "file"
        raise ValueError(
            f"`{named}` cannot be written ({error.strerror}). Name another {kind}."
        ) from error


@contextlib.contextmanager
def draft(path: Path) -> Iterator[Path]:
    """A file to write, which takes the name `path` in one step when the context is left.

    It is written in a hidden folder beside `path`, which also catches the temporary files of the
    library that writes it. After an error, the folder is removed and `path` is as it was. What a
    process that was killed left is removed when the next one writes a file of that name.

    Raises:
        OSError: The folder of `path` cannot be written.
    """
    sweep(path.parent, path.name)
    with _draft_folder(path) as lock:
        try:
            yield lock.folder / path.name
            os.replace(lock.folder / path.name, path)
        finally:
            _remove(lock.folder)


def _draft_folder(path: Path) -> FolderLock:
    """A new folder for the draft of a file, locked by this process."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        # Until it is locked, it looks like that of a dead process, and another may remove it.
        with contextlib.suppress(FolderInUse, FileNotFoundError):
            lock = FolderLock(folder)
            if not lock.held or (folder / LOCK).exists():
                return lock
            lock.release()


def sweep(folder: Path, name: str | None = None) -> None:
    """Remove the drafts of dead processes from a folder; those of living ones are locked.

    Args:
        folder: Where they are.
        name: Of the file that was to be written; by default, of any file.
    """
    pattern = "*" if name is None else glob.escape(name)
    for left in folder.glob(f".{pattern}.????????.tmp"):
        if left.is_symlink():  # what it points to is not ours
            continue
        with contextlib.suppress(FolderInUse, OSError):
            if not (left / LOCK).exists():
                left.rmdir()  # if it is empty; otherwise it is not ours
                continue
            with FolderLock(left) as lock:
                if lock.held:
                    _remove(left)


def _remove(folder: Path) -> None:
    """Delete the folder of a draft, last of all the file by which `sweep` knows it."""
    with contextlib.suppress(OSError):
        for file in folder.iterdir():
            if file.name != LOCK:
                file.unlink()
        shutil.rmtree(folder)
