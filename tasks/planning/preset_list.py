"""The presets of a task, as `--help` lists them: the size of each, and its budget."""

import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

import torch

# Of a line, on any terminal.
COLUMNS = 78


def listing(own: Mapping[str, Any], published: Iterable[str], default: str) -> str:
    """A line for each preset, and the names of those of the paper, which say their sizes.

    Args:
        own: Configurations by name.
        published: Names.
        default: The preset that a command takes if none is named.
    """
    width = max(map(len, own))
    rows = []
    for name, config in own.items():
        taken = " (the default)" if name == default else ""
        rows.append(f"  {name:<{width}}  {_size(config)}, {_budget(config)}{taken}")
    names = textwrap.fill(
        ", ".join(published), COLUMNS, initial_indent="  ", subsequent_indent="  ",
        break_on_hyphens=False,
    )  # fmt: skip
    of_paper = ["Those of the paper, for GPUs:", "", names, ""] if names else []
    return "\n".join(["Presets of `train`:", "", *rows, "", *of_paper])


def _size(config: Any) -> str:
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in config.build().parameters())
    return f"{count:>9,} parameters"


def _budget(config: Any) -> str:
    if config.train.steps is not None:
        return f"{config.train.steps:,} steps"
    return f"{config.train.minutes:g} minutes"
