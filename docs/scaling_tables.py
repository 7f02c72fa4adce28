"""The tables of scaling.md: `python -m docs.scaling_tables` writes them into the page.

They are plans, not measurements. A test computes them anew and compares.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from tasks.lm.config import PRESETS
from tasks.planning.cluster import Cluster, duration, fits, recommend, scaling
from tasks.planning.plan import Plan

PAGE = Path(__file__).parent / "scaling.md"
SIZES = ("140m", "370m", "770m", "1.3b")
# Updates that the paper's ablation needed on average, rounded, and the budget.
STEPS = 8
COUNTS = (1, 8, 64, 256, 512, 1024)
MARK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def tables() -> dict[str, str]:
    """Markdown, by the name in the page."""
    attractors = {name: Plan(PRESETS[name]) for name in SIZES}
    return {
        "plans": _table(
            ["preset", "parameters", "runs as", "memory, GB", "GFLOP per token, 8 steps",
             "most steps", "tokens per second, 8 steps", "tokens, billions", "days, 8 steps",
             "most steps"],
            [_plan(name, found) for name, found in attractors.items()],
        ),
        "check": _table(
            ["preset", "N, millions", "6 N, GFLOP", "attention, GFLOP", "counted, GFLOP", "off"],
            [_check(name) for name in SIZES],
        ),
        "scaling": _table(
            ["preset", "GPUs", "sequences", "compute, s", "DDP sends, GB", "FSDP sends, GB",
             "DDP, share of compute", "FSDP, likewise"],
            [row for name in ("140m", "1.3b") for row in _scaling(name, attractors[name])],
        ),
    }  # fmt: skip


def _plan(name: str, found: Plan) -> list[str]:
    config, cluster = PRESETS[name], Cluster()
    chosen, _ = recommend(found, cluster, fits(found, cluster))
    assert chosen is not None
    assert config.train.steps is not None
    at = chosen.memory
    again = ", checkpointing" if at.checkpoint else ""
    tokens = config.train.steps * config.train.batch_size * config.data.context
    few, many = (
        duration(found, cluster, n, tokens, at.checkpoint)
        for n in (STEPS, found.config.train_steps)
    )
    return [
        f"`{name}`", f"{found.num_parameters / 1e6:.1f} M",
        f"{at.parallel}{again}, {chosen.parts} x {at.micro_batch}", f"{at.total / 1e9:.1f}",
        f"{few['flops_per_token'] / 1e9:.2f}", f"{many['flops_per_token'] / 1e9:.2f}",
        f"{few['tokens_per_second']:,}", f"{tokens / 1e9:.1f}", f"{few['days']:.2g}",
        f"{many['days']:.2g}",
    ]  # fmt: skip


def _check(name: str) -> list[str]:
    """The Transformer's operations by formula and as counted."""
    config = PRESETS[name].changed(model="transformer")
    found = Plan(config)
    blocks = config.model.backbone_blocks + config.model.refiner_blocks
    dense = 6 * found.num_parameters
    # Scores and mixing, 2 T D each: once forward, and two and a half times backward.
    attention = 14 * blocks * config.data.context * config.model.width
    counted = found.flops() / found.config.units_per_sample
    return [
        f"`{name}`", f"{found.num_parameters / 1e6:.1f}", f"{dense / 1e9:.3f}",
        f"{attention / 1e9:.3f}", f"{counted / 1e9:.3f}",
        f"{abs(counted / (dense + attention) - 1):.2%}",
    ]  # fmt: skip


def _scaling(name: str, found: Plan) -> list[list[str]]:
    return [
        [
            f"`{name}`", str(row["gpus"]), str(row["batch"]), f"{row['compute_seconds']:.3g}",
            f"{row['ddp_bytes'] / 1e9:.2f}", f"{row['fsdp_bytes'] / 1e9:.2f}",
            f"{row['ddp_share']:.1%}", f"{row['fsdp_share']:.1%}",
        ]
        for row in scaling(found, Cluster(), STEPS, COUNTS)
    ]  # fmt: skip


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def filled(text: str, found: Mapping[str, str]) -> str:
    """The page with these tables."""
    return MARK.sub(lambda match: f"{match[1]}\n{found[match[2]]}\n\n{match[3]}", text)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(), tables()))
