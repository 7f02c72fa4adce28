"""A fault is a name and a function that injects it; here is what is asked of the outcome.

The function returns if the fault was survived, after its own assertions, and raises what refused
it. A refusal is clear if we raised it ourselves, or the operating system did so with a file name,
with a message that a person would read. It must come in time and without much memory.
"""

import contextlib
import io
import linecache
import resource
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = tuple(str(ROOT / name) for name in ("solvers", "implicit", "models", "tasks"))
SECONDS = 120
EXTRA_MEMORY = 300  # MB above what the process had
LONGEST_MESSAGE = 1500
# Ends what faults share: servers and folders.
CLEANUP = contextlib.ExitStack()

REFUSED = "refused"
Fault = tuple[str, Callable[[Path], object]]
"""A name, and a function that gets an empty folder; it may also return `REFUSED`."""


@dataclass(frozen=True)
class Outcome:
    """What became of one fault: `kind` is "survived", "refused" or "wrong"."""

    name: str
    kind: str
    detail: str = ""


class TooSlow(BaseException):
    """A fault took more than `SECONDS`."""


def must_refuse(act: Callable[[], object], *words: str) -> None:
    """Do something that must be refused, with a message that holds these words."""
    try:
        result = act()
    except (ValueError, OSError) as error:
        missing = [word for word in words if word not in str(error)]
        if missing:
            raise AssertionError(f"the message lacks {missing}: {error}") from error
        raise
    raise AssertionError(f"accepted: {str(result)[:200]}")


def inject(fault: Fault, folder: Path) -> Outcome:
    """Inject one fault, in this process."""
    name, act = fault
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is measured from here
    try:
        with _limits(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            result = act(folder)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # what a fault raises is what is judged here
        complaint = _unclear(error)
        kind, detail = (REFUSED, str(error)) if complaint is None else ("wrong", complaint)
    else:
        kind, detail = REFUSED if result == REFUSED else "survived", ""
    extra = _memory("VmHWM") - before
    if extra > EXTRA_MEMORY:
        kind, detail = "wrong", f"took {extra:.0f} MB more. {detail}"
    return Outcome(name, kind, detail)


@contextlib.contextmanager
def _limits() -> Iterator[None]:
    """An alarm, and an end of memory far above what is allowed but below that of the machine."""

    def late(number: int, frame: object) -> None:
        raise TooSlow(f"not done after {SECONDS} seconds")

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (int(_memory("VmData") + 4096) << 20, hard))
    previous = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _memory(field: str) -> float:
    """A field of the process's status, in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise AssertionError(field)


def _unclear(error: BaseException) -> str | None:
    """Why an exception is no clear refusal; None if it is one."""
    shown = f"{type(error).__name__}: {str(error)[:300]}"
    where = traceback.extract_tb(error.__traceback__)[-1]
    place = f" ({Path(where.filename).name}:{where.lineno})"
    if not isinstance(error, ValueError | OSError):
        return shown + place
    line = linecache.getline(where.filename, where.lineno or 0).strip()
    ours = where.filename.startswith(PACKAGES) and line.startswith("raise")
    named = isinstance(error, OSError) and error.filename is not None
    if not (ours or named):
        return f"raised by a library or by chance: {shown}{place}"
    if not 10 <= len(str(error)) <= LONGEST_MESSAGE:
        return f"a message of {len(str(error))} characters: {shown}{place}"
    return None


def report(outcomes: list[Outcome]) -> str:
    """The counts, and what went wrong."""
    counts = {kind: sum(o.kind == kind for o in outcomes) for kind in ("survived", REFUSED)}
    wrong = [outcome for outcome in outcomes if outcome.kind == "wrong"]
    lines = [f"  {outcome.name}: {outcome.detail}" for outcome in wrong]
    return "\n".join(
        [
            f"{len(outcomes)} faults: {counts['survived']} survived, {counts['refused']} refused "
            f"clearly, {len(wrong)} went wrong",
            *lines,
        ]
    )
