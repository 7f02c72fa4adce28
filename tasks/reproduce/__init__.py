"""The paper's tables, row by row: the command that gives a figure, and what differs from its run.

The rows are in `rows.toml`. What the planner says of them is in `plans.json`, which
`python -m docs.reproduce_tables` writes together with docs/reproduce.md, so that neither torch nor
a model is needed to print them.
"""

import dataclasses
import functools
import json
import textwrap
import tomllib
from pathlib import Path
from typing import Any

ROWS = Path(__file__).parent / "rows.toml"
PLANS = Path(__file__).parent / "plans.json"
GPUS = 8
# Of a GPU for an hour, in dollars: an example, as in docs/scaling.md.
PRICE = 2.5
WIDTH = 79


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a table of the paper.

    Attributes:
        name: Its first column.
        paper: Its figure, or "none" where the paper has none.
        task: The package in `tasks` that trains it.
        preset: What it trains.
        flags: Further flags of `train`.
        tokens: A preset whose prepared tokens it reads, if it reads prepared ones.
        others: What is run instead of or after training.
        differences: Names of what differs from the published run, besides what differs in all rows
            of its table; see `differences`.
        missing: Why it cannot be run here; None if it can.
    """

    name: str
    paper: str
    task: str | None = None
    preset: str | None = None
    flags: str = ""
    tokens: str | None = None
    others: tuple[str, ...] = ()
    differences: tuple[str, ...] = ()
    missing: str | None = None

    @property
    def key(self) -> str:
        """The name of its plan: task, preset and those flags that change what is planned."""
        return f"{self.task} {self.preset} {self.flags}".strip()

    @property
    def plan(self) -> dict[str, Any]:
        """What the planner says of it; empty without a preset."""
        return {} if self.preset is None else plans()[self.key]

    @property
    def commands(self) -> list[str]:
        """What gives its figure, in this order."""
        if self.preset is None:
            return list(self.others)
        parts = [f"torchrun --nproc-per-node {GPUS} -m tasks.{self.task} train"]
        parts += [f"--preset {self.preset}", self.flags, self.plan["flags"]]
        if self.tokens is None:
            return [" ".join(filter(None, parts)), *self.others]
        folder = f"tokens-{self.tokens}"
        first = f"python -m tasks.{self.task} prepare {folder} --preset {self.tokens}"
        return [first, " ".join([*filter(None, parts), f"--shards {folder}"]), *self.others]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """A table of the paper.

    Attributes:
        title: What it is about.
        figures: What its figures are.
        differences: Names of what differs in all of its rows.
        rows: Its rows.
    """

    title: str
    figures: str
    differences: tuple[str, ...]
    rows: tuple[Row, ...]


@functools.cache
def _source() -> dict[str, Any]:
    return tomllib.loads(ROWS.read_text(encoding="utf-8"))


@functools.cache
def plans() -> dict[str, dict[str, Any]]:
    """The plans of all rows, by `Row.key`."""
    return json.loads(PLANS.read_text(encoding="utf-8"))


def tables() -> list[Table]:
    """All tables, in order."""
    return [
        Table(
            title=table["title"],
            figures=table["figures"],
            differences=tuple(table.get("differences", ())),
            rows=tuple(_row(row, table) for row in table["row"]),
        )
        for table in _source()["table"]
    ]


def _row(row: dict[str, Any], table: dict[str, Any]) -> Row:
    """A row, with what its table says for all of them."""
    common = {"name": row["name"], "paper": row["paper"], "missing": row.get("missing")}
    if "missing" in row:
        return Row(**common)
    preset, tokens = row.get("preset"), None
    if preset is not None and table.get("prepared"):
        tokens = row.get("tokens", preset.rpartition("-")[2])
    return Row(
        **common,
        task=table["task"],
        preset=preset,
        tokens=tokens,
        flags=" ".join(filter(None, (row.get("flags"), table.get("flags")))),
        others=tuple(row.get("commands", table.get("evaluate", ()))),
        differences=tuple(row.get("differences", ())),
    )


def differences() -> dict[str, str]:
    """What may differ from a published run, and why, by the name that rows have for it."""
    return _source()["differences"]


def planned(row: Row) -> str:
    """What a row needs, in a few words; empty without a preset."""
    if not (plan := row.plan):
        return ""
    return (
        f"{plan['parameters'] / 1e6:,.4g} M parameters, {plan['steps']:,} steps, {budget(plan)}; "
        f"planned: {GPUS} GPUs of 80 GB, {plan['memory_gb']:.0f} GB on each, {hours(plan)} h, "
        f"{cost(plan)} dollars at {PRICE} for a GPU's hour"
    )


def budget(plan: dict[str, Any]) -> str:
    """Tokens or puzzles that a run sees."""
    scale, word = (1e9, "billion") if plan["budget"] >= 1e9 else (1e6, "million")
    return f"{plan['budget'] / scale:.4g} {word} {plan['unit']}s"


def hours(plan: dict[str, Any]) -> str:
    """Planned hours: with few solver steps, and with as many as are allowed."""
    return _range(plan, 1)


def cost(plan: dict[str, Any]) -> str:
    """What these hours cost, in dollars, at a price of PRICE for a GPU's hour."""
    return _range(plan, GPUS * PRICE)


def _range(plan: dict[str, Any], factor: float) -> str:
    few, most = (_rounded(factor * plan[name]) for name in ("hours", "most_hours"))
    return few if few == most else f"{few} to {most}"


def _rounded(value: float) -> str:
    return f"{value:.2g}" if value < 10 else f"{value:,.0f}"


def listing() -> str:
    """All of it, for a terminal."""
    lines: list[str] = []

    def add(text: str, indent: int = 0) -> None:
        lines.extend(
            textwrap.wrap(
                text,
                WIDTH,
                initial_indent=" " * indent,
                subsequent_indent=" " * (indent + 2),
                break_long_words=False,
                break_on_hyphens=False,
            )
        )

    for table in tables():
        add(f"{table.title} ({table.figures})")
        if table.differences:
            add(f"All rows differ in: {', '.join(table.differences)}")
        for row in table.rows:
            lines.append("")
            add(f"{row.name}; the paper: {row.paper}", 2)
            if row.missing is not None:
                add(row.missing, 4)
            lines.extend(f"    {command}" for command in row.commands)
            if text := planned(row):
                add(text, 4)
            if row.differences:
                add(f"also differs in: {', '.join(row.differences)}", 4)
        lines += ["", ""]
    add("What differs from the published runs, and why")
    for name, text in differences().items():
        lines.append("")
        add(f"{name}: {text}", 2)
    return "\n".join(lines)
