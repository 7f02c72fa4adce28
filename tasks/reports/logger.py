"""The progress of a training run: a live bar, a log file, TensorBoard scalars."""

import contextlib
import json
import math
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from types import TracebackType
from typing import TYPE_CHECKING

import rich.progress
from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.table import Column, Table

from tasks.output import Progress, is_terminal, wrapped

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter

# Without a terminal, a line this often (seconds) instead of a live bar.
LINE_EVERY = 15.0
_BETWEEN = " | "


class Reporter:
    """Shows and stores the metrics of a run; use as a context manager.

    Args:
        folder: Receives `log.jsonl` and the TensorBoard event file.
        history: Rows so far: the log starts with them, so that it has none from beyond the
            checkpoint that a run goes on from.
    """

    def __init__(self, folder: Path, history: Sequence[Mapping[str, float]] = ()):
        from torch.utils.tensorboard.writer import SummaryWriter  # slow to load

        self.console = Console()
        self.log = (folder / "log.jsonl").open("w")
        self.log.writelines(json.dumps(dict(row)) + "\n" for row in history)
        next_step = int(history[-1]["step"]) + 1 if history else None
        self.board: SummaryWriter | None = SummaryWriter(
            str(folder / "tensorboard"), purge_step=next_step
        )
        self.failed = False
        self.bar = _bar(self.console)
        self.row = self.bar.add_task("train", total=1.0, figures="", left="")
        self.next_line = time.monotonic()

    def __enter__(self) -> "Reporter":
        self.excepthook, threading.excepthook = threading.excepthook, self._end_of_thread
        self._on_screen(self.bar.start)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._on_screen(self.bar.stop)
        self._write(self.log.close)
        self._on_board(lambda board: board.close())
        threading.excepthook = self.excepthook

    def show(self, figures: Mapping[str, float], progress: float, seconds_left: float) -> None:
        """Move the bar; without a terminal, print a line now and then."""
        text, left = describe(figures), f"{clock(seconds_left)} left"
        self.bar.update(self.row, completed=progress, figures=text, left=left)
        if not self.console.is_terminal and time.monotonic() >= self.next_line:
            self.next_line = time.monotonic() + LINE_EVERY
            self._print(f"{progress:4.0%} {text} | {left}")

    def look(self, validation: Mapping[str, float], figures: Mapping[str, float]) -> None:
        """Print a line that stays about held-out samples.

        Args:
            validation: The metrics of the validation.
            figures: Those of training up to it.
        """
        if said := describe_validation(validation):
            parts = [f"step {figures['step']:.0f}", said, f"loss {short(figures['loss'])}"]
            line = _BETWEEN.join([*parts, clock(60 * figures["minutes"])])
            width = self.console.width if self.console.is_terminal else len(line)
            self._print("\n".join(folded(line, width)))

    def _print(self, line: str) -> None:
        self._on_screen(lambda: self.console.print(line, highlight=False, soft_wrap=True))

    def record(self, figures: Mapping[str, float]) -> None:
        """Append a row to the log and to TensorBoard; needs `step` among the figures."""
        self.log.write(json.dumps(dict(figures)) + "\n")
        self._write(self.log.flush)
        values = {name: value for name, value in figures.items() if name != "step"}
        self._on_board(lambda board: _add(board, values, int(figures["step"])))

    def _write(self, write: Callable[[], object]) -> None:
        """Write to the log, or warn; a row that could not be written stays in the buffer."""
        try:
            write()
        except OSError as error:
            if not self.failed:
                warnings.warn(
                    f"The log in {self.log.name} cannot be written ({error}). Training goes on.",
                    stacklevel=4,
                )
            self.failed = True
        else:
            self.failed = False

    def _on_screen(self, show: Callable[[], object]) -> None:
        """Show something, or give up the standard output if its terminal or pipe is closed."""
        try:
            show()
        except (OSError, SystemExit) as error:  # `SystemExit` is what rich makes of a closed pipe
            with contextlib.suppress(OSError), open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), sys.stdout.fileno())
            warnings.warn(
                f"Nobody can read the output any more ({error!r}). Training goes on, and "
                f"{self.log.name} shows how.",
                stacklevel=4,
            )

    def _end_of_thread(self, args: threading.ExceptHookArgs) -> None:
        """Print no traceback of TensorBoard's own thread: `_on_board` warns of a failed write."""
        ours = type(args.thread).__module__.startswith("tensorboard.")
        if not (ours and isinstance(args.exc_value, OSError)):
            self.excepthook(args)

    def _on_board(self, use: Callable[["SummaryWriter"], None]) -> None:
        """Use TensorBoard's writer, and give it up after a failed write: it does not recover."""
        if self.board is None:
            return
        try:
            use(self.board)
        except OSError as error:
            self.board = None
            warnings.warn(
                f"TensorBoard's file cannot be written ({error}): its curves end here. "
                "`log.jsonl` goes on.",
                stacklevel=4,
            )


class ProgressBar(Progress):
    """Shows how far an evaluation is; use as a context manager.

    On a terminal it is a bar like that of training, which vanishes at the end; elsewhere each part
    is a line on the standard error when it begins.

    Args:
        quiet: Show nothing, as all processes of `torchrun` but the first.
        verb: What is done, for the lines.
    """

    def __init__(self, quiet: bool = False, verb: str = "Evaluating") -> None:
        self.console, self.quiet, self.verb = Console(quiet=quiet), quiet, verb
        self.bar = _bar(self.console, transient=True)
        self.row = self.bar.add_task("evaluate", total=None, figures="", left="", visible=False)
        self.began, self.done, self.total = 0.0, 0, 0

    def __enter__(self) -> "ProgressBar":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def begin(self, name: str, total: int) -> None:
        """See `Progress`."""
        self.began, self.done, self.total = time.monotonic(), 0, total
        self.bar.reset(self.row, total=total, visible=True, figures=name, left="")
        if not self.console.is_terminal and not self.quiet:
            with contextlib.suppress(OSError):  # nobody may read it any more
                print(f"{self.verb}: {name} ...", file=sys.stderr, flush=True)

    def advance(self, count: int = 1) -> None:
        """See `Progress`."""
        self.done += count
        a_step = (time.monotonic() - self.began) / self.done
        left = f"{clock(a_step * max(0, self.total - self.done))} left"
        self.bar.update(self.row, completed=self.done, left=left)


def _bar(console: Console, transient: bool = False) -> rich.progress.Progress:
    """A bar, the share that is done, the time that is left once it is known, and figures."""
    return rich.progress.Progress(
        # Only the figures give way on a narrow terminal.
        BarColumn(bar_width=16, table_column=Column(min_width=8)),
        TextColumn("{task.percentage:>3.0f}%", table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[left]}", table_column=Column(no_wrap=True)),
        TextColumn(
            "{task.fields[figures]}",
            table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1),
        ),
        expand=True,
        console=console,
        disable=not console.is_terminal,
        # Above the bar, but where the standard error goes to a file.
        redirect_stderr=is_terminal(sys.stderr),
        transient=transient,
    )


def _add(board: "SummaryWriter", values: Mapping[str, float], step: int) -> None:
    for name, value in values.items():
        board.add_scalar(f"train/{name}", value, step)


def describe(figures: Mapping[str, float]) -> str:
    """The metrics in one line, the most important ones first: a narrow terminal cuts the rest."""
    shares = {"exact_accuracy": "exact", "token_accuracy": "tokens", "cell_accuracy": "cells"}
    shown = [f"{label} {figures[name]:.1%}" for name, label in shares.items() if name in figures]
    parts = [f"loss {short(figures['loss'])}", *shown[:1]]
    if "learning_rate" in figures:
        parts.append(f"lr {figures['learning_rate']:.1e}")
    parts += [f"step {figures['step']:.0f}", *shown[1:]]
    if "residual" in figures:
        parts.append(f"solver {figures['solver_steps']:.1f} steps, res {figures['residual']:.0e}")
    for unit in ("puzzle", "token"):
        if (rate := figures.get(f"{unit}s_per_second")) is not None:
            parts.append(f"{rate:,.0f} {unit}s/s")
    if "memory_gb" in figures:
        parts.append(f"peak {figures['memory_gb']:.1f} GB")
    return _BETWEEN.join(filter(None, [*parts, describe_validation(figures)]))


def describe_validation(figures: Mapping[str, float]) -> str:
    """What a validation found, in one line; empty without one."""
    parts = []
    if "test_exact" in figures:
        parts.append(f"held-out {figures['test_exact']:.0%}")
    if "test_bits" in figures:
        parts.append(f"held-out {figures['test_bits']:.3f} bits per byte")
    if "test_converged" in figures:
        parts.append(f"converged {figures['test_converged']:.0%}")
    if "test_radius" in figures:
        parts.append(f"radius {figures['test_radius']:.2f}")
    return _BETWEEN.join(parts)


def folded(line: str, width: int) -> list[str]:
    """Break a line of metrics between two of them, so that every part fits into a width."""
    first, *rest = line.split(_BETWEEN)
    lines = [first]
    for part in rest:
        if len(lines[-1]) + len(_BETWEEN) + len(part) <= width:
            lines[-1] += _BETWEEN + part
        else:
            lines.append("  " + part)
    return lines


def short(value: float) -> str:
    """A number with three digits that count, however small it is."""
    return f"{value:#.3g}"


def clock(seconds: float) -> str:
    """A time as minutes and seconds."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}"


def print_table(title: str, *sections: Mapping[str, str]) -> None:
    """Print a table of two columns, names and values, with a line between sections."""
    table = Table(show_header=False)
    for rows in sections:
        for name, value in rows.items():
            table.add_row(name, value)
        table.add_section()
    console = Console()
    # Not as the title of the table, which would be as narrow as that.
    lines = wrapped(title)
    console.print(lines, style="italic", markup=False, highlight=False, soft_wrap=True)
    console.print(table)


def means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each metric over the rows that have it, without values that are not finite.

    A metric that is finite in no row keeps the mean of its values.
    """
    found = {}
    for name in {name: None for row in rows for name in row}:
        values = [row[name] for row in rows if name in row]
        found[name] = fmean([value for value in values if math.isfinite(value)] or values)
    return found
