"""What an Attractor language model costs: training by mode, overhead of the solve, generation."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import report
import torch
from memory import peak_of
from timing import interleaved, show
from torch import Tensor
from torch.nn import functional as F

from models import AttractorLM
from tasks.lm.config import PRESETS, LanguageConfig

pytestmark = pytest.mark.benchmark
# The refiner is a quarter of the blocks: of more, its share and all ratios would be smaller.
CONFIG = PRESETS["small"].changed(width=160, num_heads=5, backbone_blocks=3, batch_size=8)
TOKENS = 10
MODES = ("jacobian_free", "phantom", "exact")


def build(config: LanguageConfig, backward: str = "jacobian_free") -> AttractorLM:
    torch.manual_seed(0)
    model = config.changed(backward=backward).build()
    assert model.solving is not None
    return model


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (CONFIG.batch_size, CONFIG.context + 1)
    ids = torch.randint(CONFIG.vocabulary, shape, generator=generator)
    return ids[:, :-1], ids[:, 1:]


def training_step(model: AttractorLM, max_steps: int) -> Any:
    x, target = batch()
    out = model(x, max_steps=max_steps)
    F.cross_entropy(out.logits.flatten(0, 1), target.flatten()).backward()
    model.zero_grad(set_to_none=True)
    return out.solution


def save(name: str, figures: dict[str, Any]) -> None:
    path = report.folder("language") / "result.json"
    content = json.loads(path.read_text()) if path.is_file() else {}
    content[name] = figures
    path.write_text(json.dumps(content, indent=1) + "\n")


@pytest.mark.filterwarnings("ignore:The gradient is approximate")
def test_training_by_mode(benchmark: Any) -> None:
    """Time and memory over those of the one-step gradient; memory from 4 to 64 steps."""
    models = {mode: build(CONFIG, mode) for mode in MODES}
    seconds = interleaved({m: lambda m=m: training_step(models[m], 16) for m in MODES}, rounds=5)
    # A tolerance that nothing meets: every step of the budget is taken.
    endless = CONFIG.changed(rtol=0.0)
    figures = {}
    for mode in MODES:
        peak = peak_of(lambda m=mode: training_step(models[m], 16))
        model = build(endless, mode)
        few, many = (peak_of(lambda n=n, m=model: training_step(m, n)) for n in (4, 64))
        figures[mode] = {"seconds": seconds[mode], "peak_bytes": peak, "64_over_4": many / few}
    for row in figures.values():
        row["time_ratio"] = row["seconds"] / figures["jacobian_free"]["seconds"]
        row["memory_ratio"] = row["peak_bytes"] / figures["jacobian_free"]["peak_bytes"]
    keys = ("seconds", "time_ratio", "memory_ratio", "64_over_4")
    rows = [[mode, *(f"{row[key]:.3f}" for key in keys)] for mode, row in figures.items()]
    show("training step of an Attractor language model", ["mode", *keys], rows)
    save("training", figures)
    benchmark.extra_info.update(figures)
    benchmark.pedantic(lambda: None, rounds=1)


def test_overhead_of_the_solve(benchmark: Any) -> None:
    """A step over the sum of its networks' passes, each timed alone."""
    model = build(CONFIG)
    x, _ = batch()
    backbone, refiner = model.attractor.backbone, model.solving.module
    solution = training_step(model, 16)
    with torch.no_grad():
        y0 = backbone(model.vocabulary(x))

    def whole() -> None:
        model(x, max_steps=16).state.sum().backward()

    def proposal() -> None:
        backbone(model.vocabulary(x)).sum().backward()

    def forward() -> None:
        with torch.no_grad():
            refiner(y0, y0)

    def recorded() -> None:
        refiner(y0.detach().requires_grad_(), y0.detach().requires_grad_()).sum().backward()

    calls: dict[str, Callable[[], object]] = {
        "whole": whole, "proposal": proposal, "forward": forward, "recorded": recorded,
        "head": lambda: model.vocabulary.decode(y0),
    }  # fmt: skip
    t = interleaved(calls, rounds=9)
    # The recorded call is the last evaluation and the backward pass.
    parts = t["proposal"] + (solution.num_evals - 1) * t["forward"] + t["recorded"] + t["head"]
    figures = {**t, "evaluations": solution.num_evals, "overhead": t["whole"] / parts}
    header = ["whole ms", "parts ms", "overhead"]
    row = [f"{1e3 * t['whole']:.1f}", f"{1e3 * parts:.1f}", f"{figures['overhead']:.3f}"]
    show("overhead of the solve", header, [row])
    save("overhead", figures)
    benchmark.extra_info.update(figures)
    benchmark.pedantic(whole, rounds=3)


@torch.inference_mode()
@pytest.mark.parametrize("name", ["generation", "generation_small", "generation_140m"])
def test_generation(benchmark: Any, name: str) -> None:
    """Time per token at positions 50 and 500, and against solving the prefix anew at 256."""
    config = CONFIG if name == "generation" else PRESETS[name.removeprefix("generation_")]
    model = build(config.changed(context=512)).eval()
    ids = torch.randint(
        config.data.vocabulary, (1, 512), generator=torch.Generator().manual_seed(0)
    )

    def continued(position: int) -> Callable[[], None]:
        """Generate from there, a few tokens at each call."""
        empty = model.empty_cache(torch.ones(1, position, dtype=torch.bool))
        start = model.extend(ids[:, :position], empty)[1]

        def call() -> None:
            cache = start
            for t in range(position, position + TOKENS):
                _, cache = model.extend(ids[:, t : t + 1], cache)

        return call

    calls = {str(position): continued(position) for position in (50, 256, 500)}
    seconds = interleaved({**calls, "prefix": lambda: model(ids[:, :257])}, rounds=9)
    t = {position: seconds[position] / TOKENS for position in calls} | {"prefix": seconds["prefix"]}
    figures = {
        "ms_at_50": 1e3 * t["50"],
        "ms_at_500": 1e3 * t["500"],
        "500_over_50": t["500"] / t["50"],
        "prefix_over_cached_at_256": t["prefix"] / t["256"],
    }
    show(name, list(figures), [[f"{value:.3g}" for value in figures.values()]])
    save(name, figures)
    benchmark.extra_info.update(figures)
    benchmark.pedantic(lambda: None, rounds=1)
