"""What a person sees while a model trains: a live bar, a log file, TensorBoard scalars."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch.utils.tensorboard.writer import SummaryWriter

# Without a terminal, a line this often (seconds) instead of a live bar.
LINE_EVERY = 15.0


class Reporter:
    """Show and store the figures of a run; use as a context manager.

    Args:
        folder: Receives `log.jsonl` and the TensorBoard event file.
        resumed_step: Where the run goes on; the log is appended to.
    """

    def __init__(self, folder: Path, resumed_step: int = 0):
        self.console = Console()
        self.log = (folder / "log.jsonl").open("a" if resumed_step else "w")
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=resumed_step or None)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.row = self.bar.add_task("train", total=1.0, figures="")
        self.next_line = time.monotonic()

    def __enter__(self) -> "Reporter":
        self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.stop()
        self.log.close()
        self.board.close()

    def show(self, figures: Mapping[str, float], progress: float, seconds_left: float) -> None:
        """Move the bar; without a terminal, print a line now and then."""
        text = describe(figures) + f" | {_clock(seconds_left)} left"
        self.bar.update(self.row, completed=progress, figures=text)
        if not self.console.is_terminal and time.monotonic() >= self.next_line:
            self.next_line = time.monotonic() + LINE_EVERY
            self.console.print(f"{progress:4.0%} {text}", highlight=False, soft_wrap=True)

    def record(self, figures: Mapping[str, float]) -> None:
        """Append a row to the log and to TensorBoard; needs `step` among the figures."""
        self.log.write(json.dumps(dict(figures)) + "\n")
        self.log.flush()
        for name, value in figures.items():
            if name != "step":
                self.board.add_scalar(f"train/{name}", value, int(figures["step"]))


def describe(figures: Mapping[str, float]) -> str:
    """One line of figures."""
    parts = [f"step {figures['step']:.0f}", f"loss {figures['loss']:.3f}"]
    shares = {"cell_accuracy": "cells", "token_accuracy": "tokens", "exact_accuracy": "exact"}
    parts += [f"{label} {figures[name]:.1%}" for name, label in shares.items() if name in figures]
    if "residual" in figures:
        parts.append(f"solver {figures['solver_steps']:.1f} steps, res {figures['residual']:.0e}")
    if "test_exact" in figures:
        parts.append(f"held-out {figures['test_exact']:.0%}")
    if "test_bits" in figures:
        parts.append(f"held-out {figures['test_bits']:.3f} bits per byte")
    return " | ".join(parts)


def print_table(title: str, rows: Mapping[str, str]) -> None:
    """A two-column table."""
    table = Table(title=title, show_header=False, title_justify="left")
    for name, value in rows.items():
        table.add_row(name, value)
    Console().print(table)


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
