"""The presets: sizes as their names say."""

import math
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

import implicit
from implicit.base import SolveContext
from implicit.modes.adjoint import adjoint_solver
from solvers import Anderson
from tasks.experiments.compare import matched
from tasks.lm.commands import LanguageCommands
from tasks.lm.config import PRESETS
from tasks.lm.networks import ModelName
from tasks.training.optimizers import build_optimizers

# Parameters as released; the last is called so for its tokens.
PUBLISHED = {
    "60m": 60_305_280, "140m": 134_237_184, "370m": 376_226_560, "770m": 769_493_760,
    "1.3b": 786_522_624,
}  # fmt: skip
# Width, blocks of backbone and refiner, billions of tokens, tolerance and most solver steps.
RELEASED = {
    "60m": (640, 7, 1, 1.0, 3e-4, 64),
    "140m": (1024, 7, 1, 11.2, 3e-4, 64),
    "370m": (1280, 15, 2, 29.6, 2e-4, 64),
    "770m": (1280, 35, 2, 61.6, 1.5e-4, 32),
    "1.3b": (1536, 23, 3, 104.0, 1e-4, 64),
}
# Least number of solver steps: `min_iter`.
LEAST = {"60m": 6, "140m": 6, "370m": 8, "770m": 6, "1.3b": 8}
# Largest value and start of the refiner's gates: `gamma_max` and `layer_scale_init`.
GATES = {
    "60m": (0.75, 0.75), "140m": (0.75, 0.75), "370m": (1.0, 0.75), "770m": (0.9, 0.73),
    "1.3b": (1.0, 0.5),
}  # fmt: skip
# Muon's rate.


# Of the released configurations of the baselines: parameters, width, blocks, billions of tokens.
BASELINES = {
    "transformer-140m": (143_141_184, 768, 6, 11.2),
    "transformer-370m": (385_903_104, 1024, 12, 29.6),
    "transformer-770m": (773_375_040, 1280, 18, 61.6),
    "transformer-1.3b": (1_333_868_544, 1536, 24, 104.0),
    "parcae-140m": (144_323_136, 768, 6, 11.2),
    "parcae-370m": (388_003_328, 1024, 12, 29.6),
    "parcae-770m": (776_655_680, 1280, 18, 61.6),
    "parcae-1.3b": (1_338_591_744, 1536, 24, 104.0),
}


@pytest.mark.parametrize("name", BASELINES)
def test_published_baselines_are_those_released(name: str) -> None:
    config, (count, width, blocks, billions) = PRESETS[name], BASELINES[name]
    with torch.device("meta"):
        model: Any = config.build()
    assert sum(p.numel() for p in model.parameters()) == count
    spec, train = config.spec(), config.train
    assert (spec.width, spec.backbone_blocks + spec.refiner_blocks) == (width, blocks)
    assert (spec.rope_base, spec.initial, spec.norm_embedding) == (5e4, "released", False)
    assert (spec.norm_eps, spec.value_embeddings) == (1e-5, True)
    assert spec.width == 128 * spec.num_heads
    assert train.steps is not None
    tokens = train.steps * train.batch_size * config.data.context
    assert tokens == pytest.approx(billions * 1e9, rel=1e-3)
    assert (train.optimizer, train.learning_rate, train.weight_decay) == ("normuon", 8e-3, 0.2)
    assert train.adamw_rate == (0.75 if blocks >= 18 else 1.0)
    if name.startswith("parcae"):
        thirds = {len(part) for part in (model.prelude, model.blocks, model.coda)}
        assert thirds == {blocks // 3}
        assert (model.loops, model.recorded) == (8, 4)
        assert model.released is not None


@pytest.mark.parametrize("size", ["140m", "370m", "770m", "1.3b"])
@pytest.mark.parametrize("model", ["transformer", "parcae"])
def test_baselines_of_equal_size_have_the_blocks_of_the_attractor(model: str, size: str) -> None:
    equal, attractor = PRESETS[f"equal-{model}-{size}"], PRESETS[size]
    names = ("width", "num_heads", "backbone_blocks", "refiner_blocks", "rope_base", "norm_eps")
    for name in names:
        assert getattr(equal.model, name) == getattr(attractor.model, name)
    assert not equal.model.value_embeddings
    assert getattr(equal.model, "recurrence", "plain") == "plain"
    assert equal.train.steps == attractor.train.steps


@pytest.mark.parametrize("name", ["transformer-140m", "parcae-140m"])
def test_matrices_of_the_released_baselines_are_muon_s_within_blocks(name: str) -> None:
    config = PRESETS[name]
    with torch.device("meta"):
        model = config.build()
    muon, adamw = build_optimizers(model, config)
    owners = {id(p): name for name, p in model.named_parameters()}
    named = lambda optimizer: {  # noqa: E731
        owners[id(p)] for group in optimizer.param_groups for p in group["params"]
    }
    assert all(".blocks." in each or each.startswith("blocks.") for each in named(muon))
    assert any("value_gate" in each for each in named(muon))
    assert {each for each in owners.values() if each.startswith("values.")} <= named(adamw)
    assert {each for each in owners.values() if each.startswith("released.")} <= named(adamw)


def parameters(name: str, model: ModelName) -> int:
    config = matched(PRESETS[name], model=model, mixer="attention")
    with torch.device("meta"):
        return sum(p.numel() for p in config.build().parameters())


@pytest.mark.parametrize("model", get_args(ModelName))
@pytest.mark.parametrize("name", PUBLISHED)
def test_baselines_are_as_large_as_the_released_attractor(name: str, model: ModelName) -> None:
    assert parameters(name, model) == pytest.approx(PUBLISHED[name], rel=0.05)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_are_those_released(name: str) -> None:
    config, (width, backbone, refiner, billions, rtol, most) = PRESETS[name], RELEASED[name]
    with torch.device("meta"):
        assert sum(p.numel() for p in config.build().parameters()) == PUBLISHED[name]
    spec, solve = config.spec(), config.solve
    assert (spec.width, spec.backbone_blocks, spec.refiner_blocks) == (width, backbone, refiner)
    assert spec.width == 128 * spec.num_heads
    assert config.train.steps is not None
    tokens = config.train.steps * config.train.batch_size * config.data.context
    assert tokens == pytest.approx(billions * 1e9, rel=1e-3)
    assert (solve.rtol, solve.train_max_steps, solve.eval_max_steps) == (rtol, most, most)
    assert getattr(solve.evaluation_solver(), "min_steps", None) == LEAST[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_begin_as_those_released(name: str) -> None:
    spec = PRESETS[name].spec()
    assert (spec.gate, spec.gate_start) == GATES[name]
    for model in get_args(ModelName):
        other = PRESETS[name].adapted(model=model).spec()
        assert (other.rope_base, other.initial, other.norm_embedding) == (5e4, "released", False)
        assert other.norm_eps == 1e-5


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_gradient_is_two_terms_or_an_adjoint_solve(name: str) -> None:
    mode = PRESETS[name].solve.backward_mode()
    assert mode == (implicit.get_backward("exact") if name == "770m" else implicit.Neumann(terms=1))


def test_the_adjoint_solve_of_770m_is_the_released_one() -> None:
    """`attractor-large-770m.py` of jacobfa/Attractor: `backward_type` and what follows it."""
    config = PRESETS["770m"]
    with torch.device("meta"):
        layer: Any = config.build().solving
    context = SolveContext(solver=layer.solver, max_steps=config.train_steps)
    mode = layer.backward_mode
    solver, budget = adjoint_solver(mode.solver, mode.max_steps, context)
    assert isinstance(solver, Anderson)
    assert (solver.history, solver.min_steps, budget) == (5, 6, 32)
    assert solver.rtol == pytest.approx(1.5e-4, rel=1e-3)  # with the atol of the forward solve


def test_the_smallest_published_size_is_the_paper_s() -> None:
    config = PRESETS["140m"]
    spec = config.spec()
    assert (spec.width, spec.num_heads, spec.backbone_blocks, spec.refiner_blocks) == (
        1024,
        8,
        7,
        1,
    )
    assert config.train.steps is not None
    assert config.train.steps * config.train.batch_size * config.data.context == pytest.approx(
        11.2e9, rel=1e-4
    )
    # Embedding, a norm at the end, and eight blocks of attention, MLP and two norms; two gates.
    block = (4 + 8) * 1024**2 + 2 * 1024
    assert parameters("140m", "attractor") == 32_768 * 1024 + 1024 + 8 * block + 2 * 1024


@pytest.mark.slow
@pytest.mark.long  # four minutes each
@pytest.mark.parametrize("autocast", [False, True])
def test_three_steps_of_the_smallest_published_size(tmp_path: Path, autocast: bool) -> None:
    from tasks.experiments.run import train
    from tasks.lm.experiment import TextExperiment

    config = PRESETS["140m"].adapted(
        steps=3, batch_size=2, context=64, max_bytes=3_000_000, compile=False,
        autocast=autocast, vocabulary=8192, device="cpu",
        dataset=None, dataset_name=None,
    )  # fmt: skip
    trainer, _, result = train(TextExperiment(), "140m", config, tmp_path)
    assert result["train_steps"] == 3
    assert all(row["loss"] < 30 for row in trainer.history.rows)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The gradient is approximate")  # exact, in 32 steps
@pytest.mark.parametrize(
    "name", [*(name for name, preset in PRESETS.items() if preset.data.dataset), "deq-60m"]
)
def test_three_steps_in_bfloat16_of_a_published_recipe(tmp_path: Path, name: str) -> None:
    """A small network, with the solver, gradient, optimiser and schedule of the preset."""
    from tasks.experiments.run import train
    from tasks.lm.experiment import TextExperiment

    preset = LanguageCommands().preset(name)
    config = preset.adapted(
        width=64, num_heads=2, backbone_blocks=2, refiner_blocks=1, vocabulary=257, context=32,
        steps=3, batch_size=4, max_bytes=100_000, eval_tokens=256, compile=False, device="cpu",
        threads=1, dataset=None, dataset_name=None,
    )  # fmt: skip
    assert config.train.autocast
    assert config.solve == preset.solve
    for option in ("optimizer", "schedule", "learning_rate", "adamw_rate", "weight_decay"):
        assert getattr(config.train, option) == getattr(preset.train, option)
    trainer, _, result = train(TextExperiment(), name, config, tmp_path)
    assert result["train_steps"] == 3
    first, *_, last = trainer.history.rows
    # A byte that is guessed costs log 257, and held-out text costs less after each step here.
    assert first["loss"] == pytest.approx(math.log(257), abs=0.7)
    assert last["test_loss"] < first["test_loss"] < first["loss"]
    if config.solve.eval_max_steps is not None:
        assert last["test_converged"] > 0.9
        assert last["test_steps"] < config.solve.eval_max_steps
