"""A folder belongs to one living process, and drafts of dead ones are swept."""

import contextlib
import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.folders import LOCK, FolderInUse, FolderLock, draft, require_writable, sweep

ROOT = Path(__file__).parents[2]


def start(code: str, path: Path) -> tuple[subprocess.Popen[str], str]:
    """A process that has imported `tasks.folders` alone, and the first line that it prints."""
    head = "import os, sys, time; from pathlib import Path; from tasks.folders import *\n"
    command = [sys.executable, "-c", head + code, str(path)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline()


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def test_a_lock_names_its_process_and_dies_with_it(tmp_path: Path) -> None:
    """Also where a child that was forked from it lives on."""
    code = """
lock = FolderLock(Path(sys.argv[1]))
ended, began = os.pipe()
child = os.fork()
if not child:
    os.write(began, b"!")
    time.sleep(60)
os.read(ended, 1)
print(child, flush=True)
time.sleep(60)
"""
    process, line = start(code, tmp_path)
    child = int(line)
    try:
        with pytest.raises(FolderInUse, match=f"in use by process {process.pid} on .* since 2.*-c"):
            FolderLock(tmp_path)
        kill(process)
        os.kill(child, 0)  # it is still there
        with FolderLock(tmp_path) as lock:
            assert lock.held
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_lock_is_released(tmp_path: Path) -> None:
    with FolderLock(tmp_path), pytest.raises(FolderInUse, match=f"process {os.getpid()} "):
        FolderLock(tmp_path)
    lock = FolderLock(tmp_path)
    assert lock.held
    del lock
    assert FolderLock(tmp_path).held


@pytest.mark.parametrize("said", [b"", b"{", b"[1]", b'{"pid": 1}', b"\xff\x00", b"9" * 9999])
def test_whatever_the_locked_file_says(tmp_path: Path, said: bytes) -> None:
    with FolderLock(tmp_path):
        (tmp_path / LOCK).write_bytes(said)
        with pytest.raises(FolderInUse, match="in use by another process"):
            FolderLock(tmp_path)
        about = {"pid": 1, "host": "\x1b[2J", "since": "\n", "command": "x"}
        (tmp_path / LOCK).write_text(json.dumps(about))
        with pytest.raises(FolderInUse, match=r"process 1 on \?\[2J since \?, `x`"):
            FolderLock(tmp_path)


def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("mine")
    (tmp_path / LOCK).symlink_to(other)
    with pytest.raises(OSError, match="symbolic links"):
        FolderLock(tmp_path)
    assert other.read_text() == "mine"


def test_a_draft_takes_the_name_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail() -> None:
        with draft(path) as temporary:
            temporary.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert path.read_text() == "old"
    with draft(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert [path] == list(tmp_path.iterdir())


def test_drafts_of_dead_processes_are_swept_and_no_others(tmp_path: Path) -> None:
    code = """
with draft(Path(sys.argv[1])) as temporary:
    Path(temporary.parent, ".tmpAbCdEf").write_text("half")
    print("begun", flush=True)
    time.sleep(60)
"""
    path = tmp_path / "a"
    process, _ = start(code, path)
    (left,) = tmp_path.iterdir()
    foreign = tmp_path / ".a.12345678.tmp"
    foreign.mkdir()
    (foreign / "mine").write_text("")
    with draft(path) as temporary:
        assert left.is_dir()  # that process lives
        temporary.write_text("ours")
        kill(process)
        sweep(tmp_path)
        assert set(tmp_path.iterdir()) == {foreign, temporary.parent}
    assert set(tmp_path.iterdir()) == {foreign, path}


def test_a_link_that_looks_like_a_draft_is_not_followed(tmp_path: Path) -> None:
    run, here = tmp_path / "run", tmp_path / "here"
    for folder in (run, here):
        folder.mkdir()
    (run / "precious").touch()
    FolderLock(run).release()
    (here / ".a.12345678.tmp").symlink_to(run)
    sweep(here)
    assert (run / "precious").exists()


def test_without_locks_nothing_is_taken_for_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with FolderLock(tmp_path) as lock, FolderLock(tmp_path):
        assert not lock.held
    path = tmp_path / "file"
    with draft(path) as temporary:
        temporary.write_text("new")
        sweep(tmp_path)
    assert path.read_text() == "new"


@pytest.mark.parametrize("made", [True, False])
@pytest.mark.parametrize("written", [True, False])
def test_a_folder_made_for_what_failed_at_once_is_removed(
    made: bool, written: bool, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with contextlib.suppress(ValueError), FolderLock(folder, made):
        if written:
            (folder / "log").touch()
        raise ValueError
    assert folder.exists() == (written or not made)
    folder.mkdir(exist_ok=True)
    with FolderLock(folder, made):
        pass
    assert folder.exists()


def test_what_can_be_written_is_known_before_and_left_as_it_is(tmp_path: Path) -> None:
    file, new = tmp_path / "file", tmp_path / "a" / "b"
    file.write_text("kept")
    for path, is_folder in ((file, False), (new, False), (tmp_path, True), (new, True)):
        require_writable(path, is_folder, "--x")
    for path, is_folder, problem in (
        (tmp_path, False, r"Is a directory\). Name another file"),
        (file, True, r"Not a directory\). Name another folder"),
        (file / "x", False, "Not a directory"),
        (Path("/proc/x"), True, ""),  # where nobody can make a folder, root included
    ):
        if path.parent.exists():  # some systems have no /proc
            with pytest.raises(ValueError, match=rf"^`--x` cannot be written \({problem}"):
                require_writable(path, is_folder, "--x")
    assert list(tmp_path.iterdir()) == [file]
    assert file.read_text() == "kept"
