"""Runs that are killed, stopped, out of space or begun twice, and what they shall go on from.

Whatever happens, a run that goes on ends with the numbers of one that nothing disturbed.
"""

import functools
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from cases import CLEANUP, REFUSED, Fault
from tiny_runs import Disturbance, assert_same_end, new, resumed, run, start

from tasks.runs import export

NEWEST, PREVIOUS, BEST = (
    f"checkpoint{suffix}.safetensors" for suffix in ("", "-previous", "-best")
)
STEPS = 8


@functools.cache
def whole(form: str = "file") -> Path:
    """A run that nothing disturbs."""
    folder = Path(tempfile.mkdtemp(prefix="fault-run-"))
    CLEANUP.callback(shutil.rmtree, folder, ignore_errors=True)
    os.environ["XDG_CACHE_HOME"] = str(folder)
    code, text = run(folder, new(folder, STEPS, "--checkpoints", form))
    assert code == 0, text[-500:]
    return folder / "run"


def name(form: str) -> str:
    """Of the newest checkpoint."""
    return NEWEST if form == "file" else "checkpoint"


def no_leftovers(folder: Path, form: str) -> None:
    """A run ends with the files of an undisturbed one, but for empty ones, such as locks."""

    def kept(run: Path) -> set[str]:
        paths = [path for path in run.rglob("*") if path.is_file() and path.stat().st_size]
        return {str(path.relative_to(run)) for path in paths if "events." not in path.name}

    surplus = kept(folder / "run") - kept(whole(form))
    # What was refused is kept under this name for the user to look at.
    assert not {path for path in surplus if "-refused" not in path}, surplus


def refused(code: int, text: str, *words: str) -> str:
    """The command must have ended with one line that has these words."""
    assert code == 2, (code, text[-400:])
    assert "Traceback" not in text, text[-400:]
    line = text.strip().splitlines()[-1]
    assert line.startswith("error: "), line
    missing = [word for word in words if word not in line]
    assert not missing, f"the message lacks {missing}: {line}"
    return REFUSED


def goes_on(folder: Path, form: str) -> None:
    """A resumed run ends as the undisturbed one did."""
    code, text = run(folder, resumed(folder, name(form)))
    assert code == 0, (code, text[-400:])
    assert_same_end(folder / "run", whole(form), name(form))
    no_leftovers(folder, form)


def interrupted(form: str, disturbance: Disturbance, expected: int | None, folder: Path) -> None:
    """A run that ends too early, with this status, goes on."""
    reference = whole(form)
    code, text = run(folder, new(folder, STEPS, "--checkpoints", form), disturbance)
    assert reference.is_dir()
    if expected is not None:
        assert code == expected, (code, text[-400:])
    assert "Traceback" not in text, text[text.find("Traceback") :][-900:]
    if expected == 2:
        refused(code, text)
    if (moved := folder / "moved").is_dir():
        shutil.rmtree(folder / "run", ignore_errors=True)
        moved.rename(folder / "run")
    for path in (folder / "run", *(folder / "run").rglob("*")):
        path.chmod(0o755)
    goes_on(folder, form)


def survived(form: str, disturbance: Disturbance, folder: Path) -> None:
    """A run that does not end too early ends as the undisturbed one did."""
    reference = whole(form)
    code, text = run(folder, new(folder, STEPS, "--checkpoints", form), disturbance)
    if disturbance[0] != "no_print":  # an exit status about output that nobody reads
        assert code == 0, (code, text[-400:])
    assert_same_end(folder / "run", reference, name(form))
    no_leftovers(folder, form)


def copy_of_whole(folder: Path, form: str = "file") -> Path:
    """A finished run to damage."""
    shutil.copytree(whole(form), folder / "run")
    return folder / "run"


def damaged(form: str, damage: Callable[[Path], object], folder: Path) -> None:
    """With its newest checkpoint damaged, a run goes on from the one before."""
    damage(copy_of_whole(folder, form) / name(form))
    goes_on(folder, form)


def only_best(folder: Path) -> str:
    """With newest and previous damaged, the best one is named."""
    copied = copy_of_whole(folder)
    shutil.copy(copied / NEWEST, copied / BEST)
    for each in (NEWEST, PREVIOUS):
        (copied / each).write_bytes(b"")
    return refused(*run(folder, resumed(folder)), BEST)


def bad_start(
    change: Callable[[Path], object], wanted: str, words: tuple[str, ...], folder: Path
) -> str:
    """A run is asked to go on from what is no checkpoint of its."""
    change(copy_of_whole(folder))
    return refused(*run(folder, resumed(folder, wanted)), *words)


def bad_folder(change: Callable[[Path], object], words: tuple[str, ...], folder: Path) -> str:
    """A new run is asked to write where it cannot."""
    change(folder)
    return refused(*run(folder, new(folder, STEPS)), *words)


def second_run(resumes: bool, folder: Path) -> str:
    """While a run trains in a folder, no other one may; after its death another one may."""
    whole()
    first = start(folder, new(folder, 10**6))
    await_path(folder / "run" / NEWEST if resumes else folder / "run")
    (folder / "second").mkdir()
    second_arguments = resumed(folder) if resumes else new(folder, STEPS)
    second = start(folder / "second", second_arguments)
    try:
        second.join(30)
        both = second.is_alive()
        await_path(folder / "run" / NEWEST)
    finally:
        second.kill()
        first.kill()
    first.join()
    assert not both, "two runs train in one folder"
    assert second.exitcode is not None
    text = (folder / "second" / "output").read_text()
    outcome = refused(second.exitcode, text, *([str(first.pid)] if resumes else []))
    third = start(folder, resumed(folder))
    time.sleep(3)
    os.kill(third.pid or 0, signal.SIGTERM)
    third.join(60)
    assert third.exitcode in (130, -signal.SIGTERM), (folder / "output").read_text()[-400:]
    return outcome


def await_path(path: Path) -> None:
    """Wait until a file or folder is there."""
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"no {path}"
        time.sleep(0.01)


def flip(at: float, path: Path) -> None:
    """One bit, at a place between 0 and 1."""
    content = bytearray(path.read_bytes())
    content[int(at * (len(content) - 1))] ^= 8
    path.unlink()  # it may be linked to others
    path.write_bytes(content)


def replaced(content: bytes, path: Path) -> None:
    """Another file by the same name."""
    path.unlink()
    path.write_bytes(content)


def shard(change: Callable[[Path], object], path: Path) -> None:
    """Something happens to one file of a folder."""
    change(next(path.glob("*.safetensors")))


def removed(path: Path) -> None:
    """It is gone, file or folder."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def weights(path: Path) -> Path:
    """The weights alone, as at the end of a run."""
    return export(path / NEWEST, path / "model.safetensors")


def faults() -> list[Fault]:
    """All faults of this kind."""
    found: list[Fault] = []
    for form, events in (("file", 12), ("sharded", 12)):
        cases: dict[str, tuple[Disturbance, int | None]] = {
            f"killed at file event {n}": (("kill_at_event", n), -signal.SIGKILL)
            for n in range(events)
        }
        cases |= {
            f"killed {ms} ms after a save": (("kill_after", ms / 1000), None)
            for ms in (1, 3, 9, 27, 81)
        }
        for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            cases[f"stopped by {each.name}"] = (("signals", (each,)), 130)
        cases["stopped by SIGHUP twice"] = (("signals", (signal.SIGHUP,) * 2), 130)
        cases["closed terminal"] = (("closed_terminal", None), None)
        cases["full disk until the end"] = (("full_disk", 0), 2)
        cases["read-only folder"] = (("read_only", None), 2)
        cases["folder moved away"] = (("moved_away", None), 2)
        for case, (disturbance, code) in cases.items():
            found.append((f"run, {form}: {case}", partial(interrupted, form, disturbance, code)))
        for case, disturbance in {
            "full disk for a while": ("full_disk", 3), "no hard links": ("no_links", None),
            "clock a day ahead": ("clock", 86_400.0), "clock a day back": ("clock", -86_400.0),
            "nobody reads the output": ("no_print", None),
        }.items():  # fmt: skip
            found.append((f"run, {form}: {case}", partial(survived, form, disturbance)))
    damages: dict[str, Callable[[Path], object]] = {
        **{f"a bit flipped at {at}": partial(flip, at) for at in (0.0, 0.1, 0.4, 0.6, 0.8, 1.0)},
        "emptied": partial(replaced, b""), "text": partial(replaced, b"hello"),
        "zeros": partial(replaced, bytes(10_000)),
    }  # fmt: skip
    for case, damage in damages.items():
        found.append((f"newest checkpoint: {case}", partial(damaged, "file", damage)))
        found.append(
            (f"newest shards: {case}", partial(damaged, "sharded", partial(shard, damage)))
        )
    found.append(("newest shards: missing", partial(damaged, "sharded", removed)))
    found.append(("newest and previous damaged, best intact", only_best))
    starts: dict[str, tuple[Callable[[Path], object], str, tuple[str, ...]]] = {
        "weights": (weights, "model.safetensors", ("model.safetensors", "weights")),
        "nothing": (lambda run: None, "none.safetensors", ("none.safetensors",)),
        "a log": (lambda run: None, "log.jsonl", ("log.jsonl",)),
        "a folder of nothing": (lambda run: (run / "empty").mkdir(), "empty", ("empty",)),
        "the folder of a run": (lambda run: None, ".", ()),
    }
    for case, (change, wanted, words) in starts.items():
        found.append((f"resume: {case}", partial(bad_start, change, wanted, words)))
    folders: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
        "a run is there": (copy_of_whole, ("already holds a run",)),
        "a file is there": (lambda folder: (folder / "run").write_text(""), ("--out",)),
    }
    for case, (change, words) in folders.items():
        found.append((f"new run: {case}", partial(bad_folder, change, words)))
    found.append(("two runs with one `--out`", partial(second_run, False)))
    found.append(("two runs with one `--resume`", partial(second_run, True)))
    return found
