"""The tables of reproduce.md: `python -m docs.reproduce_tables` plans all rows and writes the page.

The rows are those of `tasks/reproduce/rows.toml`; the plans are kept in `plans.json` beside it.
With `--page`, only the page is written, from the plans that are there.
"""

import importlib
import json
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from tasks.reproduce import GPUS, PLANS, Row, budget, cost, differences, hours, tables

PAGE = Path(__file__).parent / "reproduce.md"
# Updates of a solve that the fewer hours are for: the paper's mean was 8.4.
STEPS = 8
MARK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
FITTING = re.compile(r"`train` does so with `([^`]+)`")


def planned_rows() -> dict[str, Row]:
    """The rows that have a preset, by the names of their plans."""
    rows = [row for table in tables() for row in table.rows]
    return {row.key: row for row in rows if row.preset is not None}


def config_of(row: Row) -> Any:
    """The configuration that a row trains."""
    from tasks.flags import parse_config

    commands = importlib.import_module(f"tasks.{row.task}.__main__").commands()
    return parse_config(commands.preset(row.preset), row.flags.split(), "train")


def plan_of(row: Row) -> dict[str, Any]:
    """What the planner says of a row."""
    from tasks.planning.report import PlanOptions, report

    config = config_of(row)
    found = report(config, PlanOptions(gpus=GPUS))
    fits = [
        way for way in found["memory"] if f"Fits: {way['parallel']}, " in found["recommendation"]
    ]
    again = "with activation checkpointing" in found["recommendation"]
    (way,) = (way for way in fits if way["checkpoint"] == again)
    flags = FITTING.search(found["recommendation"])
    most = found["training"][-1]
    few = next((t for t in found["training"] if t["solver_steps"] == STEPS), most)
    return {
        "parameters": found["parameters"]["total"],
        "steps": config.train.steps,
        "budget": found["budget"],
        "unit": found["unit"],
        "flags": flags[1] if flags else "",
        "memory_gb": round(way["total"] / 1e9, 1),
        "hours": _hours(found, few),
        "most_hours": _hours(found, most),
    }


def _hours(found: dict[str, Any], training: dict[str, Any]) -> float:
    """The hours of computing alone: with prepared tokens no GPU waits for data."""
    from tasks.planning.cluster import Cluster

    flops = found["budget"] * training[f"flops_per_{found['unit']}"]
    seconds = flops / Cluster(**found["cluster"]).flops_per_second
    return float(f"{seconds / 3600:.3g}")


def page_tables() -> dict[str, str]:
    """Markdown, by the name in the page."""
    parts = []
    for table in tables():
        intro = f"Figures of the paper: {table.figures}."
        if table.differences:
            intro += f" All rows differ in: {', '.join(table.differences)}."
        parts += [f"### {table.title}", intro, _table(table.rows)]
    named = [f"| {name} | {text} |" for name, text in differences().items()]
    return {
        "rows": "\n\n".join(parts),
        "differences": "\n".join(["| name | what differs, and why |", "| --- | --- |", *named]),
    }


def _table(rows: tuple[Row, ...]) -> str:
    header = ["row", "the paper", "commands", "budget", "plan on 8 x 80 GB", "also differs in"]
    lines = [header, ["---"] * len(header), *map(_cells, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cells(row: Row) -> list[str]:
    commands = row.missing or ", then ".join(f"`{command}`" for command in row.commands)
    plan = row.plan
    if not plan:
        return [row.name, row.paper, commands, "", "", ", ".join(row.differences)]
    needs = (
        f"{plan['parameters'] / 1e6:,.4g} M parameters, {plan['memory_gb']:.0f} GB, "
        f"{hours(plan)} h, ${cost(plan)}"
    )
    size = f"{plan['steps']:,} steps, {budget(plan)}"
    return [row.name, row.paper, commands, size, needs, ", ".join(row.differences)]


def filled(text: str) -> str:
    """The page with these tables."""
    found = page_tables()
    return MARK.sub(lambda match: f"{match[1]}\n{found[match[2]]}\n\n{match[3]}", text)


def main(arguments: list[str]) -> None:
    """Plan all rows, unless it is the page alone, and write the page."""
    if "--page" not in arguments:
        rows = planned_rows()
        with ProcessPoolExecutor(2) as pool:
            found = dict(zip(rows, pool.map(plan_of, rows.values()), strict=True))
        PLANS.write_text(json.dumps(found, indent=1) + "\n")
    PAGE.write_text(filled(PAGE.read_text()))


if __name__ == "__main__":
    main(sys.argv[1:])
